"""Conversion to and from float8 on the host. Follows tensors-dtypes.md section 3.

Neither format has infinities or a negative zero; the code of a negative zero, 0x80, is the one NaN.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from popxl.dtypes import dtype, float8_143, float8_152, float16, float32, float64
from popxl.errors import CoreError
from popxl.typing_ import HostScalarTensor, is_torch_tensor

__all__ = [
    "host_fp8_mse_scale",
    "host_fp8_mse_scale_pb",
    "host_pow2scale_cast_from_fp8",
    "host_pow2scale_cast_to_fp8",
]

_NAN = 0x80
_MAX = 0x7F
# float8 type -> (mantissa bits, exponent bias)
_LAYOUTS = {float8_143: (3, 8), float8_152: (2, 16)}
# mantissa bits of the sources of host_fp8_mse_scale
_SOURCE_MANTISSA = {np.dtype(np.float32): 23, np.dtype(np.float16): 10}

float_np_dtypes: tuple[np.dtype[Any], ...] = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
"""What can be cast to float8, and float8 to."""

_Float64s = npt.NDArray[np.float64]


@cache
def _values(kind: dtype) -> _Float64s:
    """The value of each of the 256 codes."""
    mantissa_bits, bias = _LAYOUTS[kind]
    code = np.arange(128)
    exponent, mantissa = code >> mantissa_bits, code % (1 << mantissa_bits)
    significand = mantissa / (1 << mantissa_bits) + (exponent > 0)
    positive = np.ldexp(significand, np.maximum(exponent, 1) - bias)
    values = np.concatenate([positive, -positive])
    values[_NAN] = np.nan
    values.setflags(write=False)
    return values


@cache
def _midpoints(kind: dtype) -> _Float64s:
    """The value halfway between codes i and i + 1; code 128 stands for the first number out of range."""
    positive = _values(kind)[: _MAX + 1]
    above = np.append(positive[1:], positive[-1] + (positive[-1] - positive[-2]))
    midpoints = (positive + above) / 2
    midpoints.setflags(write=False)
    return midpoints


def _quantise(src: npt.NDArray[Any], kind: dtype, log2_scale: int, nan_on_overflow: bool) -> npt.NDArray[np.uint8]:
    """The codes of ``src * 2**log2_scale``, rounded once to nearest, ties to even."""
    # Exact wherever float8 can tell: what overflows or underflows float64 is far outside its range. A signalling
    # NaN is as good a NaN as any.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wide = src.astype(np.float64)
        magnitude = np.abs(np.ldexp(wide, log2_scale))
    midpoints = _midpoints(kind)
    code = np.searchsorted(midpoints, magnitude, side="left")
    tie = midpoints[np.minimum(code, _MAX)] == magnitude
    # Codes are consecutive, so the even mantissa is the even code.
    code = code + (tie & (code % 2 == 1))
    overflow = code > _MAX
    code = np.where(overflow, _MAX, code)
    code = np.where((code > 0) & np.signbit(wide), code | 0x80, code)
    invalid = ~np.isfinite(wide) | (overflow & nan_on_overflow)
    return np.where(invalid, _NAN, code).astype(np.uint8)


def _as_array(src: Any) -> npt.NDArray[Any]:
    """``src`` as an array; torch tensors without their graph."""
    return np.asarray(src.detach().numpy() if is_torch_tensor(src) else src)


def _check_float8(kind: dtype | None) -> dtype:
    if kind is None or kind not in _LAYOUTS:
        raise CoreError(f"{kind!r} is not a float8 type.", hint="use dtype=popxl.float8_143 or dtype=popxl.float8_152")
    return kind


def host_pow2scale_cast_to_fp8(
    src: HostScalarTensor, dtype: dtype | None = None, log2_scale: int = 0, nan_on_overflow: bool = True
) -> npt.NDArray[Any]:
    """Quantise ``src * 2**log2_scale`` to float8, rounding once to nearest with ties to even.

    Args:
        src: float16, float32 or float64: an array, a torch tensor or something that NumPy makes an array of.
        dtype: ``popxl.float8_143`` or ``popxl.float8_152``.
        log2_scale: In [-32, 32).
        nan_on_overflow: What becomes of finite numbers out of range: NaN, or else the largest number with
            their sign. Infinities and NaN become NaN either way.

    Returns:
        Codes with the shape of ``src`` and the structured type ``dtype.as_numpy()``. -0.0 becomes code 0.

    Raises:
        CoreError: ``src`` or ``dtype`` has another type, or ``log2_scale`` is out of range. It is a
            ``RuntimeError``.

    Example:
        >>> import numpy as np
        >>> codes = host_pow2scale_cast_to_fp8(np.array([0.75, 250.0]), float8_143)
        >>> [f"{code:08b}" for code in codes.view(np.uint8)]
        ['00111100', '10000000']
    """
    kind = _check_float8(dtype)
    array = _as_array(src)
    if array.dtype not in float_np_dtypes:
        raise CoreError(
            f"Casting to {kind!r} is not supported from {array.dtype}.",
            hint="convert first, for example src.astype(np.float32)",
        )
    if not -32 <= log2_scale < 32:
        raise CoreError(f"log2_scale is {log2_scale}, outside [-32, 32).", hint="scale the data itself first")
    # reshape: ufuncs turn arrays of rank 0 into scalars, which have no view of a structured type.
    codes = np.asarray(_quantise(array, kind, log2_scale, nan_on_overflow)).reshape(array.shape)
    return np.ascontiguousarray(codes).view(kind.as_numpy()).reshape(array.shape)


def host_pow2scale_cast_from_fp8(
    src: npt.NDArray[Any], dtype: dtype | None = None, log2_scale: int = 0
) -> npt.NDArray[Any]:
    """The numbers ``value(src) * 2**log2_scale``; undoes the cast to float8 when the scale is negated.

    Args:
        src: Codes with the structured type of ``popxl.float8_143`` or ``popxl.float8_152``.
        dtype: ``popxl.float16``, ``popxl.float32`` or ``popxl.float64``.
        log2_scale: Power of two to multiply by.

    Returns:
        An array of ``dtype`` with the shape of ``src``. What ``dtype`` cannot hold becomes infinite.

    Raises:
        CoreError: ``src`` or ``dtype`` has another type. It is a ``RuntimeError``.

    Example:
        >>> import numpy as np
        >>> codes = np.array([0b00111100], np.uint8).view(float8_143.as_numpy())
        >>> host_pow2scale_cast_from_fp8(codes, float32, log2_scale=1)
        array([1.5], dtype=float32)
    """
    array = np.asarray(src)
    kind = next((k for k in _LAYOUTS if k.as_numpy() == array.dtype), None)
    if kind is None:
        raise CoreError(
            f"Casting from float8 needs codes of a float8 type, not {array.dtype}.",
            hint="view codes as such, for example src.view(popxl.float8_143.as_numpy())",
        )
    if dtype not in (float16, float32, float64):
        raise CoreError(
            f"Casting from {kind!r} to {dtype!r} is not supported.",
            hint="use dtype=popxl.float16, popxl.float32 or popxl.float64",
        )
    values = _values(kind)[array[kind.name]]
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(values, log2_scale)).astype(dtype.as_numpy())


# ------------------------------------------------------------------ choice of a scale

# Rows and columns of the cost table: biases -31..31, and bins of magnitude [2**(i - 126), 2**(i - 125)).
_BIASES = np.arange(63)
_BINS = np.arange(253)
_EDGES: _Float64s = np.ldexp(1.0, _BINS - 126)


def _log2_histogram(src: npt.NDArray[Any]) -> _Float64s:
    """The share of magnitudes below each edge and from each edge up, by powers of two; length 254."""
    magnitude = np.abs(src[~np.isnan(src)]).astype(np.float64)
    bins = np.searchsorted(_EDGES, magnitude, side="right")
    counts = np.bincount(bins, minlength=len(_EDGES) + 1)
    if not counts.any():
        raise CoreError("There is no number in the data to choose a scale for.", hint="pass data that is not empty")
    return counts / counts.sum()


@cache
def _cost_weights(mantissa: int, source_mantissa: int, low: int, high: int) -> _Float64s:
    """What one unit of each histogram bin costs with each bias; shape (63, 253).

    A number below the range is lost, one inside is rounded, and one above is cut to the largest.
    """
    span = high - low + 1
    first = (max(0, low - 31 + 126) + _BIASES)[:, None]
    rounded = _EDGES**2 * 2.0 ** (-2 * (source_mantissa - mantissa))
    # The reference takes the largest number from this row-only index, not from first + span - 1.
    cut = (_EDGES[_BIASES + span - 1][:, None] - _EDGES) ** 2
    conditions = [first > _BINS, first + span > _BINS]
    weights = np.select(conditions, [_EDGES**2, rounded], cut)
    weights.setflags(write=False)
    return weights


def host_fp8_mse_scale(src: npt.NDArray[Any], dtype: dtype | None = None) -> tuple[float, int]:
    """Choose a scale for :func:`host_pow2scale_cast_to_fp8` from a histogram of exponents.

    Args:
        src: float16 or float32 array of any shape. NaN is left out.
        dtype: The float8 type; anything but ``popxl.float8_152`` means ``popxl.float8_143``.

    Returns:
        (estimated mean squared error, scale), the scale in [-31, 31] and in the middle of the best ones.

    Raises:
        CoreError: ``src`` is no array of these types or holds no number. It is a ``RuntimeError``.

    Example:
        >>> import numpy as np
        >>> host_fp8_mse_scale(np.array([1.0], np.float32), float8_143)[1]
        -2
    """
    if not isinstance(src, np.ndarray) or src.dtype not in _SOURCE_MANTISSA:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CoreError(
            f"The scale is chosen for float16 and float32 arrays, not for {_describe(src)}.",
            hint="pass np.asarray(src, np.float32)",
        )
    mantissa, low, high = (2, -17, 15) if dtype is float8_152 else (3, -10, 7)
    weights = _cost_weights(mantissa, _SOURCE_MANTISSA[src.dtype], low, high)
    costs = np.sum(weights * _log2_histogram(src)[1:], axis=1) + (_EDGES[0] / 2) ** 2
    best = np.flatnonzero(costs == costs.min())
    bias = int(best[len(best) // 2]) - 31
    return float(costs.min()), -bias


def host_fp8_mse_scale_pb(src: HostScalarTensor, dtype: dtype | None = None) -> int:
    """The scale with the smallest mean squared error of the numbers cast to float8 and back.

    Numbers out of range count as the largest one. Of several best scales the middle one is returned.

    Args:
        src: float16 or float32: an array, a torch tensor or something that NumPy makes an array of. Infinities
            and NaN are left out.
        dtype: ``popxl.float8_143`` or ``popxl.float8_152``.

    Returns:
        The scale, in [-31, 31].

    Raises:
        CoreError: ``src`` or ``dtype`` has another type. It is a ``RuntimeError``.

    Example:
        >>> import numpy as np
        >>> host_fp8_mse_scale_pb(np.array([2.0**-9, 240.0], np.float32), float8_143)
        0
    """
    kind = _check_float8(dtype)
    array = _as_array(src)
    if array.dtype not in _SOURCE_MANTISSA:
        raise CoreError(
            f"The scale is chosen for float16 and float32 data, not for {_describe(src)}.",
            hint="pass np.asarray(src, np.float32)",
        )
    numbers = array[np.isfinite(array)].astype(np.float64)
    scales = range(-31, 32)
    errors = np.array([_squared_error(numbers, kind, scale) for scale in scales])
    best = np.flatnonzero(errors == errors.min())
    return scales[int(best[len(best) // 2])]


def _squared_error(numbers: _Float64s, kind: dtype, log2_scale: int) -> float:
    codes = _quantise(numbers, kind, log2_scale, nan_on_overflow=False)
    return float(np.sum((np.ldexp(_values(kind)[codes], -log2_scale) - numbers) ** 2))


def _describe(src: object) -> str:
    """The element type, or else the class."""
    return str(getattr(src, "dtype", type(src).__name__))
