"""Counting in a circle (spec ``ops-math.md`` §3)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlValueError
from popxl.ops._define import NUMBERS, define, define_inplace, sample
from popxl.ops._jax import jnp, lax
from popxl.ops._rules import same
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


def increment_mod(t: Tensor, increment: float, modulus: float) -> Tensor:
    """Increment and take the remainder, ``rem(t + increment, modulus)``; it has the sign of the dividend, as in C.

    Args:
        t: Any number dtype.
        increment: Added first. For integer tensors it is truncated to the tensor's dtype, as is `modulus`.
        modulus: Divisor.

    Raises:
        CoreError: (a `RuntimeError`) if the dtype is no number.
        PopxlValueError: (a `ValueError`) if the tensor has integers and one of the numbers is not finite, or the
            modulus becomes 0.

    Example:
        The dividend of -7 is negative, so the remainder is -2, not 3.

        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.increment_mod(popxl.constant([-8]), 1, 5).dtype
        popxl.dtypes.int32
    """
    _check(t, increment, modulus)
    return INCREMENT_MOD.emit({"t": t}, "increment_mod_out", increment=increment, modulus=modulus)[0]


def _check(t: Tensor, increment: float, modulus: float) -> None:
    check_in_graph(get_current_graph(), t=t)
    if t.dtype not in NUMBERS:
        raise CoreError(
            f"Unsupported DataType {t.dtype} of `t` ({t.id}) for increment_mod.",
            hint=f"cast it first; supported: {', '.join(d.name for d in NUMBERS)}",
        )
    if not t.dtype.is_int:
        return
    if not (math.isfinite(increment) and math.isfinite(modulus)):
        raise PopxlValueError(
            f"increment_mod of the integer tensor {t.id} by increment {increment}, modulus {modulus}.",
            hint="pass finite numbers",
        )
    if not _as(t.dtype.storage, modulus):
        raise PopxlValueError(
            f"The modulus {modulus} of increment_mod is 0 as {t.dtype.name}, the dtype of {t.id}.",
            hint="pass a modulus of at least 1",
        )


def _as(dtype: Any, value: float) -> Any:
    """The number as a NumPy scalar of `dtype`: for integers truncated, then wrapped around, as a C cast does."""
    if np.dtype(dtype).kind in "iu":
        return np.array(int(value) & 0xFFFF_FFFF_FFFF_FFFF, np.uint64).astype(dtype)
    return np.array(value).astype(dtype)


def _increment_mod(t: Any, increment: float, modulus: float) -> Any:
    return lax.rem(t + _as(t.dtype, increment), jnp.broadcast_to(_as(t.dtype, modulus), t.shape))


def _increment_mod_on_host(t: Any, increment: float, modulus: float) -> Any:
    dtype = np.asarray(t).dtype
    return np.fmod(t + _as(dtype, increment), _as(dtype, modulus))


INCREMENT_MOD = define(
    "IncrementMod",
    increment_mod,
    lower=_increment_mod,
    rule=same,
    dtypes=NUMBERS,
    oracle=_increment_mod_on_host,
    samples=lambda: (
        sample(np.array([-8, 3, 4, 9], np.int32), 1, 5, tolerance=0),
        sample(np.array([250, 3], np.uint8), 1.9, 7.5, tolerance=0),
        sample(np.array([5, 6], np.uint32), -1, 10, tolerance=0),
        sample(np.array([[1.0, -5.5, 2.5]], np.float32), 0.25, 2.0),
        sample(np.float16(2.5), 1.0, modulus=3.0, tolerance=1e-3),
        sample(np.zeros((0,), np.float32), 1.0, 3.0),
    ),
    gradient=None,
    host=_increment_mod_on_host,
    elementwise=True,
    differences="takes 64-bit dtypes; a modulus that becomes 0 is a `ValueError`",
)


def increment_mod_(t: Tensor, increment: float, modulus: float) -> Tensor:
    """Do `increment_mod` in place. Returns an alias of `t`."""
    _check(t, increment, modulus)
    return INCREMENT_MOD_.emit({"t": t}, "increment_mod_inplace_out", increment=increment, modulus=modulus)[0]


INCREMENT_MOD_ = define_inplace("IncrementModInplace", increment_mod_, INCREMENT_MOD)
