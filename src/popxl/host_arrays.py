"""The host's arrays for streams and variables, and their validation (spec ``session.md`` §2.4, §3). Arithmetic only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from popxl.errors import CoreError, PopxlNotImplementedError, PopxlTypeError, PopxlValueError
from popxl.ir import Ir
from popxl.streams import Stream
from popxl.tensor import Constant, Variable
from popxl.utils import to_numpy

HostArray = np.ndarray[Any, Any]


def extra_dims(ir: Ir) -> tuple[int, ...]:
    """Return the dimensions in front of a stream's shape: transfers per run if several, then replicas if several."""
    transfers, replicas = ir.num_host_transfers, ir.instance_replication_factor
    return (*((transfers,) if transfers > 1 else ()), *((replicas,) if replicas > 1 else ()))


def full_shape(ir: Ir, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the host's array for a stream of items of shape `shape`."""
    return (*extra_dims(ir), *shape)


def check_streams(given: Mapping[Any, Any], expected: set[Any], kind: str) -> None:
    """Check that exactly the `expected` streams are `given`. `kind` is ``"input"`` or ``"output"``."""
    if set(given) == expected:
        return
    unexpected, missing = set(given) - expected, expected - set(given)
    raise PopxlValueError(
        f"Unexpected/Missing {kind}. Unexpected: {sorted(map(str, unexpected))}. Missing: {sorted(map(str, missing))}.",
        hint=f"give one array per stream that the program {'loads' if kind == 'input' else 'stores'}",
    )


def check_array(ir: Ir, stream: Stream, array: HostArray) -> None:
    """Check the shape of the host's array for a stream."""
    transfers, replicas = ir.num_host_transfers, ir.instance_replication_factor
    extra = extra_dims(ir)
    shape = array.shape
    if transfers > 1 and (not shape or shape[0] < transfers):
        raise PopxlValueError(
            f"The array for {stream} is not large enough: it has shape {shape}, and the program makes {transfers} "
            "transfers per run (ir.num_host_transfers).",
            hint=f"pass an array of shape {full_shape(ir, stream.shape)}",
        )
    axis = len(extra) - 1
    if replicas > 1 and (len(shape) <= axis or shape[axis] != replicas):
        raise PopxlValueError(
            f"The replica dimension of the array for {stream} is the wrong size: axis {axis} of shape {shape} must be "
            f"{replicas}.",
            hint=f"pass an array of shape {full_shape(ir, stream.shape)}",
        )
    rest = shape[len(extra) :]
    # Dimensions of 1 may differ, as in the reference, for items of one element.
    if rest != stream.shape and not (np.prod(rest) == 1 and np.prod(stream.shape) == 1):
        raise PopxlValueError(
            f"Shape mismatch for {stream}: the array has shape {shape}, expected {full_shape(ir, stream.shape)}.",
            hint="the dimensions after the transfers and the replicas must be the stream's shape",
        )


def check_dtype(stream: Stream, array: HostArray) -> HostArray:
    """Return the array in the stream's dtype. Only int64 is converted, to int32."""
    wanted = stream.dtype.as_numpy()
    if array.dtype == wanted:
        return array
    if array.dtype == np.int64 and wanted == np.int32:
        return array.astype(np.int32)
    raise PopxlTypeError(
        f"Type discrepancy for tensor {stream.tensor_id}: the array has dtype {array.dtype}, the stream {wanted}.",
        hint=f"pass array.astype({wanted.name!r})" if wanted.names is None else "convert it with popxl.utils.to_numpy",
    )


def check_fillable(stream: Stream, array: HostArray) -> None:
    """Check that `run` can fill the array, one for an output stream, in place."""
    hint = "use the arrays of session.create_host_outputs()"
    if not isinstance(array, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PopxlTypeError(f"The output for {stream} is a {type(array).__name__}, not an array.", hint=hint)
    wanted = stream.dtype.as_numpy()
    if array.dtype != wanted:
        raise PopxlTypeError(
            f"Type discrepancy for tensor {stream.tensor_id}: the output array has dtype {array.dtype}, the stream "
            f"{wanted}.",
            hint=hint,
        )
    if not (array.flags.c_contiguous and array.flags.writeable):
        fault = "read-only" if array.flags.c_contiguous else "not C-contiguous"
        raise CoreError(f"The output array for {stream} is {fault}, so it cannot be filled.", hint=hint)


def as_items(ir: Ir, stream: Stream, array: HostArray) -> HostArray:
    """Return a view of the array with one item per execution in front, in the device's dtype.

    With several replicas in the job an item has those of this process in front, also if that is one.
    """
    count = ir.num_host_transfers
    array = array[:count] if count > 1 else array
    replicas = () if ir.replication_factor == 1 else (ir.instance_replication_factor,)
    return array.reshape(count, *replicas, *stream.shape).view(stream.dtype.storage)


def check_variable_data(t: object, data: object) -> HostArray:
    """Return the data for a variable as an array, a number as one of the variable's dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) for a tensor that is no variable, and for another dtype.
        PopxlValueError: (a `ValueError`) for another shape, or a read-only memory map.
        PopxlNotImplementedError: (a `NotImplementedError`) for a variable that the host reads for each replica.
    """
    if not isinstance(t, Variable):
        raise PopxlTypeError(
            f"Tensor {getattr(t, 'id', t)} is not of type Variable. Type: {type(t).__name__}.",
            hint="only variables can be written",
        )
    if t.gives_each_replica:
        raise PopxlNotImplementedError(
            f"Cannot write {t!r}: its host value has one value for each replica, not for each group.",
            hint='create it with retrieval_mode="one_per_group"',
        )
    wanted = t.dtype.as_numpy()
    if isinstance(data, bool | int | float | np.generic) and wanted.names is None:
        data = to_numpy(np.asarray(data), t.dtype)
    array = cast("HostArray", data)
    if not isinstance(data, np.ndarray) or array.dtype != wanted:
        raise PopxlTypeError(
            f"The data for {t!r} have dtype {getattr(array, 'dtype', type(array))}, not {wanted}.",
            hint="convert them first; variables are never cast",
        )
    if array.shape != t.shape_on_host:
        raise PopxlValueError(
            f"The data for {t!r} have shape {array.shape}, not {t.shape_on_host}.", hint="reshape them first"
        )
    if t.memory_map is not None and not t.memory_map.flags.writeable:
        raise PopxlValueError(
            f"Cannot write {t!r}: the memory map that holds it is read-only.", hint='open it with mode "r+" or "c"'
        )
    return array


def given_out(t: Variable | Constant) -> HostArray:
    """The host's value of a tensor, for the user: a view of it, but a memory map itself."""
    value = t.host_value
    if isinstance(t, Variable) and t.gives_each_replica:
        if t.replica_values is not None:
            return t.replica_values
        groups = value if t.replica_grouping.num_groups > 1 else value[np.newaxis]
        return groups[t.replica_grouping.assignment]
    return value if isinstance(value, np.memmap) else value.view()
