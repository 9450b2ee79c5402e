"""Values that the host reads when they are wanted, so that a model need not be in its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np

from popxl.errors import PopxlTypeError, PopxlValueError
from popxl.typing_ import HostScalarTensor
from popxl.utils import to_numpy

Array = np.ndarray[Any, Any]


@runtime_checkable
class FileSlice(Protocol):
    """A tensor of a file that is read on demand, as ``safetensors`` has them."""

    def get_shape(self) -> list[int]:
        """The shape of the whole tensor."""
        ...

    def __getitem__(self, index: Any) -> Any:
        """Read a part."""
        ...


#: A function that returns the value, or a tensor of a file.
LazyData: TypeAlias = Callable[[], HostScalarTensor] | FileSlice


def lazy_source(data: object) -> Callable[[], HostScalarTensor] | None:
    """Return what reads `data` if they are lazy, else None.

    Example:
        >>> lazy_source([1.0]) is None, lazy_source(lambda: [1.0])()
        (True, [1.0])
    """
    if isinstance(data, FileSlice) and not isinstance(data, np.ndarray):
        return lambda: data[...] if not data.get_shape() else data[:]
    return cast("Callable[[], HostScalarTensor]", data) if callable(data) else None


def checked_source(
    source: Callable[[], HostScalarTensor], shape: tuple[int, ...], dtype: np.dtype[Any], name: str
) -> Callable[[], Array]:
    """Return `source` with a check of what it gives.

    Args:
        source: Gives the value.
        shape: What shape it must have.
        dtype: What dtype it must have.
        name: Of the variable, for errors.
    """

    def read() -> Array:
        value = to_numpy(source(), downcast=False, copy=False)
        if value.dtype != dtype:
            raise PopxlTypeError(
                f"The lazy data of variable {name} have dtype {value.dtype}, not {dtype}.",
                hint="return an array of exactly that dtype; variables are never cast",
            )
        if value.shape != shape:
            raise PopxlValueError(
                f"The lazy data of variable {name} have shape {value.shape}, not {shape}.",
                hint="return an array of the shape of the variable on the host",
            )
        return value

    return read
