"""Gradients of elementwise ops where the op has no derivative, or has one that is easily lost (spec ops-math.md §3-§4).

Elsewhere, tests/ops/test_gradients.py compares them with differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from op_gradients import gradient_of, result_of, values_and_gradients

import popxl
from popxl import ops
from popxl.errors import CoreError
from popxl.ops._gradient import add_gradient_op, differentiable_inputs, needed_tensors
from popxl.tensor import Tensor

INF, NAN = np.inf, np.nan


def floats(*values: float, dtype: Any = np.float32) -> np.ndarray:
    return np.array(values, dtype)


def gradients_of(function: Callable[..., Tensor], *arrays: Any, g: Any, wrt: Any = None) -> list[np.ndarray]:
    """The gradients by the arrays `wrt`, all by default, given that of the result, which has the dtype of the first."""
    wanted = range(len(arrays)) if wrt is None else wrt
    given = np.asarray(g, np.asarray(arrays[wanted[0]]).dtype)
    return values_and_gradients(function, arrays, {0: given}, list(wanted))[1]


# One tensor


def test_the_gradient_of_abs_is_0_at_0() -> None:
    grad = gradient_of(ops.abs, floats(-2, -0.0, 0, 3, INF), g=[5, 5, 5, 5, 5])
    np.testing.assert_array_equal(grad, [-5, 0, 0, 5, 5])


def test_the_gradient_of_relu_is_0_at_0() -> None:
    grad = gradient_of(ops.relu, floats(-2, -0.0, 0, 3, INF), g=5)
    np.testing.assert_array_equal(grad, [0, 0, 0, 5, 5])


@pytest.mark.parametrize("function", [ops.relu, ops.abs])
def test_a_gradient_that_does_not_pass_leaves_no_trace(function: Callable[..., Any]) -> None:
    np.testing.assert_array_equal(gradient_of(function, floats(0, 0), g=[NAN, INF]), [0, 0])


@pytest.mark.parametrize("function", [ops.ceil, ops.floor, ops.sign])
@pytest.mark.parametrize("g", [5, INF, NAN])
def test_a_step_has_a_gradient_and_it_is_0(function: Callable[..., Any], g: float) -> None:
    np.testing.assert_array_equal(gradient_of(function, floats(-1, -0.5, 0, 0.5, 2), g=g), np.zeros(5))


def test_the_gradient_of_sqrt_is_infinite_at_0() -> None:
    np.testing.assert_array_equal(gradient_of(ops.sqrt, floats(0, 4, INF), g=[3, 3, 3]), [INF, 0.75, 0])


def test_the_gradient_of_log_is_infinite_at_0() -> None:
    np.testing.assert_array_equal(gradient_of(ops.log, floats(0, 4), g=3), [INF, 0.75])


def test_gradients_vanish_where_functions_level_off() -> None:
    np.testing.assert_array_equal(gradient_of(ops.tanh, floats(-INF, INF), g=3), [0, 0])
    np.testing.assert_array_equal(gradient_of(ops.exp, floats(-INF), g=3), [0])


@pytest.mark.parametrize("function", [ops.gelu, ops.geluerf, ops.swish])
@pytest.mark.parametrize(("dtype", "large"), [(np.float16, 300), (np.float32, 1e20), (np.float64, 1e200)])
def test_smooth_rectifiers_have_slopes_0_and_1_far_from_0(function: Any, dtype: Any, large: float) -> None:
    t = floats(-INF, -large, large, INF, dtype=dtype)
    np.testing.assert_array_equal(gradient_of(function, t, g=3), [0, 0, 3, 3])


@pytest.mark.parametrize("function", [ops.gelu, ops.geluerf, ops.swish])
def test_the_slope_of_a_smooth_rectifier_is_a_half_at_0(function: Callable[..., Any]) -> None:
    np.testing.assert_array_equal(gradient_of(function, floats(0), g=3), [1.5])


@pytest.mark.parametrize("function", [ops.gelu, ops.geluerf, ops.swish])
def test_the_slope_at_nan_is_nan(function: Callable[..., Any]) -> None:
    assert np.isnan(gradient_of(function, floats(NAN), g=3)).all()


# Clip


def test_the_gradient_of_clip_is_0_on_a_bound() -> None:
    np.testing.assert_array_equal(gradient_of(ops.clip, floats(0, 1, 2), 0, 2, g=[5, 5, 5]), [0, 5, 0])


def test_the_gradient_of_clip_is_0_beyond_a_bound() -> None:
    np.testing.assert_array_equal(gradient_of(ops.clip, floats(-1, 1, 3), 0, 2, g=[NAN, 5, INF]), [0, 5, 0])


def test_the_gradient_of_clip_is_0_where_infinity_meets_a_default_bound() -> None:
    np.testing.assert_array_equal(gradient_of(ops.clip, floats(-INF, 1e38, INF), g=5), [0, 5, 0])


def test_the_gradient_of_clip_is_0_at_the_limits_of_float16() -> None:
    grad = gradient_of(ops.clip, floats(-INF, -65504, 65472, INF, dtype=np.float16), g=5)
    np.testing.assert_array_equal(grad, [0, 0, 5, 0])


def test_the_bounds_that_stop_a_gradient_are_rounded_as_those_of_the_value() -> None:
    grad = gradient_of(ops.clip, floats(0.1, 0.2, 0.3, dtype=np.float16), 0.1, 0.3, g=5)
    np.testing.assert_array_equal(grad, [0, 5, 0])


def test_bounds_in_the_wrong_order_stop_every_gradient() -> None:
    np.testing.assert_array_equal(gradient_of(ops.clip, floats(0, 1.5, 3), 2, 1, g=5), [0, 0, 0])


def test_the_gradient_of_clip_passes_nan() -> None:
    np.testing.assert_array_equal(gradient_of(ops.clip, floats(NAN), 0, 1, g=5), [5])


# Two tensors


def test_remainders_have_a_gradient_for_the_dividend_only() -> None:
    (to_lhs,) = gradients_of(ops.fmod, floats(-5.5, 4, 1), floats(2, 2, 0), g=[3, 4, 5], wrt=[0])
    np.testing.assert_array_equal(to_lhs, [3, 4, 5])


def test_the_gradient_of_a_quotient_squares_no_divisor() -> None:
    to_lhs, to_rhs = gradients_of(ops.div, floats(1e30), floats(1e20), g=1)
    np.testing.assert_allclose(to_lhs, [1e-20], rtol=1e-6)
    np.testing.assert_allclose(to_rhs, [-1e-10], rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "of_lhs", "of_rhs"), [(ops.add, 1, 1), (ops.sub, 1, -1), (ops.mul, 2, 0.5), (ops.div, 0.5, -0.125)]
)
def test_gradients_of_stretched_float16_are_summed_in_float32(function: Any, of_lhs: float, of_rhs: float) -> None:
    rows = 5000
    g = np.full((rows, 2), 0.1, np.float16)
    column, row = np.full((rows, 1), 0.5, np.float16), np.full((1, 2), 2, np.float16)
    to_lhs, to_rhs = gradients_of(function, column, row, g=g)
    each = np.float64(np.float16(0.1))
    np.testing.assert_array_equal(to_lhs, np.full((rows, 1), np.float16(2 * each * of_lhs)))
    np.testing.assert_allclose(to_rhs, np.full((1, 2), np.float16(rows * each * of_rhs)), rtol=1e-3)
    assert (to_lhs.dtype, to_rhs.dtype) == (np.float16, np.float16)


def test_the_gradient_of_a_float32_scale_of_float16_is_float32() -> None:
    to_half, to_scale = gradients_of(ops.mul, floats(1, 2, dtype=np.float16), np.float32(3.0004), g=[1, 2])
    np.testing.assert_array_equal(to_half, floats(3.0004, 6.0008).astype(np.float16))
    assert (to_scale.shape, to_scale.dtype) == ((), np.float32)
    assert to_scale == 5


POWERS = [
    # t, e, gradient of t, gradient of e, both for g = 3
    (0, 0, 0, 0),
    (0, 1, 3, 0),
    (0, 2, 0, 0),
    (0, 0.5, INF, 0),
    (0, -1, -INF, -INF),
    (5, 0, 0, 3 * np.log(5)),
    (-2, 2, -12, NAN),
    (-2, 0, 0, NAN),
    (INF, 0, 0, INF),
    (1, 7, 21, 0),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("t", "e", "to_t", "to_e"), POWERS)
def test_the_gradients_of_powers_at_0(t: float, e: float, to_t: float, to_e: float, dtype: Any) -> None:
    found = gradients_of(ops.pow, floats(t, dtype=dtype), floats(e, dtype=dtype), g=3)
    np.testing.assert_allclose(
        np.concatenate(found), floats(to_t, to_e, dtype=dtype), rtol=1e-3 if dtype == np.float16 else 1e-6
    )


# Maximum


def test_tied_inputs_of_maximum_get_the_full_gradient_each() -> None:
    found = gradients_of(ops.maximum, floats(1, 4, 2), floats(1, 3, 2), floats(0, 4, 2), g=[5, 6, 7])
    np.testing.assert_array_equal(found, [[5, 6, 7], [5, 0, 7], [0, 6, 7]])


def test_a_stretched_input_of_maximum_sums_what_it_wins() -> None:
    to_column, to_row = gradients_of(ops.maximum, floats(1, 3)[:, None], floats(1, 2, 4), g=[[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(to_column, [[1], [9]])
    np.testing.assert_array_equal(to_row, [1, 2, 9])


def test_an_input_of_maximum_that_loses_gets_0_of_any_gradient() -> None:
    to_loser, to_winner = gradients_of(ops.maximum, floats(0, 0), floats(1, 1), g=[INF, NAN])
    np.testing.assert_array_equal(to_loser, [0, 0])
    np.testing.assert_array_equal(to_winner, [INF, NAN])


# Where


def test_where_gives_each_side_only_its_own_gradient() -> None:
    condition = np.array([True, False, True, False])
    lhs, rhs = floats(1, 2, 3, 4), floats(5, 6, 7, 8)
    to_lhs, to_rhs = gradients_of(ops.where, condition, lhs, rhs, g=[INF, INF, NAN, NAN], wrt=[1, 2])
    np.testing.assert_array_equal(to_lhs, [INF, 0, NAN, 0])
    np.testing.assert_array_equal(to_rhs, [0, INF, 0, NAN])


def test_where_sums_over_stretched_sides() -> None:
    condition = np.array([[True], [False]])
    to_lhs, to_rhs = gradients_of(ops.where, condition, np.float32(1), floats(2, 3), g=[[1, 2], [4, 8]], wrt=[1, 2])
    np.testing.assert_array_equal(to_lhs, 3)
    np.testing.assert_array_equal(to_rhs, [4, 8])


# Casts


@pytest.mark.parametrize(("source", "target"), [("float32", "float16"), ("float16", "float32"), ("float64", "float32")])
def test_the_gradient_of_a_cast_is_cast_back(source: str, target: str) -> None:
    g = floats(0.1, 70, dtype=target)
    _, (grad,) = values_and_gradients(
        lambda t: ops.cast(t, popxl.dtype.as_dtype(target)), [floats(1, 2, dtype=source)], {0: g}, [0]
    )
    assert grad.dtype == np.dtype(source)
    np.testing.assert_array_equal(grad, g.astype(source))


# Scaled sums


def test_the_gradients_of_a_scaled_sum() -> None:
    x, y, a, b = floats(1, 2), floats(3, 5), np.array([[0.5]], np.float32), np.float32(-2)
    to_x, to_y, to_a, to_b = gradients_of(ops.scaled_add, x, y, a, b, g=[10, 100])
    np.testing.assert_array_equal(to_x, [5, 50])
    np.testing.assert_array_equal(to_y, [-20, -200])
    np.testing.assert_array_equal(to_a, [[210]])
    np.testing.assert_array_equal(to_b, 530)


def test_the_gradients_of_a_scaled_sum_have_the_dtypes_of_the_inputs() -> None:
    x, y = floats(1, 2, dtype=np.float16), floats(3, 5)
    to_x, to_y = gradients_of(lambda x, y: ops.scaled_add(x, y, 0.5, 0.25), x, y, g=[4, 8])
    assert (to_x.dtype, to_y.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(to_x, [2, 4])
    np.testing.assert_array_equal(to_y, [1, 2])


# Values with the same edges


def test_the_sign_of_nan_is_0() -> None:
    np.testing.assert_array_equal(result_of(ops.sign, floats(-INF, -3, -0.0, 0, NAN, 2)), [-1, -1, 0, 0, 0, 1])


def test_clip_limits_infinite_float16_to_the_largest_number() -> None:
    np.testing.assert_array_equal(result_of(ops.clip, floats(-INF, NAN, INF, dtype=np.float16)), [-65504, NAN, 65504])


def test_clip_keeps_infinite_float32() -> None:
    np.testing.assert_array_equal(result_of(ops.clip, floats(-INF, NAN, INF)), [-INF, NAN, INF])


# No gradient


@pytest.fixture
def graph() -> Iterator[popxl.Graph]:
    with popxl.Ir().main_graph as graph:
        yield graph


def variable(dtype: Any = np.float32) -> Tensor:
    return popxl.variable(np.ones(2, dtype))


WITHOUT_A_PATH: dict[str, Callable[[], Tensor]] = {
    "increment_mod": lambda: ops.increment_mod(variable(), 1, 2),
    "increment_mod_": lambda: ops.increment_mod_(variable(), 1, 2),
    "isnan": lambda: ops.isnan(variable()),
    "isinf": lambda: ops.isinf(variable()),
    "isfinite": lambda: ops.isfinite(variable()),
    "relu_": lambda: ops.relu_(variable()),
    "swish_": lambda: ops.swish_(variable()),
    "add_": lambda: ops.add_(variable(), variable()),
    "scaled_add_": lambda: ops.scaled_add_(variable(), variable()),
    "ipu_copy": lambda: ops.ipu_copy(variable(), 1, 0),
    "io_tile_copy": lambda: ops.io_tile_copy(variable()),
    "init": lambda: ops.init((2,), popxl.float32),
    "abs of integers": lambda: ops.abs(variable(np.int32)),
    "cast of integers": lambda: ops.cast(variable(np.int32), popxl.float32),
    "cast to integers": lambda: ops.cast(variable(), popxl.int32),
    "cast of bool": lambda: ops.cast(variable(bool), popxl.float32),
}
SOME: dict[str, tuple[Callable[[], Tensor], tuple[int, ...]]] = {
    "the dividend of fmod": (lambda: ops.fmod(variable(), variable()), (0,)),
    "the sides of where": (lambda: ops.where(variable(bool), variable(), variable()), (1, 2)),
}


@pytest.mark.parametrize("make", WITHOUT_A_PATH.values(), ids=WITHOUT_A_PATH)
def test_an_op_without_a_gradient_path(make: Callable[[], Tensor], graph: popxl.Graph) -> None:
    op = make().producer
    assert op is not None
    assert differentiable_inputs(op) == ()


@pytest.mark.parametrize("name", SOME)
def test_only_some_inputs_have_a_gradient(name: str, graph: popxl.Graph) -> None:
    make, expected = SOME[name]
    op = make().producer
    assert op is not None
    assert differentiable_inputs(op) == expected


REFUSED: dict[str, Callable[[], Tensor]] = {
    "Equal": lambda: ops.equal(variable(), variable()),
    "Greater": lambda: ops.greater(variable(), variable()),
    "And": lambda: ops.logical_and(variable(), variable()),
    "Or": lambda: ops.logical_or(variable(), variable()),
    "Not": lambda: ops.logical_not(variable()),
}


@pytest.mark.parametrize("type", REFUSED)
def test_asking_for_the_gradient_of_a_comparison_is_an_error(type: str, graph: popxl.Graph) -> None:
    op = REFUSED[type]().producer
    assert op is not None
    ops_before = graph.ops
    message = f"^PopART does not have a valid grad op corresponding to {type}"
    with pytest.raises(CoreError, match=message):
        needed_tensors(op, [0], [0])
    with pytest.raises(CoreError, match=message):
        add_gradient_op(op, {0: variable()}, [0])
    assert graph.ops == ops_before


# What gradients need


NEEDS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "abs": (lambda: ops.abs(variable()), "0"),
    "sin": (lambda: ops.sin(variable()), "0"),
    "cos": (lambda: ops.cos(variable()), "0"),
    "geluerf": (lambda: ops.geluerf(variable()), "0"),
    "swish": (lambda: ops.swish(variable()), "0"),
    "clip": (lambda: ops.clip(variable(), 0, 1), "y"),
    "ceil": (lambda: ops.ceil(variable()), ""),
    "sign": (lambda: ops.sign(variable()), ""),
    "negate": (lambda: ops.negate(variable()), ""),
    "identity": (lambda: ops.identity(variable()), ""),
    "fmod": (lambda: ops.fmod(variable(), variable()), ""),
    "div": (lambda: ops.div(variable(), variable()), "01"),
    "pow": (lambda: ops.pow(variable(), variable()), "01y"),
    "maximum": (lambda: ops.maximum(variable(), variable(), variable()), "012y"),
    "scaled_add": (lambda: ops.scaled_add(variable(), variable(), 2, 3), ""),
    "scaled_add of a tensor": (lambda: ops.scaled_add(variable(), variable(), 2, popxl.variable(3.0)), "12"),
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_gradient_needs_only_what_it_uses(name: str, graph: popxl.Graph) -> None:
    make, needs = NEEDS[name]
    op = make().producer
    assert op is not None
    found = needed_tensors(op, [0], differentiable_inputs(op))
    assert list(found) == [op.outputs[0] if letter == "y" else op.inputs[int(letter)] for letter in needs]
