"""Walks plans with NumPy, without JAX: what has been freed or donated is poisoned, and using it is an error.

Segments and inlined graphs run on memory cells: a tensor is an array of cell numbers, so views and in-place ops need
no functionalisation here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from popxl.graph import Graph
from popxl.op import Control, Op
from popxl.plan.steps import (
    Assign,
    Branch,
    Call,
    Check,
    Compute,
    Evaluate,
    Free,
    GraphPlan,
    HostLoad,
    HostStore,
    Loop,
    Print,
    RemoteLoad,
    RemoteStore,
    Segment,
    Value,
)
from popxl.tensor import Constant, Tensor, Variable

Array = np.ndarray[Any, Any]


def _remainder(x: Array, increment: int, modulus: int) -> Array:
    return np.fmod(x + x.dtype.type(increment), x.dtype.type(modulus))


#: What each op computes, from its inputs and attributes.
COMPUTES: Mapping[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Identity": np.copy,
    "Relu": lambda x: np.maximum(x, 0),
    "IncrementMod": _remainder,
    "Accumulate": lambda t, x, factor, **_kind: t + np.float32(1 if factor is None else factor) * x,
    "CopyVarUpdate": lambda _t, x: x,
    "Greater": np.greater,
    "Where": np.where,
    "Cast": lambda x, data_type: x.astype(data_type.as_numpy()),
    "Reshape": lambda x, shape: x.reshape(shape),
    "Transpose": lambda x, permutation: x.transpose(permutation),
    "Concat": lambda *xs, axis: np.concatenate(xs, axis),
    "Slice": lambda x, **bounds: x[_keys(x.ndim, **bounds)],
}
IN_PLACE = {"AddLhsInplace": "Add", "ReluInplace": "Relu", "IncrementModInplace": "IncrementMod"}
VIEWS = {name + "Inplace": name for name in ("Reshape", "Transpose", "Concat", "Slice")}


def _keys(rank: int, starts: Any, stops: Any, steps: Any, axes: Any) -> tuple[slice, ...]:
    keys = [slice(None)] * rank
    for start, stop, step, axis in zip(starts, stops, steps, axes, strict=True):
        keys[axis] = slice(start, stop if stop >= 0 else None, step)
    return tuple(keys)


def compute(op: Op, inputs: Sequence[Array]) -> Array:
    """The result of an op that computes."""
    function = COMPUTES[{**IN_PLACE, **VIEWS}.get(op.type, op.type)]
    with np.errstate(all="ignore"):
        return np.asarray(function(*inputs, **op.attributes)).astype(op.outputs[0].dtype.as_numpy())


class Cells:
    """Memory of one segment or one inlined graph."""

    def __init__(self, values: Mapping[Value, Array]) -> None:
        self._cells: list[Any] = []
        self._places = {v: self._new(value) for v, value in values.items()}

    def _new(self, value: Array) -> Array:
        first = len(self._cells)
        self._cells += list(value.flat)
        return np.arange(first, len(self._cells)).reshape(value.shape)

    def _place(self, t: Tensor) -> Array:
        t = t.storage
        if t not in self._places:
            op = t.producer
            if isinstance(t, Constant):
                self._places[t] = self._new(t.host_value)
            elif op is not None and op.type in VIEWS:
                bases = [self._place(base) for base in op.inputs]
                return COMPUTES[VIEWS[op.type]](*bases, **op.attributes)
            else:
                raise AssertionError(f"{t!r} is used before it is made")
        return self._places[t]

    def read(self, v: Value) -> Array:
        """The value now."""
        t = v if isinstance(v, Tensor) else v.tensor
        place = self._place(v) if isinstance(v, Tensor) else self._places[v]
        return np.array([self._cells[i] for i in place.flat], t.dtype.as_numpy()).reshape(t.shape)

    def write(self, t: Tensor, value: Array) -> None:
        """Fill the cells of `t`; a storage that is not there begins here."""
        is_new = t.storage not in self._places and (t.storage.producer is None or t.storage.producer.type not in VIEWS)
        if is_new:
            self._places[t.storage] = self._new(value)
        for i, x in zip(self._place(t).flat, value.flat, strict=True):
            self._cells[i] = x

    def run(self, items: Iterable[Op | Assign]) -> None:
        """Run ops in order."""
        for item in items:
            if isinstance(item, Assign):
                self.write(item.source.tensor, self.read(item.source))
            elif item.called_graphs:
                self._run_control(item)
            elif item.type not in VIEWS and item.type != "Init":
                unread = item.definition.unread
                inputs = [np.zeros(t.shape) if i in unread else self.read(t) for i, t in enumerate(item.inputs)]
                target = item.inputs[item.mutates[0]] if item.mutates else item.outputs[0]
                self.write(target, compute(item, inputs))

    def _run_control(self, op: Op) -> None:
        values = [self.read(t) for t in op.inputs]
        match op.definition.control:
            case Control.CALL:
                outputs, final = run_graph(op.called_graphs[0], values)
            case Control.LOOP:
                outputs, final = self._run_loop(op, values)
            case _:
                split = 1 + len(op.called_graphs[0].inputs)
                taken = bool(values[0].reshape(()))
                graph = op.called_graphs[0 if taken else 1]
                outputs, final = run_graph(graph, values[1:split] if taken else values[split:])
        for t, value in zip(op.outputs, outputs, strict=False):
            self.write(t, value)
        for i in op.mutates:
            self.write(op.inputs[i], final[i])

    @staticmethod
    def _run_loop(op: Op, values: list[Array]) -> tuple[list[Array], list[Array]]:
        state, final, count = list(values), list(values), len(op.outputs)
        for i in range(op.attributes["repeat_count"]):
            outputs, inner = run_graph(op.called_graphs[0], [np.int32(i), np.bool_(True), *state])
            final = inner[2:]
            for k in op.mutates:
                state[k] = final[k]
            state[:count] = outputs[1 : 1 + count]
        return state[:count], final


def run_graph(graph: Graph, values: Sequence[Any]) -> tuple[list[Array], list[Array]]:
    """Return the outputs of a graph and the final values of its inputs."""
    cells = Cells({t: np.asarray(value) for t, value in zip(graph.inputs, values, strict=True)})
    cells.run(graph.ops)
    return [cells.read(t) for t in graph.outputs], [cells.read(t) for t in graph.inputs]


@dataclass(eq=False)
class Memory:
    """A value and who may still use it."""

    value: Array | None

    def read(self) -> Array:
        assert self.value is not None, "memory is used after it was donated"
        return self.value


Frame = list[Memory | None]


class PlanMachine:
    """Executes the plan of a main graph as `popxl.plan.steps` describes it.

    Args:
        plan: The plan.
        rows: The rows of the remote buffers, by buffer id and entry; changed by the plan.
        variables: The values of the variables.
    """

    def __init__(
        self, plan: GraphPlan, rows: dict[tuple[int, int], Array], variables: Mapping[Variable, Array]
    ) -> None:
        self._plan = plan
        self.rows = {place: Memory(row) for place, row in rows.items()}
        self.variables = {v: Memory(value) for v, value in variables.items()}
        self._constants: dict[Constant, Memory] = {}
        self._items: Mapping[Any, Array] = {}
        self._stored: dict[Any, Memory] = {}

    def run(self, items: Mapping[Any, Array]) -> dict[Any, Array]:
        """Run once. `items` is one item for each input stream; returns one for each output stream."""
        self._items, self._stored = items, {}
        frame = self._new_frame(self._plan)
        for slot, v in self._plan.variables:
            frame[slot] = self.variables[v]
        self._walk(self._plan, frame)
        for slot, v in self._plan.variables:
            memory = frame[slot]
            assert memory is not None, f"{v!r} was freed"
            memory.read()
            self.variables[v] = memory
        return {stream: memory.read() for stream, memory in self._stored.items()}

    def _new_frame(self, plan: GraphPlan) -> Frame:
        frame: Frame = [None] * plan.slot_count
        for slot, constant in plan.constants:
            frame[slot] = self._constants.setdefault(constant, Memory(constant.host_value))
        return frame

    @staticmethod
    def _get(frame: Frame, slot: int) -> Memory:
        memory = frame[slot]
        assert memory is not None, f"slot {slot} is used after it was freed, or before it is made"
        memory.read()
        return memory

    def _walk(self, plan: GraphPlan, frame: Frame) -> None:
        for step in plan.steps:
            match step:
                case Compute():
                    self._compute(frame, step)
                case Evaluate():
                    inputs = [self._get(frame, i).read() for i in step.inputs]
                    frame[step.output] = Memory(compute(step.op, inputs).reshape(step.op.outputs[0].shape))
                case HostLoad():
                    frame[step.output] = Memory(self._items[step.op.attributes["stream"]])
                case HostStore():
                    self._stored[step.op.attributes["stream"]] = self._get(frame, step.input)
                case Print():
                    frame[step.output] = self._get(frame, step.input)
                case Check():
                    self._get(frame, step.input)
                case RemoteLoad():
                    frame[step.output] = self.rows[
                        step.buffer_id, int(self._get(frame, step.offset).read().reshape(()))
                    ]
                case RemoteStore():
                    entry = int(self._get(frame, step.offset).read().reshape(()))
                    self.rows[step.buffer_id, entry] = self._get(frame, step.input)
                case Call():
                    self._loop(frame, step, None)
                case Loop():
                    self._loop(frame, step.call, step.count)
                case Branch():
                    taken = bool(self._get(frame, step.condition).read().reshape(()))
                    self._loop(frame, step.then_call if taken else step.else_call, None)
                case Free():
                    for slot in step.slots:
                        frame[slot] = None

    def _compute(self, frame: Frame, step: Compute) -> None:
        segment: Segment = step.segment
        memories = [self._get(frame, i) for i in step.inputs]
        donated = [memories[i] for i in segment.donated]
        assert len(set(memories)) >= len(memories) - (len(memories) - len(donated))
        assert all(memories.count(m) == 1 for m in donated), "memory is donated and read in one call"
        cells = Cells(dict(zip(segment.inputs, (m.read() for m in memories), strict=True)))
        cells.run(segment.items)
        results = [Memory(cells.read(v)) for v in segment.outputs]
        for memory in donated:
            memory.value = None
        for slot, memory in zip(step.outputs, results, strict=True):
            frame[slot] = memory

    def _loop(self, frame: Frame, call: Call, count: int | None) -> None:
        """Run the body `count` times; without a count it is a plain call."""
        first, hidden = (0, 0) if count is None else (2, 1)
        carried = len(call.outputs)
        state = [self._get(frame, i) for i in call.inputs]
        outputs = state[:carried]
        for slot in call.released:
            frame[slot] = None
        for i in range(1 if count is None else count):
            counters = [Memory(np.asarray(i, np.int32)), Memory(np.asarray(True))][:first]
            inner = self._new_frame(call.body)
            for slot, memory in zip(call.body.inputs, [*counters, *state], strict=True):
                inner[slot] = memory
            self._walk(call.body, inner)
            for position, slot in call.written_back:
                state[position - first] = frame[slot] = self._get(inner, call.body.inputs[position])
            outputs = [self._get(inner, slot) for slot in call.body.outputs[hidden : hidden + carried]]
            if count is not None:
                state[:carried] = outputs
        if count == 0:
            for position, slot in call.written_back:
                frame[slot] = state[position - first]
        for slot, memory in zip(call.outputs, outputs, strict=True):
            if slot >= 0:
                frame[slot] = memory
