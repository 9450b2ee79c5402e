"""The plan: what the executor walks. Values live in numbered slots, one frame of slots per running graph."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

from popxl.op import Op
from popxl.plan.replicas import ONE_REPLICA, Replicas
from popxl.tensor import Constant, Tensor


@dataclass(frozen=True, slots=True)
class Transferred:
    """The new value that an op performed by the executor gives to its input `index`, a view, before it is written."""

    op: Op
    index: int

    @property
    def tensor(self) -> Tensor:
        """The view."""
        return self.op.inputs[self.index]


@dataclass(frozen=True, slots=True)
class Assign:
    """Inside a segment: write a transferred value through the view."""

    source: Transferred


#: What a slot holds: the storage of a tensor, the value of a view, or a transferred result.
Value: TypeAlias = Tensor | Transferred


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A run of pure ops that XLA compiles as one function.

    Attributes:
        items: The ops, in program order.
        inputs: What the function takes.
        outputs: What the function returns: storages, and values of views.
        donated: Positions of inputs whose memory the outputs may reuse.
        key: Equal for segments that compute the same; they share one executable.
        replicas: Which values have an axis over replicas.
        ipu: The IPU whose device runs it; 0 where one device runs all.
    """

    items: tuple[Op | Assign, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    donated: tuple[int, ...]
    key: Hashable
    replicas: Replicas = ONE_REPLICA
    ipu: int = 0


@dataclass(frozen=True, slots=True)
class Compute:
    """Run a segment's executable."""

    segment: Segment
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Compute one op of integers on the host, with NumPy."""

    op: Op
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True, slots=True)
class HostLoad:
    """Take the next item of a host stream."""

    op: Op
    output: int


@dataclass(frozen=True, slots=True)
class HostStore:
    """Append an item to a host stream."""

    op: Op
    input: int


@dataclass(frozen=True, slots=True)
class Print:
    """Print a value; the output is the same value."""

    op: Op
    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Check:
    """Stop the run if a value is out of range."""

    op: Op
    input: int


@dataclass(frozen=True, slots=True)
class RemoteLoad:
    """Load a row of a remote buffer. `waits`: the offset comes from the device, so the host waits for it."""

    op: Op
    buffer_id: int
    offset: int
    output: int
    waits: bool


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """Store a row of a remote buffer. `waits` as for `RemoteLoad`."""

    op: Op
    buffer_id: int
    offset: int
    input: int
    waits: bool


@dataclass(frozen=True, slots=True)
class Call:
    """Run another graph's plan in a frame of its own.

    Attributes:
        op: The op.
        body: The plan.
        inputs: Slots of the arguments.
        outputs: Slot of each output; -1 where nobody wants it.
        written_back: For each input that the graph overwrites: its position, and the slot that takes the
            final value.
        released: Slots that nobody needs after the call; freed once the callee has them.
    """

    op: Op
    body: GraphPlan
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    written_back: tuple[tuple[int, int], ...]
    released: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """Run a call `count` times; output k + 1 of an iteration is input k + 2 of the next (see `popxl.ops.repeat`)."""

    call: Call
    count: int


@dataclass(frozen=True, slots=True)
class Branch:
    """Run one of two calls. `waits`: the condition comes from the device."""

    op: Op
    condition: int
    then_call: Call
    else_call: Call
    waits: bool


@dataclass(frozen=True, slots=True)
class Free:
    """Drop values that nobody needs any more."""

    slots: tuple[int, ...]


Step: TypeAlias = (
    Compute | Evaluate | HostLoad | HostStore | Print | Check | RemoteLoad | RemoteStore | Call | Loop | Branch | Free
)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GraphPlan:
    """How one graph runs.

    Attributes:
        name: The graph's name.
        slot_count: Size of a frame.
        inputs: Slot of each input.
        outputs: Slot of each output.
        constants: Slots to fill with constants before the first step.
        variables: Slots of the main graph's variables and shards, which persist between runs.
        steps: What to do, in order.
        shared_inputs: Positions of inputs whose memory something else may hold afterwards.
        owned_inputs: Positions of inputs whose final value nothing else shares.
        owned_outputs: Positions of outputs whose value nothing else shares.
        replicas: Which values have an axis over replicas.
    """

    name: str
    slot_count: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: tuple[tuple[int, Constant], ...]
    variables: tuple[tuple[int, Tensor], ...]
    steps: tuple[Step, ...]
    shared_inputs: frozenset[int]
    owned_inputs: frozenset[int]
    owned_outputs: frozenset[int]
    replicas: Replicas = ONE_REPLICA

    def __repr__(self) -> str:
        return f"GraphPlan[{self.name or 'main'} steps={len(self.steps)}]"

    def __str__(self) -> str:
        from popxl.plan.text import plan_text

        return plan_text(self)


def called_plans(step: Step) -> list[GraphPlan]:
    """Return the plans that a step runs."""
    match step:
        case Call():
            return [step.body]
        case Loop():
            return [step.call.body]
        case Branch():
            return [step.then_call.body, step.else_call.body]
        case _:
            return []
