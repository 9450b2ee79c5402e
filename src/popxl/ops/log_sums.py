"""Logarithms of sums (spec ``ops-math.md`` §5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl.op import Gradient
from popxl.ops._define import FLOATS, Sample, sample
from popxl.ops._jax import at_least_float32, jax, jnp
from popxl.ops._reduction import Axes, define_reduction, given_axes, gradient_by, kept_shape, reduction_samples
from popxl.tensor import Tensor


def logsum(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Take the natural logarithm of the sum over axes: ``log(sum(t))``.

    Args:
        t: Float dtype. Float16 is computed in float32.
        axis: Axes to sum over, negative ones counted from the end; None for all, ``[]`` for none, which leaves
            the logarithms.
        keepdims: Whether the summed axes stay, with length 1.

    Returns:
        The logarithms, of the same dtype: -inf where the sum is 0, NaN where it is negative.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.
    """
    return LOGSUM.emit({"t": t}, "logsum_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


def _logsum(t: Any, axis: Axes, keepdims: bool) -> Any:
    return jnp.log(jnp.sum(t, axis=axis, keepdims=keepdims))


def _logsum_oracle(t: Any, **how: Any) -> Any:
    return np.log(np.sum(t, **how))


def _logsum_samples() -> Sequence[Sample]:
    return (
        *reduction_samples(integers=False, positive=True, alone=1e-6, double=1e-14),
        sample(np.array([[1.0, -1.0], [1.0, -2.0]], np.float32), 1, smooth=False),
        # The sum overflows in float16, its logarithm does not.
        sample(np.full((2, 4), 6e4, np.float16), 1, tolerance=1e-3),
    )


LOGSUM = define_reduction(
    "ReduceLogSum",
    logsum,
    _logsum,
    _logsum_oracle,
    _logsum_samples,
    dtypes=FLOATS,
    gradient=gradient_by(lambda g, t, out: g / jnp.exp(out)),
)


def logsumexp(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Take the natural logarithm of the sum of exponentials over axes: ``log(sum(exp(t)))``.

    It is shifted by the largest element: nothing overflows on the way.

    Args:
        t: Float dtype. Float16 is computed in float32.
        axis: As for `logsum`; ``[]`` leaves `t` as it is.
        keepdims: As for `logsum`.

    Returns:
        The logarithms, of the same dtype; -inf where all elements are -inf. There, the gradient is NaN.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.logsumexp(popxl.constant([[0.0, 0.0], [1e4, 1e4]]), axis=1)
        Tensor[logsumexp_out popxl.dtypes.float32 (2,)]
    """
    return LOGSUMEXP.emit({"t": t}, "logsumexp_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


def _logsumexp(t: Any, axis: Axes, keepdims: bool) -> Any:
    return jax.nn.logsumexp(t, axis=axis, keepdims=keepdims)


def _logsumexp_samples() -> Sequence[Sample]:
    inf = np.inf
    return (
        *reduction_samples(integers=False, alone=1e-6, double=1e-14),
        sample(np.array([[1000.0, 1000.5], [-1000.0, -2000.0]], np.float32), 1),
        # float16 keeps half units only there; the gradient must not feel it.
        sample(np.array([[1000.0, 1000.5, 999.0]], np.float16), 1, tolerance=1e-3),
        sample(np.array([[-inf, -inf], [-inf, 3.0], [inf, -inf]], np.float32), 1),
    )


def _logsumexp_gradient(
    grads: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], axes: Axes, keepdims: bool
) -> Sequence[Any]:
    (t,) = inputs
    kept = kept_shape(t.shape, axes)
    if t.dtype == jnp.float16:
        # The rounded result is off by up to half a unit at 1000: exp would make 65 % of it.
        wide = t.astype(jnp.float32)
        out = _logsumexp(wide, axes, True)
    else:
        wide, out = t, outputs[0].reshape(kept)
    return [at_least_float32(grads[0]).reshape(kept) * jnp.exp(wide - out)]


LOGSUMEXP = define_reduction(
    "ReduceLogSumExp",
    logsumexp,
    _logsumexp,
    np.logaddexp.reduce,
    _logsumexp_samples,
    dtypes=FLOATS,
    gradient=Gradient(_logsumexp_gradient),
    differences="all -inf gives -inf, not NaN",
)
