"""Copies from one place of the machine to another (spec ``ops-nn.md`` §7.2). Here they only move the placement hint.

They have no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import PopxlValueError, UndefinedValue
from popxl.op import Op
from popxl.ops._define import Declaration, Sample, define, sample
from popxl.ops._rules import same
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


def _same_value(t: Any, **_attributes: Any) -> Any:
    return t


def _ipu_copy_oracle(t: Any, _destination: int, _source: int) -> Any:
    return t


def _samples(*args: Any) -> Sequence[Sample]:
    arrays = (
        np.array([[1.5, -0.0, np.inf, np.nan]], np.float32),
        np.array([1.5, 6e-8], np.float16),
        np.float64(0.1),
        np.array([True, False]),
        np.array([[-1, 2]], np.int16),
        np.array([0, 128, 255], np.uint8).view(dtypes.np_dtype_float8_143),
        np.zeros((0, 3), np.float32),
    )
    return tuple(sample(a, *args, tolerance=0) for a in arrays)


def _emit(declaration: Declaration, t: Tensor, name: str, **attributes: Any) -> tuple[Tensor, Op]:
    (copy,) = declaration.emit({"t": t}, name, **attributes)
    op = copy.producer
    assert op is not None
    return copy, op


def ipu_copy(t: Tensor, destination: int, source: int | None = None) -> Tensor:
    """Copy a tensor to another IPU. IPUs are a hint here: what changes is `Tensor.ipu`.

    Args:
        t: Any dtype.
        destination: The IPU of the copy.
        source: The IPU of `t`; if not given, that of the op which makes it.

    Returns:
        The copy, named ``"<name of t>_c<destination>"``.

    Raises:
        PopxlValueError: (a `ValueError`) if `source` is not given and no op makes `t`: it is a variable, a constant
            or an input of a graph.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     x = popxl.variable(1.0, name="x")
        ...     there = ops.ipu_copy(x, 1, source=0)
        >>> there, x.ipu, there.ipu
        (Tensor[x_c1 popxl.dtypes.float32 ()], 0, 1)
    """
    check_in_graph(get_current_graph(), t=t)
    if source is None:
        if t.producer is None:
            raise PopxlValueError(
                f"Could not infer the ipu for Tensor to be copied: no op makes {t.id}. Please specify `source`.",
                hint=f"popxl.ops.ipu_copy(t, {destination}, source=0)",
            )
        source = t.producer.ipu
    copy, op = _emit(IPU_COPY, t, f"{t.name}_c{destination}", destination=destination, source=source)
    op.ipu, op.source_place = destination, (source, op.tile_set)
    return copy


IPU_COPY = define(
    "IpuCopy",
    ipu_copy,
    lower=_same_value,
    rule=same,
    oracle=_ipu_copy_oracle,
    samples=lambda: _samples(1, 0),
    gradient=None,
    host=_same_value,
    elementwise=True,
    differences="has a gradient; gives a variable without a place its `source`",
)


def io_tile_copy(t: Tensor) -> Tensor:
    """Copy a tensor to the other tile set of its IPU. Tile sets are a hint here: what changes is `Tensor.tile_set`.

    Args:
        t: Any dtype.

    Returns:
        The copy, named ``"<name of t>_iotilecopy"``. Its tile set is the opposite of that of `t`. If nothing makes or
        uses `t` yet, the current context decides the tile set of the copy, and so that of `t`.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     x = ops.identity(popxl.variable(1.0), "x")
        ...     there = ops.io_tile_copy(x)
        >>> there, x.tile_set, there.tile_set
        (Tensor[x_iotilecopy popxl.dtypes.float32 ()], 'compute', 'io')
    """
    check_in_graph(get_current_graph(), t=t)
    try:
        place = (t.ipu, t.tile_set)
    except UndefinedValue:
        place = None
    copy, op = _emit(IO_TILE_COPY, t, f"{t.name}_iotilecopy")
    op.source_place = place or (op.ipu, _opposite(op.tile_set))
    op.ipu, op.tile_set = op.source_place[0], _opposite(op.source_place[1])
    return copy


def _opposite(tile_set: str) -> str:
    return "compute" if tile_set == "io" else "io"


IO_TILE_COPY = define(
    "IoTileCopy",
    io_tile_copy,
    lower=_same_value,
    rule=same,
    oracle=_same_value,
    samples=_samples,
    gradient=None,
    host=_same_value,
    elementwise=True,
    differences="has a gradient; of a tensor that is nowhere yet, the context places the copy",
)
