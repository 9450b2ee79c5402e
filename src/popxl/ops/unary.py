"""Elementwise functions of one tensor (spec ``ops-math.md`` §3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.op import Gradient
from popxl.ops._define import FLOATS, SIGNED_INTS, define, define_inplace, sample
from popxl.ops._jax import jnp, late
from popxl.ops._points import points
from popxl.ops._rules import same
from popxl.ops.binary import div
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

Arrays = Sequence[Any]

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
        *points(1.5, -2.0, kinks=(np.inf, np.nan), tolerance=0),
        sample(np.array([[-128, 127, 0]], np.int8), tolerance=0),
        sample(np.array([5, -6], np.int32), tolerance=0),
    ),
    host=np.negative,
    elementwise=True,
)


def sqrt(t: Tensor) -> Tensor:
    """Square root. That of a negative number is NaN. The gradient at 0 is infinite.

    Args:
        t: Float dtype.
    """
    return SQRT.emit({"t": t}, "sqrt_out")[0]


def _sqrt_gradient(grads: Arrays, _inputs: Arrays, outputs: Arrays) -> Arrays:
    return [grads[0] / (2 * outputs[0])]


SQRT = define(
    "Sqrt",
    sqrt,
    lower=late(lambda: jnp.sqrt),
    rule=same,
    dtypes=FLOATS,
    oracle=np.sqrt,
    samples=lambda: points(2.0, 100.0, 0.25, kinks=(0.0, -0.0, -1.0, np.inf, np.nan)),
    gradient=Gradient(_sqrt_gradient),
    elementwise=True,
)

# Exponential and logarithms


def exp(t: Tensor) -> Tensor:
    """Exponential, ``e^t``.

    Args:
        t: Float dtype.
    """
    return EXP.emit({"t": t}, "exp_out")[0]


def _exp_gradient(grads: Arrays, _inputs: Arrays, outputs: Arrays) -> Arrays:
    return [grads[0] * outputs[0]]


EXP = define(
    "Exp",
    exp,
    lower=late(lambda: jnp.exp),
    rule=same,
    dtypes=FLOATS,
    oracle=np.exp,
    samples=lambda: points(-3.0, 0.0, 0.5, 4.0, kinks=(-np.inf, np.inf, np.nan)),
    gradient=Gradient(_exp_gradient),
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
    samples=lambda: points(0.25, 1.0, 10.0, 3e4, kinks=(0.0, -1.0, np.inf, np.nan)),
    elementwise=True,
)


def log2(t: Tensor) -> Tensor:
    """Logarithm to the base 2, made of other ops: ``log(t) / log(2)``.

    The logarithm of 0 is -inf, that of a negative number NaN.

    Args:
        t: Float dtype.

    Returns:
        A tensor of the same shape and dtype. A quotient of rounded numbers: that of a power of 2 need not be exact.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.log2(popxl.constant([1.0, 8.0]))
        Tensor[div_out popxl.dtypes.float32 (2,)]
    """
    numerator = log(t)
    # A scalar does not broadcast with a tensor without elements.
    two = constant(2 if t.nelms else np.full(t.shape, 2), t.dtype)
    return div(numerator, log(two))


# Circular functions


def sin(t: Tensor) -> Tensor:
    """Sine of an angle in radians.

    Args:
        t: Float dtype.
    """
    return SIN.emit({"input": t}, "sin_out")[0]


SIN = define(
    "Sin",
    sin,
    lower=late(lambda: jnp.sin),
    rule=same,
    dtypes=FLOATS,
    oracle=np.sin,
    samples=lambda: points(-2.0, 0.0, 0.5, 1e-3, 10.0, kinks=(-np.inf, np.inf, np.nan)),
    elementwise=True,
)


def cos(t: Tensor) -> Tensor:
    """Cosine of an angle in radians.

    Args:
        t: Float dtype.
    """
    return COS.emit({"input": t}, "cos_out")[0]


COS = define(
    "Cos",
    cos,
    lower=late(lambda: jnp.cos),
    rule=same,
    dtypes=FLOATS,
    oracle=np.cos,
    samples=lambda: points(-2.0, 0.0, 0.5, 1e-3, 10.0, kinks=(-np.inf, np.inf, np.nan)),
    elementwise=True,
)

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
        *points(1.5, -0.0, kinks=(np.inf, np.nan), tolerance=0),
        sample(np.array([True, False]), tolerance=0),
        sample(np.array([[-1, 2]], np.int16), tolerance=0),
        sample(np.array([0, 128, 255], np.uint8).view(dtypes.np_dtype_float8_152), tolerance=0),
    ),
    host=_same_value,
    elementwise=True,
)

rename = identity
