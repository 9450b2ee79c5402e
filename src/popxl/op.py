"""What an op *is*: its definition (shared by all ops of a type) and one op in a graph.

Passes ask a definition for its effects, never for its name. Nothing here imports JAX: a definition only
*holds* the functions that do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from popxl.context import SourceLocation, get_current_context, get_source_location
from popxl.tensorlocation import ExecutionContext

if TYPE_CHECKING:
    from popxl import dtypes
    from popxl.graph import Graph
    from popxl.tensor import Tensor


class Effect(Enum):
    """What an op does besides computing its outputs. Effects happen in program order."""

    HOST_LOAD = "takes the next item of a host stream"
    HOST_STORE = "appends an item to a host stream"
    REMOTE_LOAD = "reads an entry of a remote buffer"
    REMOTE_STORE = "writes an entry of a remote buffer"
    PRINT = "prints to stderr"
    CHECK = "stops the run if a value is out of range"


class Control(Enum):
    """How an op runs the graphs it calls."""

    CALL = "once"
    LOOP = "a fixed number of times"
    BRANCH = "one of two"


class Across(Enum):
    """What an op that sees the values of all replicas gives each of them; the others know only their own."""

    SAME = "the members of a group get the same"
    OWN = "each member of a group gets its own"


@dataclass(frozen=True, slots=True)
class ShapeDtype:
    """Shape and dtype of one tensor, as shape rules see it."""

    shape: tuple[int, ...]
    dtype: dtypes.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Gradient:
    """How the gradients of an op's inputs follow from those of its outputs.

    The default is the mathematical one: the transpose of the lowering's derivative.

    Attributes:
        rule: A gradient that is not the mathematical one, or that saves work by using the outputs:
            ``(grads, inputs, outputs, **attributes)``, sequences of arrays, to one gradient per input (None for
            none). The gradient of an output that nobody asks for is zeros; of one that is no float, None.
        wrt: Inputs that have a gradient; None for all whose dtype is float.
        emit: For a gradient that does more than compute: ``(op, grads, wrt)`` adds ops to the current graph and
            returns the gradients, with no need of forward tensors. `rule` is not asked then.
        refusal: Why there is none, where asking for one is an error.
    """

    rule: Callable[..., Sequence[Any]] | None = None
    wrt: tuple[int, ...] | None = None
    emit: Callable[[Op, Mapping[int, Tensor], tuple[int, ...]], tuple[Tensor, ...]] | None = None
    refusal: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class OpDefinition:
    """Everything about one type of op, described in one place.

    Attributes:
        type: The reference's name of the op, unless `reference_type` has that.
        infer: Shape and dtype of each output, from those of the inputs and the attributes.
        lower: Arrays in, arrays out; None for transfers and control flow, which the runtime performs.
            Results beyond the op's outputs are the new values of `Op.mutates` that no output aliases.
        mutates: Inputs overwritten with the result; output k aliases input ``mutates[k]``.
        unread: Inputs whose value does not matter (a buffer that is filled).
        put: For views only: the new values of the inputs, given the new value of the output.
        host: The same op in NumPy, for integers that the plan evaluates on the host (offsets, conditions).
        effect: What it does besides computing.
        control: How it runs the graphs it calls.
        across: What it gives the members of each group of replicas; None for an op of one replica. Arrays that
            ``lower`` takes and returns then have one more axis in front, over all replicas, and the attribute
            ``members`` has the replicas of each group, by rank.
        optimizer: Whether it belongs to an optimiser's update.
        first_input: Number of the first input at a call site (a loop's first two are not connected).
        gradient: Gradients of the inputs; None if there are none, and others count.
        reference_type: The reference's name of the op, where several types have the same.
    """

    type: str
    infer: Callable[..., tuple[ShapeDtype, ...]]
    lower: Callable[..., Any] | None = None
    mutates: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()
    put: Callable[..., tuple[Any, ...]] | None = None
    host: Callable[..., Any] | None = None
    effect: Effect | None = None
    control: Control | None = None
    across: Across | None = None
    optimizer: bool = False
    first_input: int = 0
    gradient: Gradient | None = None
    reference_type: str = ""

    @property
    def is_view(self) -> bool:
        """Whether the output shares the storage of the inputs."""
        return self.put is not None

    def __repr__(self) -> str:
        return f"OpDefinition[{self.type}]"


def as_results(result: Any) -> tuple[Any, ...]:
    """Return what a lowering returned as a tuple: one array stands for itself."""
    return tuple(cast("tuple[Any, ...]", result)) if isinstance(result, tuple) else (result,)


@dataclass(slots=True, eq=False)
class Op:
    """One op of a graph.

    Attributes:
        definition: What all ops of this type share.
        graph: The graph it belongs to.
        inputs: Tensors it takes, in order.
        attributes: Values fixed when it was made. They are hashable.
        called_graphs: Graphs it calls.
        outputs: Tensors it makes, in order.
        mutates: Inputs it overwrites.
        aliases: Inputs whose storage output 0 shares (empty for a fresh output).
        ipu: The IPU it is placed on.
        ipus: The IPU of each input, and of the output with the same number, of an op on several; else empty.
        tile_set: ``"compute"`` or ``"io"``.
        source_place: IPU and tile set of the inputs, of copies that take them from another place; else None.
        after: Ops that `in_sequence` puts before it.
        api: The public function that made it.
        location: The user's line that made it.
    """

    definition: OpDefinition
    graph: Graph
    inputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]
    called_graphs: tuple[Graph, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    mutates: tuple[int, ...] = ()
    aliases: tuple[int, ...] = ()
    ipu: int = field(default=0)
    ipus: tuple[int, ...] = ()
    tile_set: str = "compute"
    source_place: tuple[int, str] | None = None
    execution_context: ExecutionContext = ExecutionContext.Normal
    after: tuple[Op, ...] = ()
    api: str = ""
    location: SourceLocation = field(default_factory=get_source_location)

    def __post_init__(self) -> None:
        context = get_current_context()
        self.attributes = MappingProxyType(dict(self.attributes))
        self.ipu = context.ipu
        self.tile_set = "io" if context.io_tiles else "compute"
        self.execution_context = context.execution_context
        if context.api_names:
            self.api = context.api_names[-1]
        self.after = context.order_after(self)

    @property
    def type(self) -> str:
        """The reference's name of this kind of op."""
        return self.definition.type

    @property
    def where(self) -> str:
        """The op and the user's line, for error messages."""
        graph = self.graph.name or "the main graph"
        return f"{self.type} in {graph}, made at {self.location}"

    def read_inputs(self) -> tuple[Tensor, ...]:
        """The inputs whose value this op needs."""
        unread = self.definition.unread
        return tuple(t for i, t in enumerate(self.inputs) if i not in unread) if unread else self.inputs

    def written(self) -> tuple[Tensor, ...]:
        """The tensors that this op gives a value: its outputs, then the inputs that it overwrites."""
        return (*self.outputs, *(self.inputs[i] for i in self.mutates))

    def become(self, definition: OpDefinition, inputs: tuple[Tensor, ...]) -> None:
        """Turn into an op of another type without attributes, on other inputs; its outputs stay."""
        for t in self.inputs:
            t.consumers.remove(self)
        self.definition, self.inputs, self.attributes = definition, inputs, MappingProxyType({})
        for t in inputs:
            t.consumers.append(self)

    def __repr__(self) -> str:
        ins = ", ".join(t.id for t in self.inputs)
        outs = ", ".join(t.id for t in self.outputs)
        return f"Op[{self.type} ({ins}) -> ({outs})]"

    # Names that companion libraries of the reference use.

    def opType(self) -> str:  # noqa: N802
        """Return the reference's name of `type`."""
        return self.definition.reference_type or self.type

    def inTensor(self, index: int) -> Tensor:  # noqa: N802
        """Return the input with the call site's number `index`."""
        return self.inputs[index - self.definition.first_input]

    def outTensor(self, index: int) -> Tensor:  # noqa: N802
        """Return output `index`."""
        return self.outputs[index]

    def modifiesIndex(self, index: int) -> bool:  # noqa: N802
        """Whether the input with the call site's number `index` is overwritten."""
        return index - self.definition.first_input in self.mutates

    def isOptimizerOp(self) -> bool:  # noqa: N802
        """Whether the op belongs to an optimiser's update."""
        return self.definition.optimizer
