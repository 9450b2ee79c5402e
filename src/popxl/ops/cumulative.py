"""Running sums (spec ``ops-math.md`` §5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops._reduction import whole_number
from popxl.ops.joining import checked_axis
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


def cumsum(t: Tensor, dim: int | None = 0) -> Tensor:
    """Add up along an axis: each element of the result is the sum of those up to its place.

    Args:
        t: Float dtype; not a scalar. Float16 is accumulated in float32.
        dim: The axis, which may count from the end. It is also kept as a constant of the graph, named ``dim``.

    Returns:
        The running sums, of the same shape and dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if `dim` is no integer.
        CoreError: (a `RuntimeError`) if there is no such axis.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.cumsum(popxl.constant([[1.0, 2.0], [3.0, 4.0]]), dim=-1)
        Tensor[cumsum_out popxl.dtypes.float32 (2, 2)]
    """
    check_in_graph(get_current_graph(), t=t)
    # Before the constant is made: a call that fails must not leave one behind.
    axis = checked_axis(t.shape, whole_number("dim", dim), "CumSumOpx op, 'axis' value out of range. `dim`")
    CUM_SUM.check_dtypes({"t": t})
    axis_tensor = constant(axis, dtypes.int64, "dim")
    return CUM_SUM.emit({"t": t, "dim": axis_tensor}, "cumsum_out", same_place=False, axis=axis)[0]


def _rule(t: ShapeDtype, _dim: ShapeDtype, axis: int) -> ShapeDtype:
    return t


def _cumsum(t: Any, _dim: Any, axis: int) -> Any:
    return jnp.cumsum(at_least_float32(t), axis=axis).astype(t.dtype)


def _oracle(t: Any, dim: int = 0) -> Any:
    sums = np.zeros_like(t)
    rows, results = np.moveaxis(t, dim, 0), np.moveaxis(sums, dim, 0)
    total = np.zeros(rows.shape[1:])
    for k, row in enumerate(rows):
        total = total + row
        results[k] = total
    return sums


def _samples() -> Sequence[Sample]:
    a = np.array([[[1.5, -2.0, 0.5], [3.0, 0.25, -1.0]], [[0.75, 1.0, 2.0], [-0.5, 4.0, 1.25]]], np.float32)
    return (
        sample(a),
        sample(a, 1),
        sample(a, dim=-1),
        sample(a.astype(np.float64), -3, tolerance=1e-15),
        # Float16 would stick at 2048.
        sample(np.resize(np.array([1.0, 0.5], np.float16), (4096, 2)), tolerance=1e-3),
        sample(np.array([1.0, np.inf, 2.0, -np.inf, 3.0], np.float32)),
        sample(np.array([[1.0, np.nan], [2.0, 3.0]], np.float32), 1),
        sample(np.zeros((0, 3), np.float32)),
        sample(np.zeros((2, 0), np.float32), 0),
    )


CUM_SUM = define(
    "CumSum",
    cumsum,
    lower=_cumsum,
    rule=_rule,
    dtypes={"t": FLOATS},
    oracle=_oracle,
    samples=_samples,
    gradient=Gradient(wrt=(0,)),
    unread=(1,),
    differences="an axis out of range is an error when the op is made, not when the session is",
)
