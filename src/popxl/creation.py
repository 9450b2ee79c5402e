"""Creating constants and variables, on the device or in Streaming Memory (spec ``tensors-dtypes.md`` §6)."""

from __future__ import annotations

import logging
from typing import Any, cast

import numpy as np

from popxl import dtypes
from popxl.context import _execution_context, get_current_graph, no_name_scopes  # pyright: ignore[reportPrivateUsage]
from popxl.errors import PopxlTypeError, PopxlValueError
from popxl.lazy_data import LazyData, checked_source, lazy_source
from popxl.remote_buffer import RemoteBuffer, replica_sharded_buffer
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Constant, RetrievalMode, Tensor, Variable
from popxl.tensorlocation import ExecutionContext, LocationInfo
from popxl.typing_ import HostScalarTensor
from popxl.utils import to_numpy

__all__ = [
    "constant",
    "remote_replica_sharded_variable",
    "remote_variable",
    "replica_sharded_buffer",
    "replica_sharded_variable",
    "variable",
]

_log = logging.getLogger("popxl")


def constant(
    data: HostScalarTensor,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> Constant:
    """Create a tensor with a fixed value in the current graph.

    Args:
        data: The value; it is copied.
        dtype: Dtype; inferred if not given.
        name: Name, ``"t"`` if not given.
        downcast: Whether inferred 64-bit types become 32-bit ones.
        log2_scale: For float8 dtypes: the data are multiplied by ``2**log2_scale`` first.
        nan_on_overflow: For float8 dtypes: whether overflow gives NaN or the largest number.

    Raises:
        PopxlTypeError: (a `TypeError`) for float8 data without a dtype.

    Example:
        >>> import popxl
        >>> with popxl.Ir().main_graph:
        ...     popxl.constant([1, 2, 3])
        Constant[t popxl.dtypes.int32 (3,)]
    """
    if dtype is None and getattr(data, "dtype", None) in (
        dtypes.np_dtype_float8_143,
        dtypes.np_dtype_float8_152,
    ):
        raise PopxlTypeError("Float8 data need a dtype.", hint="pass dtype=popxl.float8_143 or dtype=popxl.float8_152")
    graph = get_current_graph()
    graph.ir.check_open()
    value = to_numpy(data, dtype, downcast, True, log2_scale, nan_on_overflow)
    t = Constant._create(graph, name or "t", value.shape, dtypes.dtype.as_dtype(value.dtype))  # pyright: ignore[reportPrivateUsage]
    value.flags.writeable = False
    t.host_value = value
    return t


def variable(
    data: HostScalarTensor,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    retrieval_mode: RetrievalMode | None = None,
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> Variable:
    """Create a tensor on the device whose value persists between runs.

    Args:
        data: The initial value: the shape on a replica, with the group axis in front if there is more than
            one group. It is copied, unless it is a `numpy.memmap`, which then stays the host's storage.
        dtype: Dtype; inferred if not given.
        name: Name, ``"t"`` if not given.
        downcast: Whether inferred 64-bit types become 32-bit ones.
        replica_grouping: Replicas that share a value; all of them if not given.
        retrieval_mode: What the host reads: ``"one_per_group"`` (default) or ``"all_replicas"``.
        log2_scale: For float8 dtypes: the data are multiplied by ``2**log2_scale`` first.
        nan_on_overflow: For float8 dtypes: whether overflow gives NaN or the largest number.

    Raises:
        PopxlValueError: (a `ValueError`) outside the main graph, for an unknown retrieval mode, for data
            without the group axis.

    Example:
        >>> import popxl
        >>> with popxl.Ir().main_graph:
        ...     popxl.variable([1.0, 2.0], name="w")
        Variable[w popxl.dtypes.float32 (2,)]
    """
    location = LocationInfo()
    value = _host_value(data, dtype, downcast, log2_scale, nan_on_overflow)
    return _create_variable(value, name, replica_grouping, retrieval_mode, location)


def remote_variable(
    data: HostScalarTensor | LazyData,
    remote_buffer: RemoteBuffer,
    offset: int = 0,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    retrieval_mode: RetrievalMode | None = "one_per_group",
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> Variable:
    """Create a variable that lives in row `offset` of a remote buffer (spec ``remote-memory.md`` §5).

    The tensor is for the host's access only; a program gets the value with `popxl.ops.remote_load`.
    Shape, dtype and offset are compared with the buffer when a session is made, so that the buffer may
    still grow.

    A value that need not be in memory all the time, since the model is larger than that, can be *lazy*: a function
    without arguments that returns it, called whenever the value is uploaded, or a slice of a file, such as
    ``safetensors.safe_open(path, "numpy").get_slice(name)``.

    Args:
        data: The initial value, as for `variable`; or lazy, and then of the row's shape, with the group axis in front
            if there is more than one group. Lazy values are never cast.
        remote_buffer: The buffer.
        offset: The row.
        dtype: As for `variable`.
        name: As for `variable`.
        downcast: As for `variable`.
        replica_grouping: As for `variable`.
        retrieval_mode: As for `variable`.
        log2_scale: As for `variable`.
        nan_on_overflow: As for `variable`.

    Raises:
        PopxlValueError: (a `ValueError`) as for `variable`, and for a negative `offset` or a buffer of
            another IR.

    Example:
        >>> import popxl
        >>> with popxl.Ir().main_graph:
        ...     buffer = popxl.remote_buffer((2,), popxl.float32, entries=2)
        ...     w = popxl.remote_variable([1.0, 2.0], buffer, 1)
        ...     v = popxl.remote_variable(lambda: np.zeros(2, np.float32), buffer, 0)
        >>> w.location_info.isRemote(), w.location_info.getRemoteBufferInfo()
        (True, (1, 1))
        >>> v.is_lazy, v.host_value
        (True, array([0., 0.], dtype=float32))
    """
    location = _remote_location(remote_buffer, offset, sharded=False)
    source = lazy_source(data)
    if source is None:
        value = _host_value(cast("HostScalarTensor", data), dtype, downcast, log2_scale, nan_on_overflow)
        return _create_variable(value, name, replica_grouping, retrieval_mode, location)
    groups = _grouping(replica_grouping).num_groups
    shape = (groups, *remote_buffer.tensor_shape) if groups > 1 else remote_buffer.tensor_shape
    wanted = (remote_buffer.tensor_dtype if dtype is None else dtype).as_numpy()
    # A stand-in without memory, for the checks that look at shape and dtype.
    stand_in = np.broadcast_to(np.zeros((), wanted), shape)
    v = _create_variable(stand_in, name, replica_grouping, retrieval_mode, location)
    v.host_value = checked_source(source, shape, wanted, v.id)
    return v


def remote_replica_sharded_variable(
    data: HostScalarTensor,
    remote_buffer: RemoteBuffer,
    offset: int = 0,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    retrieval_mode: RetrievalMode | None = "one_per_group",
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> Variable:
    """Create a variable that lives in row `offset` of a remote buffer, sharded over replicas.

    See spec ``remote-memory.md`` §6.3. The arguments are those of `remote_variable`.

    Raises:
        PopxlValueError: (a `ValueError`) as for `remote_variable`, with fewer than two replicas, and if the
            buffer already holds shards of another shape.
    """
    _check_replicated()
    location = _remote_location(remote_buffer, offset, sharded=True)
    value = _host_value(data, dtype, downcast, log2_scale, nan_on_overflow)
    meta_shape = value.shape[1:] if _grouping(replica_grouping).num_groups > 1 else value.shape
    if remote_buffer.meta_shape == ():
        remote_buffer.meta_shape = meta_shape
    elif remote_buffer.meta_shape != meta_shape:
        raise PopxlValueError(
            f"Cannot use RemoteBuffer[id={remote_buffer.remote_buffer_id}] for shards of shape {meta_shape}: "
            f"it holds shards of shape {remote_buffer.meta_shape}.",
            hint="give each full shape a buffer of its own",
        )
    return _create_variable(value, name, replica_grouping, retrieval_mode, location)


def replica_sharded_variable(
    data: HostScalarTensor,
    dtype: dtypes.dtype | None = None,
    name: str | None = None,
    downcast: bool = True,
    replica_grouping: ReplicaGrouping | None = None,
    shard_over: int | None = None,
    retrieval_mode: RetrievalMode | None = "one_per_group",
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> tuple[Variable, Tensor]:
    """Create a variable that is sharded over replicas on the device (spec ``remote-memory.md`` §6.4).

    Returns:
        The variable, for the host's access, and the shard, shape ``(ceil(n / shard_over),)``.

    Raises:
        PopxlValueError: (a `ValueError`) as for `remote_replica_sharded_variable`.
    """
    from popxl import ops

    _check_replicated()
    value = _host_value(data, dtype, downcast, log2_scale, nan_on_overflow)
    value_dtype = dtypes.dtype.as_dtype(value.dtype)
    buffer = replica_sharded_buffer(value.shape, value_dtype, replica_grouping, shard_over)
    var = remote_replica_sharded_variable(
        value, buffer, 0, value_dtype, name, downcast, replica_grouping, retrieval_mode
    )
    # The name of the variable has the scopes in front already.
    with no_name_scopes(), _execution_context(ExecutionContext.WeightsFromHostFragment):
        shard = ops.remote_load(buffer, 0, f"{var.name}_rts")
    with _execution_context(ExecutionContext.WeightsToHostFragment):
        ops.remote_store(buffer, 0, shard)
    return var, shard


def _host_value(
    data: HostScalarTensor,
    dtype: dtypes.dtype | None,
    downcast: bool,
    log2_scale: int | None,
    nan_on_overflow: bool | None,
) -> np.ndarray[Any, Any]:
    """Return the data of a variable as an array: a copy, but a memory map stays the host's storage."""
    return to_numpy(data, dtype, downcast, not isinstance(data, np.memmap), log2_scale, nan_on_overflow)


def _create_variable(
    value: np.ndarray[Any, Any],
    name: str | None,
    replica_grouping: ReplicaGrouping | None,
    retrieval_mode: RetrievalMode | None,
    location: LocationInfo,
) -> Variable:
    graph = get_current_graph()
    graph.ir.check_open()
    if graph != graph.ir.main_graph:
        raise PopxlValueError(
            f"You cannot initialise a variable tensor within a graph. The current graph is `{graph.name}`.",
            hint="create it in `with ir.main_graph:` and pass it into the graph as an input",
        )
    mode = "one_per_group" if retrieval_mode is None else retrieval_mode
    if mode not in ("one_per_group", "all_replicas"):
        raise PopxlValueError(
            f"Invalid retrieval_mode: {retrieval_mode!r}.", hint='use "one_per_group" or "all_replicas"'
        )
    grouping = _grouping(replica_grouping)
    if grouping.num_groups > 1 and value.shape[:1] != (grouping.num_groups,):
        raise PopxlValueError(
            f"The data of a variable with {grouping.num_groups} replica groups must have shape "
            f"({grouping.num_groups}, ...), not {value.shape}.",
            hint="stack one value per group on axis 0",
        )
    if isinstance(value, np.memmap) and not grouping.is_const:
        _log.warning(
            "For variable %s you have passed np.memmap data and a non-const replica grouping: the data are copied, "
            "and the file does not follow the variable.",
            name or "t",
        )
        value = np.array(value)
    shape = value.shape[1:] if grouping.num_groups > 1 else value.shape
    t = Variable._create(graph, name or "t", shape, dtypes.dtype.as_dtype(value.dtype))  # pyright: ignore[reportPrivateUsage]
    t.host_value = value
    t._grouping = grouping  # pyright: ignore[reportPrivateUsage]
    t._retrieval_mode = mode  # pyright: ignore[reportPrivateUsage]
    t._location = location  # pyright: ignore[reportPrivateUsage]
    t._in_sync = True  # pyright: ignore[reportPrivateUsage]
    return t


def _grouping(replica_grouping: ReplicaGrouping | None) -> ReplicaGrouping:
    ir = get_current_graph().ir
    default = ir.replica_grouping()
    if replica_grouping is None:
        return default
    if len(replica_grouping.assignment) != len(default.assignment) or not replica_grouping.belongs_to(ir):
        raise PopxlValueError(
            f"{replica_grouping!r} belongs to another Ir, or to another replication factor than "
            f"{ir.replication_factor}.",
            hint="make it with ir.replica_grouping(...) after setting ir.replication_factor",
        )
    return replica_grouping


def _remote_location(buffer: RemoteBuffer, offset: int, *, sharded: bool) -> LocationInfo:
    buffer.check_used_in(get_current_graph().ir)
    if offset < 0:
        raise PopxlValueError(
            f"The offset {offset} into {buffer!r} is negative.", hint=f"use 0 <= offset < {buffer.entries}"
        )
    return LocationInfo(remote=True, sharded=sharded, buffer=(buffer.remote_buffer_id, offset))


def _check_replicated() -> None:
    ir = get_current_graph().ir
    if ir.replication_factor <= 1:
        raise PopxlValueError(
            f"Sharding needs a replication factor greater than 1. It is {ir.replication_factor}.",
            hint="set ir.replication_factor, or use popxl.remote_variable",
        )
