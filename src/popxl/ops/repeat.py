"""`repeat`: run a graph a fixed number of times (spec ``ops-control.md`` §3)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from popxl import dtypes
from popxl.aliasing import storage_roots
from popxl.context import get_current_graph, no_name_scopes
from popxl.errors import PopxlTypeError, PopxlValueError
from popxl.graph import Graph
from popxl.graph_function import graph_input, graph_output
from popxl.op import Control
from popxl.ops._define import define
from popxl.ops.call import CallSiteInfo, by_ref_inputs, emit_call, emit_call_site, match_inputs
from popxl.tensor import Tensor, TensorLike


def repeat(
    graph: Graph,
    repeat_count: int,
    *inputs: TensorLike | Iterable[TensorLike],
    inputs_dict: Mapping[Tensor, TensorLike] | None = None,
) -> tuple[Tensor, ...]:
    """Run `graph` `repeat_count` times. Output k of one iteration is input k of the next.

    Args:
        graph: The body; it has at least as many inputs as outputs, output k like input k.
        repeat_count: Number of iterations; 0 gives the initial values.
        inputs: Initial values, as for `popxl.ops.call`.
        inputs_dict: As for `popxl.ops.call`.

    Returns:
        The outputs of the last iteration.

    Raises:
        PopxlValueError: (a `ValueError`) if `repeat_count` is negative, the body has more outputs than
            inputs, or an output does not fit the input that it feeds; and as `popxl.ops.call`.
        PopxlTypeError: (a `TypeError`) if `repeat_count` is no int.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> ir = popxl.Ir()
        >>> with ir.main_graph:
        ...     x = popxl.constant(1.0)
        ...     double = ir.create_graph(lambda x: x + x, x)
        ...     (y,) = ops.repeat(double, 10, x)
    """
    return repeat_with_info(graph, repeat_count, *inputs, inputs_dict=inputs_dict).outputs


def repeat_with_info(
    graph: Graph,
    repeat_count: int,
    *inputs: TensorLike | Iterable[TensorLike],
    inputs_dict: Mapping[Tensor, TensorLike] | None = None,
    check_inputs: bool = True,
) -> CallSiteInfo:
    """Run `graph` as `repeat` does, and return information on the call site.

    `CallSiteInfo.called_graph` is a wrapper around `graph`: its inputs are an iteration counter, a
    condition, and the graph's inputs; its outputs are the condition and the graph's outputs.
    """
    count = _checked_count(repeat_count)
    if len(graph.inputs) < len(graph.outputs):
        raise PopxlValueError(
            f"To repeat the subgraph ({graph.id}) the number of inputs must be greater than or equal to the number "
            f"of outputs. Inputs: {len(graph.inputs)}, outputs: {len(graph.outputs)}.",
            hint="each output needs an input that takes it in the next iteration",
        )
    for k, (before, after) in enumerate(zip(graph.inputs, graph.outputs, strict=False)):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise PopxlValueError(
                f"Output {k} of graph {graph.id} cannot feed input {k} of the next iteration: {after!r} is not "
                f"like {before!r}.",
                hint="carried values keep shape and dtype; put values that do not change last",
            )
    parents = match_inputs(graph, inputs, inputs_dict, "called", check_inputs=check_inputs)
    emit_call_site(
        LOOP,
        {f"input {i}": t for i, t in enumerate(parents)},
        (_wrap(graph),),
        graph.outputs,
        mutates=_overwritten(graph, parents),
        repeat_count=count,
    )
    return CallSiteInfo(get_current_graph().ops[-1])


def _checked_count(repeat_count: int) -> int:
    try:
        count = operator.index(repeat_count)
    except TypeError:
        raise PopxlTypeError(
            f"The repeat count must be an int, not {repeat_count!r}.", hint="it is fixed when the program is built"
        ) from None
    if count < 0:
        raise PopxlValueError(f"Repeat count must be >= 0. It is {count}.", hint="use 0 to run nothing")
    return count


def _overwritten(graph: Graph, parents: tuple[Tensor, ...]) -> tuple[int, ...]:
    """The inputs by reference, of the loop-invariant ones only those that the body modifies."""
    modified = {root for op in graph.ops for i in op.mutates for root in storage_roots(op.inputs[i])}
    carried = len(graph.outputs)
    return tuple(i for i in by_ref_inputs(graph, parents) if i < carried or graph.inputs[i] in modified)


def _wrap(graph: Graph) -> Graph:
    wrapper = graph.ir.create_empty_graph(f"{graph.id}__loop_wrapper")
    with no_name_scopes(), wrapper:
        graph_input((), dtypes.int32, "Iterator___")
        condition = graph_input((), dtypes.bool, "LoopCond___")
        by_ref = graph.by_ref_inputs
        carried: list[Any] = [graph_input(t.shape, t.dtype, t.name, t in by_ref, t.meta_shape) for t in graph.inputs]
        outputs = emit_call(graph, tuple(carried))
        graph_output(condition)
        for t in outputs:
            graph_output(t)
    return wrapper


LOOP = define("Loop", repeat, control=Control.LOOP, first_input=2)
