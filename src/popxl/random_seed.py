"""Random seeds of a program, made on the host. Follows session.md section 4."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from popxl.errors import PopxlValueError

__all__ = ["MAX_UINT32", "MAX_UINT64", "create_seeds", "two_uint32_to_uint64", "uint64_to_two_uint32"]

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1


def uint64_to_two_uint32(num: int) -> tuple[int, int]:
    """Split a 64-bit number into its (high, low) 32-bit halves.

    Raises:
        PopxlValueError: ``num`` is negative or larger than ``MAX_UINT64``.

    Example:
        >>> uint64_to_two_uint32(2**32 + 7)
        (1, 7)
    """
    _check_range("num", num, MAX_UINT64)
    return num >> 32, num & MAX_UINT32


def two_uint32_to_uint64(a: int, b: int) -> int:
    """The 64-bit number with the high half ``a`` and the low half ``b``.

    Raises:
        PopxlValueError: A half is negative or larger than ``2**32 - 1``.

    Example:
        >>> two_uint32_to_uint64(1, 7) == 2**32 + 7
        True
    """
    _check_range("a", a, MAX_UINT32)
    _check_range("b", b, MAX_UINT32)
    return (a << 32) | b


def create_seeds(
    seed: int, offset: int = 0, batches_per_step: int = 1, gradient_accumulation_factor: int = 1, replicas: int = 1
) -> npt.NDArray[Any]:
    """Make the seeds that a program reads in one step.

    Args:
        seed: The same seed and offset always give the same result.
        offset: Added to ``seed``, for example to go on where a run stopped.
        batches_per_step: How often a replica reads a seed in one step, at least 1.
        gradient_accumulation_factor: Micro-batches per batch, at least 1.
        replicas: Replicas of the program, at least 1.

    Returns:
        uint32 array of shape (batches_per_step, gradient_accumulation_factor, replicas, 2) without its axes of
        length 1. The last axis is (high, low) of a 64-bit seed.

    Raises:
        PopxlValueError: A count is below 1, or ``seed + offset`` is negative.

    Example:
        >>> create_seeds(42)
        array([3324115917,  383329928], dtype=uint32)
    """
    counts = {
        "batches_per_step": batches_per_step,
        "gradient_accumulation_factor": gradient_accumulation_factor,
        "replicas": replicas,
    }
    for name, count in counts.items():
        if count < 1:
            raise PopxlValueError(f"{name} is {count}, which is less than 1.", hint=f"use {name}=1")
    if seed + offset < 0:
        raise PopxlValueError(f"seed + offset is {seed + offset}, which is negative.", hint="use a seed from 0 up")
    shape = tuple(counts.values())
    words = np.random.default_rng(seed + offset).integers(MAX_UINT64, size=shape, dtype=np.uint64, endpoint=True)
    halves = np.stack([words >> np.uint64(32), words & np.uint64(MAX_UINT32)], axis=-1)
    return np.squeeze(halves.astype(np.uint32))


def _check_range(name: str, value: int, maximum: int) -> None:
    if not 0 <= value <= maximum:
        raise PopxlValueError(f"{name} is {value}, outside 0 to {maximum}.", hint=f"use {name} % {maximum + 1}")
