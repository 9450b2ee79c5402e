"""Gradient graphs of graphs (spec ``transforms.md`` §1)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, overload

from popxl.errors import CoreError
from popxl.graph import Graph
from popxl.op import Op
from popxl.ops._define import FLOATS
from popxl.ops._gradient import differentiable_inputs
from popxl.tensor import Tensor
from popxl.transforms._backward import Backward
from popxl.transforms._control import RULES
from popxl.transforms._paths import gradient_flow, leading_to
from popxl.transforms.grad_info import ExpectedConnection, ExpectedConnectionType, GradGraphInfo

__all__ = ["ExpectedConnection", "ExpectedConnectionType", "GradGraphInfo", "autodiff"]

_log = logging.getLogger(__name__)
Infos = dict[Graph, GradGraphInfo | None]


@overload
def autodiff(
    graph: Graph,
    grads_provided: Iterable[Tensor] | None = None,
    grads_required: Iterable[Tensor] | None = None,
    called_graphs_grad_info: Mapping[Graph, GradGraphInfo] | None = None,
    return_all_grad_graphs: Literal[False] = False,
) -> GradGraphInfo: ...
@overload
def autodiff(
    graph: Graph,
    grads_provided: Iterable[Tensor] | None = None,
    grads_required: Iterable[Tensor] | None = None,
    called_graphs_grad_info: Mapping[Graph, GradGraphInfo] | None = None,
    *,
    return_all_grad_graphs: Literal[True],
) -> dict[Graph, GradGraphInfo]: ...
def autodiff(
    graph: Graph,
    grads_provided: Iterable[Tensor] | None = None,
    grads_required: Iterable[Tensor] | None = None,
    called_graphs_grad_info: Mapping[Graph, GradGraphInfo] | None = None,
    return_all_grad_graphs: bool = False,
) -> GradGraphInfo | dict[Graph, GradGraphInfo]:
    """Make the gradient graph of a graph: the product of the outer gradients with its Jacobian.

    The gradient graph takes the provided gradients, then the forward values that it needs, and gives the required
    gradients. Values that are neither inputs nor outputs of `graph` are added to its outputs, also at its existing call
    sites; if a branch or a loop runs it, they are computed again instead. Nothing is added to the current graph.

    Args:
        graph: The forward graph.
        grads_provided: Its tensors whose gradients will be given, in this order; all outputs if not given.
        grads_required: Its tensors whose gradients are wanted, in this order; all inputs if not given.
        called_graphs_grad_info: Gradient graphs to use for graphs that it calls. If `graph` itself is among them, its
            entry is returned.
        return_all_grad_graphs: Whether to return the gradient graphs of all graphs involved.

    Returns:
        What connects the gradient graph to the forward graph; or that for each graph, by forward graph.

    Raises:
        CoreError: (a `RuntimeError`) if an op overwrites a tensor, a tensor is not in the graph, nothing is required, a
            required tensor has no differentiable path, or an op on the path refuses to be differentiated.

    Example:
        >>> import popxl
        >>> from popxl import ops, transforms
        >>> ir = popxl.Ir()
        >>> with ir.main_graph:
        ...     x = popxl.variable([1.0, 2.0])
        ...     square = ir.create_graph(lambda x: x * x, x)
        ...     info = transforms.autodiff(square)
        ...     call = ops.call_with_info(square, x)
        ...     (dx,) = ops.call(info.graph, popxl.constant([1.0, 1.0]), inputs_dict=info.inputs_dict(call))
    """
    infos: Infos = dict(called_graphs_grad_info or {})
    if graph not in infos:
        graph.ir.check_open()
        provided = graph.outputs if grads_provided is None else tuple(grads_provided)
        required = graph.inputs if grads_required is None else tuple(grads_required)
        _check_tensors(graph, provided, required)
        infos[graph] = _differentiate(graph, provided, required, infos)
    if return_all_grad_graphs:
        return {g: info for g, info in infos.items() if info is not None}
    info = infos[graph]
    assert info is not None
    return info


def _differentiate(graph: Graph, provided: Sequence[Tensor], required: Sequence[Tensor], infos: Infos) -> GradGraphInfo:
    # All checks come first: an error leaves the program as it was.
    _check_unmodified(graph, infos)
    flow = gradient_flow(graph, provided, infos)
    for t in required:
        if t not in flow:
            raise _no_path(graph, t)
    _differentiate_called(graph, infos)
    return Backward(graph, provided, infos, RULES).build(required)


def _differentiate_called(graph: Graph, infos: Infos) -> None:
    """Differentiate each graph that `graph` calls, for all inputs that have a path to an output."""
    for g in graph.called_graphs:
        if g in infos:
            continue
        _differentiate_called(g, infos)
        # The first output of a loop's wrapper is its condition, which has no gradient.
        outputs = [t for t in g.outputs if t.dtype in FLOATS]
        leading = leading_to(g, outputs, infos)
        inputs = [t for t in g.inputs if t in leading]
        infos[g] = Backward(g, outputs, infos, RULES).build(inputs) if inputs else None


def _check_tensors(graph: Graph, provided: Sequence[Tensor], required: Sequence[Tensor]) -> None:
    if not required:
        raise CoreError(
            f"[Autodiff] Calling Autodiff on Graph {graph.id} with defined but empty vector of required gradients.",
            hint="name tensors in grads_required, or give the graph inputs",
        )
    for argument, tensors in (("grads_provided", provided), ("grads_required", required)):
        for t in tensors:
            if t not in graph:
                raise CoreError(
                    f"[Autodiff] In call to Autodiff on forward graph `{graph.id}`, you have passed a tensor in "
                    f"`{argument}` that is not in this graph: {t.id}.",
                    hint="pass tensors of the forward graph, not those of its caller",
                )
    for t in provided:
        if t not in graph.outputs:
            name = graph.id or "the main graph"
            _log.warning("[Autodiff] The gradient of %s is provided, but it is no output of %s.", t.id, name)


def _check_unmodified(graph: Graph, covered: Collection[Graph]) -> None:
    """Check that neither `graph` nor a graph that it calls, besides those in `covered`, overwrites a tensor."""
    for op in graph.ops:
        # An op that overwrites in general, but not here (a constant), has no gradient either.
        modified = op.mutates or op.definition.mutates
        if modified:
            names = ", ".join(op.inputs[i].id for i in modified)
            what = "a call that modifies" if op.called_graphs else "which modifies"
            raise CoreError(
                f"The graph {graph.id} contains a modifying op: {op.type}, {what} {names}.",
                where=op.where,
                hint="use the op that makes a new tensor, or differentiate a graph without the update",
            )
    for g in graph.called_graphs:
        if g not in covered:
            _check_unmodified(g, covered)


def _no_path(graph: Graph, t: Tensor) -> CoreError:
    end = _end_of_path(graph, t)
    return CoreError(
        f"[Autodiff] Unable to provide required gradient output for fwd id '{t.id}' in bwd graph {graph.id}_bwd: "
        "no differentiable path leads from it to a tensor whose gradient is provided.",
        where=f"the path ends at {end.where}" if end else None,
        hint="list the tensors that you want in grads_required",
    )


def _end_of_path(graph: Graph, t: Tensor) -> Op | None:
    """The first op that gives no gradient to what depends on `t`."""
    found = {t}
    for op in graph.ops:
        if found.intersection(op.inputs):
            if op.definition.control is None and not any(op.inputs[i] in found for i in differentiable_inputs(op)):
                return op
            found |= set(op.outputs)
    return None
