"""What convolutions share: their arguments, and how JAX computes them (spec ``ops-nn.md`` §1)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl.errors import CoreError, PopxlTypeError, PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._jax import at_least_float32, jnp, lax
from popxl.ops._windows import PAD_TYPES, PadType

Ints = tuple[int, ...]

# Arguments


def checked_pad_type(pad_type: PadType | None) -> PadType:
    """Return `pad_type`.

    Raises:
        PopxlValueError: (a `ValueError`) if it is not one.
    """
    if pad_type not in PAD_TYPES:
        raise PopxlValueError(
            f"pad type {pad_type} is not valid, must be not_set, same_upper, same_lower or valid.",
            hint='use pad_type="not_set" to pad as `padding` says',
        )
    return pad_type


def integers(argument: str, values: Iterable[int] | None) -> Ints:
    """Return an argument as a tuple; empty for None.

    Raises:
        PopxlTypeError: (a `TypeError`) if it is no sequence of integers.
    """
    try:
        return tuple(operator.index(v) for v in values or ())
    except TypeError as error:
        raise PopxlTypeError(
            f"`{argument}` is {values!r}, which is no sequence of integers.",
            hint="pass a tuple with a number for each spatial axis",
        ) from error


def hints(
    available_memory_proportions: Iterable[float] | None,
    partials_types: Iterable[str] | None,
    enable_conv_dithering: Iterable[int] | None,
) -> dict[str, Any]:
    """Return IPU hints as attributes of an op. They have no effect."""
    return {
        "available_memory_proportions": tuple(available_memory_proportions or ()),
        "partials_types": tuple(partials_types or ()),
        "enable_conv_dithering": tuple(enable_conv_dithering or ()),
    }


def check_images(type: str, t: ShapeDtype, weight: ShapeDtype) -> int:
    """Return the number of spatial axes.

    Raises:
        CoreError: (a `RuntimeError`) if there are none, or `t` and `weight` have not the same, or no elements there.
    """
    shapes = f"`t` {list(t.shape)} and `weight` {list(weight.shape)}"
    if len(t.shape) < 3 or len(weight.shape) != len(t.shape):
        raise CoreError(
            f"{type} needs operands of one rank, 3 or more, not {shapes}.",
            hint="t is (samples, channels, *spatial), and weight has two axes of channels before its spatial ones",
        )
    if 0 in weight.shape[2:]:
        raise CoreError(f"{type} needs a kernel with elements, not {shapes}.", hint="no axis of a kernel may be 0")
    return len(t.shape) - 2


def check_at_least(type: str, lowest: int, **arguments: Ints) -> None:
    """Check tuples of integers.

    Raises:
        CoreError: (a `RuntimeError`) if one has an integer below `lowest`.
    """
    for name, values in arguments.items():
        if any(v < lowest for v in values):
            raise CoreError(
                f"`{name}` of {type} is {list(values)}, which has numbers below {lowest}.",
                hint=f"use {lowest} or more for each spatial axis",
            )


def check_groups(type: str, groups: int) -> None:
    """Check the number of groups.

    Raises:
        CoreError: (a `RuntimeError`) if it is below 1.
    """
    if groups < 1:
        raise CoreError(f"group attribute in {type} is {groups}, but must be at least 1.", hint="pass groups=1")


def check_same_dtype(type: str, t: ShapeDtype, weight: ShapeDtype) -> None:
    """Check that operands need no promotion.

    Raises:
        CoreError: (a `RuntimeError`) if they do.
    """
    if t.dtype != weight.dtype:
        raise CoreError(
            f"Invalid operand type: {type} of `t`, {t.dtype.name}, and `weight`, {weight.dtype.name}.",
            hint="cast one of them with popxl.ops.cast",
        )


# On the device


def precision_of(kind: Any) -> Any:
    """Return the precision that operands of a dtype need. Without one, GPUs may round float32 to TF32."""
    # TF32 holds all float16 numbers.
    return None if kind == jnp.float16 else lax.Precision.HIGHEST


def convolve(t: Any, weight: Any, paddings: Sequence[tuple[int, int]], precision: Any, **options: Any) -> Any:
    """Correlate `t` with `weight`, with the options of `lax.conv_general_dilated`.

    Float16 is accumulated in float32, and not rounded yet.
    """
    return lax.conv_general_dilated(
        at_least_float32(t), at_least_float32(weight), padding=paddings, precision=precision, **options
    )


# For samples


def eighths(*shape: int, seed: int = 0) -> Any:
    """Return multiples of 1/8 from -2 to 2."""
    return np.random.default_rng(seed).integers(-16, 17, shape) / 8


def operands(dtype: Any, t: Ints, weight: Ints) -> tuple[Any, Any]:
    """Return arrays of two shapes."""
    return eighths(*t).astype(dtype), eighths(*weight, seed=1).astype(dtype)
