"""Host streams: the named FIFOs between the host's arrays and the program (spec ``session.md`` §1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from popxl import dtypes
from popxl.context import get_ir
from popxl.errors import PopxlNotImplementedError
from popxl.tensor import Tensor, TensorSpec

StreamT = TypeVar("StreamT", bound="Stream")


class Stream:
    """Base of both kinds of stream. Equal to another one if both have the same handle tensor."""

    _tensor: Tensor

    def __init__(self) -> None:
        raise PopxlNotImplementedError(
            f"Cannot create a {type(self).__name__} directly.", hint="use popxl.h2d_stream or popxl.d2h_stream"
        )

    @classmethod
    def _create(cls: type[StreamT], shape: Iterable[int], dtype: dtypes.dtype, name: str) -> StreamT:
        ir = get_ir()
        ir.check_open()
        self = object.__new__(cls)
        self._tensor = Tensor._create(ir.main_graph, name, tuple(shape), dtype)  # pyright: ignore[reportPrivateUsage]
        return self

    @property
    def tensor(self) -> Tensor:
        """The handle, a tensor of the main graph."""
        return self._tensor

    @property
    def dtype(self) -> dtypes.dtype:
        """Dtype of an item."""
        return self._tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an item on one replica."""
        return self._tensor.shape

    @property
    def spec(self) -> TensorSpec:
        """Shape and dtype of an item."""
        return self._tensor.spec

    @property
    def tensor_id(self) -> str:
        """The id of the stream."""
        return self._tensor.id

    def __hash__(self) -> int:
        return hash(self._tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self._tensor == other._tensor

    def __str__(self) -> str:
        return f"{type(self).__name__} {self._tensor}"

    __repr__ = __str__


class HostToDeviceStream(Stream):
    """A stream of items from the host to the device. Made by `popxl.h2d_stream`."""


class DeviceToHostStream(Stream):
    """A stream of items from the device to the host. Made by `popxl.d2h_stream`."""


def h2d_stream(shape: Iterable[int], dtype: dtypes.dtype, name: str | None = None) -> HostToDeviceStream:
    """Create a stream from the host to the device.

    Args:
        shape: Shape of one item on one replica.
        dtype: Dtype of an item.
        name: Name, ``"h2d_stream"`` if not given.

    Example:
        >>> import popxl
        >>> with popxl.Ir().main_graph:
        ...     print(popxl.h2d_stream((2, 3), popxl.float32, "x"))
        HostToDeviceStream Tensor[x popxl.dtypes.float32 (2, 3)]
    """
    return HostToDeviceStream._create(shape, dtype, name or "h2d_stream")  # pyright: ignore[reportPrivateUsage]


def d2h_stream(shape: Iterable[int], dtype: dtypes.dtype, name: str | None = None) -> DeviceToHostStream:
    """Create a stream from the device to the host.

    Args:
        shape: Shape of one item on one replica.
        dtype: Dtype of an item.
        name: Name, ``"d2h_stream"`` if not given.
    """
    return DeviceToHostStream._create(shape, dtype, name or "d2h_stream")  # pyright: ignore[reportPrivateUsage]
