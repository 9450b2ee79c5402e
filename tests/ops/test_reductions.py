"""Reductions, running sums and histograms: examples by hand, gradients at ties and zeros, and what a call adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_gradients import gradient_of, result_of

import popxl
from popxl import ops
from popxl.ops._gradient import differentiable_inputs, needed_tensors
from popxl.tensor import Tensor

F32 = np.float32
AXIS_REDUCTIONS = [
    ops.sum,
    ops.mean,
    ops.max,
    ops.min,
    ops.prod,
    ops.l1,
    ops.l2,
    ops.logsum,
    ops.logsumexp,
    ops.sumsquare,
    ops.median,
]
TYPES = {
    ops.min: "ReduceMin",
    ops.prod: "ReduceProd",
    ops.l1: "ReduceL1",
    ops.l2: "ReduceL2",
    ops.logsum: "ReduceLogSum",
    ops.logsumexp: "ReduceLogSumExp",
    ops.sumsquare: "ReduceSumSquare",
    ops.median: "ReduceMedian",
    ops.lamb_square: "LambSquare",
    ops.argmax: "ArgMax",
    ops.argmin: "ArgMin",
    ops.cumsum: "CumSum",
}


def array(*values: Any, dtype: Any = F32) -> np.ndarray:
    return np.array(values, dtype)


# Values worked by hand


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (ops.sum, 9),
        (ops.mean, 3),
        (ops.max, 10),
        (ops.min, -3),
        (ops.prod, -60),
        (ops.l1, 15),
        (ops.l2, np.sqrt(113)),
        (ops.logsum, np.log(9)),
        (ops.sumsquare, 113),
        (ops.median, 2),
    ],
)
def test_what_three_numbers_are_reduced_to(function: Callable[..., Tensor], expected: float) -> None:
    np.testing.assert_allclose(result_of(function, array(2, -3, 10)), expected, rtol=1e-6)


@pytest.mark.parametrize("function", AXIS_REDUCTIONS)
@pytest.mark.parametrize(
    ("axis", "keepdims", "shape"),
    [
        (None, False, ()),
        (None, True, (1, 1, 1)),
        (1, False, (2, 4)),
        (-1, True, (2, 3, 1)),
        ([2, 0], False, (3,)),
        ((-3, 1), True, (1, 1, 4)),
        ([], False, (2, 3, 4)),
        (range(1), False, (3, 4)),
        (np.int64(1), False, (2, 4)),
    ],
)
def test_which_axes_stay(function: Callable[..., Tensor], axis: Any, keepdims: bool, shape: tuple[int, ...]) -> None:
    with popxl.Ir().main_graph:
        assert function(popxl.variable(np.ones((2, 3, 4), F32)), axis, keepdims).shape == shape


def test_logsumexp_does_not_overflow() -> None:
    out = result_of(ops.logsumexp, array([1000, 1000], [-1000, -1000]), 1)
    np.testing.assert_allclose(out, [1000 + np.log(2), -1000 + np.log(2)], rtol=1e-6)


def test_logsumexp_of_nothing_but_minus_infinity_is_minus_infinity() -> None:
    np.testing.assert_array_equal(result_of(ops.logsumexp, array(-np.inf, -np.inf)), -np.inf)


def test_logsumexp_of_an_infinity_is_infinite() -> None:
    np.testing.assert_array_equal(result_of(ops.logsumexp, array(np.inf, 1, -np.inf)), np.inf)


@pytest.mark.parametrize(
    ("function", "expected"),
    [(ops.sum, 0), (ops.prod, 1), (ops.l1, 0), (ops.l2, 0), (ops.sumsquare, 0), (ops.logsum, -np.inf)],
)
def test_what_no_elements_are_reduced_to(function: Callable[..., Tensor], expected: float) -> None:
    np.testing.assert_array_equal(result_of(function, np.zeros((2, 0), F32), 1), [expected, expected])


def test_integers_wrap_around() -> None:
    np.testing.assert_array_equal(result_of(ops.prod, array(100, 3, dtype=np.int8)), 300 - 256)
    np.testing.assert_array_equal(result_of(ops.sumsquare, array(20, dtype=np.int8)), 400 - 512)


def test_a_product_of_float16_may_be_large_on_the_way() -> None:
    out = result_of(ops.prod, array(300, 300, 0.001, dtype=np.float16))
    assert out.dtype == np.float16
    np.testing.assert_allclose(out, 90, rtol=2e-3)


# The median


def test_the_median_of_an_even_count_is_the_lower_one() -> None:
    np.testing.assert_array_equal(result_of(ops.median, array(1, 2, 3, 4)), 2)


def test_the_median_over_axes_is_that_of_all_their_elements() -> None:
    t = array([[9, 1], [5, 3]], [[8, 2], [7, 4]])
    np.testing.assert_array_equal(result_of(ops.median, t, (0, 2)), [2, 4])


def test_the_median_with_a_nan_is_nan() -> None:
    np.testing.assert_array_equal(result_of(ops.median, array([1, np.nan, 3], [1, 2, 3]), 1), [np.nan, 2])


def test_the_median_has_a_second_output_with_its_place_in_the_flattened_slice() -> None:
    ir = popxl.Ir()
    with ir.main_graph as graph:
        t = popxl.variable(array([[9, 1], [5, 3]], [[8, 2], [7, 4]]))
        before = len(graph.tensors)
        out = ops.median(t, (0, 2), keepdims=True)
        assert len(graph.tensors) == before + 2
        assert out.producer is not None
        indices = out.producer.outputs[1]
        stream = popxl.d2h_stream(indices.shape, indices.dtype)
        ops.host_store(stream, indices)
    assert (out.name, indices.name, indices.dtype) == ("median_out", "median_indices_out", popxl.int32)
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[stream], [[[3], [3]]])


# Places of extremes


@pytest.mark.parametrize(
    ("function", "expected"), [(ops.argmax, ([1, 0, 1], [1, 2])), (ops.argmin, ([0, 1, 0], [2, 0]))]
)
def test_places_of_extremes(function: Callable[..., Tensor], expected: Any) -> None:
    t = array([1, 5, -2], [3, 4, 6])
    np.testing.assert_array_equal(result_of(function, t), expected[0])
    np.testing.assert_array_equal(result_of(function, t, -1), expected[1])


@pytest.mark.parametrize(("function", "expected"), [(ops.argmax, 1), (ops.argmin, 0)])
def test_of_equal_elements_the_first_is_found(function: Callable[..., Tensor], expected: int) -> None:
    assert result_of(function, array(1, 3, 3, 1, 3)) == expected


@pytest.mark.parametrize("function", [ops.argmax, ops.argmin])
def test_places_are_int32_and_their_axis_may_stay(function: Callable[..., Tensor]) -> None:
    with popxl.Ir().main_graph:
        t = popxl.variable(np.ones((2, 3, 4), np.int64))
        assert (function(t).shape, function(t).dtype) == ((3, 4), popxl.int32)
        assert function(t, 1, True).shape == (2, 1, 4)
        assert function(t, dim=-1, keepdim=None).shape == (2, 3)


# Running sums


def test_cumsum_adds_up_along_its_axis() -> None:
    t = array([1, 2, 3], [10, 20, 30])
    np.testing.assert_array_equal(result_of(ops.cumsum, t), [[1, 2, 3], [11, 22, 33]])
    np.testing.assert_array_equal(result_of(ops.cumsum, t, dim=-1), [[1, 3, 6], [10, 30, 60]])


@pytest.mark.parametrize("dim", [1, -1])
def test_cumsum_keeps_its_axis_as_a_constant(dim: int) -> None:
    with popxl.Ir().main_graph as graph:
        ops.cumsum(popxl.variable(np.ones((2, 3), F32), name="x"), dim)
        assert len(graph.tensors) == 3
        (constant,) = graph.constants
    assert (constant.name, constant.dtype, constant.shape) == ("dim", popxl.int64, ())
    assert constant.host_value == 1


# Histograms


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("absolute", "expected"), [(False, [1, 2, 1, 2]), (True, [0, 2, 2, 2])])
def test_a_histogram_counts_below_between_and_from_the_levels_on(dtype: Any, absolute: bool, expected: Any) -> None:
    t = array(-1, 0, 0.5, 1, 2, 5, dtype=dtype)
    out = result_of(ops.histogram, t, [0, 1, 2], absolute)
    assert out.dtype == np.uint32
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_levels_are_rounded_to_the_dtype_of_the_input(dtype: Any) -> None:
    # float16(0.1) is below 0.1, float32(0.1) above.
    tenth = dtype(0.1)
    t = array(np.nextafter(tenth, dtype(0)), tenth, dtype=dtype)
    np.testing.assert_array_equal(result_of(ops.histogram, t, [0.1], False), [1, 1])


def test_a_level_that_float16_cannot_hold_is_infinite() -> None:
    t = array(1, 65504, np.inf, dtype=np.float16)
    np.testing.assert_array_equal(result_of(ops.histogram, t, [0.0, 1e6], False), [0, 2, 1])


def test_a_histogram_does_not_count_nan() -> None:
    t = array(np.nan, -np.inf, np.inf, 1)
    np.testing.assert_array_equal(result_of(ops.histogram, t, [0, 1], False), [1, 0, 2])


def test_a_histogram_without_levels_counts_everything() -> None:
    np.testing.assert_array_equal(result_of(ops.histogram, array([1, 2], [3, 4]), [], False), [4])


# Sums of squares of optimisers


def test_lamb_square_of_float16_is_summed_in_float32() -> None:
    out = result_of(ops.lamb_square, np.full((3, 4), 300, np.float16))
    assert (out.dtype, out.shape) == (np.float32, ())
    assert out == 12 * 90000


def test_lamb_square_belongs_to_an_optimiser() -> None:
    with popxl.Ir().main_graph:
        op = ops.lamb_square(popxl.variable(array(1.0))).producer
    assert op is not None
    assert op.isOptimizerOp()


# Gradients where they do not follow from differences


@pytest.mark.parametrize(("function", "best"), [(ops.max, 3), (ops.min, -3)])
def test_every_tied_element_receives_the_whole_gradient(function: Callable[..., Tensor], best: float) -> None:
    t = array([best, 1, best], [0, best, 2])
    grad = gradient_of(function, t, 1, g=[5, 7])
    np.testing.assert_array_equal(grad, [[5, 0, 5], [0, 7, 0]])
    np.testing.assert_array_equal(gradient_of(function, t, g=2), [[2, 0, 2], [0, 2, 0]])


def test_the_gradient_of_an_extreme_is_selected_not_multiplied() -> None:
    np.testing.assert_array_equal(gradient_of(ops.max, array(1, 2), g=np.inf), [0, np.inf])


@pytest.mark.parametrize(
    ("t", "expected"),
    [([2, 3, 4], [12, 8, 6]), ([0, 3, 4], [12, 0, 0]), ([0, 3, 0], [0, 0, 0]), ([2, 0, -4], [0, -8, 0]), ([5], [1])],
)
def test_the_gradient_of_a_product_is_the_product_of_the_others(t: Any, expected: Any) -> None:
    np.testing.assert_array_equal(gradient_of(ops.prod, array(*t), g=1), expected)


def test_the_gradient_of_a_float16_product_is_computed_in_float32() -> None:
    # 300 * 300 is more than float16 can hold; times 0.001 it is not.
    grad = gradient_of(ops.prod, array(1, 300, 300, 0.001, dtype=np.float16), g=1)
    np.testing.assert_allclose(grad[:3], [90, 0.3, 0.3], rtol=3e-3)


def test_the_gradient_of_l1_is_the_sign_and_0_at_0() -> None:
    np.testing.assert_array_equal(gradient_of(ops.l1, array(-2, 0, -0.0, 3), g=2), [-2, 0, 0, 2])
    np.testing.assert_array_equal(gradient_of(ops.l1, array(-2, 0, 3), g=np.inf), [-np.inf, 0, np.inf])


def test_the_gradient_of_l2_is_the_direction() -> None:
    np.testing.assert_allclose(gradient_of(ops.l2, array(3, -4), g=10), [6, -8], rtol=1e-6)


def test_the_gradient_of_an_l2_norm_of_0_is_nan() -> None:
    grad = gradient_of(ops.l2, array([0, 0], [3, 4]), 1, g=1)
    np.testing.assert_allclose(grad, [[np.nan, np.nan], [0.6, 0.8]], rtol=1e-6)


def test_the_gradient_of_logsum_of_0_is_infinite() -> None:
    np.testing.assert_array_equal(gradient_of(ops.logsum, array(0, 0), g=1), [np.inf, np.inf])


def test_the_gradient_of_logsumexp_is_softmax() -> None:
    grad = gradient_of(ops.logsumexp, array(0, np.log(3)), g=2)
    np.testing.assert_allclose(grad, [0.5, 1.5], rtol=1e-6)


def test_the_gradient_of_logsumexp_is_zero_where_t_is_minus_infinity() -> None:
    np.testing.assert_array_equal(gradient_of(ops.logsumexp, array(-np.inf, 5), g=2), [0, 2])


def test_the_gradient_of_a_large_float16_logsumexp_does_not_feel_its_rounding() -> None:
    grad = gradient_of(ops.logsumexp, np.full(3, 1000, np.float16), g=3)
    np.testing.assert_allclose(grad, [1, 1, 1], rtol=1e-3)


def test_the_gradient_of_float16_sums_of_squares_is_rounded_once() -> None:
    # 2 * 40000 is more than float16 can hold.
    grad = gradient_of(ops.sumsquare, array(40000, dtype=np.float16), g=0.125)
    np.testing.assert_array_equal(grad, [10000])


def test_the_gradient_of_the_median_goes_to_that_element() -> None:
    grad = gradient_of(ops.median, array([4, 1, 3, 2], [7, 9, 8, 6]), 1, g=[5, 6])
    np.testing.assert_array_equal(grad, [[0, 0, 0, 5], [6, 0, 0, 0]])


def test_the_gradient_of_a_median_over_axes_goes_to_that_element() -> None:
    t = array([[9, 1], [5, 3]], [[8, 2], [7, 4]])
    grad = gradient_of(ops.median, t, (0, 2), keepdims=True, g=[[[5], [6]]])
    np.testing.assert_array_equal(grad, [[[0, 0], [0, 0]], [[0, 5], [0, 6]]])


def test_the_gradient_of_a_tied_median_goes_to_one_element() -> None:
    grad = gradient_of(ops.median, array(2, 1, 2, 2, 5), g=np.inf)
    assert sorted(grad) == [0, 0, 0, 0, np.inf]
    assert array(2, 1, 2, 2, 5)[np.argmax(grad)] == 2


def test_the_gradient_of_cumsum_runs_from_the_far_end() -> None:
    np.testing.assert_array_equal(gradient_of(ops.cumsum, array(1, 2, 3), g=[1, 10, 100]), [111, 110, 100])
    grad = gradient_of(ops.cumsum, np.ones((2, 3), F32), -1, g=[[1, 10, 100], [2, 20, 200]])
    np.testing.assert_array_equal(grad, [[111, 110, 100], [222, 220, 200]])


def test_the_gradient_of_a_float16_cumsum_is_accumulated_in_float32() -> None:
    grad = gradient_of(ops.cumsum, np.zeros(4096, np.float16), g=1)
    np.testing.assert_array_equal(grad[0], 4096)


def test_the_gradient_of_a_float16_mean_is_divided_in_float32() -> None:
    np.testing.assert_allclose(gradient_of(ops.mean, np.zeros(3, np.float16), g=1), 1 / 3, rtol=1e-3)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("function", [ops.sum, ops.prod, ops.l1, ops.l2, ops.logsum, ops.logsumexp, ops.sumsquare])
def test_the_gradient_of_nothing_is_nothing(function: Callable[..., Tensor], axis: Any) -> None:
    assert gradient_of(function, np.zeros((2, 0), F32), axis, g=1).shape == (2, 0)


# What gradients need of the forward pass, and what has none


@pytest.mark.parametrize(
    ("function", "needs"),
    [
        (ops.sum, ""),
        (ops.mean, ""),
        (ops.cumsum, ""),
        (ops.prod, "t"),
        (ops.l1, "t"),
        (ops.sumsquare, "t"),
        (ops.max, "ty"),
        (ops.min, "ty"),
        (ops.l2, "ty"),
        (ops.logsumexp, "ty"),
        (ops.logsum, "y"),
        (ops.median, "i"),
    ],
)
def test_what_a_gradient_needs(function: Callable[..., Tensor], needs: str) -> None:
    with popxl.Ir().main_graph:
        op = function(popxl.variable(np.ones((2, 3), F32)), 1).producer
        assert op is not None
        tensors = {"t": op.inputs[0], "y": op.outputs[0], "i": op.outputs[-1]}
        assert needed_tensors(op, [0], [0]) == tuple(tensors[name] for name in needs)


@pytest.mark.parametrize(
    "function", [ops.argmax, ops.argmin, ops.lamb_square, lambda t: ops.histogram(t, [0.0], False)]
)
def test_what_has_no_gradient(function: Callable[..., Tensor]) -> None:
    with popxl.Ir().main_graph:
        op = function(popxl.variable(np.ones((2, 3), F32))).producer
        assert op is not None
        assert differentiable_inputs(op) == ()


# Names and types


@pytest.mark.parametrize("function", TYPES)
def test_the_type_of_an_op_and_the_name_of_its_result(function: Callable[..., Tensor]) -> None:
    with popxl.Ir().main_graph as graph:
        out = function(popxl.variable(np.ones((2, 3), F32)))
        assert [op.type for op in graph.ops] == [TYPES[function]]
        assert out.name == f"{function.__name__}_out"


def test_the_type_and_the_name_of_a_histogram() -> None:
    with popxl.Ir().main_graph as graph:
        out = ops.histogram(popxl.variable(np.ones((2, 3), F32)), [1, 2.5], True)
        (op,) = graph.ops
    assert (op.type, out.name) == ("Histogram", "histogram_out")
    assert (op.attributes["levels"], op.attributes["absolute_of_input"]) == ((1.0, 2.5), True)


@pytest.mark.parametrize("function", [f for f in TYPES if f not in (ops.median, ops.cumsum)])
def test_a_call_adds_one_tensor(function: Callable[..., Tensor]) -> None:
    with popxl.Ir().main_graph as graph:
        t = popxl.variable(np.ones((2, 3), F32))
        function(t)
        assert len(graph.tensors) == 2
