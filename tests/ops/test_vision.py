"""`interpolate` and `roi_align`: worked examples, gradients, and what they add to a graph (spec ops-nn.md §6)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from op_gradients import gradients, values

import popxl
from popxl import ops
from popxl.ops._gradient import needed_tensors
from popxl.tensor import Tensor

LINE = np.array([10, 20, 30], np.float32)
COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
MODES = [("nearest", how) for how in NEAREST] + [("linear", "floor"), ("cubic", "floor")]


def resize(array: Any, *how: Any) -> np.ndarray:
    (found,) = values(lambda t: ops.interpolate(t, *how), array)
    return found


def resize_gradient(array: Any, g: Any, *how: Any) -> np.ndarray:
    (found,) = gradients(lambda t: ops.interpolate(t, *how), (array,), g, [0])
    return found


# Resizing


@pytest.mark.parametrize(
    ("coordinates", "expected"),
    [
        ("half_pixel", [10, 12.5, 17.5, 22.5, 27.5, 30]),
        ("pytorch_half_pixel", [10, 12.5, 17.5, 22.5, 27.5, 30]),
        ("asymmetric", [10, 15, 20, 25, 30, 30]),
        ("align_corners", [10, 14, 18, 22, 26, 30]),
    ],
)
def test_linear_resizing_by_2(coordinates: str, expected: list[float]) -> None:
    np.testing.assert_allclose(resize(LINE, (2.0,), "linear", "floor", coordinates), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("nearest_mode", "expected"),
    [
        # The places are 0, 0.5, 1, 1.5, 2, 2.5.
        ("round_prefer_floor", [10, 10, 20, 20, 30, 30]),
        ("round_prefer_ceil", [10, 20, 20, 30, 30, 30]),
        ("floor", [10, 10, 20, 20, 30, 30]),
        ("ceil", [10, 20, 20, 30, 30, 30]),
    ],
)
def test_nearest_modes_at_ties(nearest_mode: str, expected: list[float]) -> None:
    np.testing.assert_array_equal(resize(LINE, (2.0,), "nearest", nearest_mode, "asymmetric"), expected)


def test_the_default_repeats_each_element_for_an_integer_factor() -> None:
    image = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    found = resize(image, (1.0, 1.0, 2.0, 3.0))
    np.testing.assert_array_equal(found, image.repeat(2, 2).repeat(3, 3))


def test_cubic_resizing_in_the_middle_of_two_elements() -> None:
    # The kernel of Keys at 1.5, 0.5, 0.5, 1.5 with a = -0.75: -3/32, 19/32, 19/32, -3/32.
    line = np.array([1, 2, 4, 8], np.float32)
    found = resize(line, (2.0,), "cubic", "floor", "asymmetric")
    np.testing.assert_allclose(found[3], (-3 * 1 + 19 * 2 + 19 * 4 - 3 * 8) / 32, rtol=1e-6)


def test_cubic_resizing_at_the_edge_repeats_the_element_there() -> None:
    line = np.array([1, 2, 4, 8], np.float32)
    found = resize(line, (2.0,), "cubic", "floor", "asymmetric")
    np.testing.assert_allclose(found[1], (-3 * 1 + 19 * 1 + 19 * 2 - 3 * 4) / 32, rtol=1e-6)


def test_shrinking_takes_single_elements_without_smoothing() -> None:
    np.testing.assert_array_equal(resize(np.arange(8, dtype=np.float32), (0.25,), "linear"), [1.5, 5.5])


def test_an_axis_with_factor_1_is_left_untouched() -> None:
    image = np.array([[np.inf, 1.0], [np.nan, 2.0]], np.float32)
    found = resize(image, (1.0, 2.0), "cubic", "floor", "asymmetric")
    np.testing.assert_array_equal(found[:, 0], image[:, 0])


def test_lengths_are_products_in_float32_rounded_down() -> None:
    with popxl.Ir().main_graph:
        t = popxl.variable(np.zeros((100, 3, 10), np.float32))
        # In float64, 100 * 0.29 is less than 29.
        assert ops.interpolate(t, (0.29, 1.5, 0.05)).shape == (29, 4, 0)


def test_float16_is_rounded_once() -> None:
    image = np.array([[1, 1 + 2**-10, 1], [1 + 2**-10, 1, 1]], np.float16)
    found = resize(image, (1.7, 1.7), "linear")
    wide = resize(image.astype(np.float64), (1.7, 1.7), "linear")
    np.testing.assert_array_equal(found, wide.astype(np.float16))


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize(("mode", "nearest_mode"), MODES, ids="-".join)
def test_the_gradient_is_the_exact_adjoint(mode: str, nearest_mode: str, coordinates: str) -> None:
    rng = np.random.default_rng(11)
    x = rng.normal(size=(5, 4, 3))
    how = ((2.5, 0.6, 3.0), mode, nearest_mode, coordinates)
    y = resize(x, *how)
    g = rng.normal(size=y.shape)
    np.testing.assert_allclose(np.sum(y * g), np.sum(x * resize_gradient(x, g, *how)), rtol=1e-12)


def test_the_gradient_of_the_default_adds_up_each_block() -> None:
    found = resize_gradient(LINE, np.arange(1.0, 7.0), (2.0,))
    np.testing.assert_array_equal(found, [1 + 2, 3 + 4, 5 + 6])


def test_the_gradient_of_linear_resizing_divides_each_gradient_among_two() -> None:
    found = resize_gradient(LINE, [1.0, 10, 100, 1000, 10000, 100000], (2.0,), "linear", "floor", "asymmetric")
    np.testing.assert_array_equal(found, [1 + 5, 5 + 100 + 500, 500 + 10000 + 100000])


def test_elements_that_nothing_takes_have_a_gradient_of_0() -> None:
    found = resize_gradient(np.arange(6.0), [1.0, 2.0], (1 / 3,), "nearest", "floor", "asymmetric")
    np.testing.assert_array_equal(found, [1, 0, 0, 2, 0, 0])


def test_the_gradient_of_resizing_needs_no_tensor_of_the_forward_pass() -> None:
    with popxl.Ir().main_graph:
        op = ops.interpolate(popxl.variable(LINE), (2.0,), "cubic").producer
        assert op is not None
        assert needed_tensors(op, [0], [0]) == ()


# Regions


RAMP = (10 * np.arange(4.0)[:, None] + np.arange(5.0)).astype(np.float32)[None, None]
"""The image with 10 y + x at (y, x). Bilinear sampling of it is exact, so a bin is the value at its centre."""


def pool(image: Any, rois: Any, output_size: Any = (1, 1), scale: float = 1.0, ratio: int = 2, of: Any = None) -> Any:
    rois = np.array(rois, np.float32)
    index = np.zeros(len(rois), np.int32) if of is None else np.array(of, np.int32)
    (found,) = values(lambda t, r, b: ops.roi_align(t, r, b, output_size, scale, ratio), image, rois, index)
    return found


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_a_bin_of_a_ramp_is_the_value_at_its_centre(ratio: int) -> None:
    np.testing.assert_allclose(pool(RAMP, [[1, 0, 3, 2]], ratio=ratio), [[[[12]]]], rtol=1e-6)


def test_bins_divide_a_region_evenly() -> None:
    # The region is 3 wide and 2 high; its bins are 1 wide and 1 high.
    found = pool(RAMP, [[0.5, 0.5, 3.5, 2.5]], (2, 3))
    np.testing.assert_allclose(found, [[[[11, 12, 13], [21, 22, 23]]]], rtol=1e-6)


def test_regions_are_scaled_to_pixels() -> None:
    np.testing.assert_allclose(pool(RAMP, [[4, 0, 12, 8]], scale=0.25), pool(RAMP, [[1, 0, 3, 2]]), rtol=1e-6)


def test_malformed_regions_have_the_size_of_a_pixel() -> None:
    found = pool(RAMP, [[2, 1, 1, 0], [2, 1, 2.2, 1.3]])
    np.testing.assert_allclose(found.ravel(), [15 + 2.5, 15 + 2.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        # One sample, half a pixel right of and below the corner that is given.
        pytest.param([1, -1.25, 2, -0.25], 1.5, id="less than a pixel above: the first row"),
        pytest.param([1, -1.75, 2, -0.75], 0, id="more than a pixel above"),
        pytest.param([1, 3.25, 2, 4.25], 31.5, id="below the last row, inside the height: the last row"),
        pytest.param([1, 3.75, 2, 4.75], 0, id="below the height"),
        pytest.param([-1.25, 1, -0.25, 2], 15, id="less than a pixel to the left: the first column"),
        pytest.param([4.25, 1, 5.25, 2], 19, id="right of the last column, inside the width: the last column"),
        pytest.param([5.0, 1, 6.0, 2], 0, id="right of the width"),
    ],
)
def test_samples_at_and_beyond_the_edges(roi: list[float], expected: float) -> None:
    np.testing.assert_allclose(pool(RAMP, [roi], ratio=1).ravel(), [expected], rtol=1e-6)


def test_samples_outside_count_in_the_mean() -> None:
    # Of two rows of samples, at y = -1.25 and 1.75, the first is outside.
    found = pool(RAMP, [[1, -2.75, 3, 3.25]], ratio=2)
    np.testing.assert_allclose(found.ravel(), [(0 + 17.5 + 2) / 2], rtol=1e-6)


def test_each_region_is_of_its_own_image() -> None:
    images = np.concatenate([RAMP, RAMP + 100])
    found = pool(images, [[1, 0, 3, 2]] * 3, of=[1, 0, 1])
    np.testing.assert_allclose(found.ravel(), [112, 12, 112], rtol=1e-6)


def test_regions_of_no_image_are_0() -> None:
    np.testing.assert_array_equal(pool(RAMP, [[1, 0, 3, 2]] * 2, of=[-1, 1]).ravel(), [0, 0])


def test_an_infinite_pixel_counts_only_where_it_has_a_weight() -> None:
    image = RAMP.copy()
    image[0, 0, 2, 2] = np.inf
    # The only sample is at (1, 1.5): of the row below it, the weights are 0.
    np.testing.assert_array_equal(pool(image, [[1, 0.5, 2, 1.5]], ratio=1).ravel(), [11.5])


def region_gradient(rois: Any, g: Any, of: Any, ratio: int = 1) -> np.ndarray:
    arrays = (np.zeros((2, 1, 3, 3), np.float32), np.array(rois, np.float32), np.array(of, np.int32))
    call: Callable[..., Tensor] = lambda t, r, b: ops.roi_align(t, r, b, (1, 1), 1.0, ratio)  # noqa: E731
    (found,) = gradients(call, arrays, np.reshape(g, (-1, 1, 1, 1)), [0])
    return found[:, 0]


def test_the_gradient_of_a_sample_goes_to_the_four_pixels_around_it() -> None:
    found = region_gradient([[0.25, 0.0, 1.25, 1.0]], [16.0], [0])
    np.testing.assert_allclose(found[0], [[2, 6, 0], [2, 6, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(found[1], np.zeros((3, 3)))


def test_gradients_of_overlapping_regions_add_up() -> None:
    found = region_gradient([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2]], [4.0, 8.0, 4.0], [1, 1, 1])
    np.testing.assert_allclose(found[1], [[3, 3, 0], [3, 4, 1], [0, 1, 1]], rtol=1e-6)


def test_only_the_image_has_a_gradient() -> None:
    with popxl.Ir().main_graph:
        t = popxl.variable(RAMP)
        rois, index = popxl.variable(np.ones((1, 4), np.float32)), popxl.variable(np.zeros(1, np.int32))
        op = ops.roi_align(t, rois, index, (1, 1), 1.0, 1).producer
        assert op is not None
        assert op.definition.gradient is not None
        assert op.definition.gradient.wrt == (0,)
        assert set(needed_tensors(op, [0], [0])) == {rois, index}


# Graphs


def test_vision_ops_add_one_op_and_one_tensor() -> None:
    with popxl.Ir().main_graph as graph:
        t = popxl.variable(RAMP)
        rois, index = popxl.variable(np.ones((1, 4), np.float32)), popxl.variable(np.zeros(1, np.int32))
        count = len(graph.tensors)
        ops.roi_align(t, rois, index, (2, 2), 1.0, 1)
        ops.interpolate(t)
        assert [op.type for op in graph.ops] == ["RoiAlign", "Resize"]
        assert len(graph.tensors) == count + 2


@pytest.mark.parametrize(("mode", "coordinates"), list(product(["nearest", "linear", "cubic"], COORDINATES)))
def test_modes_are_kept_on_the_op(mode: Any, coordinates: Any) -> None:
    with popxl.Ir().main_graph as graph:
        ops.interpolate(popxl.variable(LINE), (2.0,), mode, "ceil", coordinates)
    assert dict(graph.ops[0].attributes) == {
        "scale_factor": (2.0,),
        "mode": mode,
        "nearest_mode": "ceil",
        "coordinate_transformation_mode": coordinates,
    }
