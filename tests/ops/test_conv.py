"""Convolutions, worked out by hand, and what their ops are like (spec ops-nn.md §1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from op_gradients import values_and_gradients
from running import run

import popxl
from popxl import ops
from popxl.ops._gradient import differentiable_inputs, needed_tensors

CONVS = [ops.conv, ops.conv_transpose]
SCALED = [ops.conv_pow2scaled, ops.conv_transpose_pow2scaled]


def line(numbers: Sequence[float]) -> np.ndarray:
    """One sample with one channel on one axis."""
    return np.array([[numbers]], np.float32)


def of_line(function: Callable[..., popxl.Tensor], t: Sequence[float], weight: Sequence[float], **how: Any) -> Any:
    def call(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        return function(t, weight, **how)

    (value,), _ = values_and_gradients(call, [line(t), line(weight)], {})
    return value[0, 0].tolist()


def conv_line(t: Sequence[float], weight: Sequence[float], **how: Any) -> Any:
    return of_line(ops.conv, t, weight, **{"stride": (), "padding": (), "dilation": (), **how})


# conv


def test_a_kernel_is_not_flipped() -> None:
    assert conv_line([0, 0, 1, 0, 0], [1, 2, 3]) == [3, 2, 1]


def test_padding_is_all_starts_then_all_ends() -> None:
    image = np.ones((1, 1, 1, 1), np.float32)

    def call(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        return ops.conv(t, weight, padding=(1, 0, 0, 2))

    (value,), _ = values_and_gradients(call, [image, image * 5], {})
    assert value[0, 0].tolist() == [[0, 0, 0], [5, 0, 0]]


def test_a_stride_that_does_not_divide_leaves_elements_out() -> None:
    assert conv_line([1, 2, 3, 4, 5, 6], [1, 1], stride=(3,)) == [3, 9]


def test_a_dilated_kernel_leaves_elements_out_between_its_own() -> None:
    assert conv_line([1, 2, 3, 4, 5], [1, 10], dilation=(3,)) == [41, 52]


@pytest.mark.parametrize(
    ("pad_type", "expected"),
    [
        # Five elements and a kernel of 2: one element of padding, at the end or at the start.
        ("same_upper", [3, 5, 7, 9, 5]),
        ("same_lower", [1, 3, 5, 7, 9]),
        ("valid", [3, 5, 7, 9]),
    ],
)
def test_pad_types_ignore_the_padding_that_is_given(pad_type: Any, expected: list[float]) -> None:
    assert conv_line([1, 2, 3, 4, 5], [1, 1], padding=(7, 7), pad_type=pad_type) == expected


@pytest.mark.parametrize("pad_type", ["same_upper", "same_lower"])
def test_padding_is_not_negative_where_the_stride_is_longer_than_the_kernel(pad_type: Any) -> None:
    assert conv_line([1, 2, 3, 4, 5, 6, 7], [1], stride=(3,), pad_type=pad_type) == [1, 4, 7]


@pytest.mark.parametrize(
    ("pad_type", "expected"),
    [("same_upper", [2, 4, 6, 8, 4]), ("same_lower", [2, 4, 6, 8, 4]), ("valid", [4, 6, 8])],
)
def test_pad_types_count_a_dilated_kernel_with_all_that_it_spans(pad_type: Any, expected: list[float]) -> None:
    assert conv_line([1, 2, 3, 4, 5], [1, 1], dilation=(2,), pad_type=pad_type) == expected


def test_channels_are_summed_in_their_groups() -> None:
    t = np.array([[[1], [10], [100], [1000]]], np.float32)
    weight = np.array([[[1], [2]], [[3], [4]]], np.float32)

    def call(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        return ops.conv(t, weight, (), (), (), groups=2)

    (value,), _ = values_and_gradients(call, [t, weight], {})
    assert value.ravel().tolist() == [21, 4300]


def test_float16_is_accumulated_in_float32() -> None:
    ones = np.ones((1, 1, 4096), np.float16)

    def call(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        return ops.conv(t, weight, (), (), ())

    (value,), grads = values_and_gradients(call, [ones, ones], {0: np.float16(1)}, (0, 1))
    assert (value.item(), value.dtype) == (4096, np.float16)
    assert [g.dtype for g in grads] == [np.float16, np.float16]


def test_gradients_of_float16_are_accumulated_in_float32() -> None:
    def call(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        return ops.conv(t, weight, (), (), ())

    t, weight = np.ones((1, 1, 4096), np.float16), np.ones((1, 1, 1), np.float16)
    _, (grad,) = values_and_gradients(call, [t, weight], {0: np.float16(1)}, (1,))
    assert grad.item() == 4096


def test_elements_that_no_window_sees_have_no_gradient() -> None:
    def call(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        return ops.conv(t, weight, (3,), (-1, 0), (1,))

    t, weight = line([1, 2, 3, 4, 5, 6, 7]), line([10, 20])
    (value,), (by_t, by_weight) = values_and_gradients(call, [t, weight], {0: line([1, 2])}, (0, 1))
    assert value[0, 0].tolist() == [80, 170]
    assert by_t[0, 0].tolist() == [0, 10, 20, 0, 20, 40, 0]
    assert by_weight[0, 0].tolist() == [12, 15]


# conv_transpose


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [1, 1, 3, 2, 2]),
        ({"padding": (1, 1)}, [1, 3, 2]),
        ({"output_padding": (1,)}, [1, 1, 3, 2, 2, 0]),
        # What is cropped less at the end is not zero where there is something.
        ({"padding": (0, 2), "output_padding": (1,)}, [1, 1, 3, 2]),
        ({"padding": (0, 0, 9, 9), "output_padding": (0, 9)}, [1, 1, 3, 2, 2]),
        ({"pad_type": "valid"}, [1, 1, 3, 2, 2]),
        ({"pad_type": "same_upper", "padding": (1, 0)}, [1, 3, 2, 2]),
    ],
)
def test_kernels_are_added_up_and_cropped(how: dict[str, Any], expected: list[float]) -> None:
    assert of_line(ops.conv_transpose, [1, 2], [1, 1, 1], stride=(2,), **how) == expected


@pytest.mark.parametrize(
    ("pad_type", "output_shape", "output_padding", "expected"),
    [
        # The kernels add up to [1, 2, 6, 6, 13, 8, 12]. Of one element to crop, it depends where.
        ("not_set", (3,), (), [6, 6, 13]),
        ("not_set", (6,), (), [1, 2, 6, 6, 13, 8]),
        ("same_lower", (6,), (), [1, 2, 6, 6, 13, 8]),
        ("same_upper", (6,), (), [2, 6, 6, 13, 8, 12]),
        # There are eight elements with the padding, so that none is cropped.
        ("same_upper", (8,), (1,), [1, 2, 6, 6, 13, 8, 12, 0]),
        # Two more than there are.
        ("not_set", (9,), (), [0, 1, 2, 6, 6, 13, 8, 12, 0]),
        # All axes, as good as the spatial one.
        ("same_upper", (1, 1, 6), (), [2, 6, 6, 13, 8, 12]),
    ],
)
def test_the_crops_follow_from_an_output_shape(
    pad_type: Any, output_shape: tuple[int, ...], output_padding: tuple[int, ...], expected: list[float]
) -> None:
    how: dict[str, Any] = {"stride": (2,), "padding": (5, 5), "pad_type": pad_type}
    shape: dict[str, Any] = {"output_shape": output_shape, "output_padding": output_padding}
    assert of_line(ops.conv_transpose, [1, 3, 4], [1, 2, 3], **how, **shape) == expected


def test_the_weight_of_conv_transpose_has_the_channels_of_t_first() -> None:
    t = np.array([[[1], [10]]], np.float32)
    weight = np.array([[[1], [2], [3]], [[4], [5], [6]]], np.float32)
    (value,), _ = values_and_gradients(ops.conv_transpose, [t, weight], {})
    assert value.ravel().tolist() == [41, 52, 63]


def test_the_groups_of_conv_transpose_share_no_channels() -> None:
    def call(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        return ops.conv_transpose(t, weight, groups=2)

    t = np.array([[[1], [10]]], np.float32)
    weight = np.array([[[1], [2], [3]], [[4], [5], [6]]], np.float32)
    (value,), _ = values_and_gradients(call, [t, weight], {})
    assert value.ravel().tolist() == [1, 2, 3, 40, 50, 60]


# The ops


def operands(dtype: popxl.dtype = popxl.float32) -> tuple[popxl.Tensor, popxl.Tensor]:
    return popxl.variable(np.ones((1, 2, 4, 4)), dtype), popxl.variable(np.ones((2, 2, 3, 3)), dtype)


def scale(value: int = 0) -> popxl.Tensor:
    return popxl.variable(value, popxl.int32, name="s")


@pytest.mark.parametrize(("function", "type"), list(zip(CONVS, ["Conv", "ConvTranspose"], strict=True)))
def test_a_convolution_is_one_op_with_one_output(function: Callable[..., popxl.Tensor], type: str) -> None:
    with popxl.Ir().main_graph as graph:
        t, weight = operands()
        tensors = len(graph.tensors)
        out = function(t, weight)
    assert [op.opType() for op in graph.ops] == [type]
    assert len(graph.tensors) == tensors + 1
    assert out.name == f"{function.__name__}_out"


@pytest.mark.parametrize(("function", "type"), list(zip(SCALED, ["Conv", "ConvTranspose"], strict=True)))
def test_a_scaled_convolution_has_the_type_of_the_unscaled_one(
    function: Callable[..., popxl.Tensor], type: str
) -> None:
    with popxl.Ir().main_graph as graph:
        t, weight = operands(popxl.float8_143)
        factor = popxl.constant(3, popxl.int32)
        tensors = len(graph.tensors)
        out = function(t, weight, factor)
    assert [op.opType() for op in graph.ops] == [type]
    assert len(graph.tensors) == tensors + 1
    assert (out.name, out.dtype) == (f"{function.__name__}_out", popxl.float16)


@pytest.mark.parametrize("function", CONVS)
def test_hints_are_kept_on_the_op(function: Callable[..., popxl.Tensor]) -> None:
    with popxl.Ir().main_graph:
        out = function(
            *operands(),
            available_memory_proportions=[0.1, 0.2],
            partials_types=["half", "float"],
            enable_conv_dithering=[1],
        )
    attributes = out.producer.attributes
    assert attributes["available_memory_proportions"] == (0.1, 0.2)
    assert attributes["partials_types"] == ("half", "float")
    assert attributes["enable_conv_dithering"] == (1,)


@pytest.mark.parametrize("function", CONVS)
def test_without_hints_their_lists_are_empty(function: Callable[..., popxl.Tensor]) -> None:
    with popxl.Ir().main_graph:
        attributes = function(*operands()).producer.attributes
    names = "available_memory_proportions", "partials_types", "enable_conv_dithering"
    assert [attributes[name] for name in names] == [(), (), ()]


@pytest.mark.parametrize("function", SCALED)
def test_hints_of_scaled_convolutions_are_kept(function: Callable[..., popxl.Tensor]) -> None:
    with popxl.Ir().main_graph:
        out = function(
            *operands(popxl.float8_152), scale(), available_memory_proportions=[1], enable_conv_dithering=[0, 1]
        )
    attributes = out.producer.attributes
    assert attributes["available_memory_proportions"] == (1,)
    assert attributes["enable_conv_dithering"] == (0, 1)


def test_hints_change_nothing() -> None:
    def build(_ir: popxl.Ir) -> list[popxl.Tensor]:
        t, weight = operands()
        return [ops.conv(t, weight), ops.conv(t, weight, available_memory_proportions=[0.3], partials_types=["half"])]

    plain, hinted = run(build)
    assert plain == hinted


# Gradients


def test_the_gradient_of_each_operand_needs_the_other() -> None:
    with popxl.Ir().main_graph:
        op = ops.conv(*operands()).producer
        assert differentiable_inputs(op) == (0, 1)
        assert needed_tensors(op, [0], [0]) == (op.inputs[1],)
        assert needed_tensors(op, [0], [1]) == (op.inputs[0],)


def test_conv_transpose_has_no_gradient() -> None:
    with popxl.Ir().main_graph:
        assert differentiable_inputs(ops.conv_transpose(*operands()).producer) == ()


def test_a_scaled_convolution_refuses_a_backwards_pass() -> None:
    with popxl.Ir().main_graph:
        op = ops.conv_pow2scaled(*operands(popxl.float8_143), scale()).producer
        with pytest.raises(popxl.errors.CoreError, match=r"^Using a scaled convolution in a backwards pass"):
            needed_tensors(op, [0], [0])


def test_a_scaled_transposed_convolution_has_no_gradient() -> None:
    with popxl.Ir().main_graph:
        op = ops.conv_transpose_pow2scaled(*operands(popxl.float8_143), scale()).producer
        assert op.definition.gradient is None


# The module


def test_the_module_and_the_function_have_one_path() -> None:
    import importlib

    from popxl.ops.conv import PadType, conv, conv_pow2scaled, conv_transpose, conv_transpose_pow2scaled

    found = importlib.import_module("popxl.ops.conv")
    assert found.conv is conv is ops.conv
    assert PadType is ops.PadType
    assert (conv_pow2scaled, conv_transpose, conv_transpose_pow2scaled) == (
        ops.conv_pow2scaled,
        ops.conv_transpose,
        ops.conv_transpose_pow2scaled,
    )
