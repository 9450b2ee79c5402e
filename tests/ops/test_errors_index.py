"""What gathers, scatters, one-hot vectors and top-k refuse, and how they say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlError
from popxl.ops.scatter_reductions import grouped_scatter_reduce
from popxl.tensor import Tensor


def floats(*shape: int, dtype: Any = np.float32) -> Tensor:
    return popxl.variable(np.zeros(shape, dtype), popxl.dtype.as_dtype(np.dtype(dtype)), name="x")


def ints(*shape: int) -> Tensor:
    return floats(*shape, dtype=np.int32)


def depth(value: Any = 3) -> Tensor:
    return popxl.constant(value, name="depth")


Case = tuple[Callable[[], object], type[BaseException], str]

CASES: dict[str, Case] = {
    # ops-math.md 8.2
    "onehot with a depth that is not known": (
        lambda: ops.onehot(ints(4), ops.identity(ints(1), "depth"), floats(2), -1),
        CoreError,
        "The depth Tensor `depth' does not have data",
    ),
    "onehot with two depths": (
        lambda: ops.onehot(ints(4), depth([3, 3]), floats(2), -1),
        CoreError,
        "The depth tensor should be rank 0 in OneHot; `num_classes` (depth) has shape [2]",
    ),
    "onehot with half a class": (
        lambda: ops.onehot(ints(4), depth(2.5), floats(2), -1),
        CoreError,
        "`num_classes` (depth) is 2.5 of dtype float32",
    ),
    "onehot with a negative depth": (
        lambda: ops.onehot(ints(4), depth(-1), floats(2), -1),
        CoreError,
        "`num_classes` (depth) is -1 of dtype int32",
    ),
    "onehot with a depth that is not finite": (
        lambda: ops.onehot(ints(4), depth(np.inf), floats(2), -1),
        CoreError,
        "`num_classes` (depth) is inf of dtype float32",
    ),
    "onehot with a depth that is no number": (
        lambda: ops.onehot(ints(4), depth(True), floats(2), -1),
        CoreError,
        "`num_classes` (depth) is True of dtype bool",
    ),
    "onehot with three values": (
        lambda: ops.onehot(ints(4), depth(), floats(3), -1),
        CoreError,
        "OneHot needs `values` of shape [2], not [3]",
    ),
    "onehot along an axis before the last": (
        lambda: ops.onehot(ints(4, 4), depth(), floats(2), -2),
        CoreError,
        "OneHot axis -2 is outside the acceptable range [-1, 2] for `t` of shape [4, 4]",
    ),
    "onehot along an axis too large": (
        lambda: ops.onehot(ints(4, 4), depth(), floats(2), 3),
        CoreError,
        "OneHot axis 3 is outside",
    ),
    "onehot of floats": (
        lambda: ops.onehot(floats(4), depth(), floats(2), -1),
        CoreError,
        "Unsupported dtype popxl.dtypes.float32 of `t`",
    ),
    # 8.4
    "groupedgather along the groups": (
        lambda: ops.groupedgather(floats(2, 4), ints(2, 3), 0, 2),
        CoreError,
        "GatherOp::setup axis = 0 indicates the dimension of the group",
    ),
    "groupedgather along the groups from the end": (
        lambda: ops.groupedgather(floats(2, 4), ints(2, 3), -2, 2),
        CoreError,
        "GatherOp::setup axis = -2 indicates the dimension of the group",
    ),
    "groupedgather along no axis": (
        lambda: ops.groupedgather(floats(2, 4), ints(2, 3), 2, 2),
        CoreError,
        "GatherOp::setup axis = 2 is outside the acceptable range",
    ),
    "groupedgather of other groups": (
        lambda: ops.groupedgather(floats(3, 4), ints(2, 3), 1, 2),
        CoreError,
        "`t` of shape [3, 4] does not have 2 groups",
    ),
    "groupedgather at other groups": (
        lambda: ops.groupedgather(floats(2, 4), ints(), 1, 2),
        CoreError,
        "`indices` of shape [] does not have 2 groups",
    ),
    "groupedgather without groups": (
        lambda: ops.groupedgather(floats(2, 4), ints(2, 3), 1, 0),
        CoreError,
        "There cannot be 0 groups",
    ),
    "groupedgather at floats": (
        lambda: ops.groupedgather(floats(2, 4), floats(2, 3), 1, 2),
        CoreError,
        "Unsupported dtype popxl.dtypes.float32 of `indices`",
    ),
    "tied_gather of a scalar": (
        lambda: ops.tied_gather(floats(), ints(2)),
        CoreError,
        "GatherOp::setup axis = 0 is outside the acceptable range",
    ),
    "tied_gather with a hint that is no number": (
        lambda: ops.tied_gather(floats(4), ints(2), 0, "0.5"),  # type: ignore[arg-type]
        TypeError,
        "available_memory_proportion is '0.5'",
    ),
    # 8.5
    "scatter along no axis": (
        lambda: ops.scatter(floats(4), ints(2), floats(2), 1),
        CoreError,
        "ScatterReduceOp::setup axis = 1 is outside",
    ),
    "scatter into a scalar": (
        lambda: ops.scatter(floats(), ints(), floats()),
        CoreError,
        "ScatterReduceOp::setup axis = 0 is outside",
    ),
    "scatter with indices of another rank": (
        lambda: ops.scatter(floats(4, 4), ints(2), floats(2)),
        CoreError,
        "Invalid rank for indices input. `indices` of shape [2] has rank 1, `t` has rank 2",
    ),
    "scatter with values of another rank": (
        lambda: ops.scatter(floats(4), ints(2), floats(2, 1)),
        CoreError,
        "Invalid rank for indices input. `indices` of shape [2] has rank 1, `values` has rank 2",
    ),
    "scatter with too few values": (
        lambda: ops.scatter(floats(4), ints(3), floats(2)),
        CoreError,
        "Failed to expand 'indices' shape [3]: it does not fit into `values` of shape [2]",
    ),
    "scatter with more columns than there are": (
        lambda: ops.scatter(floats(4, 2), ints(9, 3), floats(9, 3)),
        CoreError,
        "Failed to expand 'indices' shape [9, 3]: it does not fit into `t` of shape [4, 2]",
    ),
    "scatter of another dtype": (
        lambda: ops.scatter(floats(4), ints(2), ints(2)),
        CoreError,
        "Scattering float32 with int32 `values` would need a cast",
    ),
    "scatter at floats": (
        lambda: ops.scatter(floats(4), floats(2), floats(2)),
        CoreError,
        "Unsupported dtype popxl.dtypes.float32 of `indices`",
    ),
    "scatter with a hint that is no number": (
        lambda: ops.scatter(floats(4), ints(2), floats(2), 0, [0.5]),  # type: ignore[arg-type]
        TypeError,
        "available_memory_proportion is [0.5]",
    ),
    # 8.6
    "scatter_reduce without a size": (
        lambda: ops.scatter_reduce(floats(4), ints(4), "sum"),
        ValueError,
        "One of initial_values and axis_size must be specified",
    ),
    "scatter_reduce without a size and with an unknown reduction": (
        lambda: ops.scatter_reduce(floats(4), ints(4), "mul"),  # type: ignore[arg-type]
        ValueError,
        "One of initial_values and axis_size must be specified",
    ),
    "scatter_reduce with an unknown reduction": (
        lambda: ops.scatter_reduce(floats(4), ints(4), "mul", axis_size=2),  # type: ignore[arg-type]
        ValueError,
        "The reduction must be one of ['sum', 'min', 'max', 'none']",
    ),
    "scatter_reduce with an unknown reduction of no tensor": (
        lambda: ops.scatter_reduce(np.zeros(4), ints(4), "mul", axis_size=2),  # type: ignore[arg-type]
        ValueError,
        "The reduction must be one of ['sum', 'min', 'max', 'none']",
    ),
    "scatter_reduce along no axis": (
        lambda: ops.scatter_reduce(floats(4), ints(4), "sum", axis=-2, axis_size=2),
        CoreError,
        "ScatterReduceOp::setup axis = -2 is outside",
    ),
    "scatter_reduce with too many axes of indices": (
        lambda: ops.scatter_reduce(floats(4), ints(4, 1), "sum", axis_size=2),
        CoreError,
        "Invalid rank for indices input.",
    ),
    "scatter_reduce with too many indices": (
        lambda: ops.scatter_reduce(floats(4, 2), ints(5), "sum", axis_size=2),
        CoreError,
        "Failed to expand 'indices' shape [5, 1]",
    ),
    "scatter_reduce with a vector that is too short": (
        lambda: ops.scatter_reduce(floats(4, 2), ints(3), "sum", axis_size=2),
        CoreError,
        "Partial broadcasting of indices is not currently supported. `indices` of shape [3]",
    ),
    "scatter_reduce with a vector along another axis": (
        lambda: ops.scatter_reduce(floats(4, 2), ints(1, 2), "sum", axis_size=2),
        CoreError,
        "Partial broadcasting of indices is not currently supported.",
    ),
    "scatter_reduce with a vector, but without broadcasting": (
        lambda: ops.scatter_reduce(floats(4, 2), ints(4), "sum", axis_size=2, enable_index_broadcast=False),
        CoreError,
        "Invalid rank for indices input.",
    ),
    "scatter_reduce with indices beyond the data, without broadcasting": (
        lambda: ops.scatter_reduce(floats(4, 2), ints(5, 1), "sum", axis_size=2, enable_index_broadcast=False),
        CoreError,
        "Failed to expand 'indices' shape [5, 1]: it does not fit into `data` of shape [4, 2]",
    ),
    "scatter_reduce with a negative size": (
        lambda: ops.scatter_reduce(floats(4), ints(4), "sum", axis_size=-1),
        CoreError,
        "axis_size is -1",
    ),
    "scatter_reduce with initial values of another rank": (
        lambda: ops.scatter_reduce(floats(4, 2), ints(4), "sum", floats(3)),
        CoreError,
        "`initial_values` of shape [3] do not fit elements of shape [4, 2] along axis 0",
    ),
    "scatter_reduce of slices with initial values of another shape": (
        lambda: ops.scatter_reduce(floats(4, 2), ints(4), "sum", floats(3, 3)),
        CoreError,
        "`initial_values` of shape [3, 3] do not fit elements of shape [4, 2] along axis 0",
    ),
    "scatter_reduce with initial values of another dtype": (
        lambda: ops.scatter_reduce(floats(4), ints(4), "sum", ints(3)),
        CoreError,
        "Scattering float32 with int32 `initial_values` would need a cast",
    ),
    "scatter_reduce at floats": (
        lambda: ops.scatter_reduce(floats(4), floats(4), "sum", axis_size=2),
        CoreError,
        "Unsupported dtype popxl.dtypes.float32 of `indices`",
    ),
    "sums of booleans": (
        lambda: ops.scatter_reduce(floats(4, dtype=np.bool_), ints(4), "sum", axis_size=2),
        CoreError,
        "Unsupported dtype bool of `data` for the sum of a ScatterReduce",
    ),
    "grouped_scatter_reduce along the groups": (
        lambda: grouped_scatter_reduce(floats(2, 4), ints(2, 4), "sum", axis=0, axis_size=2, group_size=2),
        CoreError,
        "ScatterReduceOp::setup axis = 0 indicates the dimension of the group",
    ),
    "grouped_scatter_reduce of other groups": (
        lambda: grouped_scatter_reduce(floats(2, 4), ints(3, 4), "sum", axis=1, axis_size=2, group_size=2),
        CoreError,
        "`indices` of shape [3, 4] does not have 2 groups",
    ),
    "grouped_scatter_reduce into other groups": (
        lambda: grouped_scatter_reduce(floats(2, 4), ints(2, 4), "sum", floats(3, 4), axis=1, group_size=2),
        CoreError,
        "`initial_values` of shape [3, 4] does not have 2 groups",
    ),
    # 8.7
    "topk of a scalar": (
        lambda: ops.topk(floats(), 1, 0, True, True),
        CoreError,
        "BaseSortOp input rank must be greater than 0",
    ),
    "topk along a negative axis": (
        lambda: ops.topk(floats(4, 3), 1, -1, True, True),
        CoreError,
        "Cannot compute BaseSortOp on axis -1 of `t`",
    ),
    "topk along no axis": (
        lambda: ops.topk(floats(4, 3), 1, 2, True, True),
        CoreError,
        "Cannot compute BaseSortOp on axis 2",
    ),
    "topk of more than there are": (
        lambda: ops.topk(floats(4, 3), 4, 1, True, True),
        CoreError,
        "Cannot take top-4 on dim of size 3",
    ),
    "topk of less than none": (
        lambda: ops.topk(floats(4, 3), -1, 1, True, True),
        CoreError,
        "Cannot take top--1 on dim of size 3",
    ),
    "topk of booleans": (
        lambda: ops.topk(floats(4, dtype=np.bool_), 1, 0, True, True),
        CoreError,
        "Unsupported dtype popxl.dtypes.bool of `t`",
    ),
    "topk with a hint that is no number": (
        lambda: ops.topk(floats(4), 1, 0, True, True, "most"),  # type: ignore[arg-type]
        TypeError,
        "available_memory_proportion is 'most'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_call_is_refused_with_the_right_error_and_adds_no_op(name: str) -> None:
    call, error, start = CASES[name]
    with popxl.Ir().main_graph as graph:
        with pytest.raises(error) as caught:
            call()
        assert [op for op in graph.ops if op.type != "Identity"] == []
    assert isinstance(caught.value, PopxlError)
    assert caught.value.fact.startswith(start)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda a: ops.onehot(a, depth(), floats(2), 0), "t"),
        (lambda a: ops.onehot(ints(2), a, floats(2), 0), "num_classes"),
        (lambda a: ops.onehot(ints(2), depth(), a, 0), "values"),
        (lambda a: ops.groupedgather(a, ints(2), 0, 2), "t"),
        (lambda a: ops.groupedgather(ints(2), a), "indices"),
        (lambda a: ops.tied_gather(a, ints(2)), "t"),
        (lambda a: ops.tied_gather(ints(2), a), "indices"),
        (lambda a: ops.scatter(a, ints(2), ints(2)), "t"),
        (lambda a: ops.scatter(ints(2), a, ints(2)), "indices"),
        (lambda a: ops.scatter(ints(2), ints(2), a), "values"),
        (lambda a: ops.scatter_reduce(a, ints(2), "sum", axis_size=2), "data"),
        (lambda a: ops.scatter_reduce(ints(2), a, "sum", axis_size=2), "indices"),
        (lambda a: ops.scatter_reduce(ints(2), ints(2), "sum", a), "initial_values"),
        (lambda a: ops.topk(a, 1, 0, True, True), "t"),
    ],
)
def test_an_argument_must_be_a_tensor_of_the_current_graph(call: Callable[[Any], object], argument: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph, pytest.raises(TypeError, match=f"The input `{argument}` is not a Tensor"):
        call(np.zeros(1))
    other = ir.create_empty_graph()
    with other:
        foreign = popxl.constant(np.zeros(1, np.int32))
    with ir.main_graph, pytest.raises(ValueError, match=f"The input tensor `{argument}` is not in the current Graph"):
        call(foreign)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda a, b: ops.onehot(a, depth(), b, 0), ("t", "values")),
        (lambda a, b: ops.tied_gather(a, b), ("t", "indices")),
        (lambda a, b: ops.scatter(a, a, b), ("t", "values")),
        (lambda a, b: ops.scatter_reduce(a, a, "sum", b), ("data", "initial_values")),
    ],
)
def test_the_arguments_must_be_on_one_ipu(call: Callable[[Tensor, Tensor], object], names: tuple[str, str]) -> None:
    with popxl.Ir().main_graph:
        here = ops.identity(ints(2))
        with popxl.ipu(1):
            there = ops.identity(ints(2))
        message = f"The input tensors `{names[0]}` and `{names[1]}` are located on different IPUs: 0 != 1"
        with pytest.raises(ValueError, match=message):
            call(here, there)
