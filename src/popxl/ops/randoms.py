"""Random numbers (spec ``ops-nn.md`` §5.3).

Both draw 32 random bits ``b`` per element (`popxl.ops._threefry`) and keep the upper 24, ``k = b >> 8``. All
arithmetic until the last rounding is exact or in float64, so that a program draws the same numbers on each device.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import Sample, define, sample
from popxl.ops._jax import jnp, lax
from popxl.ops._threefry import Stream, bits_on_host, check_seed, draw_bits
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

_DTYPES = (dtypes.float16, dtypes.float32)

# What both take


def _checked(seed_tensor: Tensor, shape: tuple[int, ...], dtype: Any, **numbers: float) -> dict[str, Any]:
    """Return the attributes of an op: shape, dtype and numbers, checked."""
    check_in_graph(get_current_graph(), seed_tensor=seed_tensor)
    check_seed(seed_tensor=seed_tensor)
    lengths = tuple(operator.index(n) for n in shape)
    if any(n < 0 for n in lengths):
        raise PopxlValueError(f"The `shape` {lengths} has a negative length.", hint="lengths are 0 or more")
    dtype = dtypes.float32 if dtype is None else dtypes.dtype.as_dtype(dtype)
    if dtype not in _DTYPES:
        raise CoreError(
            f"Unsupported `dtype` {dtype} of random numbers.",
            hint=f"draw {' or '.join(d.name for d in _DTYPES)} and cast the result",
        )
    for argument, value in numbers.items():
        with np.errstate(over="ignore"):
            if not np.isfinite(dtype.storage.type(value)):
                raise PopxlValueError(
                    f"`{argument}` is {value}, which is no finite number as {dtype.name}.",
                    hint="pass a smaller number, or draw float32",
                )
    return {"shape": lengths, **{k: float(v) for k, v in numbers.items()}, "dtype": dtype}


def _rule(_seed_tensor: ShapeDtype, *, shape: tuple[int, ...], dtype: dtypes.dtype, **_how: Any) -> ShapeDtype:
    return ShapeDtype(shape, dtype)


def _rounded(values: Any, dtype: dtypes.dtype) -> Any:
    return values.astype(np.float32).astype(dtype.storage)


# Uniform


def random_uniform(
    seed_tensor: Tensor,
    shape: tuple[int, ...],
    low: float = 0.0,
    high: float = 1.0,
    dtype: dtypes.dtype = dtypes.float32,
) -> Tensor:
    """Draw numbers that are uniform in ``[low, high)``.

    Element by element ``low * (1 - u) + high * u``, with ``u = k / 2**24`` and `low` and `high` as float32. `high`
    itself is never drawn, whatever the rounding.

    Args:
        seed_tensor: uint32, shape (2,). The result is a function of it and of the other arguments.
        shape: Shape of the result.
        low: Least number.
        high: Bound, which is not drawn. If `dtype` has no number in ``[low, high)``, the one nearest to `low` is.
        dtype: ``popxl.float16`` or ``popxl.float32``; None is ``popxl.float32``.

    Returns:
        The numbers.

    Raises:
        PopxlValueError: (a `ValueError`) if `seed_tensor` has another shape or dtype, `shape` a negative length,
            a bound is not finite in this dtype, or `low` is above `high`.
        CoreError: (a `RuntimeError`) for another dtype.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     seed = popxl.constant([0, 42], popxl.uint32)
        ...     ops.random_uniform(seed, (2, 3), low=-1.0)
        Tensor[random_uniform_out popxl.dtypes.float32 (2, 3)]
    """
    attributes = _checked(seed_tensor, shape, dtype, low=low, high=high)
    if low > high:
        raise PopxlValueError(f"`low` is {low}, above `high`, {high}.", hint="swap them")
    return RANDOM_UNIFORM.emit({"seed_tensor": seed_tensor}, "random_uniform_out", **attributes)[0]


def _bounds(low: float, high: float, dtype: dtypes.dtype) -> tuple[float, float]:
    """The least and the greatest number of `dtype` in ``[low, high)``."""
    least, greatest = nearest, _ = dtype.storage.type(low), dtype.storage.type(high)
    with np.errstate(over="ignore"):
        if float(least) < low:
            least = np.nextafter(least, dtype.storage.type(np.inf))
        if float(greatest) >= high:
            greatest = np.nextafter(greatest, dtype.storage.type(-np.inf))
    return (float(least), float(greatest)) if least <= greatest else (float(nearest), float(nearest))


def _uniform(seed: Any, shape: tuple[int, ...], low: float, high: float, dtype: dtypes.dtype) -> Any:
    u = (draw_bits(seed, Stream.RANDOM_UNIFORM, shape) >> 8).astype(jnp.float64) * 2.0**-24
    # Both products are exact in float64: the sum is the same whether or not a compiler fuses it with one of them.
    values = float(np.float32(low)) * (1.0 - u) + float(np.float32(high)) * u
    return _rounded(jnp.clip(values, *_bounds(low, high, dtype)), dtype)


def _uniform_oracle(
    seed: Any, shape: Any, low: float = 0.0, high: float = 1.0, dtype: dtypes.dtype | None = None
) -> Any:
    k = bits_on_host(seed, Stream.RANDOM_UNIFORM, tuple(shape)) >> 8
    a, b = np.float64(np.float32(low)), np.float64(np.float32(high))
    values = ((2**24 - k.astype(np.float64)) * a + k * b) / 2**24
    result = _rounded(values, dtype or dtypes.float32)
    if low == high:
        return result
    # By a step to the next number, where the lowering clips.
    lower, upper = (np.nextafter(result, result.dtype.type(towards)) for towards in (-np.inf, np.inf))
    wide = result.astype(np.float64)
    return np.select([wide >= high, wide < low], [lower, upper], result)


def _seeds() -> tuple[Any, Any]:
    return np.array([3324115917, 383329928], np.uint32), np.array([0, 2**32 - 1], np.uint32)


def _uniform_samples() -> Sequence[Sample]:
    a, b = _seeds()
    half = dtypes.float16
    return (
        sample(a, (4, 3), tolerance=0),
        sample(b, (2, 1, 5), -1.0, 1.0, tolerance=0),
        sample(a, [1000], low=-0.1, high=0.7, tolerance=0),
        sample(a, (5000,), dtype=half, tolerance=0),
        sample(b, (2000,), 1.0, 1.01, half, tolerance=0),
        sample(b, (50,), 16777215.0, 16777217.0, tolerance=0),
        sample(a, (3,), -3e38, 3e38, dtypes.float32, tolerance=0),
        sample(a, (3,), 2.5, 2.5, tolerance=0),
        sample(a, (), dtype=None, tolerance=0),
        sample(a, (2, 0), tolerance=0),
    )


RANDOM_UNIFORM = define(
    "RandomUniform",
    random_uniform,
    lower=_uniform,
    rule=_rule,
    dtypes=(dtypes.uint32,),
    oracle=_uniform_oracle,
    samples=_uniform_samples,
    gradient=None,
    differences="`low` above `high` and bounds that are not finite are errors",
)

# Normal


def random_normal(
    seed_tensor: Tensor,
    shape: tuple[int, ...],
    mean: float = 0.0,
    std: float = 1.0,
    dtype: dtypes.dtype = dtypes.float32,
) -> Tensor:
    """Draw numbers from the normal distribution.

    Element by element ``mean + std * z``, with ``z = sqrt(2) erfinv(v)`` rounded to float32, `mean` and `std` as
    float32, and ``v = (2 k + 1) / 2**24 - 1``, which lies symmetrically between -1 and 1: ``z`` is finite, at most
    5.42.

    Args:
        seed_tensor: uint32, shape (2,). The result is a function of it and of the other arguments.
        shape: Shape of the result.
        mean: Mean of the distribution.
        std: Its standard deviation, at least 0.
        dtype: ``popxl.float16`` (drawn in float32, then rounded) or ``popxl.float32``; None is ``popxl.float32``.

    Returns:
        The numbers.

    Raises:
        PopxlValueError: (a `ValueError`) if `seed_tensor` has another shape or dtype, `shape` a negative length,
            `mean` or `std` is not finite in this dtype, or `std` is negative.
        CoreError: (a `RuntimeError`) for another dtype.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     seed = popxl.constant([0, 42], popxl.uint32)
        ...     ops.random_normal(seed, (2, 3), std=0.02, dtype=popxl.float16)
        Tensor[random_normal_out popxl.dtypes.float16 (2, 3)]
    """
    attributes = _checked(seed_tensor, shape, dtype, mean=mean, std=std)
    if std < 0:
        raise PopxlValueError(f"`std` is {std}, which is negative.", hint="pass a standard deviation, not a factor")
    return RANDOM_NORMAL.emit({"seed_tensor": seed_tensor}, "random_normal_out", **attributes)[0]


def _normal(seed: Any, shape: tuple[int, ...], mean: float, std: float, dtype: dtypes.dtype) -> Any:
    k = (draw_bits(seed, Stream.RANDOM_NORMAL, shape) >> 8).astype(jnp.float64)
    z = (lax.erf_inv((2.0 * k + (1.0 - 2.0**24)) * 2.0**-24) * math.sqrt(2)).astype(jnp.float32)
    # The product is exact in float64, as in the uniform distribution.
    return _rounded(z.astype(jnp.float64) * float(np.float32(std)) + float(np.float32(mean)), dtype)


def _normal_oracle(seed: Any, shape: Any, mean: float = 0.0, std: float = 1.0, dtype: Any = None) -> Any:
    # Not a dependency of the package: oracles run in tests only.
    from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    k = bits_on_host(seed, Stream.RANDOM_NORMAL, tuple(shape)) >> 8
    z = np.asarray(ndtri((k + 0.5) / 2**24), np.float32).astype(np.float64)
    return _rounded(z * np.float32(std) + np.float64(np.float32(mean)), dtype or dtypes.float32)


def _normal_samples() -> Sequence[Sample]:
    a, b = _seeds()
    half = dtypes.float16
    return (
        sample(a, (4, 3), tolerance=2e-7),
        sample(b, (2, 1, 5), -1.0, 0.5, tolerance=2e-7),
        sample(a, [5000], mean=100.0, std=0.1, tolerance=2e-7),
        sample(a, (5000,), dtype=half, tolerance=1e-3),
        sample(b, (7,), 1.0, 0.02, half, tolerance=1e-3),
        sample(b, (7,), 1.5, 0, tolerance=0),
        sample(a, (), dtype=None, tolerance=2e-7),
        sample(a, (0, 2)),
    )


RANDOM_NORMAL = define(
    "RandomNormal",
    random_normal,
    lower=_normal,
    rule=_rule,
    dtypes=(dtypes.uint32,),
    oracle=_normal_oracle,
    samples=_normal_samples,
    gradient=None,
    differences="a negative `std` and parameters that are not finite are errors",
)
