"""Remote buffers: rows of equal tensors in Streaming Memory (spec ``remote-memory.md`` §2)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from popxl import dtypes
from popxl.context import get_ir
from popxl.errors import PopxlValueError
from popxl.ir import Ir, RemoteBufferInfo
from popxl.tensor import Tensor

if TYPE_CHECKING:
    from popxl.replica_grouping import ReplicaGrouping


class RemoteBuffer:
    """A handle on `entries` rows in Streaming Memory, each of shape `tensor_shape` and dtype `tensor_dtype`.

    Rows that no remote variable backs read as zeros when a session starts. Contents persist between runs.

    Args:
        tensor_shape: Shape of a row.
        tensor_dtype: Dtype of a row.
        entries: Number of rows, at least 1. It can be changed until a session takes the IR.

    Raises:
        ContextError: (a `RuntimeError`) if no graph is active.
        PopxlValueError: (a `ValueError`) if `entries` is less than 1.

    Example:
        >>> import popxl
        >>> with popxl.Ir().main_graph:
        ...     buffer = popxl.RemoteBuffer(tensor_shape=(2, 3), tensor_dtype=popxl.float32, entries=4)
        >>> buffer.remote_buffer_id, buffer.tensor_shape, buffer.entries
        (1, (2, 3), 4)
    """

    def __init__(self, tensor_shape: Iterable[int], tensor_dtype: dtypes.dtype, entries: int) -> None:
        self._ir = get_ir()
        self._ir.check_open()
        self._id = self._ir.next_buffer_id()
        self.meta_shape: tuple[int, ...] = ()
        _check_entries(entries)
        self.set_remote_buffer_info(tensor_dtype, tuple(tensor_shape), entries)

    @property
    def ir(self) -> Ir:
        """The IR it belongs to."""
        return self._ir

    @property
    def info(self) -> RemoteBufferInfo:
        """What the IR knows of this buffer, shared by all its handles."""
        return self._ir.remote_buffers[self._id]

    @property
    def remote_buffer_id(self) -> int:
        """Number of the buffer within its IR; the first is 1."""
        return self._id

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of a row."""
        return self.info.shape

    @property
    def tensor_dtype(self) -> dtypes.dtype:
        """Dtype of a row."""
        return self.info.dtype

    @property
    def entries(self) -> int:
        """Number of rows."""
        return self.info.entries

    @entries.setter
    def entries(self, value: int) -> None:
        _check_entries(value)
        self._ir.check_open()
        self.info.entries = value

    def set_remote_buffer_info(self, tensor_dtype: dtypes.dtype, tensor_shape: Iterable[int], entries: int) -> None:
        """Overwrite dtype, shape and number of rows, unchecked, for every handle of this buffer."""
        self._ir.check_open()
        self._ir.remote_buffers[self._id] = RemoteBufferInfo(tuple(tensor_shape), tensor_dtype, entries)

    def check_used_in(self, ir: Ir) -> None:
        """Check that the buffer belongs to `ir`.

        Raises:
            PopxlValueError: (a `ValueError`) if it does not.
        """
        if self._ir != ir:
            raise PopxlValueError(
                f"{self!r} belongs to {self._ir!r}, not to the current {ir!r}.",
                hint="create the buffer inside `with ir.main_graph:` of this Ir",
            )

    def validate_tensor_matches_buffer(self, t: Tensor, num_shards: int = 1) -> None:
        """Check that `t` has the dtype of the buffer and the shape of a row.

        Args:
            t: The tensor.
            num_shards: If not 1, the shape is compared with `meta_shape` instead.

        Raises:
            PopxlValueError: (a `ValueError`) if it does not.
        """
        shape = self.tensor_shape if num_shards == 1 else self.meta_shape
        if tuple(t.shape) != shape or t.dtype != self.tensor_dtype:
            raise PopxlValueError(
                f"Tensor {t.id} does not match buffer. Tensor: shape {t.shape}, dtype {t.dtype}. "
                f"{self!r}: shape {shape}, dtype {self.tensor_dtype}.",
                hint="reshape or cast the tensor, or make the buffer with the tensor's shape and dtype",
            )

    def __hash__(self) -> int:
        return hash((self._ir.id, self._id))

    def __eq__(self, other: object) -> bool:
        return self is other

    def __repr__(self) -> str:
        return f"RemoteBuffer[id={self._id} {self.tensor_dtype} {self.tensor_shape} entries={self.entries}]"


def _check_entries(entries: int) -> None:
    if entries < 1:
        raise PopxlValueError(
            f"Entries must be a non-zero, positive integer. Entries: {entries}.", hint="use entries=1 for one row"
        )


def remote_buffer(tensor_shape: Iterable[int], tensor_dtype: dtypes.dtype, entries: int = 1) -> RemoteBuffer:
    """Create a remote buffer; see `RemoteBuffer`.

    Args:
        tensor_shape: Shape of a row.
        tensor_dtype: Dtype of a row.
        entries: Number of rows.
    """
    return RemoteBuffer(tensor_shape, tensor_dtype, entries)


def replica_sharded_buffer(
    shape: tuple[int, ...],
    dtype: dtypes.dtype,
    replica_grouping: ReplicaGrouping | None = None,
    shard_over: int | None = None,
    entries: int = 1,
) -> RemoteBuffer:
    """Create a buffer whose rows are shards (spec ``remote-memory.md`` §6.2).

    Args:
        shape: The full shape on the host, with the group axis in front if there is more than one group.
        dtype: Dtype of a row.
        replica_grouping: Replicas that share a value; all of them if not given.
        shard_over: Number of shards of a value; the group size if not given.
        entries: Number of rows.

    Returns:
        A buffer with rows of shape ``(ceil(n / shard_over),)`` for n elements, and `meta_shape` set.

    Raises:
        PopxlValueError: (a `ValueError`) if `shard_over` does not divide the group size.
    """
    grouping = (replica_grouping or get_ir().replica_grouping()).const_rg
    shards = grouping.group_size if shard_over is None else shard_over
    if shards < 1 or shards > grouping.group_size or grouping.group_size % shards:
        raise PopxlValueError(
            f"Cannot shard over {shards} replicas: it must divide the group size {grouping.group_size}.",
            hint="choose a divisor of the group size, or another replica grouping",
        )
    meta_shape = tuple(shape[1:] if grouping.num_groups > 1 else shape)
    elements = math.prod(meta_shape)
    buffer = RemoteBuffer((-(-elements // shards),), dtype, entries)
    buffer.meta_shape = meta_shape
    buffer.info.shard_over = shards
    return buffer
