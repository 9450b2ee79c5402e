"""Casts to and from float8, and products of float8 matrices (spec ``ops-math.md`` §7, §9).

All take a scale, the logarithm of a power of two: float8 has few exponents, so numbers are scaled into its range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.errors import CoreError, PopxlTypeError
from popxl.fp8_utils import host_pow2scale_cast_to_fp8
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOAT8, FLOATS, Sample, define, sample
from popxl.ops._float8 import (
    check_float8_operands,
    check_log2_scale,
    check_scale_when_run,
    check_tensors,
    codes,
    host_values,
    scaled,
    values,
)
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops.linalg import matmul_shape
from popxl.ops.utils import checked_memory_hint
from popxl.tensor import Tensor

_NOT_TRAINED = Gradient(refusal="Floating point 8 is not supported for training.")

# To float8


def pow2scale_cast_to_fp8(t: Tensor, log2_scale: Tensor, data_type: dtypes.dtype) -> Tensor:
    """Cast ``t * 2**log2_scale`` to float8, rounding once, to nearest, ties to even.

    What is out of range after rounding, infinities and NaN become NaN, code 0x80.

    Args:
        t: A float dtype.
        log2_scale: An int32 scalar in [-32, 32).
        data_type: ``popxl.float8_143`` or ``popxl.float8_152``.

    Returns:
        A tensor of the same shape, named ``"<name of t>_<dtype>"``.

    Raises:
        PopxlTypeError: (a `TypeError`) if `data_type` is no float8 type, or `log2_scale` is not int32.
        PopxlValueError: (a `ValueError`) if `log2_scale` is no scalar.
        CoreError: (a `RuntimeError`) if the dtype of `t` is not supported, or a constant `log2_scale` is out of
            range. Any other `log2_scale` raises it when it is out of range in a run.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     x, scale = popxl.constant(1.5, name="x"), popxl.constant(2, popxl.int32)
        ...     ops.pow2scale_cast_to_fp8(x, scale, popxl.float8_143)
        Tensor[x_float8_143 popxl.dtypes.float8_143 ()]
    """
    data_type = _checked_type(data_type, FLOAT8, "pow2scale_cast_to_fp8")
    check_log2_scale(log2_scale, "pow2scale_cast_to_fp8")
    check_tensors(t=t)
    (out,) = TO_FP8.emit({"t": t, "log2_scale": log2_scale}, f"{t.name}_{data_type.name}", data_type=data_type)
    check_scale_when_run(log2_scale, "pow2scale_cast_to_fp8")
    return out


def _checked_type(data_type: dtypes.dtype, allowed: tuple[dtypes.dtype, ...], of: str) -> dtypes.dtype:
    data_type = dtypes.dtype.as_dtype(data_type)
    if data_type not in allowed:
        raise PopxlTypeError(
            f"Data type {data_type} not supported for popxl.ops.{of}.",
            hint=f"use {' or '.join(f'popxl.{d.name}' for d in allowed)}",
        )
    return data_type


def _cast_rule(t: ShapeDtype, log2_scale: ShapeDtype, data_type: dtypes.dtype) -> ShapeDtype:
    return ShapeDtype(t.shape, data_type)


def _to_fp8(t: Any, log2_scale: Any, data_type: dtypes.dtype) -> Any:
    return codes(scaled(at_least_float32(t), log2_scale), data_type)


def _to_fp8_oracle(t: Any, log2_scale: Any, data_type: dtypes.dtype) -> Any:
    return host_pow2scale_cast_to_fp8(t, data_type, int(log2_scale))


def _to_fp8_samples() -> Sequence[Sample]:
    kinds = dtypes.float8_143, dtypes.float8_152
    # A tie, its neighbours, the largest number, what rounds to it and what does not, and numbers that are too small.
    edges = np.array([[1.0625, 1.0626, -1.1875, 240.0], [247.9, 248.0, -0.0, 2.0**-12], [5e-39, 61439, 61440, -1]])
    special = np.array([np.nan, np.inf, -np.inf, 1e38, -57344.0], np.float32)
    zero = np.int32(0)
    return (
        *(sample(edges.astype(np.float32), zero, kind, tolerance=0) for kind in kinds),
        *(sample(special, scale, kind, tolerance=0) for kind in kinds for scale in (np.int32(-32), np.int32(31))),
        sample(edges.astype(np.float16) / 4, np.int32(2), kinds[0], tolerance=0),
        # Ties that float32 would make of float64, and then round to even.
        sample(np.array([1.0625 + 1e-12, 1.125 + 0.0625 - 1e-12]), zero, kinds[0], tolerance=0),
        sample(np.float32(3.0), np.int32(-2), kinds[1], tolerance=0),
        sample(np.zeros((2, 0), np.float32), zero, kinds[0], tolerance=0),
    )


TO_FP8 = define(
    "Pow2ScaleThenCast",
    pow2scale_cast_to_fp8,
    lower=_to_fp8,
    rule=_cast_rule,
    dtypes={"t": FLOATS, "log2_scale": (dtypes.int32,)},
    oracle=_to_fp8_oracle,
    samples=_to_fp8_samples,
    gradient=_NOT_TRAINED,
    elementwise=True,
    differences="also takes float64; overflow is decided after rounding; adds a CheckInRange op to the graph, unless "
    "log2_scale is a constant, which is checked when the op is made; the check cannot be turned off",
)

# From float8


def pow2scale_cast_from_fp8(t: Tensor, log2_scale: Tensor, data_type: dtypes.dtype) -> Tensor:
    """Cast the values of float8, times ``2**log2_scale``, to another float type.

    It undoes `pow2scale_cast_to_fp8` when the scale is negated.

    Args:
        t: ``float8_143`` or ``float8_152``.
        log2_scale: An int32 scalar in [-32, 32).
        data_type: ``popxl.float16``, where what is too large becomes infinite, or ``popxl.float32``.

    Returns:
        A tensor of the same shape, named ``"<name of t>_<dtype>"``.

    Raises:
        PopxlTypeError: (a `TypeError`) if `data_type` is another type, or `log2_scale` is not int32.
        PopxlValueError: (a `ValueError`) if `log2_scale` is no scalar.
        CoreError: (a `RuntimeError`) if `t` is not float8, or a constant `log2_scale` is out of range. Any other
            `log2_scale` raises it when it is out of range in a run.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     x, scale = popxl.constant(1.5, popxl.float8_143, name="x"), popxl.constant(-2, popxl.int32)
        ...     ops.pow2scale_cast_from_fp8(x, scale, popxl.float16)
        Tensor[x_float16 popxl.dtypes.float16 ()]
    """
    data_type = _checked_type(data_type, (dtypes.float16, dtypes.float32), "pow2scale_cast_from_fp8")
    check_log2_scale(log2_scale, "pow2scale_cast_from_fp8")
    check_tensors(t=t)
    name = f"{t.name}_{data_type.name}"
    (out,) = FROM_FP8.emit({"t": t, "log2_scale": log2_scale}, name, data_type=data_type, source=t.dtype)
    check_scale_when_run(log2_scale, "pow2scale_cast_from_fp8")
    return out


def _from_fp8_rule(t: ShapeDtype, log2_scale: ShapeDtype, data_type: dtypes.dtype, source: dtypes.dtype) -> ShapeDtype:
    if t.dtype not in FLOAT8:
        raise CoreError(
            "Casting from FLOAT8 is only supported for popxl.float8_143 and popxl.float8_152: `t` of "
            f"popxl.ops.pow2scale_cast_from_fp8 is {t.dtype.name}.",
            hint="use popxl.ops.cast for other dtypes",
        )
    return ShapeDtype(t.shape, data_type)


def _from_fp8(t: Any, log2_scale: Any, data_type: dtypes.dtype, source: dtypes.dtype) -> Any:
    # A product in float32 is exact: from 2**-49 to 2**47.
    return scaled(values(t, source), log2_scale).astype(data_type.as_numpy())


def _from_fp8_oracle(t: Any, log2_scale: Any, data_type: dtypes.dtype) -> Any:
    return np.ldexp(host_values(t), int(log2_scale))


def _from_fp8_samples() -> Sequence[Sample]:
    every = np.arange(256, dtype=np.uint8)
    scales = [(np.int32(s), d) for s in (0, 7, -12) for d in (dtypes.float16, dtypes.float32)]
    return (
        *(sample(every.view(kind.as_numpy()), *scale, tolerance=0) for kind in FLOAT8 for scale in scales),
        sample(every[60].view(dtypes.float8_143.as_numpy()), np.int32(-32), dtypes.float32, tolerance=0),
        sample(every.reshape(2, 128).view(dtypes.float8_152.as_numpy()), np.int32(31), dtypes.float32, tolerance=0),
        sample(np.zeros((0, 3), dtypes.float8_143.as_numpy()), np.int32(0), dtypes.float16, tolerance=0),
    )


FROM_FP8 = define(
    "CastThenPow2Scale",
    pow2scale_cast_from_fp8,
    lower=_from_fp8,
    rule=_from_fp8_rule,
    dtypes={"log2_scale": (dtypes.int32,)},
    oracle=_from_fp8_oracle,
    samples=_from_fp8_samples,
    gradient=_NOT_TRAINED,
    elementwise=True,
    differences="adds a CheckInRange op to the graph, unless log2_scale is a constant, which is checked when the op is "
    "made; the check cannot be turned off",
)

# Products


def matmul_pow2scaled(
    lhs: Tensor, rhs: Tensor, log2_scale: Tensor, available_memory_proportion: float | None = None
) -> Tensor:
    """Multiply float8 matrices, by the rules of `numpy.matmul`, and the product by ``2**log2_scale``.

    Products are accumulated in float32, scaled there, and rounded to float16 once.

    Args:
        lhs: Shape ``(..., n, k)`` or ``(k,)``; ``float8_143`` or ``float8_152``.
        rhs: Shape ``(..., k, m)`` or ``(k,)``; either float8 type. Leading dimensions broadcast.
        log2_scale: An int32 scalar in [-32, 32).
        available_memory_proportion: An IPU hint, without effect here.

    Returns:
        The scaled products, in float16, of shape ``(..., n, m)``; without n or m where an operand is a vector.

    Raises:
        PopxlTypeError: (a `TypeError`) if an operand is not float8, `log2_scale` is not int32, or the hint is no
            number.
        PopxlValueError: (a `ValueError`) if `log2_scale` is no scalar.
        CoreError: (a `RuntimeError`) if shapes do not fit, or a constant `log2_scale` is out of range. Any other
            `log2_scale` raises it when it is out of range in a run.

    Example:
        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     a = popxl.constant(np.ones((2, 3), np.float32), popxl.float8_143)
        ...     b = popxl.constant(np.ones((3, 5), np.float32), popxl.float8_152)
        ...     ops.matmul_pow2scaled(a, b, popxl.constant(-1, popxl.int32))
        Tensor[matmul_pow2scaled_out popxl.dtypes.float16 (2, 5)]
    """
    check_float8_operands("matmul", lhs=lhs, rhs=rhs)
    check_log2_scale(log2_scale, "matmul_pow2scaled")
    (out,) = MATMUL_POW2SCALED.emit(
        {"lhs": lhs, "rhs": rhs, "log2_scale": log2_scale},
        "matmul_pow2scaled_out",
        kinds=(lhs.dtype, rhs.dtype),
        available_memory_proportion=checked_memory_hint(available_memory_proportion),
    )
    check_scale_when_run(log2_scale, "matmul_pow2scaled")
    return out


def _matmul_rule(lhs: ShapeDtype, rhs: ShapeDtype, log2_scale: ShapeDtype, **_attributes: Any) -> ShapeDtype:
    return ShapeDtype(matmul_shape(lhs.shape, rhs.shape), dtypes.float16)


def _matmul(lhs: Any, rhs: Any, log2_scale: Any, kinds: tuple[dtypes.dtype, dtypes.dtype], **_hints: object) -> Any:
    # No precision: GPUs may round operands to TF32, which holds float8 exactly.
    product = jnp.matmul(values(lhs, kinds[0]), values(rhs, kinds[1]))
    return scaled(product, log2_scale).astype(jnp.float16)


def _matmul_oracle(lhs: Any, rhs: Any, log2_scale: Any, _hint: float | None = None) -> Any:
    return np.ldexp(np.matmul(host_values(lhs), host_values(rhs)), int(log2_scale))


def _matmul_samples() -> Sequence[Sample]:
    a = host_pow2scale_cast_to_fp8(np.linspace(-3, 4, 24).reshape(4, 6), dtypes.float8_143)
    b = host_pow2scale_cast_to_fp8(np.linspace(5, -2, 30).reshape(6, 5), dtypes.float8_152)
    batch = np.stack([a, a[::-1]]).reshape(2, 1, 4, 6)
    large = host_pow2scale_cast_to_fp8(np.full((2, 2), 57344.0), dtypes.float8_152)
    ones = host_pow2scale_cast_to_fp8(np.ones((1, 4096)), dtypes.float8_143)
    nan = np.array([[0x80, 0x40]], np.uint8).view(dtypes.float8_143.as_numpy())
    return (
        sample(a, b, np.int32(0), tolerance=1e-3),
        sample(a, b, np.int32(-3), 0.5, tolerance=1e-3),
        sample(batch, np.stack([b, b, b]), np.int32(2), tolerance=1e-3),
        sample(a[0], b, np.int32(1), tolerance=1e-3),
        sample(a[0], b[:, 0].copy(), np.int32(1), tolerance=1e-3),
        sample(a, np.ascontiguousarray(a.T), np.int32(0), tolerance=1e-3),
        # Products that float16 has only when they are scaled: 2 * 57344**2 is 2**32.6.
        sample(large, large, np.int32(-32), tolerance=1e-3),
        sample(large, large, np.int32(31), tolerance=0),
        # Sums of float16 would stick at 2048.
        sample(ones, np.ascontiguousarray(ones.T), np.int32(0), tolerance=0),
        sample(nan, np.ascontiguousarray(nan.T), np.int32(0), tolerance=0),
        sample(np.zeros((2, 0), a.dtype), np.zeros((0, 3), b.dtype), np.int32(0), tolerance=0),
    )


MATMUL_POW2SCALED = define(
    "MatMulPow2Scaled",
    matmul_pow2scaled,
    lower=_matmul,
    rule=_matmul_rule,
    dtypes={"lhs": FLOAT8, "rhs": FLOAT8, "log2_scale": (dtypes.int32,)},
    oracle=_matmul_oracle,
    samples=_matmul_samples,
    gradient=Gradient(refusal="Using a scaled matmul in a backwards pass is not supported."),
    differences="accumulates in float32; adds a CheckInRange op to the graph, unless log2_scale is a constant, which "
    "is checked when the op is made; the check cannot be turned off",
    reference_type="MatMul",
)
