"""What float8 ops share: their scales, and float8 values on the device (spec ``ops-math.md`` §7, §9).

On the device float8 travels as its codes, bytes. JAX's fnuz types have the same codes and round as wanted: once, to
nearest even, with NaN for whatever is out of range.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError
from popxl.fp8_utils import host_pow2scale_cast_from_fp8
from popxl.ops._checks import check_in_range
from popxl.ops._define import FLOAT8
from popxl.ops._jax import jnp, lax
from popxl.ops.utils import check_in_graph
from popxl.tensor import Constant, Tensor

LOWEST_SCALE, SCALE_END = -32, 32
"""A log2 scale is at least the one, and less than the other."""

# Arguments


def check_log2_scale(log2_scale: Tensor, of: str) -> None:
    """Check what is known of a scale when the op is made.

    Args:
        log2_scale: The scale.
        of: The public function that it was passed to.

    Raises:
        PopxlTypeError: (a `TypeError`) if it is no tensor, or not int32.
        PopxlValueError: (a `ValueError`) if it is no scalar.
        CoreError: (a `RuntimeError`) if it is a constant out of range.
    """
    check_tensors(log2_scale=log2_scale)
    if log2_scale.rank:
        raise PopxlValueError(
            f"Log2 scale argument must be a scalar tensor: `log2_scale` ({log2_scale.id}) of popxl.ops.{of} has shape "
            f"{list(log2_scale.shape)}.",
            hint="make it with popxl.constant(0, popxl.int32), or reshape it to ()",
        )
    if log2_scale.dtype != dtypes.int32:
        raise PopxlTypeError(
            f"Log2 scale tensor must be of type popxl.int32: `log2_scale` ({log2_scale.id}) of popxl.ops.{of} is "
            f"{log2_scale.dtype.name}.",
            hint="make it with popxl.constant(0, popxl.int32), or cast it with popxl.ops.cast",
        )
    if isinstance(log2_scale, Constant):
        check_scale_when_run(log2_scale, of)


def check_scale_when_run(log2_scale: Tensor, of: str) -> None:
    """Let the run stop if the scale is out of range. Call it when the op is made, so that a bad op leaves no check."""
    check_in_range(log2_scale, "log2_scale", of, LOWEST_SCALE, SCALE_END)


def check_tensors(**arguments: object) -> None:
    """Check that arguments are tensors, before anything is asked of them.

    Raises:
        PopxlTypeError: (a `TypeError`) for the first that is none.
    """
    for name, t in arguments.items():
        if not isinstance(t, Tensor):
            check_in_graph(get_current_graph(), **{name: t})


def check_float8_operands(what: str, **operands: Tensor) -> None:
    """Check the operands of an op that takes a scale.

    Raises:
        PopxlTypeError: (a `TypeError`) if one is not a float8 tensor.
    """
    check_tensors(**operands)
    for name, t in operands.items():
        if t.dtype not in FLOAT8:
            raise PopxlTypeError(
                f"Scaled {what} operands must be of dtype popxl.float8_143 or popxl.float8_152: `{name}` ({t.id}) is "
                f"{t.dtype.name}.",
                hint="cast it with popxl.ops.pow2scale_cast_to_fp8, or use the function without a scale",
            )


def check_no_float8_operands(type: str, scaled: str, **operands: Tensor) -> None:
    """Check the operands of an op that takes no scale.

    Args:
        type: The op's type.
        scaled: The public function that takes one.
        operands: The operands.

    Raises:
        CoreError: (a `RuntimeError`) if any is float8.
    """
    kinds = [t.dtype in FLOAT8 for t in operands.values()]
    names = " and ".join(f"`{name}` ({t.id}), {t.dtype.name}" for name, t in operands.items())
    if all(kinds):
        raise CoreError(
            f"Log2 scale input tensor must be provided for FLOAT8 input types: {type} of {names}.",
            hint=f"use popxl.ops.{scaled}",
        )
    if any(kinds):
        raise CoreError(f"Invalid operand type: {type} of {names}.", hint="both operands are float8, or none")


# On the device

_JAX_NAMES = {dtypes.float8_143: "float8_e4m3fnuz", dtypes.float8_152: "float8_e5m2fnuz"}


def _jax_type(kind: dtypes.dtype) -> Any:
    return getattr(jnp, _JAX_NAMES[kind])


def values(codes: Any, kind: dtypes.dtype) -> Any:
    """Return the values of codes, as float32, which holds all of them."""
    return lax.bitcast_convert_type(codes, _jax_type(kind)).astype(jnp.float32)


def codes(numbers: Any, kind: dtypes.dtype) -> Any:
    """Return the codes of numbers: rounded to nearest even, NaN (0x80) out of range."""
    return lax.bitcast_convert_type(numbers.astype(_jax_type(kind)), jnp.uint8)


def scaled(numbers: Any, log2_scale: Any) -> Any:
    """Return ``numbers * 2**log2_scale``, exactly wherever float8 can tell.

    Numbers of float32 or wider become infinite or 0 only if they are far outside the range of float8.
    """
    exponent = log2_scale.astype(jnp.int32) + np.int32(127)
    # The bits of a float32 that is a power of two; an exponential function need not be exact.
    factor = lax.bitcast_convert_type(exponent << np.int32(23), jnp.float32)
    return numbers * factor.astype(numbers.dtype)


# For oracles


def host_values(codes: Any) -> Any:
    """Return the values of codes of the host, as float64."""
    return host_pow2scale_cast_from_fp8(codes, dtypes.float64)
