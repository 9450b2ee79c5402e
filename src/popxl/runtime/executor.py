"""Walks a plan. It decides nothing: each step says what to do and where the values are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from popxl.errors import RemoteOffsetError
from popxl.op import Op
from popxl.ops._checks import raise_unless_in_range
from popxl.ops._jax import jax, jnp
from popxl.plan.lookahead import evaluate, lookahead
from popxl.plan.slots import pass_arguments, take_outputs
from popxl.plan.steps import (
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
    Step,
)
from popxl.runtime.compiler import Executable, plan_segments
from popxl.runtime.completion import Completion
from popxl.runtime.events import LoadedRows
from popxl.runtime.host_io import HostStreams
from popxl.runtime.placement import Placement
from popxl.runtime.printing import print_value
from popxl.runtime.streaming.ram import RamTier
from popxl.runtime.transfers import DirectTransfers, Transfers
from popxl.tensor import Constant, Tensor

Array = Any
Frame = list[Array]
_OF_THE_HOST = (Evaluate, HostLoad, HostStore, Print, Check)
#: Between runs.
_NO_TRANSFERS = DirectTransfers(RamTier())


class Executor:
    """Runs a program's plan.

    Args:
        plan: The plan of the main graph.
        executables: The executable of each segment, by its key.
        placement: The devices.
        completion: Hears of each computation.
    """

    def __init__(
        self, plan: GraphPlan, executables: Mapping[Hashable, Executable], placement: Placement, completion: Completion
    ) -> None:
        self._plan = plan
        # By identity: a key is as long as its segment, too long to hash at every step.
        self._executables = {s: executables[s.key] for s in plan_segments(plan)}
        self._placement = placement
        self._replicas = plan.replicas
        self._completion = completion
        self._events = completion.events
        self._transfers: Transfers = _NO_TRANSFERS
        self._constants: dict[Constant, Array] = {}
        self._templates: dict[GraphPlan, Frame] = {}
        self._streams = HostStreams({}, {})
        #: What was loaded in this run, for whoever looks.
        self._rows = LoadedRows()
        #: What events tell of a step, by its identity, and of a segment: texts that take long to make.
        self._told: dict[int, tuple[str, int, str]] = {}
        self._labels: dict[Segment, str] = {}
        self._actions: dict[type[Step], Callable[[Frame, Any], None]] = {
            Compute: self._compute,
            Evaluate: self._evaluate,
            HostLoad: self._host_load,
            HostStore: self._host_store,
            Print: self._print,
            Check: self._check,
            RemoteLoad: self._remote_load,
            RemoteStore: self._remote_store,
            Call: self._call,
            Loop: self._loop,
            Branch: self._branch,
            Free: self._free,
        }

    def run(self, variables: dict[Tensor, Array], streams: HostStreams, transfers: Transfers) -> None:
        """Run the main graph once.

        Args:
            variables: The device's value of each variable and shard; replaced by the new ones, also when a step fails.
            streams: The host streams of this run.
            transfers: Streaming Memory.
        """
        self._streams, self._transfers = streams, transfers
        plan = self._plan
        with jax.default_device(self._placement.device), jax.enable_x64(True):
            frame = self._new_frame(plan)
            for slot, v in plan.variables:
                frame[slot] = variables[v]
            failure: BaseException | None = None
            try:
                transfers.begin(lookahead(plan, streams.item))
                self._walk(plan, frame)
                self._flush(streams)
            except BaseException as error:
                failure = error
                # The plan counts on what the rest of the run would have done; now a row may be a variable's memory.
                for slot, _ in plan.variables:
                    frame[slot] = jnp.array(frame[slot], copy=True)
                raise
            finally:
                for slot, v in plan.variables:
                    variables[v] = frame[slot]
                transfers.end(failure)
                failure = None  # it refers to this frame
                self._streams, self._transfers = HostStreams({}, {}), _NO_TRANSFERS
                self._rows.clear()

    def _flush(self, streams: HostStreams) -> None:
        begin_s = self._events.wait_begins()
        streams.flush()
        if begin_s is not None:
            self._events.emit("host", "fetch outputs", 0, begin_s)

    def _new_frame(self, plan: GraphPlan) -> Frame:
        """A frame with the constants in it, the same arrays in every frame."""
        if plan not in self._templates:
            template: Frame = [None] * plan.slot_count
            for slot, constant in plan.constants:
                if constant not in self._constants:
                    self._constants[constant] = self._constant_value(constant)
                template[slot] = self._constants[constant]
            self._templates[plan] = template
        return self._templates[plan].copy()

    def _constant_value(self, constant: Constant) -> Array:
        """A single number stays on the host, where offsets are read; anything larger goes to the device once."""
        value = constant.host_value.view(constant.dtype.storage)
        if self._replicas.varies(constant):
            return self._spread(constant, value)
        return value if constant.nelms == 1 else self._placement.put_copy(value, varies=False)

    def _spread(self, t: Tensor, value: np.ndarray[Any, Any]) -> Array:
        """A value that the host knows, in the form that the tensor has on the device."""
        if not self._replicas.varies(t):
            return value
        return self._placement.put(np.stack([value] * self._replicas.local), varies=True)

    def _local(self, t: Tensor, value: Array) -> Array:
        """This process's part of a tensor's value."""
        return self._placement.local(value, self._replicas.varies(t))

    def _walk(self, plan: GraphPlan, frame: Frame) -> None:
        actions = self._actions
        if self._events.sink is not None:
            self._walk_observed(plan, frame)
            return
        for step in plan.steps:
            actions[type(step)](frame, step)

    def _walk_observed(self, plan: GraphPlan, frame: Frame) -> None:
        for step in plan.steps:
            self._await_number(frame, step)
            begin_s = self._events.now() or 0.0
            self._actions[type(step)](frame, step)
            if isinstance(step, _OF_THE_HOST):
                known = self._told.get(id(step))
                if known is None:
                    known = self._told[id(step)] = _host_facts(step)
                kind, n_bytes, where = known
                self._events.emit("host", kind, n_bytes, begin_s, where)

    def _await_number(self, frame: Frame, step: Step) -> None:
        """Wait for what the step reads on the host, so that the wait is an event of its own."""
        match step:
            case Branch():
                value = frame[step.condition]
            case RemoteLoad() | RemoteStore():
                value = frame[step.offset]
            case Print() | Check():
                value = frame[step.input]
            case _:
                return
        if not isinstance(value, np.ndarray | np.generic) and not value.is_ready():
            begin_s = self._events.wait_begins() or 0.0
            value.block_until_ready()
            self._events.emit("host", "wait for value", 0, begin_s, step.op.where)

    # Compute

    def _compute(self, frame: Frame, step: Compute) -> None:
        executable = self._executables[step.segment]
        self._completion.admit(executable.new_bytes)
        begin_s = self._events.now()
        arguments = [frame[i] for i in step.inputs]
        if self._placement.has_stages:
            arguments = self._placement.move(arguments, step.segment.ipu)
        *results, token = executable.call(*arguments)
        self._completion.add(token, executable.new_bytes)
        if begin_s is not None:
            label = self._labels.get(step.segment)
            if label is None:
                label = self._labels[step.segment] = _segment_label(step.segment)
            reads = self._rows.read_by(arguments)
            self._events.emit_when_ready(token, executable.new_bytes, begin_s, label, reads)
        for slot, value in zip(step.outputs, results, strict=True):
            frame[slot] = value

    def _evaluate(self, frame: Frame, step: Evaluate) -> None:
        frame[step.output] = evaluate(step, [frame[i] for i in step.inputs])

    # Transfers

    def _host_load(self, frame: Frame, step: HostLoad) -> None:
        item = self._streams.load(step.op)
        frame[step.output] = self._placement.put(item, self._replicas.varies(step.op.outputs[0]))

    def _host_store(self, frame: Frame, step: HostStore) -> None:
        self._streams.store(step.op, self._local(step.op.inputs[0], frame[step.input]))

    def _print(self, frame: Frame, step: Print) -> None:
        frame[step.output] = frame[step.input]
        if step.op.attributes["print_self"]:
            print_value(step.op, np.asarray(self._local(step.op.inputs[0], frame[step.input])))

    def _check(self, frame: Frame, step: Check) -> None:
        value = np.asarray(self._local(step.op.inputs[0], frame[step.input]))
        raise_unless_in_range(value, where=step.op.where, **step.op.attributes)

    def _remote_load(self, frame: Frame, step: RemoteLoad) -> None:
        op, buffer_id = step.op, step.buffer_id
        varies = buffer_id in self._replicas.buffers
        if self._replicas.varies(op.inputs[1]):
            frame[step.output] = self._at(op, lambda: self._load_each(op, buffer_id, frame[step.offset]))
            return
        entry = self._entry(op, frame[step.offset])
        row = self._at(op, lambda: self._transfers.load(buffer_id, entry))
        frame[step.output] = self._placement.put_row(row, varies)
        if self._events.sink is not None:
            self._rows.note(frame[step.output], (buffer_id, entry))

    def _remote_store(self, frame: Frame, step: RemoteStore) -> None:
        op, buffer_id, value = step.op, step.buffer_id, frame[step.input]
        if self._replicas.varies(op.inputs[1]):
            self._at(op, lambda: self._store_each(op, buffer_id, frame[step.offset], value))
            return
        entry = self._entry(op, frame[step.offset])
        row = self._placement.keep_row(value, buffer_id in self._replicas.buffers)
        self._at(op, lambda: self._transfers.store(buffer_id, entry, row, op))

    def _load_each(self, op: Op, buffer_id: int, offsets: Array) -> Array:
        """Load the row that each replica asks for: each row once, and of it the parts of those replicas."""
        entries = self._entries(op, offsets)
        distinct = [int(e) for e in np.unique(entries)]
        rows = self._transfers.load_each(buffer_id, distinct)
        placed = {e: self._placement.put_row(row, varies=True) for e, row in zip(distinct, rows, strict=True)}
        return self._placement.select(placed, entries)

    def _store_each(self, op: Op, buffer_id: int, offsets: Array, value: Array) -> None:
        """Store each replica's part into the row that it asks for; the others' parts of that row stay."""
        entries = self._entries(op, offsets)
        distinct = [int(e) for e in np.unique(entries)]
        put_row, keep_row = self._placement.put_row, self._placement.keep_row

        def changed(entry: int, row: Array) -> Array:
            return keep_row(self._placement.where(entries == entry, value, put_row(row, varies=True)), varies=True)

        self._transfers.change_each(buffer_id, distinct, changed, op)

    def _entries(self, op: Op, offsets: Array) -> np.ndarray[Any, Any]:
        """The offset of each replica of the job."""
        entries = self._placement.everywhere(offsets).reshape(-1)
        for offset in entries:
            self._entry(op, offset)
        return entries

    def _entry(self, op: Op, offset: Array) -> int:
        """The offset as a number; this waits for the device if the offset comes from there."""
        entry = operator.index(np.asarray(offset).reshape(()).item())
        buffer = op.attributes["buffer"]
        if not 0 <= entry < buffer.entries:
            raise RemoteOffsetError(
                f"Offset {entry} is outside {buffer!r}, which has {buffer.entries} entries.",
                where=op.where,
                hint=f"offsets must satisfy 0 <= offset < {buffer.entries}; no row was touched",
            )
        return entry

    @staticmethod
    def _at(op: Op, transfer: Callable[[], Array]) -> Array:
        """Do a transfer; an error says which op of the user's program it belongs to."""
        try:
            return transfer()
        except Exception as error:
            error.add_note(f"  At: {op.where}")
            raise

    # Control

    def _call(self, frame: Frame, step: Call) -> None:
        inner = self._new_frame(step.body)
        pass_arguments(inner, step, (frame[i] for i in step.inputs))
        self._release(frame, step)
        try:
            self._walk(step.body, inner)
        finally:
            # Also when a step fails: the callee may have reused the memory that the caller's slot still names.
            for position, slot in step.written_back:
                frame[slot] = inner[step.body.inputs[position]]
        # The body may have got more outputs since this call of it was made.
        take_outputs(frame, step, [inner[slot] for slot in step.body.outputs[: len(step.outputs)]])

    def _loop(self, frame: Frame, step: Loop) -> None:
        call = step.call
        state = [None, None, *(frame[i] for i in call.inputs)]
        self._release(frame, call)
        first, carried = 2, len(call.outputs)
        hidden = call.op.called_graphs[0].inputs[:first]
        for i in range(step.count):
            known = (np.asarray(i, np.int32), np.asarray(True))
            state[:first] = [self._spread(t, value) for t, value in zip(hidden, known, strict=True)]
            inner = self._new_frame(call.body)
            pass_arguments(inner, call, state)
            # The body has the carried values now, and lets go of each after its last use.
            state[first : first + carried] = [None] * carried
            try:
                self._walk(call.body, inner)
            finally:
                for position, slot in call.written_back:
                    state[position] = frame[slot] = inner[call.body.inputs[position]]
            state[first : first + carried] = [inner[slot] for slot in call.body.outputs[1 : 1 + carried]]
        if not step.count:
            for position, slot in call.written_back:
                frame[slot] = state[position]
        take_outputs(frame, call, state[first : first + carried])

    def _branch(self, frame: Frame, step: Branch) -> None:
        taken = bool(np.asarray(frame[step.condition]).reshape(()))
        if step.waits:
            self._transfers.branch(taken)
        self._call(frame, step.then_call if taken else step.else_call)

    @staticmethod
    def _release(frame: Frame, call: Call) -> None:
        for slot in call.released:
            frame[slot] = None

    @staticmethod
    def _free(frame: Frame, step: Free) -> None:
        for slot in step.slots:
            frame[slot] = None


def _host_facts(step: Evaluate | HostLoad | HostStore | Print | Check) -> tuple[str, int, str]:
    """What events tell of a step of the host: its op, its bytes, where the user wrote it."""
    moved = step.op.inputs if isinstance(step, HostStore) else step.op.outputs
    return step.op.type, sum(t.nelms * t.dtype.nbytes for t in moved), step.op.where


def _segment_label(segment: Segment) -> str:
    first = next((item.where for item in segment.items if isinstance(item, Op)), "")
    return f"{len(segment.items)} ops from {first}"
