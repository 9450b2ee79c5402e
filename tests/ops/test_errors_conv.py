"""What convolutions refuse (spec ops-nn.md §1): type and start of the error, and that no op is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlError, PopxlTypeError, PopxlValueError

FLOAT8 = popxl.float8_143


@pytest.fixture(autouse=True)
def graph() -> Iterator[popxl.Graph]:
    with popxl.Ir().main_graph as graph:
        yield graph


def of_shape(*shape: int, dtype: popxl.dtype = popxl.float32, name: str = "x") -> popxl.Tensor:
    return popxl.variable(np.ones(shape), dtype, name=name)


def image() -> popxl.Tensor:
    return of_shape(2, 4, 6, 6)


def kernels() -> popxl.Tensor:
    return of_shape(8, 4, 3, 3, name="w")


def scale(value: Any = 0, dtype: popxl.dtype = popxl.int32) -> popxl.Tensor:
    return popxl.variable(value, dtype, name="s")


def float8_operands() -> tuple[popxl.Tensor, popxl.Tensor]:
    return of_shape(2, 4, 6, 6, dtype=FLOAT8), of_shape(4, 4, 3, 3, dtype=FLOAT8, name="w")


def refused(kind: type[PopxlError], match: str, call: Callable[[], Any]) -> None:
    """Check that `call` raises, has a hint, and adds no op."""
    before = len(popxl.gcg().ops)
    with pytest.raises(kind, match=match) as caught:
        call()
    assert caught.value.hint
    assert len(popxl.gcg().ops) == before


UNSCALED = [ops.conv, ops.conv_transpose]
SCALED = [ops.conv_pow2scaled, ops.conv_transpose_pow2scaled]


# Padding types


@pytest.mark.parametrize("function", UNSCALED)
@pytest.mark.parametrize("pad_type", ["same", "SAME_UPPER", "", None])
def test_an_unknown_pad_type_is_a_value_error(function: Callable[..., Any], pad_type: Any) -> None:
    refused(
        PopxlValueError,
        rf"^pad type {pad_type} is not valid, must be not_set, ",
        lambda: function(image(), of_shape(4, 4, 3, 3), pad_type=pad_type),
    )


@pytest.mark.parametrize("function", SCALED)
def test_an_unknown_pad_type_with_float8_is_a_value_error(function: Callable[..., Any]) -> None:
    t, weight = float8_operands()
    refused(
        PopxlValueError,
        r"^pad type same is not valid, must be not_set, ",
        lambda: function(t, weight, scale(), pad_type="same"),
    )


# Numbers for each axis


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"stride": (1,)}, r"^Unexpected number of stride parameters: `stride` of Conv is \[1\], but 2 spatial"),
        ({"padding": (1, 1)}, r"^Unexpected number of pad parameters: `padding` of Conv is \[1, 1\]"),
        ({"dilation": (1, 1, 1)}, r"^Unexpected number of dilation parameters: `dilation` of Conv is \[1, 1, 1\]"),
    ],
)
def test_conv_needs_a_number_for_each_axis(arguments: dict[str, Any], match: str) -> None:
    refused(CoreError, match, lambda: ops.conv(image(), kernels(), **arguments))


@pytest.mark.parametrize("spatial", [1, 3])
def test_the_defaults_of_conv_are_for_two_axes(spatial: int) -> None:
    t, weight = of_shape(1, 1, *[5] * spatial), of_shape(1, 1, *[2] * spatial)
    refused(CoreError, r"^Unexpected number of stride parameters", lambda: ops.conv(t, weight))


@pytest.mark.parametrize("arguments", [{"stride": (0, 1)}, {"dilation": (1, -1)}])
def test_conv_needs_numbers_of_at_least_one(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    refused(CoreError, rf"^`{name}` of Conv is .* below 1", lambda: ops.conv(image(), kernels(), **arguments))


@pytest.mark.parametrize(("name", "lowest"), [("stride", 1), ("output_padding", 0)])
def test_conv_transpose_needs_numbers_that_mean_something(name: str, lowest: int) -> None:
    refused(
        CoreError,
        rf"^`{name}` of ConvTranspose is \[{lowest - 1}, 1\], which has numbers below {lowest}",
        lambda: ops.conv_transpose(image(), of_shape(4, 4, 3, 3), **{name: (lowest - 1, 1)}),
    )


@pytest.mark.parametrize("function", UNSCALED)
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [2, (1.5, 1)])
def test_what_is_no_tuple_of_integers_is_a_type_error(function: Callable[..., Any], name: str, value: Any) -> None:
    refused(PopxlTypeError, rf"^`{name}` is ", lambda: function(image(), of_shape(4, 4, 3, 3), **{name: value}))


@pytest.mark.parametrize("dilation", [(2, 1), (1, 1, 2)])
def test_conv_transpose_has_no_dilation(dilation: tuple[int, ...]) -> None:
    refused(
        CoreError,
        r"^Non default value for dilations is not supported\.",
        lambda: ops.conv_transpose(image(), of_shape(4, 4, 3, 3), dilation=dilation),
    )


# Channels and groups


@pytest.mark.parametrize(
    ("function", "type"), [(ops.conv, "Conv"), (ops.conv_transpose, "ConvTranspose")], ids=["conv", "conv_transpose"]
)
def test_there_is_at_least_one_group(function: Callable[..., Any], type: str) -> None:
    refused(CoreError, rf"^group attribute in {type} is 0", lambda: function(image(), of_shape(4, 4, 3, 3), groups=0))


@pytest.mark.parametrize(
    ("weight", "groups"),
    [
        ((8, 4, 3, 3), 2),  # as many channels as in one group
        ((8, 2, 3, 3), 1),
        ((7, 2, 3, 3), 2),  # 7 channels of the result
        ((6, 3, 3, 3), 1),  # 4 // 3 is 1
    ],
)
def test_the_channels_of_conv_fit_the_groups(weight: tuple[int, ...], groups: int) -> None:
    refused(
        CoreError,
        rf"^Invalid value for group \({groups}\): ",
        lambda: ops.conv(image(), of_shape(*weight), groups=groups),
    )


def test_conv_transpose_needs_as_many_channels_as_its_weight_has() -> None:
    refused(
        CoreError,
        r"^Unexpected number of channels in the input tensor: 4, but 3 in the weight",
        lambda: ops.conv_transpose(image(), of_shape(3, 4, 3, 3)),
    )


def test_the_groups_of_conv_transpose_divide_its_channels() -> None:
    refused(
        CoreError,
        r"^Invalid value for group \(3\): ",
        lambda: ops.conv_transpose(image(), of_shape(4, 2, 3, 3), groups=3),
    )


# Shapes


@pytest.mark.parametrize("function", UNSCALED)
@pytest.mark.parametrize(("t", "weight"), [((2, 4), (4, 4)), ((2, 4, 6), (4, 4, 3, 3)), ((4,), (4, 4, 3))])
def test_operands_have_one_rank_and_spatial_axes(function: Callable[..., Any], t: Any, weight: Any) -> None:
    refused(CoreError, r"needs operands of one rank, 3 or more", lambda: function(of_shape(*t), of_shape(*weight)))


@pytest.mark.parametrize("function", UNSCALED)
def test_a_kernel_has_elements(function: Callable[..., Any]) -> None:
    refused(CoreError, r"needs a kernel with elements", lambda: function(image(), of_shape(4, 4, 0, 3)))


def test_a_window_of_conv_fits() -> None:
    refused(
        CoreError,
        r"^A window that spans 7 does not fit into 6 elements with padding \(0, 0\)",
        lambda: ops.conv(image(), kernels(), dilation=(1, 3)),
    )


def test_conv_transpose_leaves_something() -> None:
    refused(
        CoreError,
        r"would have spatial axes of \[0, 8\]",
        lambda: ops.conv_transpose(image(), of_shape(4, 4, 3, 3), padding=(4, 0, 4, 0)),
    )


def test_conv_transpose_needs_elements() -> None:
    refused(
        CoreError,
        r"^ConvTranspose needs elements on each spatial axis",
        lambda: ops.conv_transpose(of_shape(2, 4, 0, 6), of_shape(4, 4, 3, 3)),
    )


def test_a_given_output_shape_cannot_be_valid() -> None:
    refused(
        CoreError,
        r"^`VALID` type for auto_pad ",
        lambda: ops.conv_transpose(image(), of_shape(4, 4, 3, 3), pad_type="valid", output_shape=(6, 6)),
    )


@pytest.mark.parametrize("output_shape", [(6,), (4, 6, 6), (2, 3, 6, 6), (1, 4, 6, 6), (2, 4, 6, 6, 6)])
def test_an_output_shape_is_of_all_spatial_axes_or_all_axes(output_shape: tuple[int, ...]) -> None:
    refused(
        CoreError,
        r"^`output_shape` of ConvTranspose is ",
        lambda: ops.conv_transpose(image(), of_shape(4, 4, 3, 3), output_shape=output_shape),
    )


# Dtypes


@pytest.mark.parametrize("function", UNSCALED)
def test_float8_needs_a_scale(function: Callable[..., Any]) -> None:
    refused(CoreError, r"^Log2 scale input tensor must be provided for FLOAT8 ", lambda: function(*float8_operands()))


@pytest.mark.parametrize("function", UNSCALED)
@pytest.mark.parametrize("other", [popxl.float16, popxl.float32])
def test_float8_does_not_mix(function: Callable[..., Any], other: popxl.dtype) -> None:
    t, weight = float8_operands()
    plain = of_shape(4, 4, 3, 3, dtype=other)
    refused(CoreError, r"^Invalid operand type: ", lambda: function(t, plain))
    refused(CoreError, r"^Invalid operand type: ", lambda: function(of_shape(2, 4, 6, 6, dtype=other), weight))


@pytest.mark.parametrize("function", UNSCALED)
def test_float16_and_float32_do_not_mix(function: Callable[..., Any]) -> None:
    weight = of_shape(4, 4, 3, 3, dtype=popxl.float16)
    refused(
        CoreError,
        r"^Invalid operand type: \w+ of `t`, float32, and `weight`, float16",
        lambda: function(image(), weight),
    )


@pytest.mark.parametrize("function", UNSCALED)
def test_integers_are_refused(function: Callable[..., Any]) -> None:
    ints = of_shape(2, 4, 6, 6, dtype=popxl.int32), of_shape(4, 4, 3, 3, dtype=popxl.int32)
    refused(CoreError, r"^Unsupported dtype .*int32 of `t`", lambda: function(*ints))


@pytest.mark.parametrize("function", SCALED)
@pytest.mark.parametrize("which", [0, 1])
def test_scaled_operands_are_float8(function: Callable[..., Any], which: int) -> None:
    operands = list(float8_operands())
    operands[which] = of_shape(*operands[which].shape, dtype=popxl.float16)
    name = ("t", "weight")[which]
    refused(
        PopxlTypeError,
        rf"^Scaled conv operands must be of dtype .*`{name}` .* is float16",
        lambda: function(*operands, scale()),
    )


# Scales


@pytest.mark.parametrize("function", SCALED)
def test_a_scale_is_a_scalar(function: Callable[..., Any]) -> None:
    refused(
        PopxlValueError,
        r"^Log2 scale argument must be a scalar tensor",
        lambda: function(*float8_operands(), scale([0])),
    )


@pytest.mark.parametrize("function", SCALED)
def test_a_scale_is_int32(function: Callable[..., Any]) -> None:
    refused(
        PopxlTypeError,
        r"^Log2 scale tensor must be of type popxl\.int32",
        lambda: function(*float8_operands(), scale(0, popxl.int8)),
    )


@pytest.mark.parametrize("function", SCALED)
def test_operands_are_checked_before_the_scale_and_its_rank_before_its_dtype(function: Callable[..., Any]) -> None:
    wrong = scale([0.0], popxl.float32)
    refused(PopxlTypeError, r"^Scaled conv operands", lambda: function(image(), kernels(), wrong))
    refused(PopxlValueError, r"^Log2 scale argument", lambda: function(*float8_operands(), wrong))


@pytest.mark.parametrize("function", SCALED)
@pytest.mark.parametrize("value", [-33, 32])
def test_a_constant_scale_is_in_range(function: Callable[..., Any], value: int) -> None:
    refused(
        CoreError,
        rf"^`log2_scale` of popxl\.ops\.{function.__name__} is {value}, outside the range \[-32, 32\)",
        lambda: function(*float8_operands(), popxl.constant(value, popxl.int32)),
    )


@pytest.mark.parametrize("function", SCALED)
def test_shapes_are_checked_with_float8_too(function: Callable[..., Any]) -> None:
    t, _ = float8_operands()
    weight = of_shape(3, 3, 3, 3, dtype=FLOAT8)
    refused(
        CoreError, r"^(Invalid value for group|Unexpected number of channels)", lambda: function(t, weight, scale())
    )


# Tensors


@pytest.mark.parametrize("function", UNSCALED)
@pytest.mark.parametrize(("arguments", "name"), [((1.0, None), "t"), ((None, 1.0), "weight")])
def test_operands_are_tensors(function: Callable[..., Any], arguments: tuple[Any, ...], name: str) -> None:
    given = [image() if a is None else a for a in arguments]
    refused(PopxlTypeError, rf"^The input `{name}` is not a Tensor", lambda: function(*given))


@pytest.mark.parametrize("function", SCALED)
def test_a_scale_is_a_tensor(function: Callable[..., Any]) -> None:
    refused(PopxlTypeError, r"^The input `log2_scale` is not a Tensor", lambda: function(*float8_operands(), 0))


@pytest.mark.parametrize("function", UNSCALED)
def test_operands_are_of_the_current_graph(function: Callable[..., Any]) -> None:
    def inner(weight: popxl.Tensor) -> None:
        other = popxl.graph_input(weight.shape, weight.dtype)
        match = r"^The input tensor `t` is not in the current Graph"
        refused(PopxlValueError, match, lambda: function(outer, other))

    outer = image()
    popxl.gcg().ir.create_graph(inner, of_shape(4, 4, 3, 3))
