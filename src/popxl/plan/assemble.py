"""The last two passes over a graph: backwards, what is live; forwards, who owns which memory, and slots.

*Owned* memory has one holder, the slot, so a segment may write its result over it (XLA's donation). A row of a
buffer in RAM *is* the array that was stored, so what has been loaded or stored is not owned until something
computes it anew; the same holds for items of host streams and for values passed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from popxl.op import Effect
from popxl.plan.program import Program
from popxl.plan.rough import FinishedSegment, RoughCall, RoughGraph, RoughStep
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
    Transferred,
    Value,
)
from popxl.plan.structure import segment_key
from popxl.tensor import Constant, Tensor

PlanCall = Callable[[RoughCall, frozenset[int]], GraphPlan]


def assemble(rough: RoughGraph, owned: frozenset[int], plan_call: PlanCall, program: Program) -> GraphPlan:
    """Return the plan of a graph.

    Args:
        rough: The graph as rough steps.
        owned: Positions of inputs whose memory is the graph's to overwrite.
        plan_call: Gives the plan of a called graph, given which inputs' memory is its to overwrite.
        program: The program.
    """
    # A run hands the variables on to the next one: what it shares at its end is not the next one's to overwrite.
    variables = frozenset(rough.persistent if rough.graph == rough.graph.main_graph else ())
    while True:
        assembler = _Assembler(rough, owned, variables, plan_call, program)
        plan = assembler.assemble()
        if variables <= assembler.owned:
            return plan
        variables &= assembler.owned


def _wanted_steps(rough: RoughGraph) -> list[tuple[RoughStep | FinishedSegment, set[Value]]]:
    """The steps that anybody wants; with each, those of its values that later steps, the caller or a next run want."""
    live: set[Value] = {*rough.outputs, *rough.persistent}
    wanted: list[tuple[RoughStep | FinishedSegment, set[Value]]] = []
    for step in reversed(rough.steps):
        made = {*step.writes, *(step.views if isinstance(step, FinishedSegment) else ())}
        if isinstance(step, FinishedSegment) and live.isdisjoint(made):
            continue
        wanted.append((step, live.intersection((*step.reads, *made))))
        live -= made
        live |= set(step.reads)
    wanted.reverse()
    return wanted


class _Assembler:
    def __init__(
        self,
        rough: RoughGraph,
        owned: frozenset[int],
        variables: frozenset[Tensor],
        plan_call: PlanCall,
        program: Program,
    ) -> None:
        self._rough = rough
        self._plan_call = plan_call
        self._program = program
        self._slots: dict[Value, int] = {}
        self._steps: list[Step] = []
        self._positions: dict[Value, int] = {t: i for i, t in enumerate(rough.graph.inputs)}
        #: The values that only their slot holds, so far.
        self.owned: set[Value] = {*variables, *(t for t, i in self._positions.items() if i in owned)}
        self._persistent = frozenset(rough.persistent)
        self._state = frozenset(rough.persistent if rough.graph == rough.graph.main_graph else ())
        self._shared_inputs: set[int] = set()

    def assemble(self) -> GraphPlan:
        rough = self._rough
        inputs = tuple(self._slot(t) for t in rough.graph.inputs)
        for step, live in _wanted_steps(rough):
            if isinstance(step, FinishedSegment):
                self._add_segment(step, live)
            else:
                self._add_step(step, live)
            self._free(step, live)
        outputs = tuple(self._slot(v) for v in rough.outputs)
        final = Counter[Value]([*rough.outputs, *rough.persistent])
        owned_once = {v for v in self.owned if final[v] == 1}
        for v in rough.outputs:
            self._share(v)
        return GraphPlan(
            name=rough.graph.name,
            slot_count=len(self._slots),
            inputs=inputs,
            outputs=outputs,
            constants=tuple((s, v) for v, s in self._slots.items() if isinstance(v, Constant)),
            variables=tuple((s, v) for v, s in self._slots.items() if v in self._state and isinstance(v, Tensor)),
            steps=tuple(self._steps),
            shared_inputs=frozenset(self._shared_inputs),
            owned_inputs=frozenset(i for t, i in self._positions.items() if t in owned_once),
            owned_outputs=frozenset(k for k, v in enumerate(rough.outputs) if v in owned_once),
            replicas=self._program.replicas,
        )

    def _slot(self, value: Value) -> int:
        return self._slots.setdefault(value, len(self._slots))

    def _share(self, value: Value) -> None:
        """Something else holds this value's memory from now on."""
        self.owned.discard(value)
        if value in self._positions:
            self._shared_inputs.add(self._positions[value])

    def _free(self, step: RoughStep | FinishedSegment, live: set[Value]) -> None:
        used: dict[Value, None] = dict.fromkeys((*step.reads, *step.writes))
        if isinstance(step, FinishedSegment):
            used.update(dict.fromkeys(step.views))
        # What persists stays until it gets its new value: the run may fail before that.
        kept = (live, self._persistent)
        dead = [v for v in used if not any(v in k for k in kept) and v in self._slots and not isinstance(v, Constant)]
        if dead:
            self._steps.append(Free(tuple(self._slots[v] for v in dead)))

    def _add_segment(self, step: FinishedSegment, live: set[Value]) -> None:
        outputs: list[Value] = [v for v in (*step.writes, *step.views) if v in live]
        overwritten = self.owned.intersection(outputs)
        donated = tuple(i for i, v in enumerate(step.reads) if v in overwritten)
        replicas = self._program.replicas
        ipu = step.ipu if self._program.has_stages else 0
        key = (segment_key(step.items, step.reads, outputs, donated, replicas), ipu)
        segment = Segment(step.items, step.reads, tuple(outputs), donated, key, replicas, ipu)
        self._steps.append(
            Compute(segment, tuple(self._slot(v) for v in step.reads), tuple(self._slot(v) for v in outputs))
        )
        self.owned.update(outputs)

    def _add_step(self, step: RoughStep, live: set[Value]) -> None:
        if step.calls:
            self._add_control(step, live)
            return
        op = step.op
        effect = op.definition.effect
        reads = tuple(self._slot(v) for v in step.reads)
        writes = tuple(self._slot(v) for v in step.writes)
        match effect:
            case None:
                made: Step = Evaluate(op, reads, writes[0])
            case Effect.HOST_LOAD:
                made = HostLoad(op, writes[0])
            case Effect.HOST_STORE:
                made = HostStore(op, reads[0])
            case Effect.PRINT:
                made = Print(op, reads[0], writes[0])
            case Effect.CHECK:
                made = Check(op, reads[0])
            case Effect.REMOTE_LOAD:
                buffer_id = op.attributes["buffer"].remote_buffer_id
                made = RemoteLoad(op, buffer_id, reads[0], writes[0], self._waits(step.reads[0]))
            case Effect.REMOTE_STORE:
                buffer_id = op.attributes["buffer"].remote_buffer_id
                made = RemoteStore(op, buffer_id, reads[1], reads[0], self._waits(step.reads[1]))
        self._steps.append(made)
        for v in (*step.reads, *step.writes):
            self._share(v)

    def _waits(self, value: Value) -> bool:
        return value not in self._program.host_values

    def _add_control(self, step: RoughStep, live: set[Value]) -> None:
        op = step.op
        calls = [self._call(step, call, live) for call in step.calls]
        if len(calls) == 2:
            (then_call, then_owned), (else_call, else_owned) = calls
            condition = step.reads[0]
            made: Step = Branch(op, self._slot(condition), then_call, else_call, self._waits(condition))
            owned = then_owned & else_owned
        else:
            (call, owned) = calls[0]
            made = Loop(call, op.attributes["repeat_count"]) if step.calls[0].is_loop else call
        self._steps.append(made)
        self.owned -= set(step.writes)
        self.owned |= owned

    def _call(self, step: RoughStep, call: RoughCall, live: set[Value]) -> tuple[Call, set[Value]]:
        """Return the call, and which of the values that it writes are owned afterwards."""
        op = step.op
        first = op.definition.first_input
        hidden = 1 if call.is_loop else 0
        values: Sequence[Value] = tuple(t.storage for t in call.inputs)
        # What is passed twice, as a tensor and as its in-place successor, cannot be given away.
        times = Counter(values)
        given = frozenset(i + first for i, v in enumerate(values) if v in self.owned and times[v] == 1)
        body = self._plan_call(call, given)
        runs_once = not call.is_loop or op.attributes["repeat_count"] > 0
        owned: set[Value] = set()
        written_back: list[tuple[int, int]] = []
        for i in op.mutates:
            v = values[i] if values[i] in step.writes else Transferred(op, i)
            written_back.append((i + first, self._slot(v)))
            if i + first in body.owned_inputs and runs_once:
                owned.add(v)
        for i, v in enumerate(values):
            if i + first in body.shared_inputs or not runs_once:
                self._share(v)
        outputs: list[int] = []
        for k, t in enumerate(op.outputs):
            outputs.append(self._slot(t) if t in live else -1)
            if k + hidden in body.owned_outputs and runs_once:
                owned.add(t)
        inputs = tuple(self._slot(v) for v in values)
        kept = {*live, *step.writes, *self._persistent}
        released = tuple(dict.fromkeys(self._slots[v] for v in values if v not in kept and not isinstance(v, Constant)))
        return Call(op, body, inputs, tuple(outputs), tuple(written_back), released), owned
