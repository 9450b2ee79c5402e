"""Elementwise ops of one tensor (spec ``ops-math.md`` §3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import PopxlValueError
from popxl.ops._define import FLOATS, NUMBERS, SIGNED_INTS, Sample, define, define_inplace, sample
from popxl.ops._jax import jax, jnp, late, lax
from popxl.ops._rules import same
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

# Samples


def _points(*values: float, tolerance: float = 2e-6, double_tolerance: float = 1e-14) -> Sequence[Sample]:
    a = np.array(values, np.float32)
    return (
        sample(a, tolerance=tolerance),
        sample(a.reshape(1, -1).astype(np.float16), tolerance=2e-3),
        sample(a.astype(np.float64), tolerance=double_tolerance),
        sample(a[0].reshape(()), tolerance=tolerance),
        sample(np.zeros((3, 0), np.float32)),
    )


# Arithmetic


def negate(t: Tensor) -> Tensor:
    """Negate, ``-t``.

    Args:
        t: Float or signed integer dtype; the smallest integer stays as it is (two's complement).
    """
    return NEGATE.emit({"t": t}, "negate_out")[0]


NEGATE = define(
    "Neg",
    negate,
    lower=late(lambda: jnp.negative),
    rule=same,
    dtypes=(*SIGNED_INTS, *FLOATS),
    oracle=np.negative,
    samples=lambda: (
        *_points(1.5, -2.0, np.inf, np.nan, tolerance=0),
        sample(np.array([[-128, 127, 0]], np.int8), tolerance=0),
        sample(np.array([5, -6], np.int32), tolerance=0),
    ),
    host=np.negative,
    elementwise=True,
)


def exp(t: Tensor) -> Tensor:
    """Exponential, ``e^t``.

    Args:
        t: Float dtype.
    """
    return EXP.emit({"t": t}, "exp_out")[0]


EXP = define(
    "Exp",
    exp,
    lower=late(lambda: jnp.exp),
    rule=same,
    dtypes=FLOATS,
    oracle=np.exp,
    samples=lambda: _points(-3.0, 0.0, 0.5, 4.0, -np.inf, np.inf, np.nan),
    elementwise=True,
)


def exp_(t: Tensor) -> Tensor:
    """Do `exp` in place. Returns an alias of `t`."""
    return EXP_.emit({"t": t}, "exp_inplace_out")[0]


EXP_ = define_inplace("ExpInplace", exp_, EXP)


def log(t: Tensor) -> Tensor:
    """Natural logarithm. The logarithm of 0 is -inf, that of a negative number NaN.

    Args:
        t: Float dtype.
    """
    return LOG.emit({"t": t}, "log_out")[0]


LOG = define(
    "Log",
    log,
    lower=late(lambda: jnp.log),
    rule=same,
    dtypes=FLOATS,
    oracle=np.log,
    samples=lambda: _points(0.25, 1.0, 10.0, 3e4, 0.0, -1.0, np.inf, np.nan),
    elementwise=True,
)


def sqrt(t: Tensor) -> Tensor:
    """Square root. That of a negative number is NaN.

    Args:
        t: Float dtype.
    """
    return SQRT.emit({"t": t}, "sqrt_out")[0]


SQRT = define(
    "Sqrt",
    sqrt,
    lower=late(lambda: jnp.sqrt),
    rule=same,
    dtypes=FLOATS,
    oracle=np.sqrt,
    samples=lambda: _points(2.0, 0.0, -0.0, 100.0, -1.0, np.inf, np.nan),
    elementwise=True,
)


def increment_mod(t: Tensor, increment: float, modulus: float) -> Tensor:
    """Increment and take the remainder, ``rem(t + increment, modulus)``; it has the sign of the dividend, as in C.

    Args:
        t: Any number dtype.
        increment: Added first. For integer tensors it is truncated to the tensor's dtype, as is `modulus`.
        modulus: Divisor.

    Raises:
        PopxlValueError: (a `ValueError`) if the tensor has integers and one of the numbers is not finite, or the
            modulus becomes 0.

    Example:
        The dividend of -7 is negative, so the remainder is -2, not 3.

        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.increment_mod(popxl.constant([-8]), 1, 5).dtype
        popxl.dtypes.int32
    """
    _check_increment(t, increment, modulus)
    return INCREMENT_MOD.emit({"t": t}, "increment_mod_out", increment=increment, modulus=modulus)[0]


def _check_increment(t: Tensor, increment: float, modulus: float) -> None:
    check_in_graph(get_current_graph(), t=t)
    if not t.dtype.is_int:
        return
    if not (math.isfinite(increment) and math.isfinite(modulus)):
        raise PopxlValueError(
            f"increment_mod of the integer tensor {t.id} by increment {increment}, modulus {modulus}.",
            hint="pass finite numbers",
        )
    if not _as(t.dtype.storage, modulus):
        raise PopxlValueError(
            f"The modulus {modulus} of increment_mod is 0 as {t.dtype.name}, the dtype of {t.id}.",
            hint="pass a modulus of at least 1",
        )


def _as(dtype: Any, value: float) -> Any:
    """The number as a NumPy scalar of `dtype`: for integers truncated, then wrapped around, as a C cast does."""
    if np.dtype(dtype).kind in "iu":
        return np.array(int(value) & 0xFFFF_FFFF_FFFF_FFFF, np.uint64).astype(dtype)
    return np.array(value).astype(dtype)


def _increment_mod(t: Any, increment: float, modulus: float) -> Any:
    return lax.rem(t + _as(t.dtype, increment), jnp.broadcast_to(_as(t.dtype, modulus), t.shape))


def _increment_mod_on_host(t: Any, increment: float, modulus: float) -> Any:
    dtype = np.asarray(t).dtype
    return np.fmod(t + _as(dtype, increment), _as(dtype, modulus))


INCREMENT_MOD = define(
    "IncrementMod",
    increment_mod,
    lower=_increment_mod,
    rule=same,
    dtypes=NUMBERS,
    oracle=_increment_mod_on_host,
    samples=lambda: (
        sample(np.array([-8, 3, 4, 9], np.int32), 1, 5, tolerance=0),
        sample(np.array([250, 3], np.uint8), 1.9, 7.5, tolerance=0),
        sample(np.array([5, 6], np.uint32), -1, 10, tolerance=0),
        sample(np.array([[1.0, -5.5, 2.5]], np.float32), 0.25, 2.0),
        sample(np.float16(2.5), 1.0, modulus=3.0, tolerance=1e-3),
        sample(np.zeros((0,), np.float32), 1.0, 3.0),
    ),
    host=_increment_mod_on_host,
    elementwise=True,
)


def increment_mod_(t: Tensor, increment: float, modulus: float) -> Tensor:
    """Do `increment_mod` in place. Returns an alias of `t`."""
    _check_increment(t, increment, modulus)
    return INCREMENT_MOD_.emit({"t": t}, "increment_mod_inplace_out", increment=increment, modulus=modulus)[0]


INCREMENT_MOD_ = define_inplace("IncrementModInplace", increment_mod_, INCREMENT_MOD)

# Activations


def tanh(t: Tensor) -> Tensor:
    """Hyperbolic tangent.

    Args:
        t: Float dtype.
    """
    return TANH.emit({"t": t}, "tanh_out")[0]


TANH = define(
    "Tanh",
    tanh,
    lower=late(lambda: jnp.tanh),
    rule=same,
    dtypes=FLOATS,
    oracle=np.tanh,
    samples=lambda: _points(-0.5, 0.0, 1e-4, 3.0, -np.inf, np.inf, np.nan),
    elementwise=True,
)


def relu(t: Tensor) -> Tensor:
    """Rectified linear unit, ``max(t, 0)``. NaN stays NaN.

    Args:
        t: Float dtype.
    """
    return RELU.emit({"t": t}, "relu_out")[0]


def _relu_oracle(t: Any) -> Any:
    return np.where(t < 0, 0.0, t)


RELU = define(
    "Relu",
    relu,
    lower=late(lambda: jax.nn.relu),
    rule=same,
    dtypes=FLOATS,
    oracle=_relu_oracle,
    samples=lambda: _points(-2.0, -0.0, 0.0, 1.5, -np.inf, np.inf, np.nan, tolerance=0),
    elementwise=True,
)


def relu_(t: Tensor) -> Tensor:
    """Do `relu` in place. Returns an alias of `t`."""
    return RELU_.emit({"t": t}, "relu_inplace_out")[0]


RELU_ = define_inplace("ReluInplace", relu_, RELU)


def gelu(t: Tensor) -> Tensor:
    """Gaussian error linear unit, tanh form: ``0.5 t (1 + tanh(0.7978845608 t + 0.0356774081 t^3))``.

    Args:
        t: Float dtype.
    """
    return GELU.emit({"t": t}, "gelu_out")[0]


def _gelu_oracle(t: Any) -> Any:
    return 0.5 * t * (1 + np.tanh(0.7978845608 * t + 0.0356774081 * t**3))


GELU = define(
    "Gelu",
    gelu,
    lower=late(lambda: partial(jax.nn.gelu, approximate=True)),
    rule=same,
    dtypes=FLOATS,
    oracle=_gelu_oracle,
    # The formula's coefficients are given to ten digits.
    samples=lambda: _points(-3.0, -0.5, 0.0, 0.5, 3.0, double_tolerance=1e-9),
    elementwise=True,
)


def gelu_(t: Tensor) -> Tensor:
    """Do `gelu` in place. Returns an alias of `t`."""
    return GELU_.emit({"t": t}, "gelu_inplace_out")[0]


GELU_ = define_inplace("GeluInplace", gelu_, GELU)


def geluerf(t: Tensor) -> Tensor:
    """Gaussian error linear unit, exact: ``0.5 t (1 + erf(t / sqrt 2))``.

    Args:
        t: Float dtype.
    """
    return GELUERF.emit({"t": t}, "geluerf_out")[0]


def _geluerf_oracle(t: Any) -> Any:
    erf = [math.erf(x / math.sqrt(2)) for x in np.ravel(t)]
    return 0.5 * t * (1 + np.reshape(erf, np.shape(t)))


GELUERF = define(
    "GeluErf",
    geluerf,
    lower=late(lambda: partial(jax.nn.gelu, approximate=False)),
    rule=same,
    dtypes=FLOATS,
    oracle=_geluerf_oracle,
    samples=lambda: _points(-3.0, -0.5, 0.0, 0.5, 3.0),
    elementwise=True,
)


def geluerf_(t: Tensor) -> Tensor:
    """Do `geluerf` in place. Returns an alias of `t`."""
    return GELUERF_.emit({"t": t}, "geluerf_inplace_out")[0]


GELUERF_ = define_inplace("GeluErfInplace", geluerf_, GELUERF)

# Copies


def identity(t: Tensor, output_name: str | None = None) -> Tensor:
    """Copy a tensor, under another name; also called `rename`.

    Args:
        t: Any dtype.
        output_name: Name of the copy, ``"identity_<name of t>"`` if not given.
    """
    check_in_graph(get_current_graph(), t=t)
    return IDENTITY.emit({"t": t}, output_name or f"identity_{t.name}")[0]


def _same_value(t: Any) -> Any:
    return t


IDENTITY = define(
    "Identity",
    identity,
    lower=_same_value,
    rule=same,
    oracle=_same_value,
    samples=lambda: (
        *_points(1.5, -0.0, np.inf, np.nan, tolerance=0),
        sample(np.array([True, False]), tolerance=0),
        sample(np.array([[-1, 2]], np.int16), tolerance=0),
        sample(np.array([0, 128, 255], np.uint8).view(dtypes.np_dtype_float8_152), tolerance=0),
    ),
    host=_same_value,
    elementwise=True,
)

rename = identity
