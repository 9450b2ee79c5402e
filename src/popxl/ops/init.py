"""`init`: a tensor that is made while the program runs (spec ``ops-math.md`` §8.1)."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from popxl import dtypes
from popxl.errors import PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import define, sample
from popxl.ops._jax import lax
from popxl.tensor import Tensor


def init(
    shape: Iterable[int],
    dtype: dtypes.dtype,
    name: str | None = None,
    init_type: Literal["zero", "undef"] = "zero",
    meta_shape: Iterable[int] | None = None,
) -> Tensor:
    """Make a tensor in any graph, without inputs.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        name: Its name, ``"t"`` if not given.
        init_type: ``"zero"``: filled with zeros. ``"undef"``: unspecified, to be overwritten.
        meta_shape: The unsharded shape, if the tensor is a shard.

    Raises:
        PopxlValueError: (a `ValueError`) for another `init_type`, or a negative length.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.init((2, 3), popxl.float32, "x")
        Tensor[x popxl.dtypes.float32 (2, 3)]
    """
    if init_type not in ("zero", "undef"):
        raise PopxlValueError(f"Unknown init_type: {init_type}.", hint='use "zero" or "undef"')
    lengths = tuple(operator.index(n) for n in shape)
    if any(n < 0 for n in lengths):
        raise PopxlValueError(f"The shape {lengths} of `init` has a negative length.", hint="lengths are 0 or more")
    t = INIT.emit({}, name or "t", shape=lengths, dtype=dtypes.dtype.as_dtype(dtype), init_type=init_type)[0]
    if meta_shape is not None:
        t.meta_shape = tuple(operator.index(n) for n in meta_shape)
    return t


def _oracle(shape: Any, dtype: dtypes.dtype, *_hints: Any, **_more_hints: Any) -> Any:
    result = np.empty(shape, dtype.storage)
    result[...] = 0
    return result


def _rule(*, shape: tuple[int, ...], dtype: dtypes.dtype, **_hints: Any) -> ShapeDtype:
    return ShapeDtype(shape, dtype)


# Undefined contents are zeros too: a program that reads them gets the same answer every time.
def _lower_init(*, shape: tuple[int, ...], dtype: dtypes.dtype, **_hints: Any) -> Any:
    return lax.full(shape, 0, dtype.storage)


def _host_init(*, shape: tuple[int, ...], dtype: dtypes.dtype, **_hints: Any) -> Any:
    return np.zeros(shape, dtype.storage)


INIT = define(
    "Init",
    init,
    lower=_lower_init,
    rule=_rule,
    oracle=_oracle,
    samples=lambda: (
        sample((2, 3), dtypes.float32, tolerance=0),
        sample([4], dtypes.float16, "x", tolerance=0),
        sample((), dtypes.int32, tolerance=0),
        sample((0, 2), dtypes.bool, init_type="zero", tolerance=0),
    ),
    gradient=None,
    host=_host_init,
    differences="with `undef` the contents are zeros",
)
