"""Host data as NumPy arrays, and tables as text. Follows tensors-dtypes.md section 2 and core.md section 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from popxl.dtypes import dtype, float8_143, float8_152, np_dtype_float8_143, np_dtype_float8_152
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError
from popxl.fp8_utils import float_np_dtypes, host_pow2scale_cast_to_fp8
from popxl.typing_ import HostScalarTensor, is_torch_tensor

__all__ = [
    "downcast_np_dtypes",
    "host_pow2scale_cast_to_fp8",
    "np_dtype_float8_143",
    "np_dtype_float8_152",
    "table_to_string",
    "to_numpy",
]

downcast_np_dtypes: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.int64): np.dtype(np.int32),
    np.dtype(np.uint64): np.dtype(np.uint32),
    np.dtype(np.float64): np.dtype(np.float32),
}
"""What 64-bit host data without an explicit type becomes."""


def to_numpy(
    x: HostScalarTensor,
    dtype: dtype | None = None,
    downcast: bool = True,
    copy: bool = True,
    log2_scale: int | None = None,
    nan_on_overflow: bool | None = None,
) -> npt.NDArray[Any]:
    """Host data as an array of a tensor type.

    Args:
        x: A number, an array, a torch tensor or an iterable of numbers, of any shape.
        dtype: Type of the result; what it cannot hold is truncated silently. None lets NumPy choose.
        downcast: Without ``dtype``, whether int64, uint64 and float64 become their 32-bit types.
        copy: Whether the result must not share memory with ``x``. False shares it if nothing is converted.
        log2_scale: For float8 only: the data is multiplied by ``2**log2_scale``, in [-32, 32). None means 0.
        nan_on_overflow: For float8 only: whether numbers out of range become NaN or the largest number. None
            means True.

    Returns:
        A C-contiguous array with the shape of ``x``; float8 as codes of the type ``dtype.as_numpy()``, which
        are used as they are if ``x`` holds them already. With ``copy=False`` a memory-mapped array is itself
        the result.

    Raises:
        PopxlValueError: There is no tensor type for ``x``, or a memory-mapped ``x`` would need a conversion.
        PopxlTypeError: ``dtype`` is float8 and ``x`` is neither floating point nor codes of that type.
        CoreError: ``log2_scale`` or ``nan_on_overflow`` without float8. It is a ``RuntimeError``.

    Example:
        >>> to_numpy([1, 2]).dtype, to_numpy(1.0).dtype
        (dtype('int32'), dtype('float32'))
    """
    array = _read(x)
    is_float8 = dtype in (float8_143, float8_152)
    if not is_float8 and (log2_scale is not None or nan_on_overflow is not None):
        raise CoreError(
            f"log2_scale={log2_scale} and nan_on_overflow={nan_on_overflow} are for float8 types, not for {dtype!r}.",
            hint="leave them out, or use dtype=popxl.float8_143 or popxl.float8_152",
        )
    if isinstance(array, np.memmap):
        memmap = cast("np.memmap[Any, Any]", array)
        _check_memmap(memmap, dtype)
        return np.array(memmap) if copy else memmap
    if dtype is not None and is_float8 and array.dtype != dtype.as_numpy():
        return _cast_to_float8(array, dtype, log2_scale or 0, nan_on_overflow is not False)
    target = _inferred_type(x, array, downcast) if dtype is None else dtype.as_numpy()
    # Narrowing is silent by definition: 1.7 to int32 is 1, and 1e300 to float32 is infinite.
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            return array.astype(target, order="C", copy=copy, subok=False)
        except (TypeError, ValueError, OverflowError) as error:
            raise PopxlValueError(
                f"Cannot convert {type(x).__name__} with NumPy type {array.dtype} to {target}: {error}",
                hint="pass a number, an array or an iterable of numbers",
            ) from error


def _read(x: Any) -> npt.NDArray[Any]:
    """``x`` as an array, without a copy where it is one already."""
    if isinstance(x, np.ndarray):
        return cast("npt.NDArray[Any]", x)
    if is_torch_tensor(x):
        return np.asarray(x.detach().numpy())
    if isinstance(getattr(x, "dtype", None), dtype):
        raise PopxlTypeError(f"{x!r} is a tensor of a graph and has no host data.", hint="read it with Session.run")
    if _is_lazy(x):
        x = list(cast("Iterable[Any]", x))
    try:
        return np.asarray(x)
    except ValueError as error:
        raise PopxlValueError(
            f"Cannot make an array of {type(x).__name__}: {error}", hint="give all rows the same length"
        ) from error


def _is_lazy(x: object) -> bool:
    """Whether ``x`` is an iterable that NumPy would take for one object, such as a generator."""
    return not hasattr(x, "__array__") and isinstance(x, Iterable) and not isinstance(x, (Sequence, Mapping))


def _check_memmap(array: np.memmap[Any, Any], kind: dtype | None) -> None:
    """A memory-mapped array is used in place, so nothing about it may need a conversion."""
    start = "When passing a memory-mapped NumPy array,"
    if kind is not None and kind.as_numpy() != array.dtype:
        raise PopxlValueError(
            f"{start} the `dtype` parameter must be that of the array: got {kind!r}, the array has {array.dtype}.",
            hint="leave dtype out, or map the file with that type",
        )
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise PopxlValueError(
            f"{start} it must already be in C-ordered and aligned memory; got strides {array.strides} "
            f"for shape {array.shape} and aligned={array.flags.aligned}.",
            hint="pass np.array(x), which copies it into memory",
        )
    if array.dtype in downcast_np_dtypes:
        raise PopxlValueError(
            f"{start} the dtype {kind!r} is not supported, as it requires downcasting the array "
            f"from {array.dtype} to {downcast_np_dtypes[array.dtype]}.",
            hint=f"store the file as {downcast_np_dtypes[array.dtype]}",
        )
    dtype.as_dtype(array.dtype)


def _cast_to_float8(array: npt.NDArray[Any], kind: dtype, log2_scale: int, nan_on_overflow: bool) -> npt.NDArray[Any]:
    if array.dtype not in float_np_dtypes:
        raise PopxlTypeError(
            f"Cannot cast data of NumPy type {array.dtype} to {kind!r}.",
            hint="pass float16, float32 or float64 data, such as 1.0 for 1",
        )
    return host_pow2scale_cast_to_fp8(array, kind, log2_scale, nan_on_overflow)


def _inferred_type(x: object, array: npt.NDArray[Any], downcast: bool) -> np.dtype[Any]:
    """The NumPy type of the result when none is asked for."""
    if not array.size and not hasattr(x, "dtype"):
        raise PopxlValueError(
            f"There is no dtype to infer from {x!r}, which holds no number.", hint="give one, as in dtype=popxl.float32"
        )
    inferred = dtype.as_dtype(array.dtype).as_numpy()
    return downcast_np_dtypes.get(inferred, inferred) if downcast else inferred


def table_to_string(rows: Sequence[Sequence[Any]], delimiter: str = " | ", header: bool = True) -> str:
    """Rows as text with aligned columns.

    Args:
        rows: Rows of equally many cells; each cell is printed with ``str``.
        delimiter: Text between two cells.
        header: Whether a line of dashes follows the first row, if there are more.

    Returns:
        One line per row, each with its newline.

    Example:
        >>> print(table_to_string([["op", "n"], ["matmul", 2]]), end="")
        op     | n
        -----------
        matmul | 2
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [delimiter.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + "\n" for row in cells]
    if header and len(lines) > 1:
        lines.insert(1, "-" * len(lines[0]) + "\n")
    return "".join(lines)
