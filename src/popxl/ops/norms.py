"""Norms and sums of squares (spec ``ops-math.md`` §5.1, §5.2; ``ops-updates.md`` §4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops._reduction import Axes, define_reduction, given_axes, gradient_by, reduction_samples
from popxl.tensor import Tensor


def _square(t: Any) -> Any:
    return t * t


def _widest(t: Any) -> Any:
    """For oracles: integers that do not overflow."""
    return t.astype(np.int64) if t.dtype.kind in "iu" else t


def l1(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Sum the magnitudes over axes, the L1 norm: ``sum(abs(t))``.

    The gradient of an element that is 0 is 0.

    Args:
        t: Any number dtype. Integers are not widened: they wrap around. Float16 is accumulated in float32.
        axis: Axes to sum over, negative ones counted from the end; None for all, ``[]`` for none, which leaves
            the magnitudes.
        keepdims: Whether the summed axes stay, with length 1.

    Returns:
        The norms, of the same dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.
    """
    return L1.emit({"t": t}, "l1_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


def _l1(t: Any, axis: Axes, keepdims: bool) -> Any:
    return jnp.sum(jnp.abs(t), axis=axis, keepdims=keepdims)


def _l1_oracle(t: Any, **how: Any) -> Any:
    return np.sum(np.abs(_widest(t)), **how)


def _signed(g: Any, t: Any, _out: Any) -> Any:
    # Selected, not multiplied: an infinite gradient must not make a NaN of the 0 at 0.
    return jnp.where(t > 0, g, jnp.where(t < 0, -g, jnp.zeros_like(g)))


L1 = define_reduction(
    "ReduceL1",
    l1,
    _l1,
    _l1_oracle,
    lambda: (*reduction_samples(), sample(np.array([[0.0, -0.0, 3.0]], np.float32), 0, tolerance=0, smooth=False)),
    gradient=gradient_by(_signed),
)


def l2(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Take the Euclidean norm over axes: ``sqrt(sum(t ** 2))``.

    The gradient is ``g * t / norm``, which is NaN where the norm is 0.

    Args:
        t: Float dtype. Float16 is accumulated in float32.
        axis: As for `l1`.
        keepdims: As for `l1`.

    Returns:
        The norms, of the same dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.l2(popxl.constant([[3.0, 4.0], [6.0, 8.0]]), axis=1).shape
        (2,)
    """
    return L2.emit({"t": t}, "l2_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


def _l2(t: Any, axis: Axes, keepdims: bool) -> Any:
    return jnp.sqrt(jnp.sum(_square(t), axis=axis, keepdims=keepdims))


def _l2_oracle(t: Any, **how: Any) -> Any:
    return np.sqrt(np.sum(np.square(t), **how))


def _l2_samples() -> Sequence[Sample]:
    return (
        *reduction_samples(integers=False),
        # The squares overflow in float16, the norm does not.
        sample(np.array([[3e4, -4e4], [300.0, 400.0]], np.float16), 1, tolerance=1e-3),
        sample(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), 1, tolerance=0, smooth=False),
    )


L2 = define_reduction(
    "ReduceL2",
    l2,
    _l2,
    _l2_oracle,
    _l2_samples,
    dtypes=FLOATS,
    gradient=gradient_by(lambda g, t, out: g * (t / out)),
)


def sumsquare(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Sum the squares over axes: ``sum(t ** 2)``.

    Args:
        t: Any number dtype. Integers are not widened: they wrap around. Float16 is accumulated in float32.
        axis: As for `l1`.
        keepdims: As for `l1`.

    Returns:
        The sums, of the same dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.
    """
    return SUMSQUARE.emit({"t": t}, "sumsquare_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


def _sumsquare(t: Any, axis: Axes, keepdims: bool) -> Any:
    return jnp.sum(_square(t), axis=axis, keepdims=keepdims)


def _sumsquare_oracle(t: Any, **how: Any) -> Any:
    return np.sum(np.square(_widest(t)), **how)


SUMSQUARE = define_reduction("ReduceSumSquare", sumsquare, _sumsquare, _sumsquare_oracle, reduction_samples)


# Of optimisers


def lamb_square(t: Tensor) -> Tensor:
    """Sum the squares of all elements in float32: the squared norms of the LAMB optimiser.

    It belongs to an optimiser's update and has no gradient. Of a shard, it is the shard's own sum.

    Args:
        t: Float dtype.

    Returns:
        A float32 scalar, whatever the dtype of `t`.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.lamb_square(popxl.constant([3.0, 4.0], popxl.float16))
        Tensor[lamb_square_out popxl.dtypes.float32 ()]
    """
    return LAMB_SQUARE.emit({"t": t}, "lamb_square_out")[0]


def _lamb_square_rule(_t: ShapeDtype) -> ShapeDtype:
    return ShapeDtype((), dtypes.float32)


def _lamb_square(t: Any) -> Any:
    return jnp.sum(_square(at_least_float32(t))).astype(jnp.float32)


def _lamb_square_samples() -> Sequence[Sample]:
    a = np.array([[1.5, -2.0, 0.5], [3.0, 0.25, -1.0]], np.float32)
    return (
        sample(a),
        sample(a.astype(np.float64)),
        # More than float16 can hold.
        sample(np.full((3, 50), 300.0, np.float16)),
        sample(np.float32(-2.5), tolerance=0),
        sample(np.array([np.inf, 1.0], np.float32)),
        sample(np.array([np.nan, 1.0], np.float32)),
        sample(np.zeros((2, 0), np.float32), tolerance=0),
    )


LAMB_SQUARE = define(
    "LambSquare",
    lamb_square,
    lower=_lamb_square,
    rule=_lamb_square_rule,
    dtypes=FLOATS,
    oracle=_sumsquare_oracle,
    samples=_lamb_square_samples,
    gradient=None,
    optimizer=True,
)
