"""Elementwise arithmetic of two tensors (spec ``ops-math.md`` §4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import NUMBERS, Sample, define, define_inplace, sample
from popxl.ops._gradient_rules import unbroadcast
from popxl.ops._jax import at_least_float32, jnp, late
from popxl.ops._rules import broadcast
from popxl.ops.utils import broadcast_shapes, element_count
from popxl.tensor import Tensor

Arrays = Sequence[Any]

# Samples


def pairs(*, smooth: bool = True) -> Sequence[Sample]:
    """Return samples of two tensors: each kind of dtype and of broadcasting.

    Args:
        smooth: Whether the op is smooth where the numbers are finite.
    """
    a = np.array([[1.5, -2.0, 3.25], [0.5, 4.0, -1.0]], np.float32)
    b = np.array([2.0, -4.0, 0.5], np.float32)
    i, j = np.array([[7, -8], [9, 3]], np.int32), np.array([[2], [3]], np.int32)
    row, column = np.array([[200, 3, 7]], np.uint8), np.array([[100], [3]], np.uint8)
    empty = np.zeros((0, 2), np.float32)
    return (
        sample(a, b, tolerance=1e-6, smooth=smooth),
        sample(a.astype(np.float16), b.astype(np.float16), tolerance=1e-3, smooth=smooth),
        sample(a.astype(np.float64), b[:1].astype(np.float64), tolerance=1e-15, smooth=smooth),
        sample(a[:, None, :1], b, smooth=smooth),
        sample(np.float32(3.0), np.float32(2.0), smooth=smooth),
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
        *pairs(),
        sample(half, np.float32(3.0004), tolerance=1e-3),
        sample(np.array([[[2.5]]], np.float32), half, tolerance=1e-3),
    )


def _div_pairs() -> Sequence[Sample]:
    return (*pairs(), sample(np.array([1.0, -1.0, 0.0], np.float32), np.float32(0.0), smooth=False))


def _fmod_pairs() -> Sequence[Sample]:
    a, b = np.array([-5.5, 5.5, 1.0, 7.0, -7.0, 1e9], np.float32), np.array([2.0, -2.0, 0.0, np.inf, 7.0, 0.1])
    between = np.array([[-5.5, 5.5], [1.25, -7.0]], np.float32)
    # Remainders are exact, whatever the quotient. They jump where it is an integer.
    return (
        *pairs(smooth=False),
        sample(a, b.astype(np.float32), tolerance=0),
        sample(between, np.array([2.0, -3.0], np.float32), tolerance=0),
        sample(between[0], between[:, :1] + 1, tolerance=0),
        sample(between.astype(np.float16), np.float16(2.25), tolerance=0),
        sample(np.array([-8, 8, -(2**31)], np.int32), np.array([5, -5, -1], np.int32), tolerance=0),
    )


# Gradients: sums over stretched axes, which float16 needs float32 for


def _to_operands(lhs: Any, rhs: Any, inputs: Arrays) -> Arrays:
    """The gradients of the operands, given those of the operands after broadcasting."""
    return [unbroadcast(lhs, inputs[0].shape), unbroadcast(rhs, inputs[1].shape)]


def _add_gradient(grads: Arrays, inputs: Arrays, _outputs: Arrays) -> Arrays:
    grad = at_least_float32(grads[0])
    return _to_operands(grad, grad, inputs)


def _sub_gradient(grads: Arrays, inputs: Arrays, _outputs: Arrays) -> Arrays:
    grad = at_least_float32(grads[0])
    return _to_operands(grad, -grad, inputs)


def _mul_gradient(grads: Arrays, inputs: Arrays, _outputs: Arrays) -> Arrays:
    grad, lhs, rhs = (at_least_float32(t) for t in (*grads, *inputs))
    return _to_operands(grad * rhs, grad * lhs, inputs)


def _div_gradient(grads: Arrays, inputs: Arrays, _outputs: Arrays) -> Arrays:
    grad, lhs, rhs = (at_least_float32(t) for t in (*grads, *inputs))
    to_lhs = grad / rhs
    # Not -grad * lhs / rhs**2: the square overflows where the quotients do not.
    return _to_operands(to_lhs, -to_lhs * (lhs / rhs), inputs)


def _fmod_gradient(grads: Arrays, inputs: Arrays, _outputs: Arrays) -> Arrays:
    return [unbroadcast(at_least_float32(grads[0]), inputs[0].shape), None]


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
    samples=pairs,
    gradient=Gradient(_add_gradient),
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
    samples=pairs,
    gradient=Gradient(_sub_gradient),
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
    gradient=Gradient(_mul_gradient),
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
    gradient=Gradient(_div_gradient),
    host=_divide_on_host,
    elementwise=True,
    differences="integers are divided with rounding down, as documented",
)


def fmod(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Remainder of the division, elementwise, with NumPy broadcasting; it has the sign of `lhs`, as in C.

    This is what ``lhs % rhs`` gives for tensors, unlike Python's ``%``.

    Args:
        lhs: Any number dtype.
        rhs: Same dtype. The remainder of an integer by 0 is an unspecified number.

    Returns:
        The remainder, of the broadcast shape and the same dtype: -1.5 for -5.5 and 2. Only `lhs` has a gradient.

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
    gradient=Gradient(_fmod_gradient, wrt=(0,)),
    host=np.fmod,
    elementwise=True,
    differences="takes all number dtypes",
)
