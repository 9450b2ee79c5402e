"""`accumulator_scale_` and `accumulator_zero_` (spec ``ops-updates.md`` §2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.errors import CoreError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, define_variant, sample
from popxl.ops._jax import jnp
from popxl.ops.var_updates.utils import arithmetic_dtype, check_given, tensors_and_numbers, update
from popxl.tensor import Tensor


def accumulator_scale_(t: Tensor, f: float | Tensor) -> Tensor:
    """Multiply `t` by `f` in place. Computes in float32 at least and rounds once, to the dtype of `t`.

    Args:
        t: What to scale; any float dtype.
        f: A number, or a float tensor with shape ``()`` or that of `t`. A number of exactly 0 writes zeros,
            whatever `t` holds: NaN and infinities go, too.

    Returns:
        An alias of `t`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `f` is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if `f` has another shape, or a dtype is no float.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     momentum = popxl.variable([1.0, 2.0], name="momentum")
        ...     ops.var_updates.accumulator_scale_(momentum, 0.9)
        Tensor[accumulator_scale__momentum popxl.dtypes.float32 (2,)]
    """
    check_given(f=f)
    tensors, numbers = tensors_and_numbers(f=f)
    return update(ACCUMULATOR_SCALE, "accumulator_scale", {"t": t, **tensors}, factor=numbers["f"])


def _scale_rule(t: ShapeDtype, f: ShapeDtype | None = None, **_attributes: Any) -> ShapeDtype:
    if f is not None and f.shape not in ((), t.shape):
        raise CoreError(
            f"The factor of accumulator_scale_ must be a scalar or have the shape of `t`, {list(t.shape)}, "
            f"not {list(f.shape)}.",
            hint="reshape or broadcast `f` first",
        )
    return t


def _lower_scale(t: Any, f: Any = None, *, factor: float | None) -> Any:
    if factor == 0.0:
        return jnp.zeros_like(t)
    wide = arithmetic_dtype(t)
    return (t.astype(wide) * (f.astype(wide) if factor is None else wide(factor))).astype(t.dtype)


def _scale_samples() -> Sequence[Sample]:
    t = np.array([[1.0, -2.0, 3.5]], np.float32)
    return (
        sample(t, 0.9),
        sample(t, -2),
        sample(t, np.array(0.25, np.float32)),
        sample(t, np.array([[0.5, 0.1, -1.0]], np.float32)),
        sample(t.astype(np.float16), np.array([[0.5, 0.1, -1.0]], np.float32), tolerance=1e-3),
        sample(t.astype(np.float16), 0.1, tolerance=1e-3),
        sample(t.astype(np.float64), 0.1, tolerance=1e-15),
        sample(np.array([np.nan, np.inf, -1.0], np.float32), 0.0, tolerance=0),
        sample(np.array([np.nan, np.inf, -1.0], np.float32), np.array(0.0, np.float32)),
        sample(np.float32(3.0), np.float16(0.5)),
        sample(np.zeros((0, 2), np.float32), 3.0),
    )


def _scale_oracle(t: Any, f: Any) -> Any:
    return np.zeros_like(t) if isinstance(f, float) and not f else f * t


ACCUMULATOR_SCALE = define(
    "AccumulatorScale",
    accumulator_scale_,
    lower=_lower_scale,
    rule=_scale_rule,
    dtypes=FLOATS,
    oracle=_scale_oracle,
    samples=_scale_samples,
    mutates=(0,),
    optimizer=True,
    elementwise=True,
)


def accumulator_zero_(t: Tensor) -> Tensor:
    """Set `t` to zeros in place; the same as `accumulator_scale_` by the number 0.

    Args:
        t: What to clear; any float dtype.

    Returns:
        An alias of `t`.

    Raises:
        CoreError: (a `RuntimeError`) if the dtype is no float.
    """
    return update(ACCUMULATOR_ZERO, "accumulator_zero", {"t": t}, factor=0.0)


ACCUMULATOR_ZERO = define_variant(
    ACCUMULATOR_SCALE,
    accumulator_zero_,
    oracle=np.zeros_like,
    samples=lambda: (
        sample(np.array([np.nan, -np.inf, -1.0], np.float32), tolerance=0),
        sample(np.array([[2.0], [3.0]], np.float16), tolerance=0),
        sample(np.float64(1.0), tolerance=0),
        sample(np.zeros((2, 0), np.float32), tolerance=0),
    ),
)
