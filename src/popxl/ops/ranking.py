"""`topk` (spec ``ops-math.md`` §8.7)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.errors import CoreError
from popxl.op import Gradient, ShapeDtype
from popxl.ops import _along
from popxl.ops._along import replaced
from popxl.ops._define import NUMBERS, Sample, define, sample
from popxl.ops._jax import jnp, lax
from popxl.ops.utils import checked_memory_hint
from popxl.tensor import Tensor


def _rule(t: ShapeDtype, k: int, axis: int, **_how: Any) -> tuple[ShapeDtype, ShapeDtype]:
    rank = len(t.shape)
    if rank == 0:
        raise CoreError("BaseSortOp input rank must be greater than 0; `t` is a scalar.", hint="reshape it to (1,)")
    if not 0 <= axis < rank:
        raise CoreError(
            f"Cannot compute BaseSortOp on axis {axis} of `t`, whose shape is {list(t.shape)}.",
            hint=f"axes of topk count from the front: 0 to {rank - 1}",
        )
    if not 0 <= k <= t.shape[axis]:
        raise CoreError(
            f"Cannot take top-{k} on dim of size {t.shape[axis]}: axis {axis} of `t`, whose shape is {list(t.shape)}.",
            hint="`k` is at most the length of the axis",
        )
    shape = replaced(t.shape, axis, k)
    return ShapeDtype(shape, t.dtype), ShapeDtype(shape, dtypes.int32)


def topk(
    t: Tensor,
    k: int,
    axis: int,
    largest: bool,
    sorted: bool,
    available_memory_proportion: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Take the `k` largest or smallest elements along an axis.

    NaN counts as larger than all numbers. Of equal elements, the first ones are taken, in their order.

    Args:
        t: Any shape but a scalar, any number dtype.
        k: How many, at most the length of the axis.
        axis: The axis, counted from the front.
        largest: Whether to take the largest, in descending order, or the smallest, in ascending order.
        sorted: Without effect: the result is sorted in any case.
        available_memory_proportion: A number or None; a hint without effect.

    Returns:
        The elements, of the dtype of `t`, and their int32 indices along the axis; both have the shape of `t`
        with `k` along `axis`. The gradient of `t` is that of the elements, at their indices.

    Raises:
        PopxlTypeError: (a `TypeError`) if `available_memory_proportion` is no number.
        CoreError: (a `RuntimeError`) if `t` is a scalar, there is no such axis or it is shorter than `k`.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     values, indices = ops.topk(popxl.constant([3.0, 1.0, 2.0]), 2, 0, largest=True, sorted=True)
        >>> values.shape, indices.dtype.name
        ((2,), 'int32')
    """
    values, indices = TOPK.emit(
        {"t": t},
        ("topk_out_value", "topk_out_indices"),
        k=operator.index(k),
        axis=operator.index(axis),
        largest=bool(largest),
        sorted=bool(sorted),
        available_memory_proportion=checked_memory_hint(available_memory_proportion),
    )
    return values, indices


def _keys(t: Any, largest: bool) -> Any:
    """Numbers in whose order the largest come first; equal elements have equal keys."""
    if jnp.issubdtype(t.dtype, jnp.integer):
        if t.dtype.itemsize > 2:
            return t if largest else ~t
        # XLA picks the largest float32 without sorting everything; smaller integers are exact in it.
        t = t.astype(jnp.float32)
    wide = t.astype(jnp.float32) if t.dtype == jnp.float16 else t
    # XLA orders -NaN < -inf < ... < -0 < 0 < ... < inf < NaN.
    last = np.array(np.nan if largest else -np.nan, wide.dtype)
    return jnp.where(jnp.isnan(wide), last, jnp.where(wide == 0, 0, wide if largest else -wide))


def _lower(t: Any, k: int, axis: int, largest: bool, **_hints: Any) -> tuple[Any, Any]:
    rows = jnp.moveaxis(t, axis, -1)
    indices = jnp.moveaxis(lax.top_k(_keys(rows, largest), k)[1], -1, axis).astype(np.int32)
    return jnp.take_along_axis(t, indices, axis), indices


def _gradient(
    grads: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], axis: int, **_how: Any
) -> Sequence[Any]:
    places = _along.as_places(outputs[1], outputs[1].shape, inputs[0].shape[axis])
    return [_along.add(jnp.zeros_like(inputs[0]), places, grads[0], axis, distinct=True)]


def _oracle(t: Any, k: int, axis: int, largest: bool, *_how: Any, **_hints: Any) -> Any:
    if largest:
        # A stable ascending order of the reversed elements is, reversed, a stable descending one.
        order = t.shape[axis] - 1 - np.flip(np.argsort(np.flip(t, axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(t, axis, kind="stable")
    indices = np.take(order, range(k), axis)
    return np.take_along_axis(t, indices, axis), indices.astype(np.int32)


def _samples() -> Sequence[Sample]:
    f = np.float32
    x = np.array([[0.5, -1.0, 3.0, 2.0], [2.5, 0.25, -4.0, 1.0], [-0.5, 7.0, 1.5, -2.0]], f)
    special = np.array([0.0, -0.0, np.nan, 1.0, -np.inf, -np.nan, np.inf, 1.0, -0.0, 0.0], f)
    ties = np.array([[2, 1, 2, 2], [1, 1, 0, 0]], np.int32)
    return (
        sample(x, 2, 1, True, True, tolerance=0),
        sample(x, 3, 1, False, True, tolerance=0),
        sample(x.astype(np.float16), 1, 0, largest=True, sorted=False, tolerance=0),
        sample(x.astype(np.float64), 2, 0, False, False, 0.5, tolerance=0),
        sample(np.array([1.0, 3.0, 3.0, 1.0], f), 3, 0, True, True, tolerance=0, smooth=False),
        sample(special, 10, 0, True, True, tolerance=0),
        sample(special, 10, 0, False, True, tolerance=0),
        sample(special.astype(np.float16), 4, 0, False, True, tolerance=0),
        sample(special.astype(np.float64), 10, 0, False, True, tolerance=0),
        sample(ties, 4, 1, True, True, tolerance=0),
        sample(ties, 3, 1, False, True, tolerance=0),
        sample(np.array([-128, 127, 0], np.int8), 3, 0, False, True, tolerance=0),
        sample(np.array([0, 2**32 - 1, 7], np.uint32), 2, 0, False, True, tolerance=0),
        sample(np.array([-(2**31), 2**31 - 1], np.int32), 2, 0, False, True, tolerance=0),
        sample(np.zeros((2, 0), f), 0, 1, True, True, tolerance=0),
        sample(x, 0, 1, True, True, tolerance=0),
    )


TOPK = define(
    "TopK",
    topk,
    lower=_lower,
    rule=_rule,
    dtypes=NUMBERS,
    oracle=_oracle,
    samples=_samples,
    gradient=Gradient(_gradient, wrt=(0,)),
    differences="always sorted; of equal elements the first; NaN is the largest",
)
