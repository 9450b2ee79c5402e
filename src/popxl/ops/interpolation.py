"""Resizing (spec ``ops-nn.md`` §6.2).

Each axis is resized by itself: an output is a weighted sum of a few inputs along it. Which, and with what weights, is
a table that depends on static numbers only; it is computed on the host, in float64. The gradient is the same with the
transposed table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlValueError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

Mode: TypeAlias = Literal["nearest", "linear", "cubic"]
NearestMode: TypeAlias = Literal["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
CoordinateMode: TypeAlias = Literal[
    "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"
]

_MODES = ("nearest", "linear", "cubic")
_NEAREST_MODES = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
_COORDINATE_MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize")


def interpolate(
    t: Tensor,
    scale_factor: tuple[float, ...] | None = (1.0, 1.0, 1.0, 1.0),
    mode: Mode | None = "nearest",
    nearest_mode: NearestMode | None = "round_prefer_floor",
    coordinate_transformation_mode: CoordinateMode | None = "half_pixel",
) -> Tensor:
    """Resize axes, each by a factor.

    Output ``i`` of an axis is read at the place ``x`` of the input. There is no smoothing when an axis shrinks.

    Args:
        t: Float dtype. Float16 is computed in float32 and rounded once.
        scale_factor: A factor for each axis of `t`, batch and channels too; None changes none. An axis with factor 1
            stays as it is.
        mode: ``"nearest"``: one element. ``"linear"``: two neighbours. ``"cubic"``: four, with the kernel of Keys
            (a = -0.75). Neighbours outside are the element at the edge.
        nearest_mode: How ``x`` is rounded if `mode` is ``"nearest"``. ``"round_prefer_ceil"`` rounds half away
            from zero.
        coordinate_transformation_mode: How ``x`` follows from ``i``, for length ``n`` and exact new length ``m = n *
            factor``. ``"half_pixel"``: ``(i + 0.5) / factor - 0.5``. ``"pytorch_half_pixel"``: the same, but 0 if
            ``m`` is at most 1. ``"asymmetric"``: ``i / factor``. ``"align_corners"``: ``i * (n - 1) / (m - 1)``,
            but 0 if ``m`` is 1.

    Returns:
        A tensor with axes of length ``floor(n * factor)``, the product rounded to float32.

    Raises:
        PopxlValueError: (a `ValueError`) for unknown modes, or factors that are not positive and finite.
        CoreError: (a `RuntimeError`) for another number of factors than axes, or ``"tf_crop_and_resize"``.

    Example:
        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     image = popxl.variable(np.ones((1, 3, 8, 8), np.float32))
        ...     ops.interpolate(image, (1.0, 1.0, 2.0, 1.5), "linear").shape
        (1, 3, 16, 12)
    """
    check_in_graph(get_current_graph(), t=t)
    _check_mode("interpolate type", mode, _MODES)
    _check_mode("nearest mode", nearest_mode, _NEAREST_MODES)
    _check_mode("coordinate transformation mode", coordinate_transformation_mode, _COORDINATE_MODES)
    if coordinate_transformation_mode == "tf_crop_and_resize":
        raise CoreError(
            "Unsupported coordinate transformation mode `tf_crop_and_resize`.",
            hint="slice the region first, then use another coordinate_transformation_mode",
        )
    factors = (1.0,) * t.rank if scale_factor is None else tuple(float(f) for f in scale_factor)
    for axis, factor in enumerate(factors):
        if not (math.isfinite(factor) and factor > 0):
            raise PopxlValueError(
                f"`scale_factor` {factors} has {factor} for axis {axis}.", hint="factors are positive and finite"
            )
    return RESIZE.emit(
        {"t": t},
        "interpolate_out",
        scale_factor=factors,
        mode=mode,
        nearest_mode=nearest_mode,
        coordinate_transformation_mode=coordinate_transformation_mode,
    )[0]


def _check_mode(what: str, value: str | None, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PopxlValueError(f"{what} {value} is not valid, must be {', '.join(known)}.", hint=f"use {known[0]!r}")


def _exact_length(length: int, factor: float) -> float:
    return float(np.float32(length) * np.float32(factor))


def _rule(t: ShapeDtype, scale_factor: tuple[float, ...], **_modes: Any) -> ShapeDtype:
    if len(scale_factor) != len(t.shape):
        raise CoreError(
            f"The number of dimensions of the resize op scales ({len(scale_factor)}) is not that of `t` "
            f"({len(t.shape)}).",
            hint="`scale_factor` has one factor for each axis, batch and channels too",
        )
    return ShapeDtype(
        tuple(math.floor(_exact_length(n, f)) for n, f in zip(t.shape, scale_factor, strict=True)), t.dtype
    )


# Tables


Floats: TypeAlias = npt.NDArray[np.float64]
Terms: TypeAlias = Sequence[Sequence[tuple[int, float]]]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """How one axis is resized: output ``i`` is the sum over ``k`` of ``weights[i, k] * input[places[i, k]]``.

    Attributes:
        places: Shape (outputs, terms).
        weights: Shape (outputs, terms). Zeros fill up rows; what stands at their places does not count.
    """

    places: npt.NDArray[np.int32]
    weights: Floats

    @staticmethod
    def of_terms(terms: Terms) -> Table:
        """Return the table in which the terms of each output, place and weight, are as given."""
        width = max((len(row) for row in terms), default=0)
        places, weights = np.zeros((len(terms), width), np.int32), np.zeros((len(terms), width))
        for i, row in enumerate(terms):
            for k, (place, weight) in enumerate(row):
                places[i, k], weights[i, k] = place, weight
        return Table(places, weights)

    def transposed(self, length: int) -> Table:
        """The table that takes the gradients of the outputs to those of the `length` inputs."""
        terms: list[list[tuple[int, float]]] = [[] for _ in range(length)]
        for i, k in zip(*np.nonzero(self.weights), strict=True):
            terms[self.places[i, k]].append((int(i), float(self.weights[i, k])))
        return Table.of_terms(terms)

    def apply(self, t: Any, axis: int) -> Any:
        """Resize an axis of a JAX array."""
        if not self.places.size:
            return jnp.zeros((*t.shape[:axis], len(self.places), *t.shape[axis + 1 :]), t.dtype)
        # Along two axes in place of the one, outputs and terms.
        taken = jnp.take(t, self.places, axis)
        around = (1,) * axis, (1,) * (t.ndim - axis - 1)
        weights: Any = self.weights.astype(t.dtype).reshape((*around[0], *self.weights.shape, *around[1]))
        return jnp.where(weights != 0, taken * weights, np.zeros((), t.dtype)).sum(axis + 1)


@lru_cache(maxsize=1024)
def _tables(
    length: int, factor: float, mode: Mode, nearest_mode: NearestMode, coordinate_transformation_mode: CoordinateMode
) -> tuple[Table, Table]:
    """The table of an axis, and its transpose."""
    count = math.floor(_exact_length(length, factor))
    x = _coordinates(count, length, factor, coordinate_transformation_mode)
    places, weights = _neighbours(x, mode, nearest_mode)
    places = np.clip(places, 0, length - 1)
    terms: list[list[tuple[int, float]]] = []
    for row, row_weights in zip(places.tolist(), weights.tolist(), strict=True):
        # Neighbours outside meet at the edge.
        merged: dict[int, float] = {}
        for place, weight in zip(row, row_weights, strict=True):
            merged[place] = merged.get(place, 0.0) + weight
        terms.append([(place, weight) for place, weight in merged.items() if weight])
    table = Table.of_terms(terms)
    return table, table.transposed(length)


def _coordinates(count: int, length: int, factor: float, mode: CoordinateMode) -> Floats:
    """The place in the input of each output."""
    i = np.arange(count, dtype=np.float64)
    exact = _exact_length(length, factor)
    if mode == "asymmetric":
        return i / factor
    if mode == "align_corners":
        return i * 0 if exact == 1 else i * (length - 1) / (exact - 1)
    return i * 0 if mode == "pytorch_half_pixel" and exact <= 1 else (i + 0.5) / factor - 0.5


def _neighbours(x: Floats, mode: Mode, nearest_mode: NearestMode) -> tuple[npt.NDArray[np.int64], Floats]:
    """The inputs that each output depends on, not yet held inside, and their weights: shapes (outputs, inputs)."""
    low = np.floor(x)
    if mode == "nearest":
        rounded = {
            "floor": low,
            "ceil": np.ceil(x),
            "round_prefer_floor": np.where(x - low <= 0.5, low, np.ceil(x)),
            "round_prefer_ceil": np.copysign(np.floor(np.abs(x) + 0.5), x),
        }[nearest_mode]
        return rounded[:, None].astype(np.int64), np.ones((len(x), 1))
    if mode == "linear":
        inside = np.maximum(x, 0)
        high_weight = inside - np.floor(inside)
        return np.stack([low, np.ceil(x)], 1).astype(np.int64), np.stack([1 - high_weight, high_weight], 1)
    offsets = np.arange(-1, 3)
    return (low[:, None] + offsets).astype(np.int64), _keys(np.abs((x - low)[:, None] - offsets))


def _keys(distance: Floats, a: float = -0.75) -> Floats:
    """The kernel of Keys, "Cubic convolution interpolation for digital image processing" (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


# The op


def _resized(t: Any, lengths: Sequence[int], transpose: bool, scale_factor: Sequence[float], **modes: Any) -> Any:
    wide = at_least_float32(t)
    for axis, (length, factor) in enumerate(zip(lengths, scale_factor, strict=True)):
        if factor != 1.0:
            wide = _tables(length, factor, **modes)[transpose].apply(wide, axis)
    return wide.astype(t.dtype)


def _resize(t: Any, **how: Any) -> Any:
    return _resized(t, t.shape, transpose=False, **how)


def _resize_gradient(grads: Sequence[Any], inputs: Sequence[Any], _outputs: Any, **how: Any) -> Sequence[Any]:
    return [_resized(grads[0], inputs[0].shape, transpose=True, **how)]


def _oracle(
    t: Any,
    scale_factor: Iterable[float] | None = (1.0, 1.0, 1.0, 1.0),
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    coordinate_transformation_mode: str = "half_pixel",
) -> Any:
    """Element by element, as the specification writes it."""
    for axis, scale in enumerate(scale_factor or ()):
        if scale != 1.0:
            how = (scale, mode, nearest_mode, coordinate_transformation_mode)
            lines = np.moveaxis(t, axis, -1)
            rows = lines.reshape(math.prod(lines.shape[:-1]), t.shape[axis])
            done = [_line_oracle(line, *how) for line in rows]
            count = int(np.float32(t.shape[axis]) * np.float32(scale))
            t = np.moveaxis(np.reshape(done, (*lines.shape[:-1], count)), -1, axis)
    return t


def _line_oracle(line: Any, scale: float, mode: str, nearest_mode: str, coordinates: str) -> list[float]:
    last = len(line) - 1
    exact = float(np.float32(len(line)) * np.float32(scale))
    result: list[float] = []
    for i in range(int(exact)):
        x = (i + 0.5) / scale - 0.5
        if coordinates == "asymmetric":
            x = i / scale
        elif coordinates == "align_corners":
            x = 0.0 if exact == 1 else i * last / (exact - 1)
        elif coordinates == "pytorch_half_pixel" and exact <= 1:
            x = 0.0
        floor = math.floor(x)
        if mode == "nearest":
            place = {"floor": floor, "ceil": math.ceil(x)}.get(nearest_mode)
            if nearest_mode == "round_prefer_floor":
                place = floor if x - floor <= 0.5 else floor + 1
            elif nearest_mode == "round_prefer_ceil":
                place = math.floor(x + 0.5) if x >= 0 else math.ceil(x - 0.5)
            result.append(line[min(max(place or 0, 0), last)])
        elif mode == "linear":
            low, high = (line[min(max(n, 0), last)] for n in (floor, math.ceil(x)))
            part = math.fmod(max(x, 0.0), 1.0)
            result.append((1 - part) * low + part * high if part else low)
        else:
            part, a = x - floor, -0.75
            near, far = part + 1, 2 - part
            kernel = (
                a * near**3 - 5 * a * near**2 + 8 * a * near - 4 * a,
                (a + 2) * part**3 - (a + 3) * part**2 + 1,
                (a + 2) * (1 - part) ** 3 - (a + 3) * (1 - part) ** 2 + 1,
                a * far**3 - 5 * a * far**2 + 8 * a * far - 4 * a,
            )
            result.append(sum(w * line[min(max(floor - 1 + k, 0), last)] for k, w in enumerate(kernel)))
    return result


def _samples() -> Sequence[Sample]:
    line = np.array([10.0, 20.0, 30.0], np.float32)
    image = np.random.default_rng(3).uniform(-2, 2, (2, 1, 4, 5)).astype(np.float32)
    found = [
        sample(image, tolerance=0),
        sample(image, (1.0, 1.0, 2.0, 3.0), tolerance=0),
        sample(image, (1.5, 2.0, 0.5, 0.6), "linear", tolerance=1e-6),
        sample(image.astype(np.float16), (1.0, 1.0, 1.7, 2.5), "cubic", tolerance=1e-3),
        sample(image.astype(np.float64), (1.0, 1.0, 1.7, 0.3), "cubic", tolerance=1e-14),
        # An infinity at a place whose weight is 0 does not count.
        sample(np.array([np.inf, 1.0, np.nan, 2.0], np.float32), (2.0,), "linear", "floor", "asymmetric"),
        sample(np.zeros((2, 0, 3), np.float32), (2.0, 3.0, 1.0), "cubic"),
        sample(line, (0.2,), "linear"),
        sample(np.float32(2.5), ()),
        sample(line[:1], (1.9,), mode="cubic", coordinate_transformation_mode="pytorch_half_pixel"),
        sample(line[:1], (1.0000001,), mode="linear", coordinate_transformation_mode="align_corners"),
        sample(line, (0.34,), mode="linear", coordinate_transformation_mode="align_corners"),
        sample(line, None, tolerance=0),
    ]
    block, factors = image.reshape(2, 4, 5)[:, :3], (10.0, 1.37, 0.5)
    for coordinates in _COORDINATE_MODES[:4]:
        found += [sample(block, factors, "nearest", how, coordinates, tolerance=0) for how in _NEAREST_MODES]
        found += [sample(block, factors, how, coordinate_transformation_mode=coordinates) for how in _MODES[1:]]
    return found


RESIZE = define(
    "Resize",
    interpolate,
    lower=_resize,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_oracle,
    samples=_samples,
    gradient=Gradient(_resize_gradient),
    differences=(
        "all modes have their exact gradient; factors must be positive; "
        "a `scale_factor` of None changes nothing; neighbours with weight 0 do not count, even if infinite"
    ),
)
