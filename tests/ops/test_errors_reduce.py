"""What reductions, products, softmax and normalisations refuse (spec ops-math.md §5, §9; ops-nn.md §3.2, §4.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError

OF_FLOATS = [ops.l2, ops.logsum, ops.logsumexp]
OF_SOME = [ops.max, ops.min, ops.median]
REDUCTIONS = [ops.sum, ops.mean, ops.prod, ops.l1, ops.sumsquare, *OF_FLOATS, *OF_SOME]
ARG_EXTREMES = [ops.argmax, ops.argmin]


@pytest.fixture(autouse=True)
def graph() -> Iterator[None]:
    with popxl.Ir().main_graph:
        yield


def of_shape(*shape: int, dtype: Any = np.float32) -> popxl.Tensor:
    return popxl.variable(np.ones(shape, dtype))


# Reductions


@pytest.mark.parametrize("function", REDUCTIONS)
@pytest.mark.parametrize(("axis", "named"), [(2, 2), (-3, -3), ([0, 5], 5)])
def test_axes_out_of_range_are_named(function: Callable[..., Any], axis: Any, named: int) -> None:
    with pytest.raises(CoreError, match=rf"^Axis {named} is out of acceptable range \[-2, 1\]"):
        function(of_shape(2, 3), axis)


@pytest.mark.parametrize("function", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, [-1]])
def test_a_scalar_has_no_axes(function: Callable[..., Any], axis: Any) -> None:
    with pytest.raises(CoreError, match=r"^Reduce input rank must be greater than 0"):
        function(of_shape(), axis)


@pytest.mark.parametrize("function", REDUCTIONS)
def test_an_axis_cannot_be_given_twice(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^Axes \(1, -1\) .* twice"):
        function(of_shape(2, 3), (1, -1))


@pytest.mark.parametrize("function", REDUCTIONS)
def test_reductions_refuse_bool(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*bool of `t`"):
        function(of_shape(2, dtype=bool))


@pytest.mark.parametrize("function", REDUCTIONS)
def test_reductions_take_tensors_only(function: Callable[..., Any]) -> None:
    with pytest.raises(PopxlTypeError, match=r"^The input `t` is not a Tensor"):
        function([1.0, 2.0])


@pytest.mark.parametrize("function", OF_SOME)
@pytest.mark.parametrize("axis", [None, 0, [0, 1]])
def test_nothing_has_no_extreme_and_no_median(function: Callable[..., Any], axis: Any) -> None:
    with pytest.raises(CoreError, match=r"^Cannot reduce 0 elements of shape \[0, 3\]"):
        function(of_shape(0, 3), axis)


@pytest.mark.parametrize("function", OF_FLOATS)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_norms_and_logarithms_refuse_integers(function: Callable[..., Any], dtype: Any) -> None:
    with pytest.raises(CoreError, match=rf"^Unsupported dtype.*{np.dtype(dtype).name} of `t`"):
        function(of_shape(2, dtype=dtype))


@pytest.mark.parametrize("function", REDUCTIONS)
@pytest.mark.parametrize("axis", [1.0, [0, "1"]])
def test_axes_are_integers(function: Callable[..., Any], axis: Any) -> None:
    with pytest.raises(PopxlTypeError, match=r"^`axis` is (1\.0|'1'), which is no integer"):
        function(of_shape(2, 3), axis)


@pytest.mark.parametrize("function", REDUCTIONS)
def test_a_reduction_that_is_refused_adds_nothing(function: Callable[..., Any]) -> None:
    t = of_shape(2, 3)
    with pytest.raises(CoreError):
        function(t, 2)
    assert popxl.gcg().tensors == (t,)
    assert popxl.gcg().ops == ()


@pytest.mark.parametrize("function", [*REDUCTIONS, *ARG_EXTREMES, ops.cumsum, ops.lamb_square])
def test_reductions_take_tensors_of_the_current_graph_only(function: Callable[..., Any]) -> None:
    t = of_shape(2, 3)
    other = popxl.gcg().ir.create_empty_graph("other")
    with other, pytest.raises(PopxlValueError, match=r"^The input tensor `t` is not in the current Graph"):
        function(t)


@pytest.mark.parametrize("dtype", [np.int32, bool])
def test_lamb_square_takes_floats_only(dtype: Any) -> None:
    with pytest.raises(CoreError, match=rf"^Unsupported dtype.*{np.dtype(dtype).name} of `t`"):
        ops.lamb_square(of_shape(2, dtype=dtype))


# Places of extremes


@pytest.mark.parametrize("function", ARG_EXTREMES)
def test_a_scalar_has_no_place_of_an_extreme(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^ArgExtremaOp input rank must be greater than 0: `t`"):
        function(of_shape())


@pytest.mark.parametrize("function", ARG_EXTREMES)
@pytest.mark.parametrize("dim", [2, -3])
def test_places_of_extremes_need_an_axis_in_range(function: Callable[..., Any], dim: int) -> None:
    with pytest.raises(CoreError, match=rf"^Cannot compute ArgExtremaOp on axis {dim}: `t` has shape \[2, 3\]"):
        function(of_shape(2, 3), dim)


@pytest.mark.parametrize("function", ARG_EXTREMES)
def test_places_of_extremes_need_elements(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^Cannot compute ArgExtremaOp on axis 0 of shape \[0, 3\]"):
        function(of_shape(0, 3))


@pytest.mark.parametrize("function", ARG_EXTREMES)
def test_places_of_extremes_refuse_bool(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*bool of `t`"):
        function(of_shape(2, dtype=bool))


@pytest.mark.parametrize("function", [*ARG_EXTREMES, ops.cumsum])
@pytest.mark.parametrize("dim", [None, 0.5])
def test_dim_is_an_integer(function: Callable[..., Any], dim: Any) -> None:
    with pytest.raises(PopxlTypeError, match=rf"^`dim` is {dim}, which is no integer"):
        function(of_shape(2, 3), dim)


@pytest.mark.parametrize("function", [*ARG_EXTREMES, ops.cumsum, ops.lamb_square])
def test_other_reductions_take_tensors_only(function: Callable[..., Any]) -> None:
    with pytest.raises(PopxlTypeError, match=r"^The input `t` is not a Tensor"):
        function([1.0, 2.0])


# Running sums


@pytest.mark.parametrize(("shape", "dim"), [((2, 3), 2), ((2, 3), -3), ((), 0)])
def test_cumsum_needs_an_axis_in_range_and_leaves_no_constant_without(shape: tuple[int, ...], dim: int) -> None:
    t = of_shape(*shape)
    with pytest.raises(CoreError, match=rf"^CumSumOpx op, 'axis' value out of range\. `dim` {dim} is outside"):
        ops.cumsum(t, dim)
    assert popxl.gcg().tensors == (t,)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool])
def test_cumsum_takes_floats_only(dtype: Any) -> None:
    with pytest.raises(CoreError, match=rf"^Unsupported dtype.*{np.dtype(dtype).name} of `t`"):
        ops.cumsum(of_shape(2, dtype=dtype))


# Histograms


@pytest.mark.parametrize("levels", [[1.0, 1.0], [0.0, 2.0, 1.0], [np.nan], [0.0, np.nan]])
def test_levels_of_a_histogram_increase(levels: Any) -> None:
    with pytest.raises(PopxlValueError, match=r"^The input levels `\[.*\]` is not a monotonically increasing list\."):
        ops.histogram(of_shape(2), levels, False)


def test_levels_of_a_histogram_are_numbers() -> None:
    with pytest.raises(PopxlTypeError, match=r"^levels\[1\] is 'high', which is no number"):
        ops.histogram(of_shape(2), [0.0, "high"], False)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool])
def test_a_histogram_takes_floats_only(dtype: Any) -> None:
    t = of_shape(2, dtype=dtype)
    with pytest.raises(CoreError, match=rf"^HistogramOp does not support the input type {np.dtype(dtype).name} of `t`"):
        ops.histogram(t, [0.0], False)
    assert popxl.gcg().ops == ()


def test_a_histogram_takes_tensors_only() -> None:
    with pytest.raises(PopxlTypeError, match=r"^The input `t` is not a Tensor"):
        ops.histogram([1.0, 2.0], [0.0], False)  # pyright: ignore[reportArgumentType]


# Matrices


@pytest.mark.parametrize(("lhs", "rhs"), [((), (2,)), ((2, 2), ()), ((), ())])
def test_matmul_refuses_scalars(lhs: tuple[int, ...], rhs: tuple[int, ...]) -> None:
    with pytest.raises(CoreError, match="doesn't support scalar tensor"):
        ops.matmul(of_shape(*lhs), of_shape(*rhs))


@pytest.mark.parametrize(("lhs", "rhs"), [((2, 3), (2, 3)), ((3,), (2,)), ((2, 3), (2,)), ((4,), (5, 3, 2))])
def test_matmul_needs_equal_inner_dimensions(lhs: tuple[int, ...], rhs: tuple[int, ...]) -> None:
    with pytest.raises(CoreError, match="contracting dimensions unequal"):
        ops.matmul(of_shape(*lhs), of_shape(*rhs))


def test_matmul_needs_batches_that_broadcast() -> None:
    with pytest.raises(CoreError, match=r"^np broadcasting failed.*frames \[2\] and \[3\]"):
        ops.matmul(of_shape(2, 4, 5), of_shape(3, 5, 4))


def test_matmul_does_not_promote() -> None:
    with pytest.raises(CoreError, match="incompatible types float16, float32"):
        ops.matmul(of_shape(2, 2, dtype=np.float16), of_shape(2, 2))


def test_matmul_does_not_promote_for_an_output_type_either() -> None:
    with pytest.raises(CoreError, match="incompatible types float16, float32"):
        ops.matmul(of_shape(2, 2, dtype=np.float16), of_shape(2, 2), output_type=popxl.float32)


def test_matmul_refuses_integers() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*int32 of `lhs`"):
        ops.matmul(of_shape(2, 2, dtype=np.int32), of_shape(2, 2, dtype=np.int32))


def test_matmul_of_float8_needs_a_scale() -> None:
    t = popxl.variable(np.ones((2, 2)), popxl.float8_143)
    with pytest.raises(CoreError, match=r"^Log2 scale input tensor must be provided for FLOAT8 input types"):
        ops.matmul(t, t)


def test_matmul_does_not_mix_float8_with_others() -> None:
    t = popxl.variable(np.ones((2, 2)), popxl.float8_143)
    with pytest.raises(CoreError, match=r"^Invalid operand type"):
        ops.matmul(t, of_shape(2, 2))


@pytest.mark.parametrize("dtype", [popxl.float64, popxl.int32, popxl.float8_143])
def test_matmul_names_partials_types_that_are_not_valid(dtype: popxl.dtype) -> None:
    with pytest.raises(
        PopxlValueError, match=rf"^dtype popxl\.dtypes\.{dtype.name} is not valid, must be float16 or float32"
    ):
        ops.matmul(of_shape(2, 2), of_shape(2, 2), partials_type=dtype)


def test_matmul_gives_floats_only() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported output_type"):
        ops.matmul(of_shape(2, 2), of_shape(2, 2), output_type=popxl.int32)


def test_a_memory_proportion_is_a_number() -> None:
    with pytest.raises(PopxlTypeError, match=r"^available_memory_proportion is 'most'"):
        ops.matmul(of_shape(2, 2), of_shape(2, 2), "most")


@pytest.mark.parametrize("position", range(2))
def test_matmul_takes_tensors_only(position: int) -> None:
    arguments: list[Any] = [of_shape(2, 2), of_shape(2, 2)]
    arguments[position] = np.ones((2, 2))
    with pytest.raises(PopxlTypeError, match=rf"^The input `{['lhs', 'rhs'][position]}` is not a Tensor"):
        ops.matmul(*arguments)


# Softmax and normalisation


@pytest.mark.parametrize("axis", [2, -3])
def test_softmax_names_an_axis_out_of_range(axis: int) -> None:
    with pytest.raises(CoreError, match=rf"^Axis {axis} of Softmax is out of acceptable range \[-2, 1\]"):
        ops.softmax(of_shape(2, 3), axis)


def test_softmax_refuses_integers() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*int32 of `t`"):
        ops.softmax(of_shape(2, dtype=np.int32), 0)


@pytest.mark.parametrize("position", range(3))
def test_layer_norm_takes_tensors_only(position: int) -> None:
    arguments: list[Any] = [of_shape(2, 3), of_shape(3), of_shape(3)]
    arguments[position] = 1.0
    with pytest.raises(PopxlTypeError, match=rf"^The input `{['t', 'weight', 'bias'][position]}` is not a Tensor"):
        ops.layer_norm(*arguments)


@pytest.mark.parametrize("position", [1, 2])
def test_layer_norm_needs_a_number_per_channel(position: int) -> None:
    arguments = [of_shape(2, 3, 4), of_shape(3), of_shape(3)]
    arguments[position] = of_shape(4)
    with pytest.raises(
        CoreError,
        match=rf"^The shape of `{['t', 'weight', 'bias'][position]}` of GroupNormalization is \[4\], not \[3\]",
    ):
        ops.layer_norm(*arguments)


def test_layer_norm_needs_two_axes() -> None:
    with pytest.raises(CoreError, match=r"needs a rank of at least 2, not shape \[3\]"):
        ops.layer_norm(of_shape(3), of_shape(3), of_shape(3))


def test_layer_norm_does_not_promote() -> None:
    with pytest.raises(CoreError, match="incompatible types float16, float32, float32"):
        ops.layer_norm(of_shape(2, 3, dtype=np.float16), of_shape(3), of_shape(3))


@pytest.mark.parametrize("num_groups", [0, -1, 4, 5])
def test_groups_must_be_of_equal_size(num_groups: int) -> None:
    with pytest.raises(CoreError, match=f"cannot divide 6 channels into {num_groups} groups"):
        ops.group_norm(of_shape(2, 6), of_shape(6), of_shape(6), num_groups)


def test_a_cumsum_that_is_refused_adds_nothing() -> None:
    t = popxl.variable([1, 2])
    before = len(popxl.gcg().tensors)
    with pytest.raises(CoreError, match="of `t`"):
        ops.cumsum(t)
    assert len(popxl.gcg().tensors) == before
