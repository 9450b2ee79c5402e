"""Softmax and normalisation (spec ``ops-nn.md`` §3.2, §4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.errors import CoreError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import at_least_float32, jax, jnp, lax
from popxl.ops.utils import element_count, same_dtype
from popxl.tensor import Tensor

# Softmax


def softmax(t: Tensor, axis: int) -> Tensor:
    """Normalise exponentials, jointly over `axis` **and all axes after it**: their sum is 1.

    That is the usual softmax over one axis for the last axis only.

    Args:
        t: Float dtype. Float16 is computed in float32.
        axis: First of the axes; negative ones count from the end.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        CoreError: (a `RuntimeError`) if the axis is out of range.
    """
    return SOFTMAX.emit({"t": t}, "softmax_out", axis=axis)[0]


def _softmax_rule(t: ShapeDtype, axis: int) -> ShapeDtype:
    # A scalar is its own row.
    rank = max(len(t.shape), 1)
    if not -rank <= axis < rank:
        raise CoreError(
            f"Axis {axis} of Softmax is out of acceptable range [{-rank}, {rank - 1}].", hint=f"t has rank {rank}"
        )
    return t


def _softmax(t: Any, axis: int) -> Any:
    return jax.nn.softmax(at_least_float32(t), axis=tuple(range(t.ndim))[axis:]).astype(t.dtype)


def _softmax_gradient(grads: Sequence[Any], _inputs: Sequence[Any], outputs: Sequence[Any], axis: int) -> list[Any]:
    y, g = (at_least_float32(v) for v in (outputs[0], grads[0]))
    return [y * (g - jnp.sum(g * y, axis=tuple(range(y.ndim))[axis:], keepdims=True))]


def _softmax_oracle(t: Any, axis: int) -> Any:
    shape = np.shape(t)
    rows = np.reshape(t, (element_count(shape[:axis]), -1) if np.size(t) else (0, 1))
    weights = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.reshape(weights / weights.sum(axis=1, keepdims=True), shape)


def _softmax_samples() -> Sequence[Sample]:
    a = np.array([[[1.0, 2.0], [3.0, 4.0]], [[-1.0, 100.0], [0.5, 99.0]]], np.float32)
    return (
        sample(a, 1, tolerance=1e-6),
        sample(a, -1, tolerance=1e-6),
        sample(a, 0, tolerance=1e-6),
        sample(a, axis=-2, tolerance=1e-6),
        sample(a.astype(np.float16), 2, tolerance=1e-3),
        sample(np.zeros((1, 4096), np.float16), 1, tolerance=1e-3),
        sample(a.astype(np.float64), 2, tolerance=1e-14),
        sample(np.array([[0.0, -np.inf], [-np.inf, -np.inf]], np.float32), 1, tolerance=1e-6),
        sample(np.float32(3.0), 0),
        sample(np.zeros((2, 0), np.float32), 1),
    )


SOFTMAX = define(
    "Softmax",
    softmax,
    lower=_softmax,
    rule=_softmax_rule,
    dtypes=FLOATS,
    oracle=_softmax_oracle,
    samples=_softmax_samples,
    gradient=Gradient(_softmax_gradient),
)

# Normalisation


def group_norm(t: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float = 1e-5) -> Tensor:
    """Normalise groups of channels to mean 0 and variance 1, then scale and shift each channel.

    The mean and the (biased) variance are those of one sample's group: its channels and all axes after them,
    ``weight * (t - mean) / sqrt(variance + eps) + bias``. Float16 is computed in float32.

    Args:
        t: Shape ``(samples, channels, ...)``; a float dtype.
        weight: Shape ``(channels,)``, same dtype.
        bias: Shape ``(channels,)``, same dtype.
        num_groups: Number of groups, which are blocks of neighbouring channels.
        eps: Added to the variance.

    Returns:
        A tensor like `t`. The op has two more outputs, the mean and ``1 / sqrt(variance + eps)``, each of shape
        ``(samples * num_groups,)``.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ, shapes do not fit, or the channels do not divide evenly.
    """
    return _emit_group_norm(t, weight, bias, num_groups, eps, "group_norm")


def layer_norm(t: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise each sample: `group_norm` with one group.

    Note that the channels are axis 1, and that everything but axis 0 is normalised together. To normalise the
    last axis of shape ``(batch, sequence, hidden)``, reshape to ``(batch * sequence, hidden)`` first.

    Args:
        t: Shape ``(samples, channels, ...)``; a float dtype.
        weight: Shape ``(channels,)``, same dtype.
        bias: Shape ``(channels,)``, same dtype.
        eps: Added to the variance.

    Returns:
        A tensor like `t`.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     x, w, b = (popxl.constant(np.ones(s, np.float32)) for s in [(2, 3), (3,), (3,)])
        ...     ops.layer_norm(x, w, b)
        Tensor[layer_norm_out popxl.dtypes.float32 (2, 3)]
    """
    return _emit_group_norm(t, weight, bias, 1, eps, "layer_norm")


def _emit_group_norm(t: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float, name: str) -> Tensor:
    return GROUP_NORM.emit(
        {"t": t, "weight": weight, "bias": bias},
        (f"{name}_out", f"{name}_mean", f"{name}_inv_std"),
        num_groups=num_groups,
        eps=eps,
    )[0]


def _group_norm_rule(
    t: ShapeDtype, weight: ShapeDtype, bias: ShapeDtype, num_groups: int, eps: float
) -> tuple[ShapeDtype, ...]:
    dtype = same_dtype(t, weight, bias)
    if len(t.shape) < 2:
        raise CoreError(
            f"GroupNormalization needs a rank of at least 2, not shape {list(t.shape)}.",
            hint="axis 0 counts samples, axis 1 channels",
        )
    channels = t.shape[1]
    for argument, spec in (("weight", weight), ("bias", bias)):
        if spec.shape != (channels,):
            raise CoreError(
                f"The shape of `{argument}` of GroupNormalization is {list(spec.shape)}, not [{channels}].",
                hint=f"axis 1 of t, of shape {list(t.shape)}, counts the channels",
            )
    if num_groups < 1 or channels % num_groups:
        raise CoreError(
            f"GroupNormalization cannot divide {channels} channels into {num_groups} groups of equal size.",
            hint="num_groups must be a divisor of t.shape[1]",
        )
    statistics = ShapeDtype((t.shape[0] * num_groups,), dtype)
    return t, statistics, statistics


def _rows(t: Any, num_groups: int) -> Any:
    """What is normalised together, a row each; at least float32."""
    groups = t.shape[0] * num_groups
    return at_least_float32(t).reshape(groups, t.size // groups if groups else 0)


def _statistics(rows: Any, eps: float) -> tuple[Any, Any]:
    """The mean and ``1 / sqrt(variance + eps)`` of each row, as columns."""
    mean = rows.mean(axis=1, keepdims=True)
    centred = rows - mean
    # The variance of the centred values: E[t^2] - E[t]^2 would cancel where the mean is large.
    return mean, lax.rsqrt(jnp.mean(centred * centred, axis=1, keepdims=True) + eps)


def _per_channel(vector: Any, rank: int) -> Any:
    return at_least_float32(vector).reshape((1, -1) + (1,) * (rank - 2))


def _group_norm(t: Any, weight: Any, bias: Any, num_groups: int, eps: float) -> tuple[Any, ...]:
    rows = _rows(t, num_groups)
    mean, inv_std = _statistics(rows, eps)
    y = ((rows - mean) * inv_std).reshape(t.shape) * _per_channel(weight, t.ndim) + _per_channel(bias, t.ndim)
    return y.astype(t.dtype), mean.ravel().astype(t.dtype), inv_std.ravel().astype(t.dtype)


def _group_norm_gradient(
    grads: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], num_groups: int, eps: float
) -> list[Any]:
    t, weight, _ = inputs
    rows = _rows(t, num_groups)
    g, g_mean, g_inv_std = (at_least_float32(v) for v in grads)
    if t.dtype == jnp.float16:
        # The statistics were rounded to float16: too coarse for the differences below.
        mean, inv_std = _statistics(rows, eps)
    else:
        mean, inv_std = (v.reshape(-1, 1) for v in outputs[1:])
    normal = (rows - mean) * inv_std
    per_channel = tuple(i for i in range(t.ndim) if i != 1)
    g_normal = (g * _per_channel(weight, t.ndim)).reshape(rows.shape)
    # The row's statistics depend on t too. The last terms are the gradients of the outputs mean and inv_std.
    size = max(rows.shape[1], 1)
    shift = inv_std * jnp.mean(g_normal, axis=1, keepdims=True) - g_mean.reshape(-1, 1) / size
    slope = inv_std * jnp.mean(g_normal * normal, axis=1, keepdims=True) + g_inv_std.reshape(-1, 1) * inv_std**2 / size
    g_t = g_normal * inv_std - shift - normal * slope
    return [g_t.reshape(t.shape), jnp.sum(g * normal.reshape(t.shape), axis=per_channel), jnp.sum(g, axis=per_channel)]


def _group_norm_oracle(t: Any, weight: Any, bias: Any, num_groups: int, eps: float = 1e-5) -> Any:
    samples, channels = t.shape[:2]
    size = channels // num_groups
    y = np.empty_like(t)
    means, inv_stds = np.empty((2, samples, num_groups))
    for n in range(samples):
        for g in range(num_groups):
            block = t[n, g * size : (g + 1) * size]
            means[n, g], inv_stds[n, g] = block.mean(), 1 / np.sqrt(block.var() + eps)
            for c in range(g * size, (g + 1) * size):
                y[n, c] = weight[c] * (t[n, c] - means[n, g]) * inv_stds[n, g] + bias[c]
    return y, means.ravel(), inv_stds.ravel()


def _group_norm_samples() -> Sequence[Sample]:
    a = np.array([[1.0, 3.0, 5.0, 9.0], [-2.0, 0.5, 0.25, 1.5]], np.float32)
    image = (np.arange(48, dtype=np.float32).reshape(2, 4, 2, 3) % 11 - 5) / 4
    weight, bias = np.array([1.0, -0.5, 2.0, 0.25], np.float32), np.array([0.0, 1.0, -1.0, 0.5], np.float32)
    vectors = (weight, bias)
    halves = tuple(v.astype(np.float16) for v in vectors)
    return (
        sample(a, *vectors, 1, tolerance=1e-5),
        sample(a, *vectors, num_groups=2, eps=1e-3, tolerance=1e-5),
        sample(a, *vectors, 4, tolerance=1e-5),
        sample(image, *vectors, 2, tolerance=1e-5),
        # A large mean: the variance must not cancel.
        sample(image + 1000, *vectors, 1, tolerance=1e-4),
        sample(a.astype(np.float16), *halves, 1, tolerance=3e-3),
        sample(np.resize(a.astype(np.float16) + np.float16(60), (1, 4, 4096)), *halves, 2, tolerance=3e-3),
        sample(np.zeros((0, 4), np.float32), *vectors, 2),
    )


GROUP_NORM = define(
    "GroupNormalization",
    group_norm,
    lower=_group_norm,
    rule=_group_norm_rule,
    dtypes=FLOATS,
    oracle=_group_norm_oracle,
    samples=_group_norm_samples,
    gradient=Gradient(_group_norm_gradient),
    differences="the gradient of float16 takes no mean and 1/std: it computes them again, in float32",
)
