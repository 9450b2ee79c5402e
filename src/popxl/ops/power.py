"""Raising to a power (spec ``ops-math.md`` §4)."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.op import Gradient
from popxl.ops._define import FLOATS, NUMBERS, Sample, define, sample
from popxl.ops._gradient_rules import unbroadcast
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops._rules import broadcast
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor, TensorLike

Arrays = Sequence[Any]


def pow(t: Tensor, e: TensorLike) -> Tensor:
    """Raise to a power elementwise, ``t ** e``, with NumPy broadcasting.

    A negative float to a power that is no integer is NaN, and anything to the power 0 is 1. Integers wrap around;
    their negative powers are cut off to integers, which leaves 0 but for 1 and -1 (those of 0 are unspecified).
    The gradient of `t` is 0 where the exponent is 0, and that of `e` is 0 where `t` is 0 and the exponent is not
    negative.

    Args:
        t: Any number dtype.
        e: Exponent, a tensor of the same dtype. A Python number becomes a constant of the dtype of `t` if that is
            float. Any other data become a constant of their own dtype, as in ``popxl.constant(e)``; so an int is int32.

    Returns:
        The power, of the broadcast shape and the same dtype.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.pow(popxl.constant([1.0, 2.0], popxl.float16), 2)
        Tensor[pow_out popxl.dtypes.float16 (2,)]
    """
    check_in_graph(get_current_graph(), t=t)
    return POW.emit({"t": t, "e": _exponent(t, e)}, "pow_out")[0]


def _exponent(t: Tensor, e: TensorLike) -> Tensor:
    if isinstance(e, Tensor):
        return e
    is_number = isinstance(e, int | float) and not isinstance(e, bool)
    return constant(e, t.dtype if is_number and t.dtype in FLOATS else None)


def _pow(t: Any, e: Any) -> Any:
    return _integer_pow(t, e) if jnp.issubdtype(t.dtype, jnp.integer) else jnp.power(t, e)


def _integer_pow(t: Any, e: Any) -> Any:
    # By squaring. jnp.power reads only six bits of the exponent, so that 2 ** 64 would be 1 there.
    square, e = jnp.broadcast_arrays(t, e)
    one = jnp.ones_like(square)
    power = one
    for bit in range(jnp.iinfo(t.dtype).bits):
        power = jnp.where((e >> bit) & one == one, power * square, power)
        square = square * square
    # The lowest bit of a negative exponent tells whether it is odd, so the powers of 1 and -1 are right already.
    return jnp.where((e < 0) & (t != 1) & (t != -1), jnp.zeros_like(power), power) if _is_signed(t) else power


def _is_signed(t: Any) -> bool:
    return jnp.issubdtype(t.dtype, jnp.signedinteger)


def _pow_on_host(t: Any, e: Any) -> Any:
    t, e = np.broadcast_arrays(t, e)
    if t.dtype.kind == "f":
        return np.power(t, e)
    powers = [_wrapped_pow(*pair) for pair in zip(t.ravel().tolist(), e.ravel().tolist(), strict=True)]
    return np.array(powers, np.uint64).reshape(t.shape).astype(t.dtype)


def _wrapped_pow(t: int, e: int) -> int:
    """The power in Python's integers, modulo 2**64."""
    if e < 0:
        t, e = (t, e % 2) if t in (1, -1) else (0, 1)
    return builtins.pow(t, e, 1 << 64)


def _gradient(grads: Arrays, inputs: Arrays, outputs: Arrays) -> Arrays:
    grad, t, e, out = (at_least_float32(x) for x in (grads[0], *inputs, outputs[0]))
    # Each condition is used twice: inside, so that no infinite number arises that a second derivative would meet.
    is_one, is_zero = e == 0, (t == 0) & (e >= 0)
    to_t = jnp.where(is_one, 0, grad * e * jnp.power(jnp.where(is_one, 1, t), e - 1))
    to_e = jnp.where(is_zero, 0, grad * out * jnp.log(jnp.where(is_zero, 1, t)))
    return [unbroadcast(to_t, t.shape), unbroadcast(to_e, e.shape)]


def _samples() -> Sequence[Sample]:
    t = np.array([[1.5, 2.0, 0.25], [10.0, 3.0, 1.0]], np.float32)
    e = np.array([2.0, -1.5, 0.0], np.float32)
    i = np.array([[2], [-3], [7], [0], [1], [-1]], np.int32)
    signs = np.array([-2.0, -2.0, -2.0, -0.0, 0.0, 0.0], np.float32)
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    return (
        sample(t, e, tolerance=2e-6),
        sample(t.astype(np.float16), e.astype(np.float16), tolerance=2e-3),
        sample(t.astype(np.float64), e[:2, None].astype(np.float64), tolerance=1e-14),
        sample(np.float32(2.0), np.float32(0.5)),
        sample(signs, np.array([2.0, 3.0, 0.5, -1.0, -2.0, 0.0], np.float32), smooth=False),
        sample(np.array([nan, 1.0, inf, -inf, 0.5, nan]), np.array([0.0, nan, -1.0, 3.0, inf, 1.0])),
        sample(t, 2),
        sample(t.astype(np.float16), 0.5, tolerance=1e-3),
        sample(i, np.array([0, 1, 2, 5, 31, 40, 64, 2**31 - 1], np.int32), tolerance=0),
        sample(i[np.array([0, 1, 2, 4, 5])], np.array([-1, -2, -3, -(2**31)], np.int32), tolerance=0),
        sample(i, 3, tolerance=0),
        sample(i.astype(np.int8), np.array([2, 7, 127], np.int8), tolerance=0),
        sample(np.array([[2, 3, 255]], np.uint8), np.array([[7], [8], [255]], np.uint8), tolerance=0),
        sample(i.astype(np.int64), np.array([62, 63, 2**40 + 1]), tolerance=0),
        sample(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)),
    )


POW = define(
    "Pow",
    pow,
    lower=_pow,
    rule=broadcast,
    dtypes=NUMBERS,
    oracle=_pow_on_host,
    samples=_samples,
    gradient=Gradient(_gradient),
    host=_pow_on_host,
    elementwise=True,
    differences="takes all number dtypes; a Python number as exponent takes the dtype of a float `t`; integers to a "
    "negative power are cut off to integers",
)
