"""What pooling, batch normalisation and losses refuse (spec ops-nn.md §2, §3.1, §4.2, §4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlKeyError, PopxlTypeError, PopxlValueError

POOLS = [ops.average_pool, ops.max_pool]
LOSSES = [ops.nll_loss, ops.nll_loss_with_softmax_grad]


@pytest.fixture(autouse=True)
def graph() -> Iterator[popxl.Graph]:
    """The graph to call ops in; whatever was refused must not be in it."""
    with popxl.Ir().main_graph as graph:
        yield graph
    assert graph.ops == ()
    assert graph.constants == ()


def of_shape(*shape: int, dtype: Any = np.float32) -> popxl.Tensor:
    return popxl.variable(np.ones(shape, dtype), popxl.dtypes.dtype.as_dtype(np.dtype(dtype)))


# Pooling


@pytest.mark.parametrize("function", POOLS)
@pytest.mark.parametrize(
    ("shape", "kernel"), [((1, 1, 4), (2, 2)), ((1, 1, 4, 4), (2,)), ((4, 4), ()), ((4, 4), (2,)), ((), (2,))]
)
def test_a_kernel_has_a_number_for_each_spatial_axis(function: Callable[..., Any], shape: Any, kernel: Any) -> None:
    with pytest.raises(CoreError, match=r"^invalid kernel_shape, not same rank.*kernel_size is \("):
        function(of_shape(*shape), kernel)


@pytest.mark.parametrize("function", POOLS)
@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("kernel_size", (0, 2)),
        ("stride", (1, 0)),
        ("padding", (0, -1)),
        ("dilation", (0,)),
        ("in_dilations", (-1,)),
        ("out_pads", (-1,)),
    ],
)
def test_numbers_that_mean_nothing_are_named(function: Callable[..., Any], argument: str, values: Any) -> None:
    with pytest.raises(CoreError, match=rf"^`{argument}` is \(.*with a number below"):
        function(of_shape(1, 1, 4, 4), **{"kernel_size": (2, 2), argument: values})


@pytest.mark.parametrize("function", POOLS)
@pytest.mark.parametrize(
    ("argument", "values", "most"),
    [("stride", (1, 1, 1), 2), ("padding", (0,) * 5, 4), ("dilation", (1, 1, 1), 2), ("in_dilations", (1, 1, 1), 2)],
)
def test_too_many_numbers_are_named(function: Callable[..., Any], argument: str, values: Any, most: int) -> None:
    with pytest.raises(CoreError, match=rf"^Unexpected number of {argument} parameters: {len(values)} .* not {most}"):
        function(of_shape(1, 1, 4, 4), (2, 2), **{argument: values})


@pytest.mark.parametrize("function", POOLS)
@pytest.mark.parametrize(("argument", "value"), [("kernel_size", 2), ("stride", (1.5,)), ("padding", "ab")])
def test_sizes_are_tuples_of_ints(function: Callable[..., Any], argument: str, value: Any) -> None:
    with pytest.raises(PopxlTypeError, match=rf"^`{argument}` is .*not a tuple of ints"):
        function(of_shape(1, 1, 4), **{"kernel_size": (2,), argument: value})


@pytest.mark.parametrize("function", POOLS)
def test_pads_of_the_output_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^out_pads are \(0, 1\), which is not supported"):
        function(of_shape(1, 1, 4), (2,), out_pads=(0, 1))


@pytest.mark.parametrize("function", POOLS)
def test_an_unknown_pad_type_is_a_key_error(function: Callable[..., Any]) -> None:
    with pytest.raises(PopxlKeyError, match="auto_pad is 'same'") as raised:
        function(of_shape(1, 1, 4), (2,), auto_pad="same")
    assert isinstance(raised.value, KeyError)


@pytest.mark.parametrize("function", POOLS)
@pytest.mark.parametrize(
    ("size", "how"),
    [
        (4, {}),
        (4, {"stride": (3,)}),
        (3, {"stride": (2,), "ceil_mode": True}),
        (4, {"padding": (1, 1), "auto_pad": "valid"}),
        (0, {}),
    ],
)
def test_a_window_must_fit(function: Callable[..., Any], size: int, how: Any) -> None:
    with pytest.raises(CoreError, match=rf"^A window that spans 5 does not fit into {size} elements"):
        function(of_shape(1, 1, size), (5,), **how)


@pytest.mark.parametrize("function", POOLS)
@pytest.mark.parametrize("dtype", [np.int32, bool, np.uint8])
def test_pools_take_floats_only(function: Callable[..., Any], dtype: Any) -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype .* of `t`"):
        function(of_shape(1, 1, 4, dtype=dtype), (2,))


@pytest.mark.parametrize("function", POOLS)
def test_pools_take_tensors_only(function: Callable[..., Any]) -> None:
    with pytest.raises(PopxlTypeError, match=r"^The input `t` is not a Tensor"):
        function(np.ones((1, 1, 4)), (2,))


def test_the_storage_order_column_is_refused() -> None:
    with pytest.raises(CoreError, match=r"^storage_order != 0, not supported"):
        ops.max_pool(of_shape(1, 1, 4), (2,), storage_order="column")


# Batch normalisation


def test_batch_norm_needs_rank_3() -> None:
    with pytest.raises(CoreError, match=r"^batch norm requires X to have a rank >= 3: `t` has the shape \[2, 3\]"):
        ops.batch_norm_inference(of_shape(2, 3), *(of_shape(3) for _ in range(4)))


@pytest.mark.parametrize(("number", "argument"), list(enumerate(["scale", "bias", "mean", "var"])))
@pytest.mark.parametrize("shape", [(4,), (1,), (), (3, 1)])
def test_batch_norm_names_the_vector_that_does_not_fit(number: int, argument: str, shape: Any) -> None:
    vectors = [of_shape(*(shape if i == number else (3,))) for i in range(4)]
    with pytest.raises(CoreError, match=rf"^expected shape of batch norm input tensor `{argument}` is \[3\], not "):
        ops.batch_norm_inference(of_shape(2, 3, 4), *vectors)


def test_batch_norm_takes_one_dtype_but_for_the_statistics() -> None:
    half, single = of_shape(3, dtype=np.float16), of_shape(3)
    with pytest.raises(CoreError, match="incompatible types float32, float32, float16"):
        ops.batch_norm_inference(of_shape(2, 3, 4), single, half, single, single)


def test_batch_norm_names_the_bias_b() -> None:
    vector = of_shape(3)
    with pytest.raises(PopxlTypeError, match=r"^The input `b` is not a Tensor"):
        ops.batch_norm_inference(of_shape(2, 3, 4), vector, np.ones(3), vector, vector)  # type: ignore[arg-type]


# Losses


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("reduction", ["Mean", "average", "", None])
def test_an_unknown_reduction_is_a_value_error(function: Callable[..., Any], reduction: Any) -> None:
    with pytest.raises(PopxlValueError, match=r"^Not a valid reduction: "):
        function(of_shape(2, 3), of_shape(2, dtype=np.int32), reduction=reduction)


@pytest.mark.parametrize("function", LOSSES)
def test_probabilities_have_an_axis_of_classes(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^Invalid shape for prob tensor"):
        function(of_shape(), of_shape(dtype=np.int32))


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3), ()])
def test_there_is_one_label_for_each_item(function: Callable[..., Any], shape: Any) -> None:
    with pytest.raises(CoreError, match=r"^The label tensor \(`labels`\) has the shape .* would be \[2\]"):
        function(of_shape(2, 3), of_shape(*shape, dtype=np.int32))


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, bool])
def test_labels_are_integers(function: Callable[..., Any], dtype: Any) -> None:
    with pytest.raises(CoreError, match=r"^Expected the label tensor NllOp to be an integer .*`labels`"):
        function(of_shape(2, 3), of_shape(2, dtype=dtype))


def test_probabilities_are_floats() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype .* of `probs`"):
        ops.nll_loss(of_shape(2, 3, dtype=np.int32), of_shape(2, dtype=np.int32))


@pytest.mark.parametrize("function", LOSSES)
@pytest.mark.parametrize("argument", ["probs", "labels"])
def test_losses_take_tensors_only(function: Callable[..., Any], argument: str) -> None:
    arguments: dict[str, Any] = {"probs": of_shape(2, 3), "labels": of_shape(2, dtype=np.int32)}
    with pytest.raises(PopxlTypeError, match=rf"^The input `{argument}` is not a Tensor"):
        function(**{**arguments, argument: [0, 1]})


@pytest.mark.parametrize(("shape", "reduction"), [((2,), "mean"), ((2,), "sum"), ((1,), "none"), ((2, 3), "none")])
def test_a_scale_is_one_number_or_one_for_each_item(shape: Any, reduction: Any) -> None:
    probs, labels, scale = of_shape(2, 3), of_shape(2, dtype=np.int32), of_shape(*shape)
    with pytest.raises(CoreError, match=r"^`loss_grad` has the shape"):
        ops.nll_loss_with_softmax_grad(probs, labels, scale, reduction=reduction)


def test_a_scale_is_float() -> None:
    probs, labels, scale = of_shape(2, 3), of_shape(2, dtype=np.int32), of_shape(dtype=np.int32)
    with pytest.raises(CoreError, match=r"^Unsupported dtype .* of `loss_grad`"):
        ops.nll_loss_with_softmax_grad(probs, labels, scale)
