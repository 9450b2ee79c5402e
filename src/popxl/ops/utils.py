"""Checks that ops share; other people's ops use them too (spec ``core.md`` §9)."""

from __future__ import annotations

import math
from numbers import Real

from popxl import dtypes
from popxl.errors import CoreError, PopxlError, PopxlTypeError, PopxlValueError, UndefinedValue
from popxl.graph import Graph, check_in_current_graph
from popxl.op import ShapeDtype
from popxl.tensor import Tensor


def check_in_graph(graph: Graph, *positional: object, **tensors: object) -> None:
    """Check that each named argument is a tensor of `graph`.

    Raises:
        PopxlTypeError: (a `TypeError`) if one is not a tensor.
        PopxlValueError: (a `ValueError`) if one belongs to another graph.
    """
    _no_positional(positional)
    check_in_current_graph(graph, **tensors)


def check_tensor_ipu_and_tile_set(*positional: object, **tensors: Tensor) -> None:
    """Check that the named tensors, as far as they are placed, are on one IPU and one tile set.

    Raises:
        PopxlValueError: (a `ValueError`) naming the first placed tensor and the first that differs.
    """
    _no_positional(positional)
    first: tuple[str, int, str] | None = None
    for name, t in tensors.items():
        try:
            ipu, tile_set = t.ipu, t.tile_set
        except UndefinedValue:
            continue
        if first is None:
            first = (name, ipu, tile_set)
        elif ipu != first[1]:
            raise PopxlValueError(
                f"The input tensors `{first[0]}` and `{name}` are located on different IPUs: {first[1]} != {ipu}.",
                hint="copy one of them with popxl.ops.ipu_copy",
            )
        elif tile_set != first[2]:
            raise PopxlValueError(
                f"The input tensors `{first[0]}` and `{name}` are located on different tile sets: "
                f"{first[2]} != {tile_set}.",
                hint="copy one of them with popxl.ops.io_tile_copy",
            )


def _no_positional(positional: tuple[object, ...]) -> None:
    if positional:
        raise PopxlError("Pass the tensors by name.", hint="write check_in_graph(graph, t=t)")


def cast_if_needed(t: Tensor, dtype: dtypes.dtype) -> Tensor:
    """Return `t`, cast to `dtype` if it has another one."""
    from popxl.ops import cast

    return t if t.dtype == dtype else cast(t, dtype)


def handle_negative_axis(t: Tensor, axis: int) -> int:
    """Return `axis`, counted from the front."""
    return axis + t.rank if axis < 0 else axis


def checked_memory_hint(available_memory_proportion: object) -> float | None:
    """Return the hint as a float; it is kept on the op and has no effect.

    Raises:
        PopxlTypeError: (a `TypeError`) if it is neither a number nor None.
    """
    if available_memory_proportion is None:
        return None
    if not isinstance(available_memory_proportion, Real):
        raise PopxlTypeError(
            f"available_memory_proportion is {available_memory_proportion!r}, which is no number.",
            hint="pass a number between 0 and 1, or None: it has no effect here",
        )
    return float(available_memory_proportion)


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that `shapes` broadcast to by NumPy's rule; a dimension of 0 never stretches.

    Raises:
        CoreError: (a `RuntimeError`) if they do not fit.
    """
    rank = max(len(s) for s in shapes)
    result: list[int] = []
    for dims in zip(*((1,) * (rank - len(s)) + s for s in shapes), strict=True):
        sizes = set(dims) - {1}
        if len(sizes) > 1 or (0 in sizes and 1 in dims):
            frames = " and ".join(str(list(s)) for s in shapes)
            raise CoreError(
                f"np broadcasting failed, frames {frames} are not aligned.",
                hint="each pair of dimensions, from the right, must be equal or have a 1",
            )
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def same_dtype(*specs: ShapeDtype) -> dtypes.dtype:
    """Return the one dtype of `specs`.

    Raises:
        CoreError: (a `RuntimeError`) if they differ; there is no implicit promotion.
    """
    if any(s.dtype != specs[0].dtype for s in specs):
        names = ", ".join(s.dtype.name for s in specs)
        raise CoreError(
            f"np broadcasting failed, incompatible types {names}.", hint="cast one operand with popxl.ops.cast"
        )
    return specs[0].dtype


def element_count(shape: tuple[int, ...]) -> int:
    """Return the number of elements of a shape."""
    return math.prod(shape)
