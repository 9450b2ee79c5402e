"""Where gradients flow: which tensors they pass, and which ops refuse to give one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from popxl.errors import CoreError
from popxl.graph import Graph
from popxl.op import Control, Effect, Op
from popxl.ops._define import FLOATS
from popxl.ops._gradient import check_not_refused, differentiable_inputs
from popxl.tensor import Tensor
from popxl.transforms.grad_info import GradGraphInfo

Infos = Mapping[Graph, GradGraphInfo | None]
"""The gradient graphs of called graphs; None where no input of one has a gradient."""


def inputs_with_gradient(op: Op, called: Infos) -> tuple[int, ...]:
    """The inputs of an op that can have a gradient; of a call, those that the called graphs give one for."""
    control = op.definition.control
    if control is None:
        return differentiable_inputs(op)
    first = 1 if control is Control.BRANCH else 0
    found: set[int] = set()
    for g in op.called_graphs:
        info = called.get(g)
        if info is not None:
            places = {t: i for i, t in enumerate(g.inputs)}
            found |= {first + places[t] - op.definition.first_input for t in info.outputs if t in places}
        first += len(g.inputs)
    if control is Control.LOOP and not op.attributes["repeat_count"]:
        found |= {k for k, t in enumerate(op.outputs) if t.dtype in FLOATS}  # what goes in comes out
    return tuple(sorted(found))


def depending_on(graph: Graph, sources: Iterable[Tensor], called: Infos) -> set[Tensor]:
    """The tensors that depend differentiably on `sources`, these included."""
    found = {t for t in sources if t.dtype in FLOATS}
    for op in graph.ops:
        if any(op.inputs[i] in found for i in inputs_with_gradient(op, called)):
            found |= {t for t in op.outputs if t.dtype in FLOATS}
    return found


def leading_to(graph: Graph, goals: Iterable[Tensor], called: Infos) -> set[Tensor]:
    """The tensors that one of `goals` depends differentiably on, these included."""
    found = {t for t in goals if t.dtype in FLOATS}
    for op in reversed(graph.ops):
        if any(t in found for t in op.outputs):
            found |= {op.inputs[i] for i in inputs_with_gradient(op, called)}
    return found


def check_repeatable(op: Op) -> None:
    """Check that an op may run once more; what it prints is then printed once more.

    Raises:
        CoreError: (a `RuntimeError`) if it, or an op of a graph that it calls, transfers or overwrites something.
    """
    if op.definition.effect not in (None, Effect.PRINT, Effect.CHECK) or op.mutates:
        raise CoreError(
            f"{op.type} cannot be recomputed for a gradient: it does more than compute.",
            where=op.where,
            hint="move it out of the branch or loop that is differentiated",
        )
    for g in op.called_graphs:
        for inner in g.ops:
            check_repeatable(inner)


def gradient_flow(graph: Graph, provided: Iterable[Tensor], called: Infos) -> set[Tensor]:
    """The tensors that get a gradient if those of `provided` are given.

    Other dtypes than floats count here: where a comparison is cast to a float and used in a formula, a gradient
    would arrive at the comparison. Conditions, indices and seeds of ops that take floats get none.

    Args:
        graph: The graph to differentiate.
        provided: The tensors whose gradients are given; only floats count.
        called: The gradient graphs that are there already: their graphs are not looked into.

    Raises:
        CoreError: (a `RuntimeError`) if a gradient arrives at an op that refuses to be differentiated.
    """
    return _Flow(called).through(graph, frozenset(t for t in provided if t.dtype in FLOATS))


class _Flow:
    """Follows gradients back through a graph and those that it calls."""

    def __init__(self, called: Infos) -> None:
        self._called = called
        self._known: dict[tuple[Graph, frozenset[Tensor]], set[Tensor]] = {}

    def through(self, graph: Graph, goals: frozenset[Tensor]) -> set[Tensor]:
        """The tensors that get a gradient where `goals` have one."""
        if (graph, goals) not in self._known:
            found = set(goals)
            for op in reversed(graph.ops):
                given = {k for k, t in enumerate(op.outputs) if t in found}
                if given:
                    found |= {op.inputs[i] for i in self._inputs(op, given)}
            self._known[graph, goals] = found
        return self._known[graph, goals]

    def _inputs(self, op: Op, given: set[int]) -> Iterable[int]:
        """The inputs of an op that get a gradient where the outputs `given` have one."""
        control = op.definition.control
        if control is None:
            return _formula_inputs(op, given)
        if control is Control.CALL:
            return self._graph_inputs(op.called_graphs[0], given)
        if control is Control.BRANCH:
            then_graph, else_graph = op.called_graphs
            then_inputs, else_inputs = (self._graph_inputs(g, given) for g in (then_graph, else_graph))
            return {1 + i for i in then_inputs} | {1 + len(then_graph.inputs) + i for i in else_inputs}
        return self._loop_inputs(op, given)

    def _loop_inputs(self, op: Op, given: set[int]) -> Iterable[int]:
        while True:
            # The first output of a loop's wrapper is its condition.
            inputs = self._graph_inputs(op.called_graphs[0], {k + 1 for k in given})
            found = {i - op.definition.first_input for i in inputs}
            carried = given | {i for i in found if 0 <= i < len(op.outputs)}
            if carried == given:
                ends = set[int]() if op.attributes["repeat_count"] else given
                return {i for i in found | ends if i >= 0}
            given = carried

    def _graph_inputs(self, graph: Graph, given: set[int]) -> set[int]:
        if graph in self._called:
            info = self._called[graph]
            return {graph.inputs.index(t) for t in info.outputs if t in graph.inputs} if info else set()
        found = self.through(graph, frozenset(graph.outputs[k] for k in given))
        return {i for i, t in enumerate(graph.inputs) if t in found}


def _formula_inputs(op: Op, given: set[int]) -> list[int]:
    gradient = op.definition.gradient
    if gradient is None:
        return []
    check_not_refused(op)
    candidates = [i for i in (range(len(op.inputs)) if gradient.wrt is None else gradient.wrt) if i < len(op.inputs)]
    floats = [i for i in candidates if op.inputs[i].dtype in FLOATS]
    if any(op.outputs[k].dtype in FLOATS for k in given):
        return floats or candidates
    return [i for i in candidates if i not in floats]
