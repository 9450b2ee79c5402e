"""Comparison and choice, elementwise (spec ``ops-math.md`` §4)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlValueError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOAT8, FLOATS, NUMBERS, Sample, define, sample
from popxl.ops._gradient_rules import no_gradient_of, unbroadcast
from popxl.ops._jax import at_least_float32, jnp, late
from popxl.ops._rules import compare
from popxl.ops.binary import pairs
from popxl.ops.utils import (
    broadcast_shapes,
    cast_if_needed,
    check_in_graph,
    check_tensor_ipu_and_tile_set,
    same_dtype,
)
from popxl.tensor import Tensor

Arrays = Sequence[Any]

# Samples


def _compared_pairs() -> Sequence[Sample]:
    a = np.array([[1.0, 2.0], [np.nan, -0.0]], np.float32)
    return (
        sample(a, np.array([1.0, 3.0], np.float32), tolerance=0),
        sample(a, a, tolerance=0),
        sample(np.array([0.0, np.inf], np.float32), np.array([-0.0, np.inf], np.float32), tolerance=0),
        sample(np.array([1, 2, 3], np.uint32), np.array(2, np.uint32), tolerance=0),
        *pairs(),
    )


# Comparison


def equal(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Compare elementwise, ``lhs == rhs``, with NumPy broadcasting. NaN equals nothing.

    Args:
        lhs: Any number dtype, or bool.
        rhs: Same dtype.

    Returns:
        A bool tensor of the broadcast shape.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.
    """
    return EQUAL.emit({"lhs": lhs, "rhs": rhs}, "equal_out")[0]


EQUAL = define(
    "Equal",
    equal,
    lower=late(lambda: jnp.equal),
    rule=compare,
    dtypes=(*NUMBERS, dtypes.bool),
    oracle=np.equal,
    samples=lambda: (*_compared_pairs(), sample(np.array([True, False]), np.array(False), tolerance=0)),
    gradient=no_gradient_of("Equal"),
    host=np.equal,
    elementwise=True,
)


def greater(input: Tensor, other: Tensor) -> Tensor:
    """Compare elementwise, ``input > other``, with NumPy broadcasting. Comparisons with NaN are false.

    Args:
        input: Any number dtype.
        other: Same dtype.

    Returns:
        A bool tensor of the broadcast shape.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.
    """
    return GREATER.emit({"input": input, "other": other}, "greater_out")[0]


GREATER = define(
    "Greater",
    greater,
    lower=late(lambda: jnp.greater),
    rule=compare,
    dtypes=NUMBERS,
    oracle=np.greater,
    samples=_compared_pairs,
    gradient=no_gradient_of("Greater"),
    host=np.greater,
    elementwise=True,
)


# Choice


def maximum(*ts: Tensor) -> Tensor:
    """Take the largest of the elements of one or more tensors, with NumPy broadcasting; NaN if one is.

    The gradient of an element goes in full to each tensor that has the largest one.

    Args:
        ts: Float tensors, all of one dtype. Of one tensor, the result is a copy.

    Returns:
        The largest elements, of the broadcast shape and the same dtype.

    Raises:
        PopxlValueError: (a `ValueError`) without any tensor.
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.maximum(popxl.constant([1.0, 2.0]), popxl.constant([[3.0], [0.0]]), popxl.constant(0.5)).shape
        (2, 2)
    """
    if not ts:
        raise PopxlValueError("A maximum operation needs at least one tensor.", hint="pass tensors: maximum(a, b)")
    return MAXIMUM.emit({f"ts_{i}": t for i, t in enumerate(ts)}, "maximum_out")[0]


def _maximum_rule(*ts: ShapeDtype) -> ShapeDtype:
    found = list(dict.fromkeys(t.dtype.name for t in ts))
    if len(found) > 1:
        raise CoreError(
            f"Inputs to maximum do not all the same type & shape: their dtypes are {', '.join(found)}.",
            hint="cast them to one dtype with popxl.ops.cast; shapes need only broadcast",
        )
    return ShapeDtype(broadcast_shapes(*(t.shape for t in ts)), ts[0].dtype)


def _maximum(*ts: Any) -> Any:
    return reduce(jnp.maximum, ts)


def _maximum_gradient(grads: Arrays, inputs: Arrays, outputs: Arrays) -> Arrays:
    grad = at_least_float32(grads[0])
    return [unbroadcast(jnp.where(t == outputs[0], grad, 0), t.shape) for t in inputs]


def _maximum_oracle(*ts: Any) -> Any:
    return np.max(np.stack(np.broadcast_arrays(*ts)), axis=0)


def _maximum_samples() -> Sequence[Sample]:
    a = np.array([[1.5, -2.0, 3.25], [0.5, 4.0, -1.0]], np.float32)
    b, c = np.array([2.0, -4.0, 0.75], np.float32), np.array([[0.25], [1.0]], np.float32)
    edges = np.array([[np.inf, -np.inf, np.nan, 0.0]], np.float32)
    return (
        sample(a, b, c, tolerance=0),
        sample(a, tolerance=0),
        sample(a, b, tolerance=0),
        sample(c, b, tolerance=0),
        sample(np.float32(2.0), np.float32(3.0), tolerance=0),
        sample(a.astype(np.float16), b.astype(np.float16), tolerance=0),
        sample(b.astype(np.float64), c.astype(np.float64), a.astype(np.float64), np.float64(0.3), tolerance=0),
        sample(a, a, b, tolerance=0, smooth=False),
        sample(edges, edges.T, tolerance=0),
        sample(a[:0], a[:0], tolerance=0),
    )


MAXIMUM = define(
    "Max",
    maximum,
    lower=_maximum,
    rule=_maximum_rule,
    dtypes=FLOATS,
    oracle=_maximum_oracle,
    samples=_maximum_samples,
    gradient=Gradient(_maximum_gradient),
    elementwise=True,
    differences="shapes broadcast, as documented",
)


def _chosen() -> Sequence[Sample]:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), -np.ones((2, 3), np.float32)
    mask = np.array([[True, False, True], [False, False, True]])
    codes = np.array([1, 128, 255], np.uint8)
    return (
        sample(mask, a, b, tolerance=0),
        sample(mask[:, :1], a[0], np.float32(np.nan), tolerance=0),
        sample(mask, a[0], np.float32(2.5), tolerance=0),
        sample(mask[0], a[0, 0], b[:, None], tolerance=0),
        sample(mask.astype(np.float32) * -0.5, a.astype(np.float16), b.astype(np.float16), tolerance=0),
        sample(mask.astype(np.int32) * 256, a.astype(np.int32), b.astype(np.int32), tolerance=0),
        sample(np.array(True), mask, ~mask, tolerance=0),
        sample(mask[0], codes.view(dtypes.np_dtype_float8_143), codes[::-1].copy().view(dtypes.np_dtype_float8_143)),
        sample(np.zeros((0,), bool), np.zeros((0,), np.float32), np.zeros((0,), np.float32)),
    )


def where(condition: Tensor, lhs: Tensor, rhs: Tensor) -> Tensor:
    """Choose elementwise: `lhs` where `condition` holds, else `rhs`; all three broadcast.

    Args:
        condition: Bool, or a number dtype, which is cast to bool first.
        lhs: Any dtype.
        rhs: Same dtype as `lhs`.

    Returns:
        The chosen elements, bit for bit, of the broadcast shape.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.where(popxl.constant([True, False]), popxl.constant([1, 2]), popxl.constant(0)).shape
        (2,)
    """
    tensors = {"condition": condition, "lhs": lhs, "rhs": rhs}
    check_in_graph(get_current_graph(), **tensors)
    check_tensor_ipu_and_tile_set(**tensors)
    if condition.dtype in FLOAT8:
        raise CoreError(
            f"Unsupported dtype {condition.dtype} of `condition` ({condition.id}) for Where.",
            hint="decode it with popxl.ops.pow2scale_cast_from_fp8",
        )
    _where_rule(*(ShapeDtype(t.shape, t.dtype) for t in tensors.values()))
    # All checks come before the cast, so that a call that is refused adds no op.
    tensors["condition"] = cast_if_needed(condition, dtypes.bool)
    return WHERE.emit(tensors, "where_out", same_place=False)[0]


def _where_rule(condition: ShapeDtype, lhs: ShapeDtype, rhs: ShapeDtype) -> ShapeDtype:
    return ShapeDtype(broadcast_shapes(condition.shape, lhs.shape, rhs.shape), same_dtype(lhs, rhs))


def _where_gradient(grads: Arrays, inputs: Arrays, _outputs: Arrays) -> Arrays:
    condition, lhs, rhs = inputs
    grad = at_least_float32(grads[0])
    # Chosen, not multiplied by the condition: an inf or NaN reaches one side only.
    to_lhs, to_rhs = jnp.where(condition, grad, 0), jnp.where(condition, 0, grad)
    return [None, unbroadcast(to_lhs, lhs.shape), unbroadcast(to_rhs, rhs.shape)]


WHERE = define(
    "Where",
    where,
    lower=late(lambda: jnp.where),
    rule=_where_rule,
    oracle=np.where,
    samples=_chosen,
    gradient=Gradient(_where_gradient, wrt=(1, 2)),
    host=np.where,
    elementwise=True,
)
