"""Pooling: worked examples, windows of every kind, gradients at ties, and what a call adds (spec ops-nn.md §2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from op_gradients import gradient_of, result_of

import popxl
from popxl import ops
from popxl.ops._gradient import needed_tensors
from popxl.ops._windows import Windows, place_windows

F32 = np.float32
POOLS = [ops.average_pool, ops.max_pool]


def line(*values: float, dtype: Any = F32) -> Any:
    return np.array([[values]], dtype)


def pooled(function: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> list[float]:
    return result_of(function, x, *args, **kwargs)[0, 0].tolist()


def pooled_gradient(function: Callable[..., Any], x: Any, *args: Any, g: Any, **kwargs: Any) -> list[float]:
    return gradient_of(function, x, *args, g=g, **kwargs)[0, 0].tolist()


# Values


def test_a_window_that_fits_in_part_does_not_count() -> None:
    assert pooled(ops.average_pool, line(1, 2, 3, 4), (2,), (3,)) == [1.5]


def test_in_ceil_mode_a_window_that_fits_in_part_counts() -> None:
    assert pooled(ops.average_pool, line(1, 2, 3, 4), (2,), (3,), ceil_mode=True) == [1.5, 4]
    assert pooled(ops.max_pool, line(1, 2, 3, 4), (2,), (3,), ceil_mode=True) == [2, 4]


def test_the_stride_is_1_unless_given() -> None:
    assert pooled(ops.max_pool, line(1, 2, 3, 4), (2,)) == [2, 3, 4]


def test_padding_does_not_count_for_the_average() -> None:
    assert pooled(ops.average_pool, line(3, 5), (3,), padding=(1, 2)) == [4, 4, 5]


def test_padding_never_is_the_largest() -> None:
    assert pooled(ops.max_pool, line(-3, -5), (3,), padding=(1, 2)) == [-3, -3, -5]


def test_paddings_are_all_before_then_all_after() -> None:
    x = np.arange(1, 5, dtype=F32).reshape(1, 1, 2, 2)
    # One row above, two columns after: windows of 2 by 2.
    y = result_of(ops.max_pool, x, (2, 2), padding=(1, 0, 0, 2))
    np.testing.assert_array_equal(y, [[[[2, 2, -np.inf], [4, 4, -np.inf]]]])


def test_short_paddings_and_strides_are_filled_with_zeros_and_ones() -> None:
    x = np.arange(1, 17, dtype=F32).reshape(1, 1, 4, 4)
    y = result_of(ops.max_pool, x, (2, 2), (2,), (1,))
    np.testing.assert_array_equal(y, result_of(ops.max_pool, x, (2, 2), (2, 1), (1, 0, 0, 0)))
    assert y.shape == (1, 1, 2, 3)


def test_an_average_of_padding_only_is_0() -> None:
    assert pooled(ops.average_pool, line(2, 4), (1,), (2,), (2, 2)) == [0, 2, 0]


def test_the_largest_of_padding_only_is_minus_infinity() -> None:
    assert pooled(ops.max_pool, line(2, 4), (1,), (2,), (2, 2)) == [-np.inf, 2, -np.inf]


def test_in_ceil_mode_a_last_window_may_start_in_the_padding() -> None:
    # Windows start at -1, 2 and 5, of 3 elements and one of padding; PyTorch would drop the last one.
    assert pooled(ops.max_pool, line(1, 2, 3, 4, 5), (2,), (3,), (1, 1), ceil_mode=True) == [1, 4, -np.inf]


@pytest.mark.parametrize(("auto_pad", "expected"), [("same_upper", [1.5, 3.5, 5]), ("same_lower", [1, 2.5, 4.5])])
def test_an_odd_padding_goes_to_the_end_or_the_start(auto_pad: Any, expected: list[float]) -> None:
    assert pooled(ops.average_pool, line(1, 2, 3, 4, 5), (2,), (2,), auto_pad=auto_pad) == expected


@pytest.mark.parametrize("auto_pad", ["valid", "same_upper", "same_lower"])
def test_other_pad_types_ignore_the_padding(auto_pad: Any) -> None:
    x = line(1, 2, 3, 4, 5)
    plain = pooled(ops.average_pool, x, (3,), (2,), auto_pad=auto_pad)
    assert pooled(ops.average_pool, x, (3,), (2,), (7, 9), auto_pad=auto_pad) == plain


@pytest.mark.parametrize("auto_pad", [None, ""])
def test_no_pad_type_takes_the_padding(auto_pad: Any) -> None:
    assert pooled(ops.max_pool, line(1, 2), (1,), padding=(0, 1), auto_pad=auto_pad) == [1, 2, -np.inf]


def test_a_dilated_window_leaves_elements_out() -> None:
    assert pooled(ops.average_pool, line(1, 20, 3, 40, 5), (3,), dilation=(2,)) == [3]


def test_a_dilated_input_has_padding_between_its_elements() -> None:
    # 1 . 2 . 3: windows of two hold one element each.
    assert pooled(ops.average_pool, line(1, 2, 3), (2,), in_dilations=(2,)) == [1, 2, 2, 3]


def test_a_long_float16_average_is_accumulated_in_float32() -> None:
    x = np.full((1, 1, 8192), 0.1, np.float16)
    assert pooled(ops.average_pool, x, (8192,)) == [x[0, 0, 0]]


def test_a_float16_sum_beyond_its_range_does_not_spoil_the_average() -> None:
    assert pooled(ops.average_pool, line(60000, 40000, dtype=np.float16), (2,)) == [np.float16(50000)]


# Gradients


def test_an_average_spreads_its_gradient_over_its_elements() -> None:
    # Windows: [3], [3, 5] and [5], the first and last with padding.
    g = line(2, 4, 8)
    assert pooled_gradient(ops.average_pool, line(3, 5), (2,), padding=(1, 1), g=g) == [4, 10]


def test_an_average_of_padding_only_has_no_gradient() -> None:
    assert pooled_gradient(ops.average_pool, line(2, 4), (1,), (2,), (2, 2), g=line(1, 1, 1)) == [1, 0]


def test_every_element_that_equals_the_largest_gets_the_full_gradient() -> None:
    # Windows [7, 7, 1], [7, 1, 7] and [1, 7, 7].
    assert pooled_gradient(ops.max_pool, line(7, 7, 1, 7, 7), (3,), g=line(1, 10, 100)) == [1, 11, 0, 110, 100]


def test_overlapping_windows_add_up_to_the_gradient_of_the_largest() -> None:
    assert pooled_gradient(ops.max_pool, line(1, 9, 2, 3), (2,), g=line(1, 10, 100)) == [0, 11, 0, 100]


def test_elements_of_no_window_have_no_gradient() -> None:
    assert pooled_gradient(ops.max_pool, line(1, 2, 3, 9), (2,), (3,), g=line(5)) == [0, 5, 0, 0]


def test_a_window_of_padding_only_has_no_gradient() -> None:
    assert pooled_gradient(ops.max_pool, line(2, -np.inf), (1,), (2,), (2, 2), g=line(1, 10, 100)) == [10, 0]


def test_the_gradient_of_a_dilated_window_skips_what_it_leaves_out() -> None:
    # Windows [1, 3, 5] and [20, 40, 6].
    x = line(1, 20, 3, 40, 5, 6)
    assert pooled_gradient(ops.max_pool, x, (3,), dilation=(2,), g=line(1, 10)) == [0, 0, 0, 10, 1, 0]


def test_a_float16_gradient_is_accumulated_in_float32() -> None:
    # 2049 windows share one largest element; float16 counts to 2048 only, and rounds 4098 once.
    x = np.zeros((1, 1, 4097), np.float16)
    x[0, 0, 2048] = 1
    (found,) = [v for v in pooled_gradient(ops.max_pool, x, (2049,), g=np.float16(2)) if v > 100]
    assert found == np.float16(4098)


# What a call adds


@pytest.mark.parametrize(("function", "op_type"), [(ops.average_pool, "AveragePool"), (ops.max_pool, "MaxPool")])
def test_a_call_adds_one_op_and_one_tensor(function: Callable[..., Any], op_type: str) -> None:
    with popxl.Ir().main_graph as graph:
        x = popxl.variable(line(1, 2))
        before = len(graph.tensors)
        y = function(x, (2,))
        assert [op.type for op in graph.ops] == [op_type]
        assert len(graph.tensors) == before + 1
        assert y.name == f"{function.__name__}_out"


def test_the_gradient_of_max_pool_needs_the_input_and_the_output() -> None:
    with popxl.Ir().main_graph:
        op = ops.max_pool(popxl.variable(line(1, 2, 3)), (2,)).producer
        assert op is not None
        assert needed_tensors(op, [0], [0]) == (op.inputs[0], op.outputs[0])


def test_the_gradient_of_average_pool_needs_nothing() -> None:
    with popxl.Ir().main_graph:
        op = ops.average_pool(popxl.variable(line(1, 2, 3)), (2,)).producer
        assert op is not None
        assert needed_tensors(op, [0], [0]) == ()


@pytest.mark.parametrize("function", POOLS)
def test_the_shape_of_the_result_is_known_at_once(function: Callable[..., Any]) -> None:
    with popxl.Ir().main_graph:
        x = popxl.variable(np.zeros((5, 7, 20, 31), np.float16))
        y = function(x, (3, 4), (2, 5), (1, 0, 0, 2), dilation=(2, 1), ceil_mode=True)
        # ceil((21 - 5) / 2) + 1 and ceil((33 - 4) / 5) + 1
        assert (y.shape, y.dtype) == ((5, 7, 9, 7), popxl.float16)


# Where windows lie


@pytest.mark.parametrize(
    ("size", "kernel", "how", "expected"),
    [
        (7, 3, {}, Windows(5, 0, 0)),
        (7, 3, {"stride": 3, "before": 1, "after": 2}, Windows(3, 1, 2)),
        (7, 3, {"dilation": 3}, Windows(1, 0, 0)),
        (4, 2, {"stride": 3, "ceil_mode": True}, Windows(2, 0, 1)),
        (2, 3, {"stride": 2, "ceil_mode": True}, Windows(1, 0, 1)),
        # The ceil mode does not take padding away.
        (4, 2, {"stride": 2, "after": 1, "ceil_mode": True}, Windows(3, 0, 2)),
        (7, 3, {"stride": 2, "pad_type": "valid", "before": 9, "after": 9}, Windows(3, 0, 0)),
        (7, 2, {"stride": 2, "pad_type": "valid", "ceil_mode": True}, Windows(3, 0, 0)),
        (7, 2, {"dilation": 3, "pad_type": "valid"}, Windows(4, 0, 0)),
        (7, 4, {"stride": 2, "pad_type": "same_upper"}, Windows(4, 1, 2)),
        (7, 4, {"stride": 2, "pad_type": "same_lower"}, Windows(4, 2, 1)),
        (6, 2, {"dilation": 4, "pad_type": "same_upper"}, Windows(6, 2, 2)),
        # A kernel smaller than the stride needs no padding; it is not negative.
        (7, 1, {"stride": 3, "pad_type": "same_upper"}, Windows(3, 0, 0)),
        (8, 1, {"stride": 3, "pad_type": "same_lower"}, Windows(3, 0, 0)),
        (0, 3, {"pad_type": "same_upper"}, Windows(0, 1, 1)),
    ],
)
def test_windows_along_an_axis(size: int, kernel: int, how: Any, expected: Windows) -> None:
    assert place_windows(size, kernel, **how) == expected
