"""`copy_var_update_` (spec ``ops-updates.md`` §2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from popxl.errors import CoreError
from popxl.op import ShapeDtype
from popxl.ops._define import define, sample
from popxl.ops.var_updates.utils import check_same_shape, update
from popxl.tensor import Tensor


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
    return update(COPY_VAR_UPDATE, "updated", {"t": t, "X": X})


def _copy_rule(t: ShapeDtype, x: ShapeDtype) -> ShapeDtype:
    check_same_shape("copy_var_update_", t, x)
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
    elementwise=True,
)
