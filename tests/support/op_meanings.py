"""What elementwise ops give, on `Approx` arrays: the value in NumPy, and how errors go through it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from op_interpreter import DOUBLE, SINGLE, UNIT, Approx, Array, rounded, settle

Meaning = Callable[..., Any]


def moved(move: Callable[..., Any]) -> Meaning:
    """A copy of elements: `move` takes arrays and picks from them."""

    def meaning(*ts: Approx, **attributes: Any) -> Approx:
        value = np.asarray(move(*(t.value for t in ts), **attributes))
        return Approx(ts[0].dtype, value, np.asarray(move(*(t.error for t in ts), **attributes)))

    return meaning


# Elementwise, one tensor


def unary(
    function: Callable[[Array], Any],
    *,
    steep: float | None = None,
    low: float = -math.inf,
    high: float = math.inf,
    ulps: float = 8,
    scale: float = 0,
    extra: float = 0,
) -> Meaning:
    """A continuous function.

    Args:
        function: In NumPy.
        steep: Its largest slope; None for monotone functions, whose error is seen at the ends of the interval.
        low: Smallest number to apply it to.
        high: Largest number to apply it to.
        ulps: Error of an implementation, relative to the result, and to `scale`.
        scale: See `ulps`.
        extra: Error of the definition, absolute.
    """

    def meaning(t: Approx) -> Approx:
        settle((t.low >= low) & (t.high <= high))
        value = function(t.value)
        ends = abs(np.stack([function(t.low) - value, function(t.high) - value])).max(0)
        spread = ends if steep is None else steep * t.error
        return rounded(t.dtype, value, spread + extra, ulps=ulps, scale=scale)

    return meaning


def classify(function: Callable[[Array], Any]) -> Meaning:
    """Whether a number is finite and the like; it is, whatever its error."""
    return lambda t: Approx.exact(function(t.value))


def simple(function: Callable[..., Any]) -> Meaning:
    """An exact function of one or more arrays of one dtype, of slope 1 at most: errors stay the same."""

    def meaning(*ts: Approx, **attributes: Any) -> Approx:
        value = np.asarray(function(*(t.value for t in ts), **attributes))
        error = np.maximum.reduce(np.broadcast_arrays(*(t.error for t in ts)))
        return Approx(ts[0].dtype, value.astype(ts[0].value.dtype), error)

    return meaning


def stepwise(function: Callable[[Array], Any]) -> Meaning:
    """A function with steps: both ends of the interval must be on the same one."""

    def meaning(t: Approx) -> Approx:
        if t.is_float:
            settle(function(t.low) == function(t.high))
        return Approx(t.dtype, np.asarray(function(t.value), t.value.dtype), np.zeros(t.shape))

    return meaning


def gelu(t: Array) -> Array:
    return 0.5 * t * (1 + np.tanh(0.7978845608 * t + 0.0356774081 * t**3))


def swish(t: Array) -> Array:
    return t / (1 + np.exp(-t))


def geluerf(t: Array) -> Array:
    return 0.5 * t * (1 + np.reshape([math.erf(x / math.sqrt(2)) for x in t.flat], t.shape))


def increment_mod(t: Approx, increment: float, modulus: float) -> Approx:
    if t.is_float:
        total = t.value + increment
        settle(t.is_small & (total.astype(t.dtype) == total))
        return Approx.exact(np.fmod(total, modulus), t.dtype)
    step, divisor = (np.array(int(n), t.dtype) for n in (increment, modulus))
    return Approx.exact(np.fmod(t.value + step, divisor))


def cast(t: Approx, to: np.dtype[Any]) -> Approx:
    if to.kind == "b":
        return truth(t)
    if to.kind == "f":
        # A float64 keeps every integer that is not Unsettled here.
        settle(abs(t.value.astype(DOUBLE)) < 2.0**50)
        return rounded(to, t.value, t.error, ulps=2, exact=t.error == 0)
    if t.is_float:
        limits = np.iinfo(to)
        settle((np.trunc(t.low) == np.trunc(t.high)) & (t.low > limits.min - 1.0) & (t.high < limits.max))
    return Approx.exact(t.value.astype(to))


def truth(t: Approx) -> Approx:
    settle((t.error == 0) | (abs(t.value) > t.error))
    return Approx.exact(t.value != 0)


# Elementwise, several tensors


def _arithmetic(function: Callable[..., Any], spread: Callable[[Approx, Approx], Any]) -> Meaning:
    def meaning(a: Approx, b: Approx) -> Approx:
        if not a.is_float:
            return Approx.exact(function(a.value, b.value), a.dtype)
        exact = a.is_small & b.is_small
        return rounded(a.dtype, function(a.value, b.value), spread(a, b), exact=exact)

    return meaning


def spread_of_product(a: Approx, b: Approx) -> Any:
    return abs(a.value) * b.error + abs(b.value) * a.error + a.error * b.error


add = _arithmetic(np.add, lambda a, b: a.error + b.error)
sub = _arithmetic(np.subtract, lambda a, b: a.error + b.error)
mul = _arithmetic(np.multiply, spread_of_product)


def mul_mixed(a: Approx, b: Approx) -> Approx:
    """One of both is float32 with one element, the other float16, and so is the result."""
    return mul(*(Approx(np.dtype(np.float16), t.value, t.error) for t in (a, b)))


def _is_power_of_two(a: Array) -> Any:
    return np.frexp(abs(a))[0] == 0.5


def div(a: Approx, b: Approx) -> Approx:
    if not a.is_float:
        settle((b.value != 0) & ((b.value != -1) | (a.dtype.kind != "i")))
        return Approx.exact(np.floor_divide(a.value, b.value))
    nearest = abs(b.value) - b.error
    settle(nearest >= 2.0**-6)
    value = a.value / b.value
    exact = a.is_small & b.is_small & _is_power_of_two(b.value)
    return rounded(a.dtype, value, (a.error + abs(value) * b.error) / nearest, ulps=3, exact=exact)


def fmod(a: Approx, b: Approx) -> Approx:
    settle(b.value != 0)
    if a.is_float:
        settle(a.is_small & b.is_small)
    return Approx.exact(np.fmod(a.value, b.value), a.dtype)


def compare(function: Callable[[Array, Array], Any]) -> Meaning:
    def meaning(a: Approx, b: Approx) -> Approx:
        margin = a.error + b.error
        settle((margin == 0) | (abs(a.value - b.value) > margin) if a.is_float else True)
        return Approx.exact(function(a.value, b.value))

    return meaning


def logical(function: Callable[..., Any]) -> Meaning:
    def meaning(*ts: Approx) -> Approx:
        return Approx.exact(function(*(truth(t).value for t in ts)))

    return meaning


def where(condition: Approx, a: Approx, b: Approx) -> Approx:
    holds = truth(condition).value
    return moved(lambda x, y: np.where(holds, x, y))(a, b)


def zero_of(t: Approx) -> Approx:
    return Approx.exact(np.zeros((), t.value.dtype), t.dtype)


def power(t: Approx, e: float) -> Approx:
    """Floats to a number."""
    if e != int(e) or e < 0:
        settle(t.low >= 2.0**-4)
    steepest = t.low if e < 1 else abs(t.value) + t.error
    slope = abs(e) * steepest ** (e - 1) if e else 0.0
    exact = t.is_small & (e in (0, 1, 2))
    return rounded(t.dtype, t.value**e, slope * t.error, ulps=8, exact=exact)


def integer_power(t: Approx, e: Approx) -> Approx:
    """Powers that wrap around; negative ones are cut off to integers."""
    bases, exponents = np.broadcast_arrays(t.value, e.value)
    settle((bases != 0) | (exponents >= 0))
    powers = [_wrapped(int(b), int(n)) for b, n in zip(bases.flat, exponents.flat, strict=True)]
    return Approx.exact(np.array(powers, np.uint64).reshape(bases.shape).astype(t.dtype))


def _wrapped(base: int, exponent: int) -> int:
    if exponent < 0:
        return base ** (exponent % 2) % 2**64 if base in (1, -1) else 0
    return pow(base, exponent, 2**64)


def weighted(dtype: np.dtype[Any], *terms: tuple[float, Approx]) -> Approx:
    """A sum of terms times numbers, in float32 at least, rounded once to `dtype`."""
    wide = widest(*(t.dtype for _, t in terms))
    size = sum(abs(factor * t.value) for factor, t in terms)
    exact = np.logical_and.reduce([t.is_small & (factor * 16 % 1 == 0) for factor, t in terms]) & (size < 2**9)
    return rounded(
        dtype,
        sum(factor * t.value for factor, t in terms),
        sum(abs(factor) * t.error for factor, t in terms),
        scale=6 * size * UNIT[wide] / UNIT[dtype],
        exact=exact,
    )


def widest(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """What sums of these are computed in."""
    return DOUBLE if DOUBLE in dtypes else SINGLE


def square(t: Approx) -> Approx:
    return Approx(t.dtype, t.value**2, 2 * abs(t.value) * t.error + t.error**2)


def scaled_add(x: Approx, y: Approx, a: float, b: float) -> Approx:
    return weighted(x.dtype, (a, x), (b, y))


def accumulate(t: Approx, x: Approx, f: float | None = None) -> Approx:
    return t if f == 0 else weighted(t.dtype, (1, t), (1 if f is None else f, x))


def accumulate_mean(t: Approx, x: Approx, step: float) -> Approx:
    return weighted(t.dtype, (step / (step + 1), t), (1 / (step + 1), x))


def moving_average(t: Approx, x: Approx, f: float) -> Approx:
    return weighted(t.dtype, (f, t), (1 - f, x))


def scale(t: Approx, f: float) -> Approx:
    return weighted(t.dtype, (f, t))
