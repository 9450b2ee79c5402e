"""`TensorSpec`: shape and dtype without a tensor (spec ``tensors-dtypes.md`` §4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from popxl import dtypes


class TensorSpec(Mapping[str, Any]):
    """Shape, dtype and meta shape of a tensor that does not exist yet.

    Args:
        shape: The shape.
        dtype: The dtype.
        meta_shape: The unsharded shape if the tensor is a shard, else ``()``.

    Example:
        >>> import popxl
        >>> dict(popxl.TensorSpec((2,), popxl.float32))
        {'shape': (2,), 'dtype': popxl.dtypes.float32, 'meta_shape': ()}
    """

    def __init__(self, shape: tuple[int, ...], dtype: dtypes.dtype, meta_shape: tuple[int, ...] = ()) -> None:
        self.shape = shape
        self.dtype = dtype
        self.meta_shape = meta_shape

    def to_dict(self) -> dict[str, Any]:
        """Return the three values by name."""
        return {"shape": self.shape, "dtype": self.dtype, "meta_shape": self.meta_shape}

    def to_tuple(self) -> tuple[tuple[int, ...], dtypes.dtype, tuple[int, ...]]:
        """Return ``(shape, dtype, meta_shape)``."""
        return (self.shape, self.dtype, self.meta_shape)

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return 3

    def __hash__(self) -> int:
        return hash(self.to_tuple())

    def __repr__(self) -> str:
        return f"TensorSpec(shape={self.shape}, dtype={self.dtype}, meta_shape={self.meta_shape})"
