"""What programs of ops mean, in NumPy: memory cells, and a bound on the error of each float.

A tensor is an array of *cell numbers*: a view is an index into these, an in-place op writes the cells, a copy gets
new ones. Floats are computed in float64. Beside each stands a bound on how far a correct implementation may be off:
0 where every step is exact in the tensor's dtype (small dyadic numbers added, multiplied, compared, moved), and
otherwise what the roundings of each step, carried through all later ones, can add up to. An implementation may
skip roundings (compute in a wider dtype), never add any beyond these.

An op whose result no such bound describes (a comparison of numbers that may be equal, a division by 0, a number too
large) raises `Unsettled`, before it changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

HALF, SINGLE, DOUBLE = (np.dtype(d) for d in (np.float16, np.float32, np.float64))
# Unit roundoff. Float16 may be rounded to float32 on the way; float64 is computed with as many bits here.
UNIT = {HALF: 2.0**-11 * 1.001, SINGLE: 2.0**-24 * 1.001, DOUBLE: 2.0**-52}
# Devices may flush numbers below the smallest normal one to zero.
TINY = {d: float(np.finfo(d).tiny) for d in UNIT}
LARGEST = {HALF: 2.0**10, SINGLE: 2.0**16, DOUBLE: 2.0**16}
LARGEST_ERROR = 2.0**-4
MOST_ELEMENTS = 64


class Unsettled(Exception):
    """The result is unspecified, or too inexact to compare."""


def settle(condition: Any) -> None:
    """Raise `Unsettled` unless the condition holds everywhere."""
    if not np.all(condition):
        raise Unsettled


@dataclass(frozen=True)
class Approx:
    """An array. Floats are held as float64, with a bound on the error of each; other numbers as they are."""

    dtype: np.dtype[Any]
    value: Array
    error: Array

    @classmethod
    def exact(cls, value: Any, dtype: Any = None) -> Approx:
        value = np.asarray(value)
        dtype = np.dtype(value.dtype if dtype is None else dtype)
        return cls(dtype, value.astype(DOUBLE if dtype.kind == "f" else dtype), np.zeros(value.shape))

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def low(self) -> Array:
        return self.value - self.error

    @property
    def high(self) -> Array:
        return self.value + self.error

    @property
    def is_small(self) -> Array:
        """Where this is exact and a multiple of 2**-10 below 2**16: sums and products of such are exact in float64."""
        return (self.error == 0) & (np.rint(self.value * 2**10) == self.value * 2**10) & (abs(self.value) < 2**16)

    def moved(self, move: Callable[[Array], Any]) -> Approx:
        """The elements that `move` picks."""
        return Approx(self.dtype, np.asarray(move(self.value)), np.asarray(move(self.error)))

    def checked(self) -> Approx:
        """This, unless it is too large or too inexact to go on with."""
        settle(self.value.size <= MOST_ELEMENTS)
        if self.is_float:
            settle(abs(self.value) + self.error <= LARGEST[self.dtype])
            settle(self.error <= LARGEST_ERROR * np.maximum(abs(self.value), 1))
        return self

    def differs(self, found: Array) -> Array:
        """Where `found` is not this, even with its error."""
        if not self.is_float:
            return found != self.value
        wide = found.astype(DOUBLE)
        return ~(abs(wide - self.value) <= self.error * (1 + 1e-6))


def rounded(
    dtype: np.dtype[Any], value: Any, error: Any, *, ulps: float = 1, scale: Any = 0.0, exact: Any = False
) -> Approx:
    """A float result, with the error of rounding it, unless it is exact and fits the dtype.

    Args:
        dtype: A float dtype.
        value: What it is but for errors.
        error: The error that the operands' errors make.
        ulps: Error of the op itself, in units of the last place of the result.
        scale: A magnitude to which that error is relative too, for results that come out of a cancellation.
        exact: Where `value` is free of errors before it is rounded.
    """
    value = np.asarray(value, DOUBLE)
    own = ulps * UNIT[dtype] * (abs(value) + error + scale) + TINY[dtype]
    with np.errstate(over="ignore"):
        fits = np.asarray(exact) & (value.astype(dtype).astype(DOUBLE) == value)
    return Approx(dtype, value, np.where(fits, 0.0, error + own))


# Memory


@dataclass(frozen=True)
class Cells:
    """A tensor: where its elements are. Each dtype has a memory of its own.

    What is made of a constant, even in part, is `fixed`: never written.
    """

    dtype: np.dtype[Any]
    places: Array
    fixed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.places.shape


class Memory:
    """The cells of one dtype."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.value = np.zeros(0, DOUBLE if dtype.kind == "f" else dtype)
        self.error = np.zeros(0)


class Machine:
    """All memories."""

    def __init__(self) -> None:
        self.memories: dict[np.dtype[Any], Memory] = {}

    def memory(self, dtype: np.dtype[Any]) -> Memory:
        return self.memories.setdefault(dtype, Memory(dtype))

    def new(self, a: Approx, *, fixed: bool = False) -> Cells:
        """Fill new cells."""
        memory = self.memory(a.dtype)
        first = memory.value.size
        memory.value = np.concatenate([memory.value, a.value.ravel()])
        memory.error = np.concatenate([memory.error, a.error.ravel()])
        return Cells(a.dtype, np.arange(first, first + a.value.size).reshape(a.shape), fixed)

    def read(self, t: Cells) -> Approx:
        memory = self.memory(t.dtype)
        return Approx(t.dtype, np.asarray(memory.value[t.places]), np.asarray(memory.error[t.places]))

    def is_writable(self, t: Cells) -> bool:
        """Whether a write to `t` changes each cell at most once, and no constant."""
        return np.unique(t.places).size == t.places.size and not t.fixed

    def overwrite(self, t: Cells, a: Approx) -> Cells:
        """Write into the cells of `t` if that can be done, else into new ones; return what holds the result."""
        settle(t.shape == a.shape and t.dtype == a.dtype)
        if not self.is_writable(t):
            return self.new(a)
        memory = self.memory(t.dtype)
        memory.value[t.places], memory.error[t.places] = a.value, a.error
        return t

    def compute(self, meaning: Callable[..., Any], args: Sequence[Cells], **attributes: Any) -> list[Cells]:
        """Results in new cells."""
        return [self.new(a) for a in self._results(meaning, args, attributes)]

    def update(self, meaning: Callable[..., Any], args: Sequence[Cells], **attributes: Any) -> list[Cells]:
        """The result in the first argument's cells."""
        (result,) = self._results(meaning, args, attributes)
        return [self.overwrite(args[0], result)]

    def view(self, meaning: Callable[..., Any], args: Sequence[Cells], **attributes: Any) -> list[Cells]:
        """The same cells in another order."""
        places = np.asarray(meaning(*(t.places for t in args), **attributes))
        settle(places.size <= MOST_ELEMENTS)
        return [Cells(args[0].dtype, places, any(t.fixed for t in args))]

    def _results(self, meaning: Callable[..., Any], args: Sequence[Cells], attributes: Any) -> list[Approx]:
        with np.errstate(all="ignore"):
            results = meaning(*(self.read(t) for t in args), **attributes)
            return [a.checked() for a in (results if isinstance(results, tuple) else (results,))]
