"""The random bits behind every random op, drawn by JAX and defined in NumPy (spec ``ops-nn.md`` §5).

The generator is Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
It counts instead of remembering: element number ``n`` of a draw, in row-major order, is a function of the seed, of the
kind of draw and of ``n`` alone. So a draw does not depend on the device, on the number of devices, nor on what ran
before::

    key  = threefry(seed, (0, stream))
    x, y = threefry(key, (n >> 32, n & 0xffffffff))
    bits = x ^ y

The stream, a number for each type of op, keeps draws apart that different ops make with one seed.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.errors import PopxlValueError
from popxl.ops._jax import jax, jnp
from popxl.tensor import Tensor


class Stream(IntEnum):
    """The stream of each type of op that draws. Changing a number changes what programs draw."""

    RANDOM_UNIFORM = 1
    RANDOM_NORMAL = 2
    DROPOUT = 3
    SHAPED_DROPOUT = 4
    MODIFY_RANDOM_SEED = 5


def is_seed(t: Tensor) -> bool:
    """Whether a tensor has the shape and the dtype of a seed."""
    return t.shape == (2,) and t.dtype == dtypes.uint32


def check_seed(**tensors: Tensor) -> None:
    """Check that each named tensor has the shape and the dtype of a seed.

    Raises:
        PopxlValueError: (a `ValueError`) if not.
    """
    for argument, t in tensors.items():
        if not is_seed(t):
            raise PopxlValueError(
                f"`{argument}` must be shape=(2,) dtype=uint32, not shape={t.shape} dtype={t.dtype.name} ({t.id}).",
                hint="make the values of seeds with popxl.create_seeds",
            )


def draw_bits(seed: Any, stream: Stream, shape: tuple[int, ...]) -> Any:
    """Return a uint32 array of random bits, a JAX array: the draw that this module defines."""
    # Explicitly: without it, JAX counts differently, and what it draws depends on the shape.
    with jax.threefry_partitionable(True):
        random: Any = jax.random
        key = random.wrap_key_data(seed, impl="threefry2x32")
        return random.bits(random.fold_in(key, np.uint32(stream)), shape, jnp.uint32)


# The definition


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Encrypt pairs of 32-bit words with a key of two: 20 rounds of adding, rotating and xor.

    Args:
        key: uint32, shape (2,).
        x: uint32 array, the first words.
        y: uint32 array, the second words.

    Example:
        >>> zero = np.zeros(1, np.uint32)
        >>> [hex(word[0]) for word in threefry([0, 0], zero, zero)]
        ['0x6b200159', '0x99ba4efe']
    """
    keys = np.array([*key, 0x1BD11BDA], np.uint32)
    keys[2] ^= keys[0] ^ keys[1]
    x, y = x + keys[0], y + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ (y << np.uint32(rotation) | y >> np.uint32(32 - rotation))
        x, y = x + keys[(group + 1) % 3], y + (keys[(group + 2) % 3 : (group + 2) % 3 + 1] + np.uint32(group + 1))
    return x, y


def bits_on_host(seed: Any, stream: Stream, shape: tuple[int, ...]) -> Any:
    """Return what `draw_bits` draws, computed by its definition.

    Example:
        >>> bits_on_host([0, 42], Stream.RANDOM_UNIFORM, (2,)).dtype
        dtype('uint32')
    """
    key = np.concatenate(threefry(seed, np.zeros(1, np.uint32), np.full(1, stream, np.uint32)))
    count = np.arange(math.prod(shape), dtype=np.uint64)
    x, y = threefry(key, (count >> np.uint64(32)).astype(np.uint32), count.astype(np.uint32))
    return (x ^ y).reshape(shape)
