"""Seeds made of seeds (spec ``ops-nn.md`` §5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.errors import CoreError, PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import Sample, define, sample
from popxl.ops._jax import jnp
from popxl.ops._threefry import Stream, bits_on_host, draw_bits, is_seed
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

__all__ = ["create_random_seed", "split_random_seed"]


def create_random_seed(seed: Tensor, modifier: Tensor) -> Tensor:
    """Make a new seed ``[hi, r]`` of a seed ``[hi, lo]``: ``r`` is 32 random bits, drawn with ``[hi, lo + modifier]``.

    Args:
        seed: uint32, shape (2,).
        modifier: uint32, a scalar. The sum wraps around.

    Returns:
        The new seed: uint32, shape (2,).

    Raises:
        PopxlValueError: (a `ValueError`) if `seed` has another shape or dtype.
        CoreError: (a `RuntimeError`) if `modifier` has.
    """
    _check(seed)
    return MODIFY_RANDOM_SEED.emit({"seed": seed, "modifier": modifier}, "modify_random_seed_out")[0]


def split_random_seed(seed: Tensor, n: int = 2) -> tuple[Tensor, ...]:
    """Make `n` unrelated seeds of one.

    Element ``i`` is ``create_random_seed(seed, i)``, which does not depend on `n`; a constant ``i`` is made in the
    current graph. Reusing a seed repeats what is drawn, so split it for each op that draws.

    Args:
        seed: uint32, shape (2,). The first element stays as it is in each new seed.
        n: Number of seeds.

    Returns:
        The new seeds: each uint32, shape (2,).

    Raises:
        PopxlValueError: (a `ValueError`) if `seed` has another shape or dtype, or `n` is negative.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     seed = popxl.constant([0, 42], popxl.uint32)
        ...     first, second, third = ops.split_random_seed(seed, 3)
        ...     ops.random_uniform(first, (2,)).dtype
        popxl.dtypes.float32
    """
    _check(seed)
    if n < 0:
        raise PopxlValueError(f"`n` is {n}, which is negative.", hint="pass the number of new seeds")
    return tuple(create_random_seed(seed, constant(i, dtypes.uint32, "modifier")) for i in range(n))


def _check(seed: Tensor) -> None:
    check_in_graph(get_current_graph(), seed=seed)
    if not is_seed(seed):
        raise PopxlValueError(
            "seed Tensor must be shape=(2,) dtype=uint32. "
            f"`seed` ({seed.id}) has shape={seed.shape} dtype={seed.dtype.name}.",
            hint="make the values of seeds with popxl.create_seeds",
        )


def _rule(seed: ShapeDtype, modifier: ShapeDtype) -> ShapeDtype:
    if modifier.shape:
        raise CoreError(f"`modifier` must be a scalar, not of shape {list(modifier.shape)}.", hint="pass one number")
    return seed


def _modify(seed: Any, modifier: Any) -> Any:
    hi, lo = seed
    return jnp.stack([hi, draw_bits(jnp.stack([hi, lo + modifier]), Stream.MODIFY_RANDOM_SEED, ())])


def _oracle(seed: Any, modifier: Any) -> Any:
    hi, lo = (int(word) for word in seed)
    drawn = bits_on_host([hi, (lo + int(modifier)) % 2**32], Stream.MODIFY_RANDOM_SEED, ())
    return np.array([hi, drawn], np.uint32)


def _samples() -> Sequence[Sample]:
    a, b = np.array([3324115917, 383329928], np.uint32), np.array([0, 2**32 - 1], np.uint32)
    return (
        sample(a, np.uint32(0), tolerance=0),
        sample(a, np.uint32(1), tolerance=0),
        sample(b, np.uint32(5), tolerance=0),
        sample(b, np.uint32(2**32 - 1), tolerance=0),
    )


MODIFY_RANDOM_SEED = define(
    "ModifyRandomSeed",
    create_random_seed,
    lower=_modify,
    rule=_rule,
    dtypes=(dtypes.uint32,),
    oracle=_oracle,
    samples=_samples,
    gradient=None,
)
