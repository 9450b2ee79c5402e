"""Casts between dtypes (spec ``ops-math.md`` §7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import PopxlTypeError
from popxl.op import ShapeDtype
from popxl.ops._define import NUMBERS, Sample, define, sample
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

_CASTABLE = (*NUMBERS, dtypes.bool)


def cast(t: Tensor, data_type: dtypes.dtype) -> Tensor:
    """Cast elementwise to another dtype (or the same: that is still an op).

    Floats are rounded to nearest, ties to even; what is too large for float16 becomes infinite. From float to
    integer, fractions are cut off; values outside the range give unspecified numbers. To bool, everything but
    0 is true. The gradient, of floats cast to floats, is cast back.

    Args:
        t: Any number dtype, or bool.
        data_type: Any number dtype, or bool.

    Returns:
        A tensor of the same shape, named ``"<name of t>_<dtype>"``.

    Raises:
        PopxlTypeError: (a `TypeError`) if `data_type` is float8 or complex.
        CoreError: (a `RuntimeError`) if `t` is float8.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.cast(popxl.constant(1.5, name="x"), popxl.float16)
        Tensor[x_float16 popxl.dtypes.float16 ()]
    """
    data_type = dtypes.dtype.as_dtype(data_type)
    if data_type not in _CASTABLE:
        raise PopxlTypeError(
            f"Data type {data_type} not supported for popxl.ops.cast.",
            hint="use popxl.ops.pow2scale_cast_to_fp8 for float8; otherwise one of "
            f"{', '.join(d.name for d in _CASTABLE)}",
        )
    check_in_graph(get_current_graph(), t=t)
    return CAST.emit({"t": t}, f"{t.name}_{data_type.name}", data_type=data_type)[0]


def _rule(t: ShapeDtype, data_type: dtypes.dtype) -> ShapeDtype:
    return ShapeDtype(t.shape, data_type)


def _cast(t: Any, data_type: dtypes.dtype) -> Any:
    return t.astype(data_type.as_numpy())


def _oracle(t: Any, data_type: dtypes.dtype) -> Any:
    return np.asarray(t).astype(data_type.as_numpy())


def _samples() -> Sequence[Sample]:
    floats = np.array([[1.75, -1.75, 0.0], [100.5, -0.0, 2049.0]], np.float32)
    ints = np.array([-3, 0, 100], np.int32)
    numbers = [
        sample(floats, d, tolerance=0, smooth=False)
        for d in (dtypes.int32, dtypes.int16, dtypes.bool, dtypes.float16, dtypes.float32)
    ]
    # Ties of float16: 2049 to 2048, 2051 to 2052; 65520 is the first number that becomes infinite.
    ties = np.array([2049.0, 2051.0, 65519.0, 65520.0, -1e9, np.inf, np.nan], np.float32)
    # Rounding is no smooth function, so only casts that round nothing are compared with differences.
    return (
        *numbers,
        sample(ties, dtypes.float16, tolerance=0),
        sample(np.array([np.nan, np.inf, 1e-30, -0.0], np.float32), dtypes.bool, tolerance=0),
        sample(floats.astype(np.float16), dtypes.float32, tolerance=0, smooth=False),
        sample(floats.astype(np.float16), dtypes.float64, tolerance=0),
        sample(floats, dtypes.float64, tolerance=0),
        sample(np.array([3.9, 200.0], np.float32), dtypes.uint8, tolerance=0),
        sample(ints, dtypes.float16, tolerance=0),
        sample(ints, dtypes.int8, tolerance=0),
        sample(ints, dtypes.bool, tolerance=0),
        sample(np.array([True, False]), dtypes.float32, tolerance=0),
        sample(np.array([True, False]), dtypes.uint32, tolerance=0),
        sample(np.array([255, 256], np.uint32), dtypes.uint16, tolerance=0),
        sample(np.float64(0.1), dtypes.float32, tolerance=0, smooth=False),
        sample(np.zeros((0, 2), np.float32), dtypes.int32, tolerance=0),
    )


CAST = define(
    "Cast",
    cast,
    lower=_cast,
    rule=_rule,
    dtypes=_CASTABLE,
    oracle=_oracle,
    samples=_samples,
    host=_oracle,
    elementwise=True,
)
