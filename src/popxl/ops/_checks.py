"""Checks of values that are known when a program runs only. They are ops: they stop the run in program order."""

from __future__ import annotations

from typing import Any

import numpy as np

from popxl.errors import CoreError
from popxl.op import Effect
from popxl.ops._define import INTS, define
from popxl.tensor import Constant, Tensor


def check_in_range(t: Tensor, argument: str, of: str, low: int, high: int) -> None:
    """Add an op that stops the run unless ``low <= t < high``. A constant is checked at once, and adds no op.

    Args:
        t: An integer dtype.
        argument: The argument that `t` was passed for.
        of: The public function that it was passed to.
        low: The lowest integer that is allowed.
        high: The first integer that is not.

    Raises:
        CoreError: (a `RuntimeError`) if `t` is a constant out of range.
    """
    attributes: dict[str, Any] = {"argument": argument, "of": of, "low": low, "high": high}
    if isinstance(t, Constant):
        raise_unless_in_range(t.host_value, where=repr(t), **attributes)
    else:
        CHECK_IN_RANGE.emit({argument: t}, outputs=(), **attributes)


def raise_unless_in_range(
    value: np.ndarray[Any, Any], *, argument: str, of: str, low: int, high: int, where: str
) -> None:
    """Do what a check does when it runs.

    Raises:
        CoreError: (a `RuntimeError`) for the first element that is out of range.
    """
    outside = (value < low) | (value >= high)
    if np.any(outside):
        raise CoreError(
            f"`{argument}` of popxl.ops.{of} is {value[outside].flat[0]}, outside the range [{low}, {high}).",
            where=where,
            hint=f"pass {low} to {high - 1}",
        )


CHECK_IN_RANGE = define("CheckInRange", check_in_range, dtypes=INTS, effect=Effect.CHECK)
