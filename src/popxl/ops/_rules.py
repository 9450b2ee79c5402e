"""Shape rules that many ops share."""

from __future__ import annotations

from typing import Any

from popxl import dtypes
from popxl.op import ShapeDtype
from popxl.ops.utils import broadcast_shapes, same_dtype


def same(t: ShapeDtype, **_attributes: Any) -> ShapeDtype:
    """The output is like the input."""
    return t


def broadcast(lhs: ShapeDtype, rhs: ShapeDtype) -> ShapeDtype:
    """NumPy broadcasting of equal dtypes."""
    return ShapeDtype(broadcast_shapes(lhs.shape, rhs.shape), same_dtype(lhs, rhs))


def compare(lhs: ShapeDtype, rhs: ShapeDtype) -> ShapeDtype:
    """NumPy broadcasting of equal dtypes, to bool."""
    return ShapeDtype(broadcast(lhs, rhs).shape, dtypes.bool)
