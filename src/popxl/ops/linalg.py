"""Matrix multiplication (spec ``ops-math.md`` §9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._float8 import check_no_float8_operands
from popxl.ops._jax import jnp, lax
from popxl.ops.utils import broadcast_shapes, check_in_graph, checked_memory_hint, same_dtype
from popxl.tensor import Tensor


def matmul(
    lhs: Tensor,
    rhs: Tensor,
    available_memory_proportion: float | None = None,
    output_type: dtypes.dtype | None = None,
    partials_type: dtypes.dtype | None = None,
) -> Tensor:
    """Multiply matrices, by the rules of `numpy.matmul`.

    Products of float16 are accumulated in float32 and rounded once. Products of float32 are computed in full
    float32 on every device.

    Args:
        lhs: Shape ``(..., n, k)`` or ``(k,)``; a float dtype.
        rhs: Shape ``(..., k, m)`` or ``(k,)``; the same dtype. Leading dimensions broadcast.
        available_memory_proportion: An IPU hint, without effect here.
        output_type: Float dtype of the result; that of `lhs` if not given.
        partials_type: ``float16`` or ``float32``, an IPU hint: partial sums are never narrower than float32 here.

    Returns:
        The products, of shape ``(..., n, m)``; without n or m where an operand is a vector.

    Raises:
        PopxlTypeError: (a `TypeError`) if `available_memory_proportion` is no number.
        PopxlValueError: (a `ValueError`) for another `partials_type`.
        CoreError: (a `RuntimeError`) if shapes or dtypes do not fit, or are not supported.

    Example:
        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     a, b = popxl.constant(np.ones((4, 2, 3))), popxl.constant(np.ones((3, 5)))
        ...     ops.matmul(a, b).shape
        (4, 2, 5)
    """
    check_in_graph(get_current_graph(), lhs=lhs, rhs=rhs)
    hint = checked_memory_hint(available_memory_proportion)
    _check_types(output_type, partials_type)
    check_no_float8_operands("MatMul", "matmul_pow2scaled", lhs=lhs, rhs=rhs)
    return MATMUL.emit(
        {"lhs": lhs, "rhs": rhs},
        "matmul_out",
        available_memory_proportion=hint,
        output_type=output_type,
        partials_type=partials_type or dtypes.float32,
    )[0]


def _check_types(output_type: dtypes.dtype | None, partials_type: dtypes.dtype | None) -> None:
    if output_type is not None and output_type not in FLOATS:
        raise CoreError(
            f"Unsupported output_type {output_type} of MatMul.",
            hint=f"use one of {', '.join(d.name for d in FLOATS)}",
        )
    if partials_type not in (None, dtypes.float16, dtypes.float32):
        raise PopxlValueError(
            f"dtype {partials_type} is not valid, must be float16 or float32.", hint="it is an IPU hint: leave it out"
        )


def _rule(lhs: ShapeDtype, rhs: ShapeDtype, output_type: dtypes.dtype | None = None, **_hints: object) -> ShapeDtype:
    dtype = same_dtype(lhs, rhs)
    return ShapeDtype(matmul_shape(lhs.shape, rhs.shape), output_type or dtype)


def matmul_shape(lhs: tuple[int, ...], rhs: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a product of matrices.

    Raises:
        CoreError: (a `RuntimeError`) if the shapes do not fit.
    """
    both = f"{list(lhs)} and {list(rhs)}"
    if not (lhs and rhs):
        raise CoreError(f"MatMul doesn't support scalar tensor inputs: shapes {both}.", hint="use popxl.ops.mul")
    if lhs[-1] != rhs[-min(2, len(rhs))]:
        raise CoreError(
            f"MatMul contracting dimensions unequal: shapes {both}.",
            hint="the last dimension of lhs must be the last but one of rhs",
        )
    return broadcast_shapes(lhs[:-2], rhs[:-2]) + lhs[:-1][-1:] + rhs[-2:][1:]


def _matmul(lhs: Any, rhs: Any, output_type: dtypes.dtype | None, **_hints: object) -> Any:
    half = lhs.dtype == jnp.float16
    # Without a precision, GPUs may round float32 operands to TF32.
    product = jnp.matmul(
        lhs,
        rhs,
        precision=None if half else lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32 if half else lhs.dtype,
    )
    return product.astype(output_type.as_numpy() if output_type else lhs.dtype)


def _samples() -> Sequence[Sample]:
    a = (np.arange(24, dtype=np.float32).reshape(4, 6) - 11) / 8
    b = (np.arange(30, dtype=np.float32).reshape(6, 5) % 7 - 3) / 4
    batch = np.stack([a, -a, a * 0.5]).reshape(3, 1, 4, 6)
    # 4096 ones: float16 sums stick at 2048.
    ones = np.ones((2, 4096), np.float16)
    return (
        sample(a, b, tolerance=1e-6),
        sample(batch, np.stack([b, b + 1]), tolerance=1e-6),
        sample(a[0], b, tolerance=1e-6),
        sample(a, b[:, 0].copy(), tolerance=1e-6),
        sample(a[0], b[:, 0].copy(), tolerance=1e-6),
        sample(a[0], np.stack([b, b + 1]), tolerance=1e-6),
        sample(a.astype(np.float16), b.astype(np.float16), tolerance=1e-3),
        sample(ones, np.ascontiguousarray(ones.T), partials_type=dtypes.float16, tolerance=0),
        sample(ones, np.ascontiguousarray(ones.T), 0.3, output_type=dtypes.float32, tolerance=0),
        sample(a, b, output_type=dtypes.float16, tolerance=1e-3),
        sample(a.astype(np.float64), b.astype(np.float64), tolerance=1e-14),
        sample(np.zeros((2, 0), np.float32), np.zeros((0, 3), np.float32), tolerance=0),
        sample(np.zeros((0, 2), np.float32), np.ones((2, 3), np.float32), tolerance=0),
    )


def _oracle(lhs: Any, rhs: Any, *_hints: object, **_more_hints: object) -> Any:
    return np.matmul(lhs, rhs)


MATMUL = define(
    "MatMul",
    matmul,
    lower=_matmul,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_oracle,
    samples=_samples,
    differences="always accumulates in float32; `partials_type` is kept as a hint",
)
