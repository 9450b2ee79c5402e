"""Dropout (spec ``ops-nn.md`` §5.1, §5.2)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import jnp
from popxl.ops._threefry import Stream, bits_on_host, check_seed, draw_bits
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

# What both do


def _check(t: Tensor, seed_tensor: Tensor, **rate: float) -> None:
    check_in_graph(get_current_graph(), t=t, seed_tensor=seed_tensor)
    check_seed(seed_tensor=seed_tensor)
    for argument, value in rate.items():
        if not 0 <= value < 1:
            raise PopxlValueError(
                f"`{argument}` is {value}, which is not in [0, 1).", hint="pass the probability of dropping an element"
            )


def _drop(t: Any, seed: Any, stream: Stream, shape: tuple[int, ...], rate: float) -> Any:
    # Rounding up to 2**32, of a rate just below 1, would not fit.
    dropped_below = np.uint32(min(round(rate * 2**32), 2**32 - 1))
    kept = draw_bits(seed, stream, shape) >= dropped_below
    # In float64, since XLA multiplies with the reciprocal of a constant: rounded to float32, that is the quotient.
    narrow = jnp.promote_types(t.dtype, jnp.float32)
    quotient = (t.astype(jnp.float64) / float(np.asarray(1.0 - rate, narrow))).astype(narrow).astype(t.dtype)
    # Selected, not multiplied: what is dropped is 0 even if it was infinite.
    return jnp.where(kept, quotient, np.zeros((), t.dtype))


def _drop_oracle(t: Any, seed: Any, stream: Stream, shape: tuple[int, ...], rate: float) -> Any:
    fractions = bits_on_host(seed, stream, shape) / 2**32
    return np.where(np.broadcast_to(fractions < rate, t.shape), 0.0, t / (1 - rate))


def _arrays() -> tuple[Any, Any, Any]:
    t = np.array([[1.5, -2.0, 0.5, 3.0], [0.25, -1.0, 0.75, 100.0], [2.0, -0.5, 4.0, 1.25]], np.float32)
    return t, np.array([3324115917, 383329928], np.uint32), np.array([0, 7], np.uint32)


# Elementwise


def dropout(t: Tensor, seed_tensor: Tensor, p: float) -> Tensor:
    """Set elements to 0 at random, and divide the others by ``1 - p``, which keeps the expected value.

    It is always active: there is no inference mode. One seed gives one mask, also in the gradient; split seeds
    (`popxl.ops.split_random_seed`) for other ones.

    Args:
        t: Float dtype. What is dropped becomes 0 even if it was infinite or NaN.
        seed_tensor: uint32, shape (2,).
        p: Probability of dropping an element, ``0 <= p < 1``; 0 drops none.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        PopxlValueError: (a `ValueError`) if `p` is not in ``[0, 1)`` or `seed_tensor` has another shape or dtype.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     seed = popxl.constant([0, 42], popxl.uint32)
        ...     ops.dropout(popxl.constant([1.0, 2.0]), seed, 0.1)
        Tensor[dropout_out popxl.dtypes.float32 (2,)]
    """
    _check(t, seed_tensor, p=p)
    return DROPOUT.emit({"t": t, "seed_tensor": seed_tensor}, "dropout_out", p=float(p))[0]


def _dropout_rule(t: ShapeDtype, _seed: ShapeDtype, **_how: Any) -> ShapeDtype:
    return t


def _dropout(t: Any, seed: Any, p: float) -> Any:
    return _drop(t, seed, Stream.DROPOUT, t.shape, p)


def _dropout_oracle(t: Any, seed: Any, p: float) -> Any:
    return _drop_oracle(t, seed, Stream.DROPOUT, t.shape, p)


def _dropout_samples() -> Sequence[Sample]:
    t, a, b = _arrays()
    return (
        sample(t, a, 0.5),
        sample(t, b, p=0.1),
        sample(t, a, 0, tolerance=0),
        sample(t, a, 1 - 1e-15, tolerance=1e-3),
        sample(np.ones(5000, np.float32), b, 0.3),
        sample(t.astype(np.float16), a, 0.3, tolerance=1e-3),
        sample(t.astype(np.float64), a, 0.3, tolerance=1e-15),
        sample(np.array([np.inf, np.nan, -np.inf, np.nan, np.inf, np.nan], np.float32), b, 0.5),
        sample(np.float32(2.5), a, 0.25),
        sample(np.zeros((2, 0), np.float32), a, 0.25),
    )


DROPOUT = define(
    "Dropout",
    dropout,
    lower=_dropout,
    rule=_dropout_rule,
    dtypes={"t": FLOATS, "seed_tensor": (dtypes.uint32,)},
    oracle=_dropout_oracle,
    samples=_dropout_samples,
    differences="`p` outside [0, 1) is an error",
)

# With a mask that is broadcast


def shaped_dropout(t: Tensor, seed_tensor: Tensor, shape: Iterable[int], ratio: float) -> Tensor:
    """Do `dropout` with a mask of another shape, which is broadcast: whole rows, for example, are dropped.

    Args:
        t: Float dtype.
        seed_tensor: uint32, shape (2,).
        shape: Shape of the mask, which must broadcast to that of `t`.
        ratio: Probability of dropping an element of the mask, ``0 <= ratio < 1``.

    Returns:
        A tensor of the same shape and dtype as `t`. Elements that stay are exactly ``t / (1 - ratio)``.

    Raises:
        PopxlValueError: (a `ValueError`) if `ratio` is not in ``[0, 1)`` or `seed_tensor` has another shape or
            dtype.
        CoreError: (a `RuntimeError`) if `shape` does not broadcast to that of `t`.

    Example:
        Drop whole channels.

        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     image = popxl.variable(np.ones((1, 3, 8, 8), np.float32))
        ...     seed = popxl.constant([0, 42], popxl.uint32)
        ...     ops.shaped_dropout(image, seed, (1, 3, 1, 1), 0.5).shape
        (1, 3, 8, 8)
    """
    _check(t, seed_tensor, ratio=ratio)
    lengths = tuple(operator.index(n) for n in shape)
    tensors = {"t": t, "seed_tensor": seed_tensor}
    return SHAPED_DROPOUT.emit(tensors, "shaped_dropout_out", shape=lengths, ratio=float(ratio))[0]


def _shaped_rule(t: ShapeDtype, _seed: ShapeDtype, *, shape: tuple[int, ...], **_how: Any) -> ShapeDtype:
    fits = len(shape) <= len(t.shape) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(t.shape), strict=False)
    )
    if not fits:
        raise CoreError(
            "ShapedDropout: incompatible input tensor and dropout shape. "
            f"`t` has shape {list(t.shape)}, `shape` is {list(shape)}.",
            hint="each length of `shape`, from the right, must be 1 or that of `t`",
        )
    return t


def _shaped(t: Any, seed: Any, shape: tuple[int, ...], ratio: float) -> Any:
    return _drop(t, seed, Stream.SHAPED_DROPOUT, shape, ratio)


def _shaped_oracle(t: Any, seed: Any, shape: Iterable[int], ratio: float) -> Any:
    return _drop_oracle(t, seed, Stream.SHAPED_DROPOUT, tuple(shape), ratio)


def _shaped_samples() -> Sequence[Sample]:
    t, a, b = _arrays()
    return (
        sample(t, a, (3, 1), 0.5),
        sample(t, b, [4], ratio=0.3),
        sample(t, b, (), 0.5),
        sample(t, a, t.shape, 0.1),
        sample(t, a, (1, 1), 0),
        sample(t.reshape(1, 3, 2, 2).astype(np.float16), b, (3, 1, 1), 0.4, tolerance=1e-3),
        sample(t.astype(np.float64), a, (1, 4), 0.3, tolerance=1e-15),
        sample(np.float32(2.5), a, (), 0.25),
        sample(np.zeros((2, 0), np.float32), a, (2, 1), 0.25),
    )


SHAPED_DROPOUT = define(
    "ShapedDropout",
    shaped_dropout,
    lower=_shaped,
    rule=_shaped_rule,
    dtypes={"t": FLOATS, "seed_tensor": (dtypes.uint32,)},
    oracle=_shaped_oracle,
    samples=_shaped_samples,
    differences="`ratio` outside [0, 1) is an error",
)
