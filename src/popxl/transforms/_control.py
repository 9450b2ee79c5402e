"""Gradients of calls, branches and loops (spec ``transforms.md`` §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from popxl import dtypes, ops
from popxl.context import no_name_scopes
from popxl.creation import constant
from popxl.errors import CoreError
from popxl.graph import Graph
from popxl.graph_function import graph_input, graph_output
from popxl.op import Control, Op
from popxl.ops._define import FLOATS
from popxl.ops.addition import add_up
from popxl.tensor import Tensor
from popxl.transforms._backward import Backward, Grads, Rule
from popxl.transforms._paths import check_repeatable
from popxl.transforms.grad_info import ExpectedConnectionType, GradGraphInfo


def zeros_like(t: Tensor) -> Tensor:
    """Zeros of the shape and dtype of `t`, in the current graph."""
    return ops.init(t.shape, t.dtype, f"{t.name}_zeros")


def _call_gradient_graph(
    info: GradGraphInfo, grads: Mapping[int, Tensor], forward_value: Callable[[Tensor], Tensor]
) -> dict[int, Tensor]:
    """Call a gradient graph.

    Args:
        info: The gradient graph.
        grads: The gradient of each output of the forward graph, by number; those of others are zeros.
        forward_value: Gives the value of an input or output of the forward graph.

    Returns:
        The gradient of each input of the forward graph that has one, by number.
    """
    forward = info.forward_graph
    arguments: list[Tensor] = []
    used: set[int] = set()
    for connection in info.expected_inputs:
        t = connection.fwd_tensor
        if connection.connection_type is ExpectedConnectionType.Fwd:
            arguments.append(forward_value(t))
            continue
        # What a graph returns several times has as many gradients; those of other tensors are zeros.
        places = [k for k, output in enumerate(forward.outputs) if output == t and k in grads and k not in used]
        used.update(places)
        given = [grads[k] for k in places] or [zeros_like(t)]
        arguments.append(add_up(given) if len(given) > 1 else given[0])
    found = ops.call(info.graph, *arguments)
    return {forward.inputs.index(t): g for t, g in zip(info.outputs, found, strict=False) if t in forward.inputs}


def _info(backward: Backward, graph: Graph) -> GradGraphInfo:
    info = backward.called[graph]
    assert info is not None
    return info


# Call


def _call(backward: Backward, op: Op, grads: Grads, wrt: Sequence[int]) -> Sequence[Tensor]:
    called = op.called_graphs[0]

    def forward_value(t: Tensor) -> Tensor:
        if t in called.inputs:
            return backward.value(op.inputs[called.inputs.index(t)])
        return backward.value(op.outputs[called.outputs.index(t)])

    found = _call_gradient_graph(_info(backward, called), grads, forward_value)
    return [found[i] for i in wrt]


# Branch


def _branch(backward: Backward, op: Op, grads: Grads, wrt: Sequence[int]) -> Sequence[Tensor]:
    """A branch between two graphs, each with the gradients of one branch, and zeros for inputs of the other."""
    condition = backward.value(op.inputs[0])
    numbers = list(grads)
    graphs: list[Graph] = []
    arguments: list[list[Tensor]] = []
    first = 1
    for branch in op.called_graphs:
        values = {t: op.inputs[first + i] for i, t in enumerate(branch.inputs)}
        places = [i - first if first <= i < first + len(branch.inputs) else None for i in wrt]
        graph, needed = _branch_gradient(backward, branch, op, numbers, wrt, places)
        graphs.append(graph)
        arguments.append([*grads.values(), *(backward.value(values[t]) for t in needed)])
        first += len(branch.inputs)
    then_graph, else_graph = graphs
    return ops.conditional(condition, then_graph, else_graph, arguments[0], arguments[1])


def _branch_gradient(
    backward: Backward, branch: Graph, op: Op, numbers: Sequence[int], wrt: Sequence[int], places: Sequence[int | None]
) -> tuple[Graph, list[Tensor]]:
    """A graph with the gradients of one branch.

    Args:
        backward: The graph that will call it.
        branch: The branch.
        op: The forward op.
        numbers: The outputs whose gradients it takes.
        wrt: The inputs of `op` whose gradients it gives.
        places: For each of them, the input of the branch, or None if it belongs to the other branch.

    Returns:
        The graph, and the inputs of the branch whose values it takes as well.
    """
    info = backward.called.get(branch)
    graph = branch.ir.create_derived_graph(f"{branch.id}_bwd_branch")
    needed: dict[Tensor, Tensor] = {}

    def forward_value(t: Tensor) -> Tensor:
        if t not in branch.inputs:
            raise CoreError(
                f"The gradient graph of {branch.id} takes its output {t.id}, but a conditional cannot keep values.",
                hint="pass called_graphs_grad_info only for graphs that are called",
            )
        if t not in needed:
            needed[t] = graph_input(t.shape, t.dtype, t.name)
        return needed[t]

    with no_name_scopes(), graph:
        given = {k: graph_input(t.shape, t.dtype, f"Gradient___{t.name}") for k, t in _chosen(op.outputs, numbers)}
        found = _call_gradient_graph(info, given, forward_value) if info else {}
        for i, place in zip(wrt, places, strict=True):
            graph_output(found[place] if place in found else zeros_like(op.inputs[i]))
    return graph, list(needed)


def _chosen(tensors: Sequence[Tensor], numbers: Iterable[int]) -> list[tuple[int, Tensor]]:
    return [(k, tensors[k]) for k in numbers]


# Loop


def _loop(backward: Backward, op: Op, grads: Grads, wrt: Sequence[int]) -> Sequence[Tensor]:
    """Run the loop again, keeping the values that each iteration starts with; then go through them backwards."""
    if not op.attributes["repeat_count"]:
        return [grads[i] if i in grads else zeros_like(op.inputs[i]) for i in wrt]
    return _LoopGradient(backward, op, grads, wrt).emit()


class _LoopGradient:
    """The gradient of one loop.

    The body's inputs are numbered as those of the loop: the first of them are carried, output k to input k.
    """

    def __init__(self, backward: Backward, op: Op, grads: Grads, wrt: Sequence[int]) -> None:
        self.backward = backward
        self.op = op
        self.grads = grads
        self.wrt = wrt
        self.count: int = op.attributes["repeat_count"]
        self.wrapper = op.called_graphs[0]
        self.info = _info(backward, self.wrapper)
        self.hidden = op.definition.first_input
        self.carried = len(op.outputs)
        wanted = [c.fwd_tensor for c in self.info.expected_inputs if c.connection_type is ExpectedConnectionType.Fwd]
        self.needed = [self.wrapper.inputs.index(t) - self.hidden for t in wanted]
        self.differentiable = sorted(self.wrapper.inputs.index(t) - self.hidden for t in self.info.outputs)

    def emit(self) -> Sequence[Tensor]:
        op = self.op
        inputs = [self.backward.value(t) for t in op.inputs]
        flowing = [k for k in range(self.carried) if op.outputs[k].dtype in FLOATS]
        constant_inputs = [i for i in self.differentiable if i >= self.carried]
        stacks = self._stacks(inputs)
        ends = [self.grads[k] if k in self.grads else zeros_like(op.outputs[k]) for k in flowing]
        sums = [zeros_like(op.inputs[i]) for i in constant_inputs]
        kept = list(stacks.values())
        fixed = [i for i in self.needed if i >= self.carried]
        body = self._body(flowing, constant_inputs, stacks, fixed)
        last = constant(self.count - 1, dtypes.int32, "iteration")
        results = ops.repeat(body, self.count, *ends, *sums, last, *kept, *(inputs[i] for i in fixed))
        found = dict(zip([*flowing, *constant_inputs], results, strict=False))
        return [found[i] for i in self.wrt]

    def _stacks(self, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """For each carried value that the gradient needs, its values at the start of all iterations."""
        stored = [i for i in self.needed if 0 <= i < self.carried and self.op.inputs[i].nelms]
        if not stored:
            return {}
        check_repeatable(self.op)
        op, count = self.op, self.count
        graph = op.graph.ir.create_derived_graph(f"{self.wrapper.id}_stash")
        with no_name_scopes(), graph:
            state = [graph_input(t.shape, t.dtype, t.name) for t in op.inputs[: self.carried]]
            number = graph_input((), dtypes.int32, "iteration")
            stacks = [graph_input((count, *op.inputs[i].shape), op.inputs[i].dtype, "stack") for i in stored]
            fixed = [graph_input(t.shape, t.dtype, t.name) for t in op.inputs[self.carried :]]
            _, *after = ops.call(self.wrapper, number, True, *state, *fixed)
            for t in after[: self.carried]:
                graph_output(t)
            graph_output(number + 1)
            for i, stack in zip(stored, stacks, strict=True):
                row = ops.reshape(state[i], (1, *state[i].shape))
                graph_output(ops.dynamic_update(stack, ops.reshape(number, (1,)), row, [0], [1], True))
        empty = [ops.init((count, *op.inputs[i].shape), op.inputs[i].dtype, "stack") for i in stored]
        start = constant(0, dtypes.int32, "iteration")
        results = ops.repeat(graph, count, *inputs[: self.carried], start, *empty, *inputs[self.carried :])
        return dict(zip(stored, results[self.carried + 1 :], strict=True))

    def _body(
        self, flowing: Sequence[int], constant_inputs: Sequence[int], stacks: Mapping[int, Tensor], fixed: Sequence[int]
    ) -> Graph:
        """One iteration backwards."""
        op = self.op
        graph = op.graph.ir.create_derived_graph(f"{self.wrapper.id}_bwd_iteration")
        with no_name_scopes(), graph:
            grads = {k: graph_input(t.shape, t.dtype, f"Gradient___{t.name}") for k, t in _chosen(op.outputs, flowing)}
            sums = {
                i: graph_input(t.shape, t.dtype, f"Gradient___{t.name}") for i, t in _chosen(op.inputs, constant_inputs)
            }
            number = graph_input((), dtypes.int32, "iteration")
            rows = {i: graph_input(stack.shape, stack.dtype, "stack") for i, stack in stacks.items()}
            values = {i: graph_input(t.shape, t.dtype, t.name) for i, t in _chosen(op.inputs, fixed)}
            for i, stack in rows.items():
                row = ops.dynamic_slice(stack, ops.reshape(number, (1,)), [0], [1], True)
                values[i] = ops.reshape(row, op.inputs[i].shape)

            def forward_value(t: Tensor) -> Tensor:
                i = self.wrapper.inputs.index(t) - self.hidden
                if i < 0:
                    return number if i == -self.hidden else constant(True, dtypes.bool)
                # Only what is empty was not kept.
                return values[i] if i in values else zeros_like(t)

            # The first output of a loop's wrapper is its condition.
            outer = {k + 1: g for k, g in grads.items()}
            found = _call_gradient_graph(self.info, outer, forward_value)
            for k in flowing:
                graph_output(found[k + self.hidden] if k + self.hidden in found else zeros_like(op.outputs[k]))
            for i in constant_inputs:
                graph_output(sums[i] + found[i + self.hidden])
            graph_output(number - 1)
        return graph


RULES: Mapping[Control, Rule] = {Control.CALL: _call, Control.BRANCH: _branch, Control.LOOP: _loop}
"""How ops that call graphs are differentiated."""
