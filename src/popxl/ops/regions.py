"""Pooling of regions of an image (spec ``ops-nn.md`` §6.1)."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlValueError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOATS, INTS, Sample, define, sample
from popxl.ops._jax import jnp
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


def roi_align(
    t: Tensor,
    rois: Tensor,
    batch_index: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
) -> Tensor:
    """Average regions of interest over a grid of bins, each sampled between the pixels ("RoIAlign", not aligned).

    Each region is scaled, then divided into ``h`` by ``w`` bins of equal size; regions narrower or lower than one pixel
    count as one pixel. A bin is the mean of ``sampling_ratio`` squared samples at a regular grid inside it, bilinear
    between the four pixels around it. Pixel ``(i, j)`` lies at ``y = i``, ``x = j``. A sample with a coordinate between
    -1 and 0, or between the last pixel and the length, is taken at the edge; farther outside it is 0.

    Args:
        t: Images: shape ``(n, channels, height, width)``; a float dtype. Float16 is computed in float32.
        rois: Regions: shape ``(r, 4)``, rows ``x1, y1, x2, y2``; a float dtype.
        batch_index: The image of each region: shape ``(r,)``, integers. A region of no image is 0.
        output_size: Numbers of bins, ``(h, w)``.
        spatial_scale: Pixels per unit of `rois`.
        sampling_ratio: Samples of a bin along each axis, at least 1.

    Returns:
        Shape ``(r, channels, h, w)``, the dtype of `t`. There is a gradient for `t` only.

    Raises:
        PopxlValueError: (a `ValueError`) for sizes below 1, or a scale that is not finite.
        CoreError: (a `RuntimeError`) if ranks, shapes or dtypes are others.

    Example:
        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     image = popxl.variable(np.ones((1, 3, 16, 16), np.float32))
        ...     boxes = popxl.variable(np.array([[0, 0, 32, 64], [8, 8, 24, 24]], np.float32))
        ...     ops.roi_align(image, boxes, popxl.constant([0, 0]), (7, 7), 0.25, 2).shape
        (2, 3, 7, 7)
    """
    check_in_graph(get_current_graph(), t=t, rois=rois, batch_index=batch_index)
    size = tuple(operator.index(n) for n in output_size)
    ratio = operator.index(sampling_ratio)
    if len(size) != 2 or min(size) < 1:
        raise PopxlValueError(f"`output_size` is {size}, not two lengths.", hint="pass (h, w), each at least 1")
    if ratio < 1:
        raise PopxlValueError(f"`sampling_ratio` is {ratio}, which is less than 1.", hint="pass 2, for example")
    if not math.isfinite(spatial_scale):
        raise PopxlValueError(f"`spatial_scale` is {spatial_scale}, which is not finite.", hint="pass pixels per unit")
    return ROI_ALIGN.emit(
        {"t": t, "rois": rois, "batch_index": batch_index},
        "roi_align_out",
        output_size=size,
        spatial_scale=float(spatial_scale),
        sampling_ratio=ratio,
    )[0]


def _rule(
    t: ShapeDtype, rois: ShapeDtype, batch_index: ShapeDtype, output_size: tuple[int, int], **_how: Any
) -> ShapeDtype:
    shapes = {"data": ("t", t, 4), "rois": ("rois", rois, 2), "batch_index": ("batch_index", batch_index, 1)}
    for what, (argument, spec, rank) in shapes.items():
        if len(spec.shape) != rank:
            raise CoreError(
                f"The size of input {what} must be {rank}, but `{argument}` has shape {list(spec.shape)}.",
                hint="t is (n, channels, height, width), rois (r, 4), batch_index (r,)",
            )
    count = rois.shape[0]
    if rois.shape[1] != 4:
        raise CoreError(f"The shape of `rois` is {list(rois.shape)}, not [r, 4].", hint="rows are x1, y1, x2, y2")
    if batch_index.shape != (count,):
        raise CoreError(
            f"The shape of `batch_index` is {list(batch_index.shape)}, not [{count}], the number of `rois`.",
            hint="give the number of the image of each region",
        )
    return ShapeDtype((count, t.shape[1], *output_size), t.dtype)


def _samples_along(start: Any, end: Any, bins: int, ratio: int, length: int) -> tuple[Any, Any, Any, Any]:
    """Where the samples along one axis are: the two pixels around each, their weights. Shape (regions, bins * ratio).

    Samples outside the image have weights of 0.
    """
    bin_size = jnp.maximum(end - start, 1) / bins
    places = (np.arange(bins)[:, None] + (np.arange(ratio) + 0.5) / ratio).reshape(-1).astype(start.dtype)
    x = start[:, None] + places * bin_size[:, None]
    inside = (x >= -1) & (x <= length)
    # NaN compares false, so it is outside; it must not become an index.
    x = jnp.clip(jnp.where(inside, x, 0), 0, length - 1)
    low = jnp.floor(x)
    high_weight = jnp.where(inside, x - low, 0)
    low_weight = jnp.where(inside, 1 - (x - low), 0)
    low_place = low.astype(jnp.int32)
    return low_place, jnp.minimum(low_place + 1, length - 1), low_weight, high_weight


def _lower(
    t: Any, rois: Any, batch_index: Any, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> Any:
    images, channels, height, width = t.shape
    (h, w), count = output_size, rois.shape[0]
    if 0 in (t.size, count):
        return jnp.zeros((count, channels, h, w), t.dtype)
    dtype = jnp.promote_types(jnp.promote_types(t.dtype, rois.dtype), jnp.float32)
    x1, y1, x2, y2 = (rois.astype(dtype) * np.asarray(spatial_scale, dtype)).T
    top, bottom, top_weight, bottom_weight = _samples_along(y1, y2, h, sampling_ratio, height)
    left, right, left_weight, right_weight = _samples_along(x1, x2, w, sampling_ratio, width)
    known = (batch_index >= 0) & (batch_index < images)
    image = jnp.where(known, batch_index, 0).astype(jnp.int32)[:, None, None]
    # Channels last: a pixel is one row.
    pixels = jnp.moveaxis(t, 1, -1).astype(jnp.promote_types(t.dtype, jnp.float32))
    total: Any = 0
    for y, y_weight in ((top, top_weight), (bottom, bottom_weight)):
        for x, x_weight in ((left, left_weight), (right, right_weight)):
            weight = y_weight[:, :, None] * x_weight[:, None, :] * known[:, None, None]
            taken = pixels[image, y[:, :, None], x[:, None, :]]
            # Selected: an infinity whose weight is 0 does not count.
            total += jnp.where(weight[..., None] != 0, taken * weight[..., None].astype(taken.dtype), 0)
    binned = total.reshape(count, h, sampling_ratio, w, sampling_ratio, channels).mean((2, 4))
    return jnp.moveaxis(binned, -1, 1).astype(t.dtype)


def _oracle(t: Any, rois: Any, batch_index: Any, output_size: Any, spatial_scale: float, sampling_ratio: int) -> Any:
    """Sample by sample, as the specification writes it."""
    (h, w), s = output_size, sampling_ratio
    result = np.zeros((len(rois), t.shape[1], h, w), t.dtype)
    for r, (x1, y1, x2, y2) in enumerate(rois * spatial_scale):
        if not 0 <= batch_index[r] < len(t):
            continue
        bin_h, bin_w = max(y2 - y1, 1.0) / h, max(x2 - x1, 1.0) / w
        for i, iy, j, ix in np.ndindex(h, s, w, s):
            y, x = y1 + (i + (iy + 0.5) / s) * bin_h, x1 + (j + (ix + 0.5) / s) * bin_w
            result[r, :, i, j] += _bilinear(t[batch_index[r]], y, x) / s**2
    return result


def _bilinear(image: Any, y: float, x: float) -> Any:
    _, height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    low_y, low_x = math.floor(y), math.floor(x)
    high_y, high_x = low_y + 1, low_x + 1
    if low_y >= height - 1:
        low_y = high_y = height - 1
        y = float(low_y)
    if low_x >= width - 1:
        low_x = high_x = width - 1
        x = float(low_x)
    down, along = y - low_y, x - low_x
    corners = (
        (low_y, low_x, (1 - down) * (1 - along)),
        (low_y, high_x, (1 - down) * along),
        (high_y, low_x, down * (1 - along)),
        (high_y, high_x, down * along),
    )
    return sum(image[:, a, b] * weight for a, b, weight in corners if weight)


def _samples() -> Sequence[Sample]:
    rng = np.random.default_rng(5)
    t = rng.uniform(-2, 2, (2, 3, 5, 6)).astype(np.float32)
    rois = np.array(
        [
            [0.3, 0.7, 3.6, 4.1],
            [1.1, 2.2, 1.3, 2.3],
            [4.2, 3.3, 2.1, 1.2],
            [-7.3, -4.1, 2.7, 9.6],
            [20.5, 20.5, 30.5, 30.5],
            [-0.6, -0.7, 0.9, 0.8],
        ],
        np.float32,
    )
    image = np.array([0, 1, 1, 0, 1, 0], np.int32)
    return (
        sample(t, rois, image, (2, 3), 1.0, 2, tolerance=2e-6),
        sample(t, rois, image, (1, 1), 0.5, 3, tolerance=2e-6),
        sample(t, 4 * rois, image[::-1].copy(), [3, 2], spatial_scale=0.25, sampling_ratio=1, tolerance=2e-6),
        sample(t.astype(np.float16), rois.astype(np.float16), image, (2, 2), 1.0, 2, tolerance=2e-3),
        sample(t.astype(np.float64), rois.astype(np.float64), image, (2, 2), 1.0, 2, tolerance=1e-14),
        sample(t.astype(np.float16), rois, image, (2, 2), 1.0, 2, tolerance=1e-3),
        sample(t, rois, np.array([0, 2, -1, 1, 9, 1], np.int32), (2, 2), 1.0, 1, tolerance=2e-6),
        sample(t[:, :, :1, :1], rois, image, (2, 2), 1.0, 2, tolerance=2e-6),
        sample(t[:1], rois[:0], image[:0], (2, 2), 1.0, 2),
        sample(np.where(t > 1.5, np.float32(np.inf), t), rois, image, (2, 2), 1.0, 2, tolerance=2e-6),
    )


ROI_ALIGN = define(
    "RoiAlign",
    roi_align,
    lower=_lower,
    rule=_rule,
    dtypes={"t": FLOATS, "rois": FLOATS, "batch_index": INTS},
    oracle=_oracle,
    samples=_samples,
    gradient=Gradient(wrt=(0,)),
    differences="`rois` may have another float dtype than `t`; a region with an image out of range is 0",
)
