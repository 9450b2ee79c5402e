"""The family of reductions over axes: what they have in common (spec ``ops-math.md`` §5.1)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from popxl import dtypes
from popxl.errors import CoreError, PopxlTypeError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import NATURAL, NUMBERS, Declaration, Sample, define, sample
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops.utils import element_count
from popxl.tensor import Tensor

Axes: TypeAlias = tuple[int, ...] | None

# Axes


def whole_number(argument: str, value: Any) -> int:
    """Return `value` as an int.

    Raises:
        PopxlTypeError: (a `TypeError`) if it is no integer.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise PopxlTypeError(
            f"`{argument}` is {value!r}, which is no integer.", hint="axes count from 0, or from -1 at the end"
        ) from error


def given_axes(axis: int | Iterable[int] | None) -> Axes:
    """Return the argument `axis` as an attribute.

    Raises:
        PopxlTypeError: (a `TypeError`) if one is no integer.
    """
    if axis is None:
        return None
    return tuple(whole_number("axis", a) for a in (axis if isinstance(axis, Iterable) else [axis]))


def reduced_axes(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """Return the axes, counted from the front, in order.

    Raises:
        CoreError: (a `RuntimeError`) if one is out of range or given twice.
    """
    rank = len(shape)
    if axes is None:
        return tuple(range(rank))
    if axes and not rank:
        raise CoreError(
            f"Reduce input rank must be greater than 0 to reduce over axis {axes[0]}.", hint="pass axis=None"
        )
    for a in axes:
        if not -rank <= a < rank:
            raise CoreError(f"Axis {a} is out of acceptable range [{-rank}, {rank - 1}].", hint=f"t has rank {rank}")
    reduced = sorted({a % rank for a in axes})
    if len(reduced) < len(axes):
        raise CoreError(f"Axes {axes} of a tensor of rank {rank} contain an axis twice.", hint="give each axis once")
    return tuple(reduced)


def kept_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """Return the result's shape with `keepdims`; it broadcasts to `shape`."""
    reduced = reduced_axes(shape, axes)
    return tuple(1 if i in reduced else n for i, n in enumerate(shape))


def reduced_shape(shape: tuple[int, ...], axes: Axes, keepdims: bool) -> tuple[int, ...]:
    """Return the result's shape."""
    reduced = reduced_axes(shape, axes)
    return kept_shape(shape, axes) if keepdims else tuple(n for i, n in enumerate(shape) if i not in reduced)


# Rules


def _rule(t: ShapeDtype, axes: Axes, keepdims: bool) -> ShapeDtype:
    return ShapeDtype(reduced_shape(t.shape, axes, keepdims), t.dtype)


def nonempty_rule(t: ShapeDtype, axes: Axes, keepdims: bool) -> ShapeDtype:
    """The result of choosing one of the elements, of which there must be some."""
    if not element_count(tuple(t.shape[i] for i in reduced_axes(t.shape, axes))):
        raise CoreError(
            f"Cannot reduce 0 elements of shape {list(t.shape)}: there is none to choose.",
            hint="reduce over axes that have elements",
        )
    return _rule(t, axes, keepdims)


def gradient_by(formula: Callable[[Any, Any, Any], Any]) -> Gradient:
    """Return the gradient of a reduction from that of one element.

    Args:
        formula: Takes the gradient of the result, the elements and the result, which broadcast with each other;
            float16 as float32.
    """

    def rule(
        grads: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], axes: Axes, keepdims: bool
    ) -> Sequence[Any]:
        (t,) = inputs
        g, out = (at_least_float32(v).reshape(kept_shape(t.shape, axes)) for v in (grads[0], outputs[0]))
        return [jnp.broadcast_to(formula(g, at_least_float32(t), out), t.shape)]

    return Gradient(rule)


# Declarations


def define_reduction(
    type: str,
    function: Callable[..., Tensor],
    reduce: Callable[..., Any],
    oracle: Callable[..., Any],
    samples: Callable[[], Sequence[Sample]],
    *,
    dtypes: tuple[dtypes.dtype, ...] = NUMBERS,
    of_nothing: bool = True,
    gradient: Gradient = NATURAL,
    differences: str = "",
) -> Declaration:
    """Declare a reduction.

    Args:
        type: Op type.
        function: The public function.
        reduce: Takes an array, ``axis`` and ``keepdims``. It sees float16 as float32; its result is rounded to
            the input's dtype, once.
        oracle: The same in NumPy.
        samples: As in `define`.
        dtypes: As in `define`.
        of_nothing: Whether 0 elements have a result.
        gradient: As in `define`.
        differences: As in `define`.
    """

    def lower(t: Any, axes: Axes, keepdims: bool) -> Any:
        return reduce(at_least_float32(t), axis=axes, keepdims=keepdims).astype(t.dtype)

    return define(
        type,
        function,
        lower=lower,
        rule=_rule if of_nothing else nonempty_rule,
        dtypes=dtypes,
        oracle=over_axes(oracle),
        samples=samples,
        gradient=gradient,
        differences=differences,
    )


def over_axes(oracle: Callable[..., Any]) -> Callable[..., Any]:
    """Return an oracle that takes the arguments of the public function, from one that takes NumPy's."""

    def called(t: Any, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Any:
        return oracle(t, axis=tuple(axis) if isinstance(axis, Iterable) else axis, keepdims=keepdims)

    return called


def reduction_samples(
    *,
    integers: bool = True,
    of_nothing: bool = True,
    positive: bool = False,
    smooth_ties: bool = True,
    alone: float = 0,
    double: float = 1e-15,
) -> Sequence[Sample]:
    """Samples that fit most reductions.

    Args:
        integers: Whether it takes integers.
        of_nothing: Whether 0 elements have a result.
        positive: Whether it takes positive numbers only.
        smooth_ties: Whether it can be differentiated where elements are equal.
        alone: Tolerance where no axis is reduced.
        double: Tolerance of float64.
    """
    a = np.array([[[1.5, -2.0, 0.5], [3.0, 0.25, -1.0]], [[0.75, 1.0, 2.0], [-0.5, 4.0, 1.25]]], np.float32)
    a = np.abs(a) if positive else a
    half = np.resize(np.array([1.0, 0.25, 0.5], np.float16), (3, 4096))
    i = np.array([[7, -8, 3], [9, 3, 100]], np.int32)
    empty = np.zeros((2, 0), np.float32)
    of_integers = (
        sample(i, tolerance=0),
        sample(i, 1, tolerance=0),
        sample(i.astype(np.int8), 0, tolerance=0),
        sample(np.array([200, 100], np.uint8), tolerance=0),
        sample(np.array([[1, 2], [3, 2**31]], np.uint32), -1, tolerance=0),
    )
    return (
        sample(a),
        sample(a, 1),
        sample(a, axis=[-1, 0]),
        sample(a, (0, 2), keepdims=True),
        sample(a, [], tolerance=alone),
        sample(a.astype(np.float64), -2, True, tolerance=double),
        # Sums of thousands of float16 lose everything unless they are accumulated in float32.
        sample(half, 1, tolerance=1e-3, smooth=smooth_ties),
        sample(np.float32(2.5), tolerance=alone),
        sample(np.array([[np.inf, 1.0], [np.nan, 2.0]], np.float32), 1),
        *(of_integers if integers else ()),
        *((sample(empty, 1),) if of_nothing else ()),
        sample(empty, 0),
    )
