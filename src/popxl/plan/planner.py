"""Turns graphs into plans: cut each graph into segments and transfers, then decide what lives how long.

Three passes per graph. `_Cutter` walks the ops in program order and makes *rough steps*, which say what they
read and write. `popxl.plan.assemble` then finds what is live, who owns which memory, and numbers the slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from popxl.aliasing import is_view, storage_roots
from popxl.graph import Graph
from popxl.ir import Ir
from popxl.op import Control, Effect, Op
from popxl.plan.assemble import assemble
from popxl.plan.liveness import needed_ops
from popxl.plan.program import Program
from popxl.plan.replicas import find_replicas
from popxl.plan.rough import FinishedSegment, RoughCall, RoughGraph, RoughSegment, RoughStep
from popxl.plan.shards import state_tensors
from popxl.plan.steps import Assign, GraphPlan, Transferred, Value
from popxl.plan.validate import check_branches
from popxl.tensor import Tensor
from popxl.tensorlocation import ExecutionContext


def plan_program(ir: Ir, device_count: int = 1, *, has_stages: bool = False) -> GraphPlan:
    """Return the plan of the main graph, which holds the plans of all graphs that it calls.

    Args:
        ir: A program that does not change any more.
        device_count: Devices of the whole job, which its replicas are divided over.
        has_stages: Whether each IPU that ops are placed on is a device of its own.
    """
    graphs = ir.reachable_graphs()
    program = Program(graphs, find_replicas(ir, graphs, device_count), has_stages)
    check_branches(program)
    return _Planner(program).plan(ir.main_graph, frozenset(), frozenset())


@dataclass(slots=True)
class _Planner:
    program: Program
    _plans: dict[tuple[Graph, frozenset[int], frozenset[int]], GraphPlan] = field(
        default_factory=dict["tuple[Graph, frozenset[int], frozenset[int]]", GraphPlan]
    )

    def plan(self, graph: Graph, mutated: frozenset[int], owned: frozenset[int]) -> GraphPlan:
        """Return the plan of `graph`.

        Args:
            graph: The graph.
            mutated: Positions of inputs whose final values the caller wants.
            owned: Positions of inputs whose memory the caller gives away.
        """
        key = (graph, mutated, owned)
        if key not in self._plans:
            rough = _Cutter(self.program, graph, mutated).cut()
            self._plans[key] = assemble(rough, owned, self.plan_call, self.program)
        return self._plans[key]

    def plan_call(self, call: RoughCall, owned: frozenset[int]) -> GraphPlan:
        """Return the plan of a called graph whose caller owns the memory of the inputs `owned`."""
        owned &= call.mutated
        if not call.is_loop:
            return self.plan(call.graph, call.mutated, owned)
        # What an iteration gives away must be its successor's to give away again.
        owned -= call.carried
        plan = self.plan(call.graph, call.mutated, owned)
        while not owned <= plan.owned_inputs:
            owned &= plan.owned_inputs
            plan = self.plan(call.graph, call.mutated, owned)
        return plan


class _Cutter:
    """Cuts one graph into rough steps. Program order of effects is kept; pure ops are gathered between them."""

    def __init__(self, program: Program, graph: Graph, mutated: frozenset[int]) -> None:
        self._program = program
        self._graph = graph
        self._steps: list[RoughStep | FinishedSegment] = []
        self._segment = RoughSegment()
        #: Stores to the host that wait for the end of the pending segment: nothing in the program waits for them.
        self._stores: list[RoughStep] = []
        self._persistent: list[Tensor] = [graph.inputs[i] for i in sorted(mutated)]
        if graph == graph.main_graph:
            self._persistent += state_tensors(graph)

    def cut(self) -> RoughGraph:
        ops = [op for op in self._graph.ops if op.execution_context is ExecutionContext.Normal]
        for op in needed_ops(self._program, self._graph, ops, [*self._graph.outputs, *self._persistent]):
            self._add(op)
        outputs = tuple(self._value(t) for t in self._graph.outputs)
        self._flush()
        return RoughGraph(self._graph, tuple(self._steps), outputs, tuple(self._persistent))

    def _add(self, op: Op) -> None:
        if self._overwrites_stored(op):
            self._flush()
        written = [t.storage for t in op.written()]
        if op.definition.host is not None and any(t in self._program.host_values for t in written):
            self._emit(op, reads=[self._value(t) for t in op.read_inputs()], writes=written)
        elif op.definition.effect is not None:
            self._add_transfer(op)
        elif op.definition.control is not None and not self._program.is_compiled_inline(op):
            self._add_call(op)
        else:
            if self._program.has_stages and self._segment.ipu not in (None, op.ipu):
                self._flush()
            self._segment.add(op)

    def _overwrites_stored(self, op: Op) -> bool:
        """Whether `op` overwrites what a waiting store has yet to read."""
        if not self._stores or not op.mutates:
            return False
        stored = {root for step in self._stores for t in step.op.read_inputs() for root in storage_roots(t)}
        return any(root in stored for i in op.mutates for root in storage_roots(op.inputs[i]))

    def _add_transfer(self, op: Op) -> None:
        reads = [self._value(t) for t in op.read_inputs()]
        if op.definition.effect is Effect.HOST_STORE and (self._stores or self._segment.conflicts(reads, ())):
            self._stores.append(RoughStep(op, tuple(reads), ()))
            return
        moves_data = op.definition.effect not in (Effect.HOST_STORE, Effect.PRINT, Effect.CHECK)
        if moves_data and not self._segment.is_trivial:
            self._flush()
        if op.mutates and is_view(op.inputs[op.mutates[0]]):
            target = Transferred(op, op.mutates[0])
            self._emit(op, reads, [target])
            self._segment.add(Assign(target))
        else:
            self._emit(op, reads, [t.storage for t in op.outputs])

    def _add_call(self, op: Op) -> None:
        reads = [self._value(t) for t in op.inputs]
        self._flush()
        calls = tuple(self._rough_calls(op))
        writes: list[Value] = [t.storage for t in op.outputs]
        assigned = [Transferred(op, i) for i in op.mutates if is_view(op.inputs[i])]
        writes += assigned
        writes += [op.inputs[i].storage for i in op.mutates if not is_view(op.inputs[i])]
        self._emit(op, reads, writes, calls)
        for target in assigned:
            self._segment.add(Assign(target))

    def _rough_calls(self, op: Op) -> Sequence[RoughCall]:
        control = op.definition.control
        if control is Control.BRANCH:
            split = 1 + len(op.called_graphs[0].inputs)
            then_graph, else_graph = op.called_graphs
            return (
                RoughCall(then_graph, op.inputs[1:split], frozenset(), frozenset(), is_loop=False),
                RoughCall(else_graph, op.inputs[split:], frozenset(), frozenset(), is_loop=False),
            )
        first = op.definition.first_input
        mutated = frozenset(i + first for i in op.mutates)
        carried = frozenset(range(first, first + len(op.outputs))) if control is Control.LOOP else frozenset[int]()
        graph = op.called_graphs[0]
        return (RoughCall(graph, op.inputs, mutated, carried, is_loop=control is Control.LOOP),)

    def _value(self, t: Tensor) -> Value:
        """The value a step reads for `t`: its storage; for a view, what the pending segment computes from it."""
        if not is_view(t):
            return t.storage
        self._segment.read_view(t.storage)
        return t.storage

    def _emit(self, op: Op, reads: Sequence[Value], writes: Sequence[Value], calls: tuple[RoughCall, ...] = ()) -> None:
        if self._segment.conflicts(reads, writes):
            self._flush()
        self._steps.append(RoughStep(op, tuple(reads), tuple(writes), calls))

    def _flush(self) -> None:
        if self._segment.items or self._segment.views:
            self._steps.append(self._segment.finish())
        self._steps += self._stores
        self._segment = RoughSegment()
        self._stores = []
