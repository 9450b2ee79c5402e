"""What dropout, random numbers, seeds, vision ops and code loading refuse (spec ops-nn.md §5, §6, §7.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlNotImplementedError, PopxlTypeError, PopxlValueError
from popxl.graph import Graph
from popxl.ops.code_copy import code_copy
from popxl.ops.random_seed import create_random_seed


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    """The current graph; whatever a test refuses must not be in it."""
    with popxl.Ir().main_graph as current:
        yield current
    assert current.ops == ()


def of_shape(*shape: int, dtype: Any = np.float32) -> popxl.Tensor:
    return popxl.variable(np.ones(shape, dtype), popxl.dtype.as_dtype(np.dtype(dtype)))


def seed() -> popxl.Tensor:
    return of_shape(2, dtype=np.uint32)


def other_graph() -> Graph:
    return popxl.gcg().ir.create_empty_graph("layer")


# Seeds


USERS: dict[str, Callable[..., Any]] = {
    "dropout": lambda s: ops.dropout(of_shape(3), s, 0.1),
    "shaped_dropout": lambda s: ops.shaped_dropout(of_shape(3), s, (3,), 0.1),
    "random_uniform": lambda s: ops.random_uniform(s, (3,)),
    "random_normal": lambda s: ops.random_normal(s, (3,)),
}


@pytest.mark.parametrize("name", USERS)
@pytest.mark.parametrize(
    ("shape", "dtype"), [((2,), np.int32), ((), np.uint32), ((3,), np.uint32), ((1, 2), np.uint32)], ids=str
)
def test_seeds_are_two_words(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    with pytest.raises(PopxlValueError, match=r"^`seed_tensor` must be shape=\(2,\) dtype=uint32, not shape="):
        USERS[name](of_shape(*shape, dtype=dtype))


@pytest.mark.parametrize("name", USERS)
def test_seeds_are_tensors(name: str) -> None:
    with pytest.raises(PopxlTypeError, match=r"^The input `seed_tensor` is not a Tensor"):
        USERS[name](np.array([0, 1], np.uint32))


@pytest.mark.parametrize("name", USERS)
def test_seeds_are_of_the_current_graph(name: str) -> None:
    with other_graph():
        other = popxl.constant([0, 1], popxl.uint32)
    with pytest.raises(PopxlValueError, match=r"^The input tensor `seed_tensor` is not in the current Graph"):
        USERS[name](other)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2,), np.int32), ((), np.uint32), ((3,), np.uint32), ((1, 2), np.uint32)], ids=str
)
@pytest.mark.parametrize(
    "call", [ops.split_random_seed, lambda s: create_random_seed(s, popxl.constant(0, popxl.uint32))]
)
def test_seeds_to_split_are_two_words(call: Callable[..., Any], shape: tuple[int, ...], dtype: Any) -> None:
    with pytest.raises(PopxlValueError, match=r"^seed Tensor must be shape=\(2,\) dtype=uint32\. `seed` "):
        call(of_shape(*shape, dtype=dtype))


def test_a_refused_seed_leaves_no_constants(graph: Graph) -> None:
    with pytest.raises(PopxlValueError):
        ops.split_random_seed(of_shape(3))
    assert graph.constants == ()


def test_a_seed_cannot_be_split_into_fewer_than_none() -> None:
    with pytest.raises(PopxlValueError, match=r"^`n` is -1"):
        ops.split_random_seed(seed(), -1)


def test_a_modifier_is_a_scalar() -> None:
    with pytest.raises(CoreError, match=r"^`modifier` must be a scalar, not of shape \[2\]"):
        create_random_seed(seed(), seed())


def test_a_modifier_is_uint32() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype .*int32 of `modifier`"):
        create_random_seed(seed(), popxl.constant(0))


# Rates and numbers


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, np.nan, np.inf])
def test_rates_of_dropout_are_at_least_0_and_below_1(p: float) -> None:
    with pytest.raises(PopxlValueError, match=rf"^`p` is {p}, which is not in \[0, 1\)"):
        ops.dropout(of_shape(3), seed(), p)


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, np.nan, np.inf])
def test_ratios_of_shaped_dropout_are_at_least_0_and_below_1(ratio: float) -> None:
    with pytest.raises(PopxlValueError, match=rf"^`ratio` is {ratio}, which is not in \[0, 1\)"):
        ops.shaped_dropout(of_shape(3), seed(), (3,), ratio)


@pytest.mark.parametrize("shape", [(2,), (1, 1, 3), (3, 3), (0,), (-1,), (2, 1)], ids=str)
def test_the_mask_of_shaped_dropout_must_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(CoreError, match=r"^ShapedDropout: incompatible input tensor and dropout shape\. `t` has"):
        ops.shaped_dropout(of_shape(4, 3), seed(), shape, 0.5)


@pytest.mark.parametrize("name", ["dropout", "shaped_dropout"])
@pytest.mark.parametrize("dtype", [np.int32, np.bool_])
def test_dropout_takes_floats(name: str, dtype: Any) -> None:
    more: Any = {"dropout": (0.5,), "shaped_dropout": ((3,), 0.5)}[name]
    with pytest.raises(CoreError, match=r"^Unsupported dtype .* of `t`"):
        getattr(ops, name)(of_shape(3, dtype=dtype), seed(), *more)


@pytest.mark.parametrize("function", [ops.random_uniform, ops.random_normal])
@pytest.mark.parametrize("dtype", [popxl.int32, popxl.float64, popxl.bool, popxl.float8_143], ids=lambda d: d.name)
def test_random_numbers_are_float16_or_float32(function: Callable[..., Any], dtype: popxl.dtype) -> None:
    with pytest.raises(CoreError, match=rf"^Unsupported `dtype` .*{dtype.name} of random numbers"):
        function(seed(), (3,), dtype=dtype)


@pytest.mark.parametrize("function", [ops.random_uniform, ops.random_normal])
def test_lengths_of_random_numbers_are_not_negative(function: Callable[..., Any]) -> None:
    with pytest.raises(PopxlValueError, match=r"^The `shape` \(2, -1\) has a negative length"):
        function(seed(), (2, -1))


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (ops.random_uniform, "low"),
        (ops.random_uniform, "high"),
        (ops.random_normal, "mean"),
        (ops.random_normal, "std"),
    ],
)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e6])
def test_parameters_are_finite_in_the_dtype_that_is_drawn(
    function: Callable[..., Any], argument: str, value: float
) -> None:
    with pytest.raises(PopxlValueError, match=rf"^`{argument}` is {value}, which is no finite number as float16"):
        function(seed(), (3,), dtype=popxl.float16, **{argument: value})


def test_low_is_not_above_high() -> None:
    with pytest.raises(PopxlValueError, match=r"^`low` is 2\.0, above `high`, 1\.0"):
        ops.random_uniform(seed(), (3,), low=2.0)


def test_a_standard_deviation_is_not_negative() -> None:
    with pytest.raises(PopxlValueError, match=r"^`std` is -1, which is negative"):
        ops.random_normal(seed(), (3,), std=-1)


# interpolate


@pytest.mark.parametrize("mode", ["bilinear", "", None])
def test_unknown_interpolation(mode: Any) -> None:
    with pytest.raises(
        PopxlValueError, match=rf"^interpolate type {mode} is not valid, must be nearest, linear, cubic"
    ):
        ops.interpolate(of_shape(4), (2.0,), mode)


@pytest.mark.parametrize("mode", ["nearest", "cubic"])
def test_an_unknown_nearest_mode_is_refused_even_if_unused(mode: Any) -> None:
    wrong: Any = "round"
    with pytest.raises(PopxlValueError, match=r"^nearest mode round is not valid, must be round_prefer_floor, "):
        ops.interpolate(of_shape(4), (2.0,), mode, wrong)


def test_unknown_coordinates() -> None:
    wrong: Any = "corners"
    with pytest.raises(PopxlValueError, match=r"^coordinate transformation mode corners is not valid, must be half_pi"):
        ops.interpolate(of_shape(4), (2.0,), coordinate_transformation_mode=wrong)


def test_tf_crop_and_resize_is_not_supported() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported coordinate transformation mode"):
        ops.interpolate(of_shape(4), (2.0,), coordinate_transformation_mode="tf_crop_and_resize")


@pytest.mark.parametrize("factors", [(), (2.0,), (1.0, 2.0, 3.0), (1.0, 1.0, 1.0, 1.0)], ids=str)
def test_there_is_a_factor_for_each_axis(factors: tuple[float, ...]) -> None:
    start = rf"^The number of dimensions of the resize op scales \({len(factors)}\) is not that of `t` \(2\)"
    with pytest.raises(CoreError, match=start):
        ops.interpolate(of_shape(4, 2), factors)


@pytest.mark.parametrize("factor", [0, -1.0, np.nan, np.inf])
def test_factors_are_positive_and_finite(factor: float) -> None:
    with pytest.raises(PopxlValueError, match=rf"^`scale_factor` .* has {float(factor)} for axis 1"):
        ops.interpolate(of_shape(4, 2), (1.0, factor))


def test_interpolate_takes_floats() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype .*int32 of `t`"):
        ops.interpolate(of_shape(4, dtype=np.int32), (2.0,))


# roi_align


def pool(
    t: Any = None, rois: Any = None, index: Any = None, size: Any = (2, 2), scale: Any = 1.0, ratio: Any = 2
) -> Any:
    t = of_shape(1, 3, 8, 8) if t is None else t
    rois = of_shape(5, 4) if rois is None else rois
    return ops.roi_align(t, rois, of_shape(5, dtype=np.int32) if index is None else index, size, scale, ratio)


def test_images_have_rank_4() -> None:
    with pytest.raises(CoreError, match=r"^The size of input data must be 4, but `t` has shape \[3, 8, 8\]"):
        pool(t=of_shape(3, 8, 8))


def test_regions_have_rank_2() -> None:
    with pytest.raises(CoreError, match=r"^The size of input rois must be 2, but `rois` has shape \[4\]"):
        pool(rois=of_shape(4))


def test_numbers_of_images_have_rank_1() -> None:
    with pytest.raises(CoreError, match=r"^The size of input batch_index must be 1, but `batch_index` has"):
        pool(index=of_shape(5, 1, dtype=np.int32))


def test_regions_have_four_coordinates() -> None:
    with pytest.raises(CoreError, match=r"^The shape of `rois` is \[5, 5\], not \[r, 4\]"):
        pool(rois=of_shape(5, 5))


def test_each_region_has_an_image() -> None:
    with pytest.raises(CoreError, match=r"^The shape of `batch_index` is \[6\], not \[5\]"):
        pool(index=of_shape(6, dtype=np.int32))


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [("t", (1, 3, 8, 8)), ("rois", (5, 4))],
)
def test_images_and_regions_are_floats(argument: str, wrong: tuple[int, ...]) -> None:
    with pytest.raises(CoreError, match=rf"^Unsupported dtype .*int32 of `{argument}`"):
        pool(**{argument: of_shape(*wrong, dtype=np.int32)})


def test_numbers_of_images_are_integers() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype .*float32 of `batch_index`"):
        pool(index=of_shape(5))


@pytest.mark.parametrize("size", [(2,), (2, 2, 2), (0, 2), (2, -1)], ids=str)
def test_there_are_two_numbers_of_bins(size: tuple[int, ...]) -> None:
    with pytest.raises(PopxlValueError, match=r"^`output_size` is "):
        pool(size=size)


@pytest.mark.parametrize("ratio", [0, -1])
def test_there_is_a_sample_in_each_bin(ratio: int) -> None:
    with pytest.raises(PopxlValueError, match=rf"^`sampling_ratio` is {ratio}"):
        pool(ratio=ratio)


@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_the_scale_of_regions_is_finite(scale: float) -> None:
    with pytest.raises(PopxlValueError, match=r"^`spatial_scale` is "):
        pool(scale=scale)


# Code


def test_a_graph_cannot_load_its_own_code(graph: Graph) -> None:
    start = r"^The remote_code_load op cannot load the code for the graph it resides in \(the main graph"
    with pytest.raises(PopxlValueError, match=start):
        ops.remote_code_load(graph, "executable")


@pytest.mark.parametrize("destination", ["compute_buffer", "io_buffer", "nowhere"])
def test_code_is_loaded_to_the_executable_only(destination: Any) -> None:
    with pytest.raises(PopxlNotImplementedError, match=rf"^destination == '{destination}'"):
        ops.remote_code_load(other_graph(), destination)


def test_code_of_another_program_cannot_be_loaded() -> None:
    with pytest.raises(PopxlValueError, match=r"^The graph main belongs to another program"):
        ops.remote_code_load(popxl.Ir().main_graph, "executable")


def test_only_graphs_have_code() -> None:
    wrong: Any = "layer"
    with pytest.raises(PopxlTypeError, match=r"^`graph` is 'layer', not a Graph"):
        ops.remote_code_load(wrong, "executable")


def test_code_cannot_be_copied() -> None:
    with pytest.raises(PopxlNotImplementedError, match=r"^code_copy of .*layer.* from 'executable' to 'io_buffer'"):
        code_copy(other_graph(), "executable", "io_buffer")
