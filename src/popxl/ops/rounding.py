"""Magnitude, sign, rounding and bounds (spec ``ops-math.md`` §3)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from popxl.errors import PopxlTypeError
from popxl.op import Gradient
from popxl.ops._define import FLOATS, NUMBERS, ZERO, Sample, define, sample
from popxl.ops._jax import jnp, late
from popxl.ops._points import points
from popxl.ops._rules import same
from popxl.tensor import Tensor

Arrays = Sequence[Any]

# Magnitude and sign


def _numbers() -> Sequence[Sample]:
    return (
        *points(-1.5, 2.0, 1e-3, kinks=(0.0, -0.0, np.inf, -np.inf, np.nan), tolerance=0, double_tolerance=0),
        sample(np.array([[-128, 127, 0]], np.int8), tolerance=0),
        sample(np.array([[5], [-6], [-(2**31)]], np.int32), tolerance=0),
        sample(np.array([0, 2**31], np.uint32), tolerance=0),
    )


def abs(t: Tensor) -> Tensor:
    """Magnitude. The gradient at 0 is 0.

    Args:
        t: Any number dtype; the smallest integer stays as it is (two's complement).

    Returns:
        A tensor of the same shape and dtype.
    """
    return ABS.emit({"x": t}, "abs_out")[0]


def _abs_gradient(grads: Arrays, inputs: Arrays, _outputs: Arrays) -> Arrays:
    grad, t = grads[0], inputs[0]
    return [jnp.where(t > 0, grad, jnp.where(t < 0, -grad, 0))]


ABS = define(
    "Abs",
    abs,
    lower=late(lambda: jnp.abs),
    rule=same,
    dtypes=NUMBERS,
    oracle=np.abs,
    samples=_numbers,
    gradient=Gradient(_abs_gradient),
    host=np.abs,
    elementwise=True,
)


def sign(t: Tensor) -> Tensor:
    """Sign: -1, 0 or 1, and 0 for NaN. The gradient is zero.

    Args:
        t: Any number dtype.

    Returns:
        A tensor of the same shape and dtype.
    """
    return SIGN.emit({"t": t}, "sign_out")[0]


def _sign(t: Any) -> Any:
    return (t > 0).astype(t.dtype) - (t < 0).astype(t.dtype)


def _sign_oracle(t: Any) -> Any:
    return np.nan_to_num(np.sign(t), nan=0)


SIGN = define(
    "Sign",
    sign,
    lower=_sign,
    rule=same,
    dtypes=NUMBERS,
    oracle=_sign_oracle,
    samples=_numbers,
    gradient=ZERO,
    host=np.sign,
    elementwise=True,
)

# Rounding


def _fractions() -> Sequence[Sample]:
    kinks = (-2.0, -0.0, 0.0, 3.0, 2048.0, np.inf, -np.inf, np.nan)
    return points(-1.5, -0.25, 0.25, 2.75, 1000.5, kinks=kinks, tolerance=0, double_tolerance=0)


def ceil(t: Tensor) -> Tensor:
    """Round up, toward +inf. NaN stays NaN. The gradient is zero.

    Args:
        t: Float dtype.

    Returns:
        A tensor of the same shape and dtype.
    """
    return CEIL.emit({"t": t}, "ceil_out")[0]


CEIL = define(
    "Ceil",
    ceil,
    lower=late(lambda: jnp.ceil),
    rule=same,
    dtypes=FLOATS,
    oracle=np.ceil,
    samples=_fractions,
    gradient=ZERO,
    elementwise=True,
)


def floor(t: Tensor) -> Tensor:
    """Round down, toward -inf. NaN stays NaN. The gradient is zero.

    Args:
        t: Float dtype.

    Returns:
        A tensor of the same shape and dtype.
    """
    return FLOOR.emit({"t": t}, "floor_out")[0]


FLOOR = define(
    "Floor",
    floor,
    lower=late(lambda: jnp.floor),
    rule=same,
    dtypes=FLOATS,
    oracle=np.floor,
    samples=_fractions,
    gradient=ZERO,
    elementwise=True,
)

# Bounds


def clip(t: Tensor, min: float = float("-inf"), max: float = float("inf")) -> Tensor:
    """Limit to the range from `min` to `max`; also called `clamp`. NaN stays NaN.

    The gradient passes where the result differs from both bounds, and is 0 elsewhere: also exactly on a bound, and
    where an infinite number meets an infinite bound.

    Args:
        t: Float dtype.
        min: Lower bound. Bounds take the dtype of `t`; those of float16 are limited to -65504 and 65504, the largest
            finite numbers.
        max: Upper bound. If it is less than `min`, the result is `max` everywhere.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if a bound is no number.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.clip(popxl.constant([-1.0, 0.5, 2.0]), 0, max=1)
        Tensor[clip_out popxl.dtypes.float32 (3,)]
    """
    return CLIP.emit({"t": t}, "clip_out", min=_number("min", min), max=_number("max", max))[0]


clamp = clip


def _number(name: str, bound: object) -> float:
    if not isinstance(bound, Real):
        raise PopxlTypeError(
            f"The bound `{name}` of clip is {bound!r}, which is no number.",
            hint="pass a number; bounds that are tensors can be made with popxl.ops.maximum and popxl.ops.where",
        )
    return float(bound)


def _bound(dtype: np.dtype[Any], value: float) -> Any:
    with np.errstate(over="ignore"):
        wide = np.float32(value) if dtype.itemsize < 8 else np.float64(value)
    largest = np.finfo(dtype).max
    return (np.clip(wide, -largest, largest) if dtype == np.float16 else wide).astype(dtype)


def _clip(t: Any, min: float, max: float) -> Any:
    return jnp.minimum(jnp.maximum(t, _bound(t.dtype, min)), _bound(t.dtype, max))


def _clip_gradient(grads: Arrays, _inputs: Arrays, outputs: Arrays, min: float, max: float) -> Arrays:
    out = outputs[0]
    on_a_bound = (out == _bound(out.dtype, min)) | (out == _bound(out.dtype, max))
    return [jnp.where(on_a_bound, 0, grads[0])]


def _clip_oracle(t: Any, min: float = -np.inf, max: float = np.inf) -> Any:
    return np.clip(t, min, max)


def _clipped() -> Sequence[Sample]:
    a = np.array([[-3.0, -0.5], [0.5, 3.0]], np.float32)
    edges = np.array([-1.0, 2.0, 0.0, np.inf, -np.inf, np.nan], np.float32)
    return (
        sample(a, tolerance=0),
        sample(a, -1, 2, tolerance=0),
        sample(a, 0.1, tolerance=0),
        sample(a, max=0.1, tolerance=0),
        sample(a, 2.0, -1.0, tolerance=0),
        sample(a.astype(np.float16), -0.1, 0.1, tolerance=0),
        sample(a.astype(np.float64), -0.1, 0.1, tolerance=0),
        sample(np.float32(0.3), 0, 1, tolerance=0),
        sample(edges, -1, 2, tolerance=0, smooth=False),
        sample(edges, tolerance=0, smooth=False),
        sample(edges, -1e39, 1e39, tolerance=0, smooth=False),
        sample(np.array([65504.0, 7.0, np.nan], np.float16), -1e6, 1e6, tolerance=0, smooth=False),
        sample(np.zeros((0, 2), np.float32), 0, 1, tolerance=0),
    )


CLIP = define(
    "Clip",
    clip,
    lower=_clip,
    rule=same,
    dtypes=FLOATS,
    oracle=_clip_oracle,
    samples=_clipped,
    gradient=Gradient(_clip_gradient),
    elementwise=True,
)
