"""Elementwise ops of two or three tensors (spec ``ops-math.md`` §4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOAT8, NUMBERS, Sample, define, define_inplace, sample
from popxl.ops._jax import jnp, late
from popxl.ops._rules import broadcast, compare
from popxl.ops.utils import (
    broadcast_shapes,
    cast_if_needed,
    check_in_graph,
    check_tensor_ipu_and_tile_set,
    element_count,
    same_dtype,
)
from popxl.tensor import Tensor

# Samples


def _pairs() -> Sequence[Sample]:
    a = np.array([[1.5, -2.0, 3.25], [0.5, 4.0, -1.0]], np.float32)
    b = np.array([2.0, -4.0, 0.5], np.float32)
    i, j = np.array([[7, -8], [9, 3]], np.int32), np.array([[2], [3]], np.int32)
    row, column = np.array([[200, 3, 7]], np.uint8), np.array([[100], [3]], np.uint8)
    empty = np.zeros((0, 2), np.float32)
    return (
        sample(a, b, tolerance=1e-6),
        sample(a.astype(np.float16), b.astype(np.float16), tolerance=1e-3),
        sample(a.astype(np.float64), b[:1].astype(np.float64), tolerance=1e-15),
        sample(np.float32(3.0), np.float32(2.0)),
        sample(np.array([np.inf, -np.inf, np.nan, 0.0], np.float32), np.array([np.inf, 2.0, 1.0, -1.0], np.float32)),
        sample(i, j, tolerance=0),
        sample(i.astype(np.int8), j.astype(np.int8), tolerance=0),
        sample(row, column, tolerance=0),
        sample(empty, empty),
    )


def _mul_pairs() -> Sequence[Sample]:
    half = np.array([[1.5, -2.0], [0.25, 100.0]], np.float16)
    # 3.0004 is not a float16: the product must be rounded once, from float32.
    return (
        *_pairs(),
        sample(half, np.float32(3.0004), tolerance=1e-3),
        sample(np.array([[[2.5]]], np.float32), half, tolerance=1e-3),
    )


def _div_pairs() -> Sequence[Sample]:
    return (*_pairs(), sample(np.array([1.0, -1.0, 0.0], np.float32), np.float32(0.0)))


def _fmod_pairs() -> Sequence[Sample]:
    a, b = np.array([-5.5, 5.5, 1.0, 7.0, -7.0, 1e9], np.float32), np.array([2.0, -2.0, 0.0, np.inf, 7.0, 0.1])
    # Remainders are exact, whatever the quotient.
    return (
        *_pairs(),
        sample(a, b.astype(np.float32), tolerance=0),
        sample(np.array([-8, 8, -(2**31)], np.int32), np.array([5, -5, -1], np.int32), tolerance=0),
    )


def _compared_pairs() -> Sequence[Sample]:
    a = np.array([[1.0, 2.0], [np.nan, -0.0]], np.float32)
    return (
        sample(a, np.array([1.0, 3.0], np.float32), tolerance=0),
        sample(a, a, tolerance=0),
        sample(np.array([0.0, np.inf], np.float32), np.array([-0.0, np.inf], np.float32), tolerance=0),
        sample(np.array([1, 2, 3], np.uint32), np.array(2, np.uint32), tolerance=0),
        *_pairs(),
    )


def _chosen() -> Sequence[Sample]:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), -np.ones((2, 3), np.float32)
    mask = np.array([[True, False, True], [False, False, True]])
    codes = np.array([1, 128, 255], np.uint8)
    return (
        sample(mask, a, b, tolerance=0),
        sample(mask[:, :1], a[0], np.float32(np.nan), tolerance=0),
        sample(mask.astype(np.float32) * -0.5, a.astype(np.float16), b.astype(np.float16), tolerance=0),
        sample(mask.astype(np.int32) * 256, a.astype(np.int32), b.astype(np.int32), tolerance=0),
        sample(np.array(True), mask, ~mask, tolerance=0),
        sample(mask[0], codes.view(dtypes.np_dtype_float8_143), codes[::-1].copy().view(dtypes.np_dtype_float8_143)),
        sample(np.zeros((0,), bool), np.zeros((0,), np.float32), np.zeros((0,), np.float32)),
    )


# Arithmetic


def add(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Add elementwise, ``lhs + rhs``, with NumPy broadcasting.

    Args:
        lhs: Any number dtype.
        rhs: Same dtype.

    Returns:
        The sum, of the broadcast shape and the same dtype.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.add(popxl.constant([1, 2]), popxl.constant([[3], [4]])).shape
        (2, 2)
    """
    return ADD.emit({"lhs": lhs, "rhs": rhs}, "add_out")[0]


ADD = define(
    "Add",
    add,
    lower=late(lambda: jnp.add),
    rule=broadcast,
    dtypes=NUMBERS,
    oracle=np.add,
    samples=_pairs,
    host=np.add,
    elementwise=True,
)


def add_(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Add `rhs` to `lhs` in place; `rhs` must broadcast to the shape of `lhs`.

    Returns:
        An alias of `lhs`.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or the result would be larger than `lhs`.
    """
    return ADD_.emit({"lhs": lhs, "rhs": rhs}, "add_lhs_inplace_out")[0]


ADD_ = define_inplace("AddLhsInplace", add_, ADD)


def sub(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Subtract elementwise, ``lhs - rhs``, with NumPy broadcasting.

    Args:
        lhs: Any number dtype; unsigned results wrap around.
        rhs: Same dtype.

    Returns:
        The difference, of the broadcast shape and the same dtype.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.
    """
    return SUB.emit({"lhs": lhs, "rhs": rhs}, "sub_out")[0]


SUB = define(
    "Sub",
    sub,
    lower=late(lambda: jnp.subtract),
    rule=broadcast,
    dtypes=NUMBERS,
    oracle=np.subtract,
    samples=_pairs,
    host=np.subtract,
    elementwise=True,
)


def mul(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Multiply elementwise, ``lhs * rhs``, with NumPy broadcasting.

    Args:
        lhs: Any number dtype.
        rhs: Same dtype. One exception: a float16 tensor times a float32 one of a single element (either order)
            is computed in float32 and gives float16.

    Returns:
        The product, of the broadcast shape.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ otherwise or shapes do not broadcast.
    """
    return MUL.emit({"lhs": lhs, "rhs": rhs}, "mul_out")[0]


def _mul_rule(lhs: ShapeDtype, rhs: ShapeDtype) -> ShapeDtype:
    for half, scale in ((lhs, rhs), (rhs, lhs)):
        if (half.dtype, scale.dtype) == (dtypes.float16, dtypes.float32) and element_count(scale.shape) == 1:
            return ShapeDtype(broadcast_shapes(lhs.shape, rhs.shape), dtypes.float16)
    return broadcast(lhs, rhs)


def _mul(lhs: Any, rhs: Any) -> Any:
    product = jnp.multiply(lhs, rhs)
    return product if lhs.dtype == rhs.dtype else product.astype(jnp.float16)


MUL = define(
    "Mul",
    mul,
    lower=_mul,
    rule=_mul_rule,
    dtypes=NUMBERS,
    oracle=np.multiply,
    samples=_mul_pairs,
    host=np.multiply,
    elementwise=True,
)


def div(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Divide elementwise, ``lhs / rhs``, with NumPy broadcasting.

    Args:
        lhs: Any number dtype. Integers are divided with rounding down: ``-7 / 2`` is ``-4``.
        rhs: Same dtype. Division of an integer by 0 gives an unspecified number.

    Returns:
        The quotient, of the broadcast shape and the same dtype.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.
    """
    return DIV.emit({"lhs": lhs, "rhs": rhs}, "div_out")[0]


def _div(lhs: Any, rhs: Any) -> Any:
    return jnp.floor_divide(lhs, rhs) if jnp.issubdtype(lhs.dtype, jnp.integer) else jnp.divide(lhs, rhs)


def _divide_on_host(lhs: Any, rhs: Any) -> Any:
    return np.floor_divide(lhs, rhs) if np.asarray(lhs).dtype.kind in "iu" else np.divide(lhs, rhs)


DIV = define(
    "Div",
    div,
    lower=_div,
    rule=broadcast,
    dtypes=NUMBERS,
    oracle=_divide_on_host,
    samples=_div_pairs,
    host=_divide_on_host,
    elementwise=True,
)


def fmod(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Remainder of the division, elementwise, with NumPy broadcasting; it has the sign of `lhs`, as in C.

    This is what ``lhs % rhs`` gives for tensors, unlike Python's ``%``.

    Args:
        lhs: Any number dtype.
        rhs: Same dtype. The remainder of an integer by 0 is an unspecified number.

    Returns:
        The remainder, of the broadcast shape and the same dtype: -1.5 for -5.5 and 2.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.
    """
    return FMOD.emit({"lhs": lhs, "rhs": rhs}, "fmod_out")[0]


FMOD = define(
    "Fmod",
    fmod,
    lower=late(lambda: jnp.fmod),
    rule=broadcast,
    dtypes=NUMBERS,
    oracle=np.fmod,
    samples=_fmod_pairs,
    host=np.fmod,
    elementwise=True,
)

# Comparison and choice


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
    host=np.greater,
    elementwise=True,
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


WHERE = define(
    "Where",
    where,
    lower=late(lambda: jnp.where),
    rule=_where_rule,
    oracle=np.where,
    samples=_chosen,
    host=np.where,
    elementwise=True,
)
