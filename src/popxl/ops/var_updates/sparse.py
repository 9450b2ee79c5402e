"""`sparse_accumulate_` (spec ``ops-updates.md`` §2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.errors import CoreError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, INTS, Sample, define, sample
from popxl.ops._jax import jnp
from popxl.ops.joining import checked_axis
from popxl.ops.utils import check_in_graph
from popxl.ops.var_updates.utils import arithmetic_dtype, check_scalar, tensors_and_numbers, update
from popxl.tensor import Tensor


def sparse_accumulate_(
    t: Tensor,
    X: Tensor,  # noqa: N803 - PopXL's names
    indices: Tensor,
    axis: int = 0,
    f: float | Tensor | None = None,
    W: Tensor | None = None,  # noqa: N803
) -> Tensor:
    """Add slices to those of `t` at `indices`, in place: ``t[..., indices[p], ...] += f * X[..., p, ...]``.

    That is the adjoint of ``gather(t, indices, axis)``. What goes to one place more than once adds up. Computes in
    float32 at least and rounds once, to the dtype of `t`.

    Args:
        t: The sum: any shape but a scalar, any float dtype.
        X: Shape ``t.shape[:axis] + indices.shape + t.shape[axis + 1:]``, any float dtype.
        indices: Any shape, integers. Slices for indices outside ``0 <= index < t.shape[axis]`` are left out.
        axis: The axis, which may count from the end.
        f: Factor: None for 1, a number, or a float tensor with shape ``()``. A number of exactly 0 leaves `t` as
            it is.
        W: A tensor of the graph; a hint on layout without effect.

    Returns:
        An alias of `t`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `f` is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if there is no such axis, `X` has another shape, `f` is no scalar, or a dtype
            is not supported.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     table = popxl.variable([[0.0, 0.0], [0.0, 0.0]], name="table")
        ...     rows, places = popxl.constant([[1.0, 1.0], [2.0, 2.0]]), popxl.constant([1, 1])
        ...     ops.var_updates.sparse_accumulate_(table, rows, places)
        Tensor[sparse_accumulate__table popxl.dtypes.float32 (2, 2)]
    """
    if W is not None:
        check_in_graph(get_current_graph(), t=t, W=W)
    tensors, numbers = tensors_and_numbers(f=f)
    tensors = {"t": t, "X": X, "indices": indices, **tensors}
    return update(SPARSE_ACCUMULATE, "sparse_accumulate", tensors, axis=axis, factor=numbers["f"])


def _sparse_rule(
    t: ShapeDtype, x: ShapeDtype, indices: ShapeDtype, f: ShapeDtype | None = None, *, axis: int, **_attributes: Any
) -> ShapeDtype:
    where = checked_axis(t.shape, axis, "sparse_accumulate_ axis")
    wanted = (*t.shape[:where], *indices.shape, *t.shape[where + 1 :])
    if x.shape != wanted:
        raise CoreError(
            f"sparse_accumulate_ needs `X` of shape {list(wanted)} for `t` of shape {list(t.shape)} and `indices` of "
            f"shape {list(indices.shape)} on axis {axis}, not {list(x.shape)}.",
            hint="X has the shape of gather(t, indices, axis)",
        )
    check_scalar("sparse_accumulate_", "factor", f)
    return t


def _lower_sparse(t: Any, x: Any, indices: Any, f: Any = None, *, axis: int, factor: float | None) -> Any:
    if factor == 0.0:
        return t
    axis %= t.ndim
    wide = arithmetic_dtype(t, x)
    weight = wide(1 if factor is None else factor) if f is None else f.astype(wide)
    length = t.shape[axis]
    places = indices.astype(np.int64).reshape(-1)
    # Negative indices would count from the end.
    places = jnp.where(places < 0, length, places)
    slices = weight * x.astype(wide).reshape((*t.shape[:axis], math.prod(indices.shape), *t.shape[axis + 1 :]))
    return t.astype(wide).at[(slice(None),) * axis + (places,)].add(slices, mode="drop").astype(t.dtype)


def _sparse_samples() -> Sequence[Sample]:
    t, rows = np.arange(8, dtype=np.float32).reshape(4, 2), np.array([[1, 1], [2, 2], [3, 3]], np.float32)
    places = np.array([1, 3, 1], np.int32)
    cube = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    return (
        sample(t, rows, places),
        sample(t, rows, places, f=2),
        sample(t, rows, places, 0, np.array(-0.5, np.float32)),
        sample(t, rows, places.astype(np.uint64), f=None),
        sample(t, rows[:2], np.array([0, 1], np.int8), f=np.float32(0.5)),
        sample(t.astype(np.float16), rows, places, f=0.1, tolerance=1e-3),
        sample(t, rows.astype(np.float16), places, 0, np.array(0.1, np.float16)),
        sample(t.astype(np.float64), rows, places, f=0.1, tolerance=1e-15),
        sample(t, rows * np.float32(np.nan), places, f=0.0, tolerance=0),
        sample(t, rows, np.array([-1, 4, 2], np.int32)),
        # More rows than the dtype of the indices counts.
        sample(np.zeros((300,), np.float32), np.array([1.0, 2.0], np.float32), np.array([-1, 127], np.int8)),
        sample(cube, cube[:, [1, 0]] + 0.5, np.array([3, 3], np.int32), 1),
        sample(cube, cube[..., [[1, 0], [2, 2]]] + 0.5, np.array([[2, 0], [2, 1]], np.uint32), -1, 0.25),
        sample(t, rows[0], np.array(2, np.int32)),
        sample(t, np.zeros((0, 2), np.float32), np.zeros((0,), np.int32)),
        sample(np.zeros((0, 2), np.float32), rows, places),
    )


def _sparse_oracle(t: Any, X: Any, indices: Any, axis: int = 0, f: Any = None, W: Any = None) -> Any:  # noqa: N803
    result = t.copy()
    slices = np.moveaxis(X.reshape((*t.shape[: axis % t.ndim], indices.size, *t.shape[axis % t.ndim + 1 :])), axis, 0)
    if isinstance(f, float | int) and f == 0:
        return result
    for place, added in zip(indices.flat, slices, strict=True):
        if 0 <= place < t.shape[axis]:
            np.moveaxis(result, axis, 0)[int(place)] += added * (1 if f is None else f)
    return result


SPARSE_ACCUMULATE = define(
    "PopartSparseAccumulate",
    sparse_accumulate_,
    lower=_lower_sparse,
    rule=_sparse_rule,
    dtypes={"t": FLOATS, "X": FLOATS, "f": FLOATS, "indices": INTS},
    oracle=_sparse_oracle,
    samples=_sparse_samples,
    mutates=(0,),
    optimizer=True,
    differences="indices out of range add nothing; a constant factor of 0 changes nothing; `W` is checked, but the op "
    "does not take it as an input",
)
