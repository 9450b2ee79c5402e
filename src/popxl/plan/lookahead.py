"""The transfers of a run before they happen: a second walk over the plan that computes only what the host can.

Offsets depend on constants, loop counters and items of host streams (`popxl.plan.host_values`), so the walk can be
any distance ahead of the run. Where an offset comes from the device it reports the transfer with the entry
unknown; where a branch does, it waits to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from popxl.plan.slots import pass_arguments, take_outputs
from popxl.plan.steps import (
    Branch,
    Call,
    Evaluate,
    GraphPlan,
    HostLoad,
    Loop,
    RemoteLoad,
    RemoteStore,
    Step,
    called_plans,
)
from popxl.streams import Stream


@dataclass(frozen=True, slots=True)
class ComingLoad:
    """A load of a row. `entry` is None where only the device knows it; it is not checked against the buffer."""

    buffer_id: int
    entry: int | None


@dataclass(frozen=True, slots=True)
class ComingStore:
    """A store of a row; `entry` as for `ComingLoad`."""

    buffer_id: int
    entry: int | None


@dataclass(frozen=True, slots=True)
class ComingBranch:
    """A branch that only the device can decide: the walk wants `send(taken)` before it goes on."""


#: Buffer and entry.
Row: TypeAlias = tuple[int, int]
Coming: TypeAlias = ComingLoad | ComingStore | ComingBranch
#: The n-th item of an input stream in this run, as one number.
StreamItem: TypeAlias = Callable[[Stream, int], Any]
Walk: TypeAlias = Generator[Coming, bool | None, None]
_Frame: TypeAlias = list[Any]


def lookahead(plan: GraphPlan, item: StreamItem) -> Walk:
    """Yield the transfers of one run in program order.

    Args:
        plan: The plan of the main graph.
        item: Gives the items of input streams that offsets depend on.
    """
    yield from _Walker(item).walk(plan, [None] * plan.slot_count)


class _Walker:
    def __init__(self, item: StreamItem) -> None:
        self._item = item
        self._positions: dict[Stream, int] = {}
        self._relevant: dict[int, tuple[Step, ...]] = {}
        #: Keeps plans alive whose `id` is a key above.
        self._seen: list[GraphPlan] = []

    def walk(self, plan: GraphPlan, frame: _Frame) -> Walk:
        for slot, constant in plan.constants:
            if constant.nelms == 1:
                frame[slot] = constant.host_value
        for step in self._steps(plan):
            match step:
                case Evaluate():
                    frame[step.output] = evaluate(step, [frame[i] for i in step.inputs])
                case HostLoad():
                    self._host_load(step, frame)
                case RemoteLoad():
                    yield ComingLoad(step.buffer_id, self._entry(step.waits, frame[step.offset]))
                case RemoteStore():
                    yield ComingStore(step.buffer_id, self._entry(step.waits, frame[step.offset]))
                case Call():
                    yield from self._call(step, frame)
                case Loop():
                    yield from self._loop(step, frame)
                case Branch():
                    taken = (yield ComingBranch()) if step.waits else bool(np.asarray(frame[step.condition]))
                    yield from self._call(step.then_call if taken else step.else_call, frame)
                case _:
                    pass

    def _steps(self, plan: GraphPlan) -> tuple[Step, ...]:
        """The steps that transfers depend on."""
        key = id(plan)
        if key not in self._relevant:
            self._seen.append(plan)
            self._relevant[key] = tuple(s for s in plan.steps if self._matters(s))
        return self._relevant[key]

    def _matters(self, step: Step) -> bool:
        if isinstance(step, Evaluate | HostLoad | RemoteLoad | RemoteStore):
            return True
        if isinstance(step, Branch) and step.waits:
            return True  # the run says what it has decided, whatever is inside
        return any(self._steps(p) or _hands_on(p) for p in called_plans(step))

    @staticmethod
    def _entry(waits: bool, offset: Any) -> int | None:
        return None if waits else int(np.asarray(offset).reshape(()))

    def _host_load(self, step: HostLoad, frame: _Frame) -> None:
        stream: Stream = step.op.attributes["stream"]
        position = self._positions.get(stream, 0)
        self._positions[stream] = position + 1
        if step.op.outputs[0].nelms == 1:
            frame[step.output] = self._item(stream, position)

    def _call(self, call: Call, frame: _Frame) -> Walk:
        inner: _Frame = [None] * call.body.slot_count
        pass_arguments(inner, call, (frame[i] for i in call.inputs))
        yield from self.walk(call.body, inner)
        for position, slot in call.written_back:
            frame[slot] = inner[call.body.inputs[position]]
        take_outputs(frame, call, [inner[slot] for slot in call.body.outputs[: len(call.outputs)]])

    def _loop(self, loop: Loop, frame: _Frame) -> Walk:
        call = loop.call
        state = [None, None, *(frame[i] for i in call.inputs)]
        carried = len(call.outputs)
        for i in range(loop.count):
            state[:2] = [np.asarray(i, np.int32), np.asarray(True)]
            inner: _Frame = [None] * call.body.slot_count
            pass_arguments(inner, call, state)
            yield from self.walk(call.body, inner)
            for position, slot in call.written_back:
                state[position] = frame[slot] = inner[call.body.inputs[position]]
            state[2 : 2 + carried] = [inner[slot] for slot in call.body.outputs[1 : 1 + carried]]
        take_outputs(frame, call, state[2 : 2 + carried])


def _hands_on(plan: GraphPlan) -> bool:
    """Whether a plan gives its caller an argument or a constant: something that the host may know, and offsets need."""
    known = {*plan.inputs, *(slot for slot, _ in plan.constants)}
    return not known.isdisjoint(plan.outputs)


def evaluate(step: Evaluate, inputs: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Compute one op of integers with NumPy: this is what the executor does too."""
    op = step.op
    host = op.definition.host
    assert host is not None
    (target,) = op.outputs
    with np.errstate(all="ignore"):  # integers wrap around, as on the device
        result = host(*[np.asarray(value) for value in inputs], **op.attributes)
    return np.asarray(result).astype(target.dtype.storage).reshape(target.shape)
