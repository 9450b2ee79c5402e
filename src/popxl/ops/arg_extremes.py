"""Places of the largest and smallest elements (spec ``ops-math.md`` §5.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.errors import CoreError
from popxl.op import ShapeDtype
from popxl.ops._define import NUMBERS, Declaration, Sample, define, sample
from popxl.ops._jax import late, lax
from popxl.ops._reduction import reduced_shape, whole_number
from popxl.tensor import Tensor

# The family


def _rule(t: ShapeDtype, dim: int, keepdim: bool) -> ShapeDtype:
    rank = len(t.shape)
    if not rank:
        raise CoreError("ArgExtremaOp input rank must be greater than 0: `t` is a scalar.", hint="reshape it to (1,)")
    if not -rank <= dim < rank:
        raise CoreError(
            f"Cannot compute ArgExtremaOp on axis {dim}: `t` has shape {list(t.shape)}.",
            hint=f"dim must be in [{-rank}, {rank - 1}]",
        )
    if not t.shape[dim]:
        raise CoreError(
            f"Cannot compute ArgExtremaOp on axis {dim} of shape {list(t.shape)}, which has 0 elements.",
            hint="choose from an axis that has elements",
        )
    return ShapeDtype(reduced_shape(t.shape, (dim,), keepdim), dtypes.int32)


def _define_arg_extreme(
    type: str, function: Callable[..., Tensor], find: Callable[..., Any], oracle: Callable[..., Any]
) -> Declaration:
    """Declare an op. `find` takes an array, an axis counted from the front, and the dtype of the result."""

    def lower(t: Any, dim: int, keepdim: bool) -> Any:
        return find(t, dim % t.ndim, np.dtype(np.int32)).reshape(reduced_shape(t.shape, (dim,), keepdim))

    def numpy_oracle(t: Any, dim: int = 0, keepdim: bool = False) -> Any:
        return oracle(t, axis=dim, keepdims=keepdim)

    return define(
        type,
        function,
        lower=lower,
        rule=_rule,
        dtypes=NUMBERS,
        oracle=numpy_oracle,
        samples=_samples,
        gradient=None,
        differences="of equal elements always the first; a NaN wins",
    )


def _samples() -> Sequence[Sample]:
    a = np.array([[[1.5, -2.0, 0.5], [3.0, 0.25, -1.0]], [[0.75, 1.0, 2.0], [-0.5, 4.0, 1.25]]], np.float32)
    i = np.array([[7, -8, 3], [9, 3, 100]], np.int32)
    nan, inf = np.nan, np.inf
    return (
        sample(a),
        sample(a, 1),
        sample(a.astype(np.float16), -1, keepdim=True),
        sample(a.astype(np.float64), dim=-3, keepdim=False),
        sample(i, 1),
        sample(i.astype(np.int8), 0, True),
        sample(np.array([3, 200, 100], np.uint8)),
        sample(np.array([[1, 2], [3, 2**31]], np.uint32), -1),
        # Of equal ones, the first.
        sample(np.array([2.0, 1.0, 2.0, 1.0, 2.0], np.float32)),
        sample(np.array([[0.0, -0.0, 0.0]], np.float32), 1),
        sample(np.array([[inf, 1.0, inf, -inf, -inf], [1.0, nan, inf, nan, -inf]], np.float32), 1),
        sample(np.zeros((0, 3), np.float32), 1),
    )


# The ops


def argmax(t: Tensor, dim: int | None = 0, keepdim: bool | None = False) -> Tensor:
    """Find the place of the largest element along an axis; the first of equal ones, or of NaN.

    Args:
        t: Any number dtype; not a scalar.
        dim: The axis, which may count from the end. None is not supported.
        keepdim: Whether the axis stays, with length 1.

    Returns:
        The places, int32. They have no gradient.

    Raises:
        PopxlTypeError: (a `TypeError`) if `dim` is no integer.
        CoreError: (a `RuntimeError`) if there is no such axis, or it has 0 elements.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.argmax(popxl.constant([[1.0, 5.0], [3.0, 4.0]]), dim=-1)
        Tensor[argmax_out popxl.dtypes.int32 (2,)]
    """
    return ARG_MAX.emit({"t": t}, "argmax_out", dim=whole_number("dim", dim), keepdim=bool(keepdim))[0]


ARG_MAX = _define_arg_extreme("ArgMax", argmax, late(lambda: lax.argmax), np.argmax)


def argmin(t: Tensor, dim: int | None = 0, keepdim: bool | None = False) -> Tensor:
    """Find the place of the smallest element along an axis; the first of equal ones, or of NaN.

    Args:
        t: Any number dtype; not a scalar.
        dim: The axis, which may count from the end. None is not supported.
        keepdim: Whether the axis stays, with length 1.

    Returns:
        The places, int32. They have no gradient.

    Raises:
        PopxlTypeError: (a `TypeError`) if `dim` is no integer.
        CoreError: (a `RuntimeError`) if there is no such axis, or it has 0 elements.
    """
    return ARG_MIN.emit({"t": t}, "argmin_out", dim=whole_number("dim", dim), keepdim=bool(keepdim))[0]


ARG_MIN = _define_arg_extreme("ArgMin", argmin, late(lambda: lax.argmin), np.argmin)
