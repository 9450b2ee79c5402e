"""The device memory of a program at its peak, and what it consists of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from popxl.aliasing import storage_roots
from popxl.op import Op
from popxl.plan.memory_walk import Analysis, FrameWalk, Made, Moment, value_bytes
from popxl.plan.replicas import Replicas
from popxl.plan.steps import (
    Assign,
    Compute,
    Free,
    GraphPlan,
    Loop,
    RemoteLoad,
    RemoteStore,
    Segment,
    Step,
    Transferred,
    called_plans,
)
from popxl.plan.text import _step_text  # pyright: ignore[reportPrivateUsage]
from popxl.tensor import Tensor, Variable


@dataclass(frozen=True, slots=True)
class Live:
    """A value that lives at the peak.

    Attributes:
        bytes: Its size.
        name: The tensor's id.
        where: The op that made it and the user's line; for variables and constants, an op that uses them.
        step: The plan's step that made it; empty for what is there from the start.
        is_fixed: Whether it is a variable or constant that lies on the device during the whole run.
    """

    bytes: int
    name: str
    where: str
    step: str
    is_fixed: bool = False


@dataclass(frozen=True, slots=True)
class Footprint:
    """The device memory of one run at its peak.

    Attributes:
        peak_bytes: The sum of the sizes in `live`, and `temporary_bytes`.
        live: What lives at the peak, largest first.
        temporary_bytes: What the executable that runs at the peak wants for itself.
        step: The plan's step at the peak; empty if nothing takes more than what is there from the start.
        where: The op of that step, or the last one of its segment, and the user's line.
        is_bound: Whether the peak may be a little less: the two sides of a branch share memory differently.
    """

    peak_bytes: int
    live: tuple[Live, ...]
    temporary_bytes: int
    step: str
    where: str
    is_bound: bool

    @property
    def fixed_bytes(self) -> int:
        """Of variables and constants that lie on the device during the whole run."""
        return sum(value.bytes for value in self.live if value.is_fixed)


def row_bytes(step: RemoteLoad | RemoteStore, replicas: Replicas) -> int:
    """Bytes that a step moves: a row of its buffer, of each replica here if they have rows of their own."""
    buffer = step.op.attributes["buffer"]
    copies = replicas.local if step.buffer_id in replicas.buffers else 1
    return copies * math.prod(buffer.tensor_shape) * buffer.tensor_dtype.storage.itemsize


def reachable_plans(plan: GraphPlan) -> Iterator[GraphPlan]:
    """Yield a plan and those that it calls, each once."""
    seen: set[int] = set()
    stack = [plan]
    while stack:
        current = stack.pop()
        if id(current) not in seen:
            seen.add(id(current))
            yield current
            stack += [body for step in current.steps for body in called_plans(step)]


def fixed_values(plan: GraphPlan, resident: Iterable[Tensor]) -> list[Tensor]:
    """What lies on the device during the whole run besides the variables that the plan uses: constants, and the rest.

    Args:
        plan: The plan of the main graph.
        resident: Variables that lie on the device.
    """
    constants = [c for p in reachable_plans(plan) for _, c in p.constants if value_bytes(c, plan.replicas)]
    used = {v for _, v in plan.variables}
    return [t for t in dict.fromkeys([*constants, *resident]) if t not in used]


def device_footprint(
    plan: GraphPlan, temporary_bytes: Callable[[Segment], int], resident: Iterable[Tensor] = ()
) -> Footprint:
    """Return what one run of a program needs on the device.

    Counted are the values in slots, the variables (also their values before the run, until a segment reuses their
    memory), each constant once, the outputs of a running executable and its temporaries. Not counted are rows that
    Streaming Memory keeps, host outputs that wait to be fetched, and integers that the host computes.

    Args:
        plan: The plan of the main graph.
        temporary_bytes: What the executable of a segment wants besides its inputs and outputs.
        resident: Variables that lie on the device; those that no step uses count too.
    """
    analysis = Analysis(temporary_bytes)
    fixed = fixed_values(plan, resident)

    def walk(stop: Moment | None) -> FrameWalk:
        frame = FrameWalk(analysis, plan, stop)
        for t in fixed:
            frame.new(value_bytes(t, plan.replicas), Made(t), held=True)
        for slot, v in plan.variables:
            frame.bind(slot, frame.new(value_bytes(v, plan.replicas), Made(v), held=True))
        frame.walk()
        return frame

    frame = walk(None)
    snapshot = walk(frame.at).snapshot
    assert snapshot is not None
    return Footprint(
        frame.peak,
        tuple(sorted((_live(n, made) for n, made in snapshot.values if n), key=lambda live: -live.bytes)),
        snapshot.temporary_bytes,
        "" if snapshot.step is None else _step_text(snapshot.step),
        "" if snapshot.step is None else _step_where(snapshot.step),
        frame.is_bound,
    )


def _step_where(step: Step) -> str:
    if isinstance(step, Compute):
        items = step.segment.items
        return _item_op(items[-1]).where if items else ""
    if isinstance(step, Loop):
        return step.call.op.where
    return "" if isinstance(step, Free) else step.op.where


def _item_op(item: Op | Assign) -> Op:
    return item.source.op if isinstance(item, Assign) else item


def _live(nbytes: int, made: Made) -> Live:
    value, step = made.value, made.step
    t = value.tensor if isinstance(value, Transferred) else value
    if step is not None:
        return Live(nbytes, t.id, _made_where(t, step), _step_text(step))
    kind = "a variable" if isinstance(t, Variable) else "a constant"
    user = next((op for op in t.consumers if not op.definition.is_view), None)
    return Live(nbytes, t.id, f"{kind}, used by {user.where}" if user else kind, "", is_fixed=True)


def _made_where(t: Tensor, step: Step) -> str:
    """The op that gave `t` its value in a step: of a segment, the last one that writes to it."""
    if not isinstance(step, Compute):
        return _step_where(step)
    for item in reversed(step.segment.items):
        written = [item.source.tensor] if isinstance(item, Assign) else item.written()
        if any(root is t.storage for w in written for root in storage_roots(w)):
            return _item_op(item).where
    return _step_where(step) if t.producer is None else t.producer.where
