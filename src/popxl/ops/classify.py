"""What kind of number an element is (spec ``ops-math.md`` §3). Nothing here has a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from popxl import dtypes
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, Sample, define
from popxl.ops._jax import jnp, late
from popxl.ops._points import points
from popxl.ops.logical import logical_not, logical_or
from popxl.ops.unary import identity
from popxl.tensor import Tensor


def _rule(t: ShapeDtype) -> ShapeDtype:
    return ShapeDtype(t.shape, dtypes.bool)


def _samples() -> Sequence[Sample]:
    return points(0.0, -0.0, 1.5, -65504.0, 6e-8, np.inf, -np.inf, np.nan)


def isnan(t: Tensor) -> Tensor:
    """Whether the element is NaN.

    Args:
        t: Float dtype.

    Returns:
        A bool tensor of the same shape.
    """
    return IS_NAN.emit({"t": t}, "isnan_out")[0]


IS_NAN = define(
    "IsNaN",
    isnan,
    lower=late(lambda: jnp.isnan),
    rule=_rule,
    dtypes=FLOATS,
    oracle=np.isnan,
    samples=_samples,
    gradient=None,
    elementwise=True,
)


def isinf(t: Tensor) -> Tensor:
    """Whether the element is infinite, of either sign.

    Args:
        t: Float dtype.

    Returns:
        A bool tensor of the same shape.
    """
    return IS_INF.emit({"t": t}, "isinf_out")[0]


IS_INF = define(
    "IsInf",
    isinf,
    lower=late(lambda: jnp.isinf),
    rule=_rule,
    dtypes=FLOATS,
    oracle=np.isinf,
    samples=_samples,
    gradient=None,
    elementwise=True,
)


def isfinite(t: Tensor) -> Tensor:
    """Whether the element is neither NaN nor infinite, made of other ops: ``~(isnan(t) | isinf(t))``.

    Args:
        t: Float dtype.

    Returns:
        A bool tensor of the same shape.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.isfinite(popxl.constant([1.0, float("inf")]))
        Tensor[isfinite_out popxl.dtypes.bool (2,)]
    """
    return identity(logical_not(logical_or(isnan(t), isinf(t))), "isfinite_out")
