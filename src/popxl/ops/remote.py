"""Loads and stores between the device and Streaming Memory (spec ``remote-memory.md`` §3)."""

from __future__ import annotations

from popxl import dtypes
from popxl.aliasing import is_writable
from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.errors import PopxlValueError, RemoteOffsetError
from popxl.op import Effect, ShapeDtype
from popxl.ops._define import define
from popxl.ops.init import init
from popxl.ops.utils import check_in_graph
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Tensor


def remote_load(remote_buffer: RemoteBuffer, offset: int | Tensor, name: str | None = None) -> Tensor:
    """Load a row of a remote buffer into a new tensor.

    Args:
        remote_buffer: The buffer.
        offset: The row: an int, or an integer tensor with one element that is read when the load runs.
        name: Base of the names.

    Returns:
        The row as it is at this point of the program; later stores do not change it.

    Raises:
        RemoteOffsetError: (a `ValueError`) if an int offset is negative. An offset of ``entries`` or more is
            found when a session is made (int) or when the load runs (tensor).
        PopxlTypeError: (a `TypeError`) if `offset` is neither an int nor a tensor.
        PopxlValueError: (a `ValueError`) if the buffer is of another IR or the offset of another graph.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     buffer = popxl.remote_buffer((2, 3), popxl.float32, entries=4)
        ...     ops.remote_load(buffer, 3).shape
        (2, 3)
    """
    row = _offset_tensor(remote_buffer, offset)
    base = name or f"id_{remote_buffer.remote_buffer_id}_offset_{row.name}"
    local = init(remote_buffer.tensor_shape, remote_buffer.tensor_dtype, f"{base}_remote_load", "undef")
    (t,) = REMOTE_LOAD.emit(
        {"t": local, "offset": row},
        f"{base}_remote_loaded",
        outputs=(_row_spec(remote_buffer),),
        same_place=False,
        buffer=remote_buffer,
    )
    t.meta_shape = remote_buffer.meta_shape
    return t


REMOTE_LOAD = define("RemoteLoad", remote_load, effect=Effect.REMOTE_LOAD, unread=(0,))


def remote_load_(remote_buffer: RemoteBuffer, offset: int | Tensor, t: Tensor) -> Tensor:
    """Load a row of a remote buffer into `t`, in place.

    Args:
        remote_buffer: The buffer.
        offset: The row, as for `remote_load`.
        t: Tensor of the buffer's shape and dtype; it and all its aliases hold the row afterwards.

    Returns:
        An alias of `t`.

    Raises:
        PopxlValueError: (a `ValueError`) as for `remote_load`, if `t` does not match the buffer, or if `t`
            cannot be overwritten.
    """
    row = _offset_tensor(remote_buffer, offset, t=t)
    t.meta_shape = remote_buffer.meta_shape
    remote_buffer.validate_tensor_matches_buffer(t)
    if not is_writable(t):
        raise PopxlValueError(
            f"Cannot load into {t!r}: it is a constant, or it holds some element twice.",
            hint="use popxl.ops.remote_load, which makes a new tensor",
        )
    (loaded,) = REMOTE_LOAD_.emit(
        {"t": t, "offset": row},
        "remote_load_inplace_out",
        outputs=(_row_spec(remote_buffer),),
        same_place=False,
        buffer=remote_buffer,
    )
    loaded.meta_shape = remote_buffer.meta_shape
    return loaded


REMOTE_LOAD_ = define("RemoteLoadInplace", remote_load_, effect=Effect.REMOTE_LOAD, mutates=(0,), unread=(0,))


def remote_store(remote_buffer: RemoteBuffer, offset: int | Tensor, t: Tensor) -> None:
    """Store `t` into a row of a remote buffer.

    Args:
        remote_buffer: The buffer.
        offset: The row, as for `remote_load`.
        t: Tensor of the buffer's shape and dtype; later changes to it do not change the row.

    Raises:
        PopxlValueError: (a `ValueError`) as for `remote_load`, and if `t` does not match the buffer.
    """
    row = _offset_tensor(remote_buffer, offset, t=t)
    remote_buffer.validate_tensor_matches_buffer(t)
    REMOTE_STORE.emit({"t": t, "offset": row}, outputs=(), same_place=False, buffer=remote_buffer)


REMOTE_STORE = define("RemoteStore", remote_store, effect=Effect.REMOTE_STORE)


def _row_spec(buffer: RemoteBuffer) -> ShapeDtype:
    return ShapeDtype(buffer.tensor_shape, buffer.tensor_dtype)


def _offset_tensor(buffer: RemoteBuffer, offset: int | Tensor, **tensors: object) -> Tensor:
    """Check the buffer, the tensors and the offset, and return the offset as a tensor."""
    graph = get_current_graph()
    buffer.check_used_in(graph.ir)
    check_in_graph(graph, **tensors)
    if isinstance(offset, int):
        if not 0 <= offset < 1 << 32:  # it becomes a uint32
            fault = "negative" if offset < 0 else "too large"
            raise RemoteOffsetError(
                f"The offset {offset} into {buffer!r} is {fault}.", hint=f"use 0 <= offset < {buffer.entries}"
            )
        return constant(offset, dtypes.uint32, "offset")
    check_in_graph(graph, offset=offset)
    if not offset.dtype.is_int or offset.nelms != 1:
        raise PopxlValueError(
            f"The offset {offset!r} into {buffer!r} must be an integer tensor with one element.",
            hint="use a uint32 or int32 tensor of shape () or (1,)",
        )
    return offset
