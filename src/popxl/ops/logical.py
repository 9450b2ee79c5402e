"""Logical ops of one or two tensors (spec ``ops-math.md`` §3-§4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError
from popxl.ops._define import NUMBERS, Declaration, Sample, define, sample
from popxl.ops._gradient_rules import no_gradient_of
from popxl.ops._jax import jnp, late
from popxl.ops._rules import broadcast, same
from popxl.ops.utils import broadcast_shapes, cast_if_needed, check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor

_TRUTHS = (*NUMBERS, dtypes.bool)


def _emit(declaration: Declaration, name: str, **tensors: Tensor) -> Tensor:
    """Add a logical op, after a cast of each tensor that is not bool; a call that is refused adds no cast."""
    check_in_graph(get_current_graph(), **tensors)
    check_tensor_ipu_and_tile_set(**tensors)
    for argument, t in tensors.items():
        if t.dtype not in _TRUTHS:
            raise CoreError(
                f"Unsupported dtype {t.dtype} of `{argument}` ({t.id}) for {declaration.definition.type}.",
                hint=f"supported: {', '.join(d.name for d in _TRUTHS)}",
            )
    broadcast_shapes(*(t.shape for t in tensors.values()))
    # The casts are placed where the context says, which need not be where the tensors are.
    truths = {argument: cast_if_needed(t, dtypes.bool) for argument, t in tensors.items()}
    return declaration.emit(truths, name, same_place=False)[0]


# Samples

_MASK = np.array([[True, False, True], [False, False, True]])
_NUMBERS = np.array([0.0, -0.0, 1e-30, np.nan, -np.inf], np.float32)


def _pairs() -> Sequence[Sample]:
    return (
        sample(np.array([False, False, True, True]), np.array([False, True, False, True]), tolerance=0),
        sample(_MASK, np.array(True), tolerance=0),
        sample(_MASK[:, :1], _MASK[:1], tolerance=0),
        sample(np.array([[0], [256], [-1]], np.int32), np.array([0, 2], np.uint8), tolerance=0),
        sample(_NUMBERS, np.array([[True], [False]]), tolerance=0),
        sample(np.float64(0.5), np.array([0, 1], np.float16), tolerance=0),
        sample(np.zeros((0, 2), bool), np.zeros((0, 2), np.float32), tolerance=0),
    )


# Ops


def logical_and(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Whether both hold, elementwise, with NumPy broadcasting; ``lhs & rhs`` for tensors.

    Args:
        lhs: Bool, or a number dtype, which is cast to bool first: everything but 0 is true.
        rhs: Likewise; its dtype may be another.

    Returns:
        A bool tensor of the broadcast shape.

    Raises:
        CoreError: (a `RuntimeError`) if shapes do not broadcast or a dtype is neither bool nor a number.

    Example:
        The operands are not combined bit by bit: 1 and 2 are both true.

        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.logical_and(popxl.constant([0, 1]), popxl.constant(2))
        Tensor[and_out popxl.dtypes.bool (2,)]
    """
    return _emit(AND, "and_out", lhs=lhs, rhs=rhs)


AND = define(
    "And",
    logical_and,
    lower=late(lambda: jnp.logical_and),
    rule=broadcast,
    dtypes=_TRUTHS,
    oracle=np.logical_and,
    samples=_pairs,
    gradient=no_gradient_of("And"),
    host=np.logical_and,
    elementwise=True,
)


def logical_or(lhs: Tensor, rhs: Tensor) -> Tensor:
    """Whether at least one holds, elementwise, with NumPy broadcasting; ``lhs | rhs`` for tensors.

    Args:
        lhs: Bool, or a number dtype, which is cast to bool first: everything but 0 is true.
        rhs: Likewise; its dtype may be another.

    Returns:
        A bool tensor of the broadcast shape.

    Raises:
        CoreError: (a `RuntimeError`) if shapes do not broadcast or a dtype is neither bool nor a number.
    """
    return _emit(OR, "or_out", lhs=lhs, rhs=rhs)


OR = define(
    "Or",
    logical_or,
    lower=late(lambda: jnp.logical_or),
    rule=broadcast,
    dtypes=_TRUTHS,
    oracle=np.logical_or,
    samples=_pairs,
    gradient=no_gradient_of("Or"),
    host=np.logical_or,
    elementwise=True,
)


def logical_not(t: Tensor) -> Tensor:
    """Whether the element does not hold; ``~t`` for tensors, which is not the complement of the bits.

    Args:
        t: Bool, or a number dtype, which is cast to bool first: everything but 0 is true.

    Returns:
        A bool tensor of the same shape.

    Raises:
        CoreError: (a `RuntimeError`) if the dtype is neither bool nor a number.
    """
    return _emit(NOT, "not_out", t=t)


NOT = define(
    "Not",
    logical_not,
    lower=late(lambda: jnp.logical_not),
    rule=same,
    dtypes=_TRUTHS,
    oracle=np.logical_not,
    samples=lambda: (
        sample(_MASK, tolerance=0),
        sample(np.array(True), tolerance=0),
        sample(_NUMBERS, tolerance=0),
        sample(np.array([[0, 256, -1]], np.int32), tolerance=0),
        sample(np.zeros((3, 0), bool), tolerance=0),
    ),
    gradient=no_gradient_of("Not"),
    host=np.logical_not,
    elementwise=True,
)
