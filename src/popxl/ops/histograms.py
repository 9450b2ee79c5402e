"""Counting elements between levels (spec ``ops-math.md`` §5.2)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, cast

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import jnp
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


def histogram(t: Tensor, levels: Sequence[float], absolute_of_input: bool) -> Tensor:
    """Count the elements below, between and from the levels on.

    The counts are those of ``t < levels[0]``, then of ``levels[i - 1] <= t < levels[i]``, last of
    ``t >= levels[-1]``. NaN is not counted.

    Args:
        t: Float dtype, any shape.
        levels: Strictly increasing numbers; they are rounded to the dtype of `t`.
        absolute_of_input: Whether to compare the magnitudes of `t`.

    Returns:
        The counts: uint32, shape ``(len(levels) + 1,)``. They have no gradient.

    Raises:
        PopxlTypeError: (a `TypeError`) if a level is no number.
        PopxlValueError: (a `ValueError`) if the levels do not increase.
        CoreError: (a `RuntimeError`) if `t` is not of a float dtype.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.histogram(popxl.constant([-1.0, 0.5, 5.0]), levels=[0, 1, 2], absolute_of_input=False)
        Tensor[histogram_out popxl.dtypes.uint32 (4,)]
    """
    check_in_graph(get_current_graph(), t=t)
    checked = _checked_levels(levels)
    if t.dtype not in FLOATS:
        raise CoreError(
            f"HistogramOp does not support the input type {t.dtype.name} of `t` ({t.id}).",
            hint=f"cast it first; supported: {', '.join(d.name for d in FLOATS)}",
        )
    return HISTOGRAM.emit({"t": t}, "histogram_out", levels=checked, absolute_of_input=bool(absolute_of_input))[0]


def _checked_levels(levels: Iterable[object]) -> tuple[float, ...]:
    given = tuple(levels)
    for i, level in enumerate(given):
        if not isinstance(level, Real):
            raise PopxlTypeError(f"levels[{i}] is {level!r}, which is no number.", hint="pass a list of floats")
    found = tuple(float(level) for level in cast("tuple[Real, ...]", given))
    if not all(low < high for low, high in itertools.pairwise(found)) or any(level != level for level in found):
        raise PopxlValueError(
            f"The input levels `{list(found)}` is not a monotonically increasing list.",
            hint="each level must be greater than the one before it",
        )
    return found


def _rule(t: ShapeDtype, levels: tuple[float, ...], absolute_of_input: bool) -> ShapeDtype:
    return ShapeDtype((len(levels) + 1,), dtypes.uint32)


def _histogram(t: Any, levels: tuple[float, ...], absolute_of_input: bool) -> Any:
    values = (jnp.abs(t) if absolute_of_input else t).ravel()
    with np.errstate(over="ignore"):
        edges = np.array(levels, t.dtype)[:, None]
    # How many are from each level on; a NaN is from none on, nor is it below one.
    from_on = jnp.sum(values >= edges, axis=1, dtype=np.uint32)
    counted = jnp.sum(~jnp.isnan(values), dtype=np.uint32)[None]
    return jnp.concatenate([counted, from_on]) - jnp.concatenate([from_on, jnp.zeros(1, np.uint32)])


def _oracle(t: Any, levels: Sequence[float], absolute_of_input: bool) -> Any:
    edges = [-np.inf, *levels, np.inf]
    counts = np.zeros(len(levels) + 1, np.uint32)
    for value in np.abs(t).ravel() if absolute_of_input else t.ravel():
        for i, (low, high) in enumerate(itertools.pairwise(edges)):
            counts[i] += low <= value < high or (value == high == np.inf and i == len(levels))
    return counts


def _samples() -> Sequence[Sample]:
    a = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 5.0], np.float32)
    many = ((np.arange(3000) * 7919) % 4001 / 1000 - 2).astype(np.float32).reshape(30, 100)
    return (
        sample(a, [0, 1, 2], False),
        sample(a, [0, 1, 2], True),
        sample(many, [-1.5, -0.25, 0.0, 0.75], absolute_of_input=False),
        sample(many.astype(np.float16), (-1.5, -0.25, 0.0, 0.75), absolute_of_input=True),
        sample(a.astype(np.float64), [-0.5], False),
        sample(np.float32(0.5), [0.5, 0.75], False),
        sample(np.array([np.nan, np.inf, -np.inf, -0.0], np.float32), [0.0, 3.0], False),
        sample(a, [], False),
        sample(np.zeros((2, 0), np.float32), [1.0], False),
    )


HISTOGRAM = define(
    "Histogram",
    histogram,
    lower=_histogram,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_oracle,
    samples=_samples,
    gradient=None,
)
