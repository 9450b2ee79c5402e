"""The instructions of random differentiable functions: what each is in popxl, and what it means in jax.numpy.

Nothing of popxl takes part in the meanings. Where a kink or a tie would be, the operands are far apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import popxl
from popxl import ops
from popxl.tensor import Tensor

VECTOR, MATRIX, NUMBER, SHORT, COUNT, FLAG = (3,), (2, 3), (), (2,), "count", "flag"
FLOATS = (VECTOR, MATRIX, NUMBER)
Spec = Any
"""A shape (of float32), or what an integer is: a count or a flag, both of shape ()."""

SPREAD = np.array([0.0, 3.0, 6.0], np.float32)
WEIGHT = np.array([[0.5, -0.25, 0.75], [0.1, 0.9, -0.6], [-0.4, 0.3, 0.2]], np.float32)


def const(array: Any) -> Tensor:
    return popxl.constant(np.asarray(array, np.float32))


def index(array: Any) -> Tensor:
    return popxl.constant(np.asarray(array, np.int32))


@dataclass(frozen=True)
class Kind:
    """One kind of instruction.

    Attributes:
        takes: The operands.
        gives: The result.
        popxl: The instruction, of tensors.
        jax: Its meaning, of arrays; counts and flags are Python numbers.
        bound: The largest absolute value that comes out, given those that go in.
    """

    takes: tuple[Spec, ...]
    gives: Spec
    popxl: Callable[..., Any]
    jax: Callable[..., Any]
    bound: Callable[..., float]


def same(
    *shapes: Spec, **kinds: tuple[int, Callable[..., Any], Callable[..., Any], Callable[..., float]]
) -> dict[str, Kind]:
    """Instructions whose operands and result have one shape, for each of `shapes`."""
    return {
        f"{name} {shape}": Kind((shape,) * n, shape, ours, theirs, bound)
        for shape in shapes
        for name, (n, ours, theirs, bound) in kinds.items()
    }


def one(_: float) -> float:
    return 1.0


KINDS: Mapping[str, Kind] = {
    **same(
        *FLOATS,
        add=(2, ops.add, lambda a, b: a + b, lambda a, b: a + b),
        sub=(2, ops.sub, lambda a, b: a - b, lambda a, b: a + b),
        mul=(2, ops.mul, lambda a, b: a * b, lambda a, b: a * b),
        div=(2, lambda a, b: a / (b * b + 1.0), lambda a, b: a / (b * b + 1), lambda a, _: a),
        negate=(1, ops.negate, lambda a: -a, lambda a: a),
        sin=(1, ops.sin, jnp.sin, one),
        cos=(1, ops.cos, jnp.cos, one),
        tanh=(1, ops.tanh, jnp.tanh, one),
        exp=(1, lambda a: ops.exp(ops.sin(a)), lambda a: jnp.exp(jnp.sin(a)), lambda _: 3.0),
        log=(1, lambda a: ops.log(ops.cos(a) + 1.5), lambda a: jnp.log(jnp.cos(a) + 1.5), one),
        sqrt=(1, lambda a: ops.sqrt(a * a + 1.0), lambda a: jnp.sqrt(a * a + 1), lambda a: a + 1),
        pow=(1, lambda a: ops.pow(ops.sin(a) + 2.0, const(1.5)), lambda a: (jnp.sin(a) + 2) ** 1.5, lambda _: 5.2),
        swish=(1, ops.swish, lambda a: a / (1 + jnp.exp(-a)), lambda a: a),
        gelu=(1, ops.geluerf, lambda a: 0.5 * a * (1 + lax.erf(a / np.sqrt(2))), lambda a: a),
        relu=(1, lambda a: ops.relu(ops.sin(a) + 1.5), lambda a: jnp.sin(a) + 1.5, lambda _: 2.5),
        dead=(1, lambda a: ops.relu(ops.sin(a) - 1.5), lambda a: 0 * a, lambda _: 0.0),
        abs=(1, lambda a: ops.abs(ops.sin(a) - 1.5), lambda a: 1.5 - jnp.sin(a), lambda _: 2.5),
        larger=(
            2,
            lambda a, b: ops.maximum(ops.sin(a) + 3.0, ops.sin(b)),
            lambda a, _b: jnp.sin(a) + 3,
            lambda *_: 4.0,
        ),
        clip=(1, lambda a: ops.clip(ops.sin(a), -2.0, 2.0), jnp.sin, one),
        copy=(1, ops.identity, lambda a: a, lambda a: a),
        detach=(1, ops.detach, lax.stop_gradient, lambda a: a),
        sign=(1, lambda a: ops.sign(ops.sin(a) - 1.5), lambda a: -1 + 0 * a, one),
        scaled=(1, lambda a: a * 0.5 + 0.25, lambda a: a / 2 + 0.25, lambda a: a / 2 + 0.25),
        choose=(
            2,
            lambda a, b: ops.where(ops.greater(ops.sin(a), const(1.5)), a, b),
            lambda _a, b: b,
            lambda _, b: b,
        ),
        half=(
            1,
            lambda a: ops.cast(ops.cast(a, popxl.float64) * popxl.constant(0.5, popxl.float64), popxl.float32),
            lambda a: a / 2,
            lambda a: a / 2,
        ),
    ),
    **same(SHORT, tanh=(1, ops.tanh, jnp.tanh, one)),
    **same(
        VECTOR,
        MATRIX,
        softmax=(1, lambda a: ops.softmax(a, -1), lambda a: jax.nn.softmax(a, -1), one),
        cumsum=(1, lambda a: ops.cumsum(a, -1), lambda a: jnp.cumsum(a, -1), lambda a: 3 * a),
        reorder=(
            1,
            lambda a: ops.gather(a, index([2, 0, 0]), axis=len(a.shape) - 1),
            lambda a: jnp.stack([a[..., 2], a[..., 0], a[..., 0]], -1),
            lambda a: a,
        ),
        ranked=(
            1,
            lambda a: ops.topk(ops.sin(a) + const(SPREAD), 3, len(a.shape) - 1, True, True)[0],
            lambda a: (jnp.sin(a) + SPREAD)[..., ::-1],
            lambda _: 7.0,
        ),
        backwards=(1, lambda a: ops.slice(a, step=-1, axis=len(a.shape) - 1), lambda a: jnp.flip(a, -1), lambda a: a),
    ),
    "norm": Kind(
        (MATRIX, VECTOR, VECTOR),
        MATRIX,
        lambda t, w, b: ops.group_norm(t, w, b, 1, 0.5),
        lambda t, w, b: (t - t.mean(1, keepdims=True)) / jnp.sqrt(t.var(1, keepdims=True) + 0.5) * w + b,
        lambda _, w, b: 1.5 * w + b,
    ),
    "affine": Kind(
        (MATRIX, VECTOR),
        MATRIX,
        lambda a, b: a @ const(WEIGHT) + b,
        lambda a, b: jnp.einsum("ij,jk->ik", a, WEIGHT) + b,
        lambda a, b: 2 * a + b,
    ),
    "square": Kind(
        (MATRIX, MATRIX),
        MATRIX,
        lambda a, b: (a @ b.T) @ a,
        lambda a, b: jnp.einsum("ij,kj,kl->il", a, b, a),
        lambda a, b: 6 * a * a * b,
    ),
    "product": Kind((MATRIX, VECTOR), (2,), ops.matmul, lambda a, b: (a * b).sum(-1), lambda a, b: 3 * a * b),
    "matrix times number": Kind((MATRIX, NUMBER), MATRIX, ops.mul, lambda a, b: a * b, lambda a, b: a * b),
    "vector over matrix": Kind((VECTOR, MATRIX), MATRIX, ops.sub, lambda a, b: a - b, lambda a, b: a + b),
    "stretch": Kind((NUMBER,), VECTOR, lambda a: a + const(SPREAD), lambda a: a + SPREAD, lambda a: a + 6),
    "row": Kind((MATRIX,), VECTOR, lambda a: ops.squeeze(a[1:2], [0]), lambda a: a[1], lambda a: a),
    "rows": Kind(
        (VECTOR, VECTOR),
        MATRIX,
        lambda a, b: ops.concat([ops.reshape(a, (1, 3)), ops.reshape(b, (1, 3))]),
        lambda a, b: jnp.stack([a, b]),
        max,
    ),
    "join": Kind(
        ((2,), NUMBER),
        VECTOR,
        lambda a, b: ops.concat([a, ops.reshape(b, (1,))]),
        lambda a, b: jnp.append(a, b),
        max,
    ),
    "put": Kind(
        (MATRIX, VECTOR),
        MATRIX,
        lambda a, b: ops.dynamic_update(a, popxl.constant([1], popxl.uint32), ops.reshape(b, (1, 3)), [0], [1], True),
        lambda a, b: jnp.stack([a[0], b]),
        max,
    ),
    "turn": Kind((MATRIX,), MATRIX, lambda a: ops.reshape(a.T, (2, 3)), lambda a: a.T.reshape(2, 3), lambda a: a),
    "sum": Kind((MATRIX,), VECTOR, lambda a: ops.sum(a, [0]), lambda a: a[0] + a[1], lambda a: 2 * a),
    "mean": Kind((MATRIX,), NUMBER, ops.mean, lambda a: a.sum() / 6, lambda a: a),
    "total": Kind((VECTOR,), NUMBER, ops.sum, lambda a: a[0] + a[1] + a[2], lambda a: 3 * a),
    "lengths": Kind(
        (MATRIX,), (2,), lambda a: ops.l2(a, [1]) * 0.5, lambda a: jnp.linalg.norm(a, axis=1) / 2, lambda a: a
    ),
    "squares": Kind((VECTOR,), NUMBER, ops.sumsquare, lambda a: (a * a).sum(), lambda a: 3 * a * a),
    "soft maximum": Kind((VECTOR,), NUMBER, ops.logsumexp, lambda a: jnp.log(jnp.exp(a).sum()), lambda a: a + 1.2),
    "largest": Kind(
        (MATRIX,),
        (2,),
        lambda a: ops.max(ops.sin(a) + const(SPREAD), [1]),
        lambda a: jnp.sin(a[:, 2]) + 6,
        lambda _: 7.0,
    ),
    "least": Kind((VECTOR,), NUMBER, lambda a: ops.min(ops.sin(a) + const(SPREAD)), lambda a: jnp.sin(a[0]), one),
    "loss": Kind(
        (MATRIX,),
        NUMBER,
        lambda a: ops.nll_loss(ops.softmax(a, -1), index([2, 0])),
        lambda a: -(jax.nn.log_softmax(a)[0, 2] + jax.nn.log_softmax(a)[1, 0]) / 2,
        lambda a: 2 * a + 1.2,
    ),
    "counted": Kind(
        (NUMBER, COUNT),
        NUMBER,
        lambda a, n: a * ops.cast(n, popxl.float32),
        lambda a, n: a * n,
        lambda a, _: 8 * a,
    ),
    "picked": Kind(
        (VECTOR, COUNT),
        NUMBER,
        lambda a, n: ops.squeeze(
            ops.gather(a, ops.reshape(ops.cast(ops.greater(n, index(3)), popxl.int32), (1,))), [0]
        ),
        lambda a, n: a[1] if n > 3 else a[0],
        lambda a, _: a,
    ),
    "next": Kind((COUNT,), COUNT, lambda n: ops.increment_mod(n, 1, 8), lambda n: (n + 1) % 8, lambda _: 0.0),
    "odd": Kind(
        (COUNT,),
        FLAG,
        lambda n: ops.greater(ops.increment_mod(n, 0, 2), index(0)),
        lambda n: n % 2 == 1,
        lambda _: 0.0,
    ),
}
FAMILIES: dict[str, list[str]] = {}
for name in KINDS:
    FAMILIES.setdefault(name.partition(" (")[0], []).append(name)
