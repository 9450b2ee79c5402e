"""`accumulate_` and `copy_var_update_` (spec ``ops-updates.md`` §1-§2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.errors import CoreError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.tensor import Tensor


def _check_same_shape(api: str, t: ShapeDtype, x: ShapeDtype) -> None:
    if t.shape != x.shape:
        raise CoreError(
            f"{api} needs `t` and `X` of one shape, not {list(t.shape)} and {list(x.shape)}.",
            hint="reshape or broadcast `X` first",
        )


def accumulate_(t: Tensor, X: Tensor, f: float | Tensor | None = None) -> Tensor:  # noqa: N803 - PopXL's names
    """Add `X`, or ``f * X``, to `t` in place. Computes in float32 at least and rounds once, to the dtype of `t`.

    Args:
        t: The sum; any float dtype.
        X: What to add: shape of `t`, any float dtype.
        f: Factor: a number, or a float tensor with shape ``()``. A number of exactly 0 leaves `t` as it is.

    Returns:
        An alias of `t`.

    Raises:
        CoreError: (a `RuntimeError`) if the shapes differ, `f` is no scalar, or a dtype is no float.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     total = popxl.variable([1.0, 2.0], name="total")
        ...     ops.var_updates.accumulate_(total, popxl.constant([0.5, 0.5]), 2.0)
        Tensor[accumulate__total popxl.dtypes.float32 (2,)]
    """
    tensors = {"t": t, "X": X}
    if isinstance(f, Tensor):
        tensors["f"] = f
    factor = None if f is None or isinstance(f, Tensor) else float(f)
    name = f"accumulate__{t.name}" if isinstance(t, Tensor) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
    return ACCUMULATE.emit(tensors, name, factor=factor)[0]


def _accumulate_rule(t: ShapeDtype, x: ShapeDtype, f: ShapeDtype | None = None, **_attributes: Any) -> ShapeDtype:
    _check_same_shape("accumulate_", t, x)
    if f is not None and f.shape:
        raise CoreError(
            f"The factor of accumulate_ must be a scalar, not of shape {list(f.shape)}.",
            hint="reshape it to () or multiply `X` with it first",
        )
    return t


def _lower_accumulate(t: Any, x: Any, f: Any = None, *, factor: float | None) -> Any:
    if factor == 0.0:
        return t
    wide = np.float64 if np.float64 in (t.dtype, x.dtype) else np.float32
    step = x.astype(wide)
    if factor is not None:
        step = step * wide(factor)
    elif f is not None:
        step = step * f.astype(wide)
    return (t.astype(wide) + step).astype(t.dtype)


def _accumulate_samples() -> Sequence[Sample]:
    t, x = np.array([[1.0, -2.0]], np.float32), np.array([[0.5, 4.0]], np.float32)
    return (
        sample(t, x),
        sample(t, x, 0.25),
        sample(t, x, np.array(-3.0, np.float32)),
        sample(t.astype(np.float16), x, 0.1, tolerance=1e-3),
        sample(t, x.astype(np.float16), np.array(0.1, np.float16), tolerance=1e-6),
        sample(t, np.array([[np.inf, 1.0]], np.float32), 0.0, tolerance=0),
        sample(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)),
    )


def _accumulate_oracle(t: Any, X: Any, f: Any = None) -> Any:  # noqa: N803
    return t.copy() if isinstance(f, float) and not f else t + X * (1 if f is None else f)


ACCUMULATE = define(
    "Accumulate",
    accumulate_,
    lower=_lower_accumulate,
    rule=_accumulate_rule,
    dtypes=FLOATS,
    oracle=_accumulate_oracle,
    samples=_accumulate_samples,
    mutates=(0,),
    optimizer=True,
)


def copy_var_update_(t: Tensor, X: Tensor) -> Tensor:  # noqa: N803 - PopXL's names
    """Overwrite `t` with `X`. The old value of `t` is not read.

    Args:
        t: What to overwrite; any dtype.
        X: Shape and dtype of `t`.

    Returns:
        An alias of `t`.

    Raises:
        CoreError: (a `RuntimeError`) if shapes or dtypes differ.
    """
    name = f"updated__{t.name}" if isinstance(t, Tensor) else ""  # pyright: ignore[reportUnnecessaryIsInstance]
    return COPY_VAR_UPDATE.emit({"t": t, "X": X}, name)[0]


def _copy_rule(t: ShapeDtype, x: ShapeDtype) -> ShapeDtype:
    _check_same_shape("copy_var_update_", t, x)
    if t.dtype != x.dtype:
        raise CoreError(
            f"copy_var_update_ needs `t` and `X` of one dtype, not {t.dtype.name} and {x.dtype.name}.",
            hint="cast `X` with popxl.ops.cast",
        )
    return t


def _lower_copy(_t: Any, x: Any) -> Any:
    return x


def _copy_oracle(t: Any, X: Any) -> Any:  # noqa: N803
    t[...] = X
    return t


COPY_VAR_UPDATE = define(
    "CopyVarUpdate",
    copy_var_update_,
    lower=_lower_copy,
    rule=_copy_rule,
    oracle=_copy_oracle,
    samples=lambda: (
        sample(np.zeros((2,), np.float32), np.array([1.5, -2.0], np.float32), tolerance=0),
        sample(np.zeros((2, 1), np.int32), np.array([[3], [4]], np.int32), tolerance=0),
        sample(np.zeros((), np.float16), np.array(2.0, np.float16), tolerance=0),
        sample(np.array([True, False]), np.array([False, False]), tolerance=0),
    ),
    mutates=(0,),
    unread=(0,),
    optimizer=True,
)
