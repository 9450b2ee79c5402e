"""The executor's walk over a plan in simulated time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np

from popxl.plan.costs import Costs, Limits
from popxl.plan.footprint import reachable_plans, row_bytes
from popxl.plan.lookahead import evaluate, lookahead
from popxl.plan.memory_walk import value_bytes
from popxl.plan.simulated_machine import Machine
from popxl.plan.simulated_transfers import BufferSize, Completions, Transfers
from popxl.plan.simulated_values import Ledger, Value
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
    Step,
    called_plans,
)
from popxl.streams import Stream

_Frame = list[Any]


def step_count(plan: GraphPlan, known: dict[int, int] | None = None) -> int:
    """How many steps a run of a plan takes, loops multiplied; of branches the larger side."""
    known = {} if known is None else known
    if id(plan) not in known:
        total = 0
        for step in plan.steps:
            inner = max((step_count(body, known) for body in called_plans(step)), default=0)
            total += 1 + inner * (step.count if isinstance(step, Loop) else 1)
        known[id(plan)] = total
    return known[id(plan)]


def is_taken(branch: Branch) -> bool:
    """Which side a branch is taken to go to that only the device can decide: the longer one."""
    return step_count(branch.then_call.body) >= step_count(branch.else_call.body)


def _item(stream: Stream, position: int) -> Any:
    """An item of an input stream, which nobody knows yet: a number, so that offsets from it differ."""
    return np.asarray(position % np.iinfo(np.int32).max).astype(stream.dtype.storage)


@final
class SimulatedRun:
    """Runs of a program, one after the other.

    Args:
        plan: The plan of the main graph.
        costs: How long things take.
        limits: How much memory there is.
        uploaded: Rows that were stored before, in their order.
    """

    def __init__(self, plan: GraphPlan, costs: Costs, limits: Limits, uploaded: Sequence[tuple[int, int]] = ()) -> None:
        self._plan = plan
        self._costs = costs
        self.ledger = Ledger()
        self.machine = Machine(costs)
        self._limits = limits
        self._completions = Completions(self.machine, limits.slack_bytes)
        self._transfers: Transfers | None = None
        if costs.read is not None and costs.write is not None:
            self._transfers = Transfers(self.machine, self._completions, limits, self.ledger, _buffers(plan))
            self._transfers.keep(uploaded)
        self._positions: dict[Stream, int] = {}
        self._outputs: list[Any] = []
        self._output_bytes = 0
        self._unknown = 0
        constants = {c for p in reachable_plans(plan) for _, c in p.constants}
        self._fixed = [Value(self.ledger, value_bytes(c, plan.replicas)) for c in constants]
        self._variables: list[Any] = [Value(self.ledger, value_bytes(v, plan.replicas)) for _, v in plan.variables]

    def run(self) -> None:
        """Simulate one run, to the end of its last store."""
        plan, transfers = self._plan, self._transfers
        self.machine.spend(self._costs.run_s)
        self._positions.clear()
        frame = self._new_frame(plan)
        for (slot, _), value in zip(plan.variables, self._variables, strict=True):
            frame[slot] = value
        if transfers is not None:
            transfers.begin(lookahead(plan, _item))
        self._walk(plan, frame)
        for value in self._outputs:
            self._await(value)
            self.machine.spend(self._costs.fetch_s)
        self.machine.spend(self._costs.copy_s_per_byte * self._output_bytes)
        self._outputs, self._output_bytes = [], 0
        self._variables = [frame[slot] for slot, _ in plan.variables]
        if transfers is not None:
            transfers.end()
        while self._completions.wait_for_oldest():
            pass
        if transfers is not None:
            transfers.drain()

    def _new_frame(self, plan: GraphPlan) -> _Frame:
        frame: _Frame = [None] * plan.slot_count
        for slot, constant in plan.constants:
            frame[slot] = constant.host_value if constant.nelms == 1 else Value(self.ledger, 0)
        return frame

    def _await(self, value: Any) -> None:
        """The thread wants to know a value."""
        if isinstance(value, Value) and value.number > self.machine.finished:
            number = value.number
            self.machine.wait(lambda: self.machine.finished >= number, "value")

    def _walk(self, plan: GraphPlan, frame: _Frame) -> None:
        for step in plan.steps:
            self.machine.spend(self._costs.step_s)
            self._do(plan, frame, step)

    def _do(self, plan: GraphPlan, frame: _Frame, step: Step) -> None:
        match step:
            case Compute():
                self._compute(frame, step)
            case Evaluate():
                self.machine.spend(self._costs.evaluate_s)
                frame[step.output] = evaluate(step, [frame[i] for i in step.inputs])
            case HostLoad():
                self._host_load(plan, frame, step)
            case HostStore():
                self._outputs.append(frame[step.input])
                self._output_bytes += value_bytes(step.op.inputs[0], plan.replicas)
            case Print():
                self._await(frame[step.input])
                frame[step.output] = frame[step.input]
            case Check():
                self._await(frame[step.input])
            case RemoteLoad():
                self._remote_load(plan, frame, step)
            case RemoteStore():
                self._remote_store(frame, step)
            case Call():
                self._call(frame, step)
            case Loop():
                self._loop(frame, step)
            case Branch():
                self._branch(frame, step)
            case Free():
                for slot in step.slots:
                    frame[slot] = None

    def _compute(self, frame: _Frame, step: Compute) -> None:
        segment, machine = step.segment, self.machine
        cost = self._costs.segments[segment.key]
        self._completions.admit(cost.new_bytes)
        machine.spend(cost.call_s)
        is_inline = cost.is_inline and machine.is_idle
        number = machine.compute(cost.compute_s, self.ledger.live_bytes + cost.new_bytes)
        if is_inline:
            machine.wait(lambda: machine.is_idle)
        self._completions.add(number, cost.new_bytes)
        for i in segment.donated:
            if isinstance(frame[step.inputs[i]], Value):
                frame[step.inputs[i]].reuse()
        for slot, v in zip(step.outputs, segment.outputs, strict=True):
            frame[slot] = Value(self.ledger, value_bytes(v, segment.replicas), number)

    def _host_load(self, plan: GraphPlan, frame: _Frame, step: HostLoad) -> None:
        stream: Stream = step.op.attributes["stream"]
        position = self._positions.get(stream, 0)
        self._positions[stream] = position + 1
        (t,) = step.op.outputs
        nbytes = value_bytes(t, plan.replicas)
        self.machine.spend(self._costs.copy_s_per_byte * nbytes)
        frame[step.output] = _item(stream, position) if t.nelms == 1 else Value(self.ledger, nbytes)

    # Transfers

    def _row(self, step: RemoteLoad | RemoteStore, frame: _Frame) -> tuple[int, int]:
        offset = frame[step.offset]
        self._await(offset)
        if step.waits or isinstance(offset, Value):
            # Which row it will be only the device knows: another one each time.
            self._unknown -= 1
            return step.buffer_id, self._unknown
        return step.buffer_id, int(np.asarray(offset).reshape(()))

    def _remote_load(self, plan: GraphPlan, frame: _Frame, step: RemoteLoad) -> None:
        row = self._row(step, frame)
        if self._transfers is None:
            nbytes = row_bytes(step, plan.replicas)
            self.machine.moved_bytes["load"] += nbytes
            frame[step.output] = Value(self.ledger, nbytes)
            return
        self.machine.spend(self._costs.row_s, on_row=True)
        frame[step.output] = self._transfers.load(row)

    def _remote_store(self, frame: _Frame, step: RemoteStore) -> None:
        row = self._row(step, frame)
        if self._transfers is None:
            self.machine.moved_bytes["store"] += row_bytes(step, self._plan.replicas)
            return
        self.machine.spend(self._costs.row_s, on_row=True)
        value = frame[step.input]
        self._transfers.store(row, value if isinstance(value, Value) else Value(self.ledger, 0))

    # Control

    def _call(self, frame: _Frame, call: Call) -> None:
        inner = self._new_frame(call.body)
        pass_arguments(inner, call, [frame[i] for i in call.inputs])
        for slot in call.released:
            frame[slot] = None
        self._walk(call.body, inner)
        for position, slot in call.written_back:
            frame[slot] = inner[call.body.inputs[position]]
        take_outputs(frame, call, [inner[slot] for slot in call.body.outputs[: len(call.outputs)]])

    def _loop(self, frame: _Frame, loop: Loop) -> None:
        call = loop.call
        state = [None, None, *(frame[i] for i in call.inputs)]
        for slot in call.released:
            frame[slot] = None
        first, carried = 2, len(call.outputs)
        for i in range(loop.count):
            self.machine.spend(self._costs.step_s)
            state[:first] = [np.asarray(i, np.int32), np.asarray(True)]
            inner = self._new_frame(call.body)
            pass_arguments(inner, call, state)
            state[first : first + carried] = [None] * carried
            self._walk(call.body, inner)
            for position, slot in call.written_back:
                state[position] = frame[slot] = inner[call.body.inputs[position]]
            state[first : first + carried] = [inner[slot] for slot in call.body.outputs[1 : 1 + carried]]
        if not loop.count:
            for position, slot in call.written_back:
                frame[slot] = state[position]
        take_outputs(frame, call, state[first : first + carried])

    def _branch(self, frame: _Frame, step: Branch) -> None:
        condition = frame[step.condition]
        self._await(condition)
        if step.waits or isinstance(condition, Value):
            taken = is_taken(step)
            if self._transfers is not None and step.waits:
                self._transfers.branch(taken=taken)
        else:
            taken = bool(np.asarray(condition).reshape(()))
        self._call(frame, step.then_call if taken else step.else_call)


def _buffers(plan: GraphPlan) -> dict[int, BufferSize]:
    """The buffers that the plan uses."""
    return {
        step.buffer_id: BufferSize(row_bytes(step, p.replicas), step.op.attributes["buffer"].entries)
        for p in reachable_plans(plan)
        for step in p.steps
        if isinstance(step, RemoteLoad | RemoteStore)
    }
