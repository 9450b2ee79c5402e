"""Batch normalisation with known statistics (spec ``ops-nn.md`` §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.errors import CoreError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import at_least_float32, lax
from popxl.ops.utils import same_dtype
from popxl.tensor import Tensor


def batch_norm_inference(
    t: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> Tensor:
    """Normalise each channel with a given mean and variance, then scale and shift it.

    ``scale * (t - mean) / sqrt(var + epsilon) + bias``. Float16 is computed in float32. There is no gradient:
    asking for one is an error.

    Args:
        t: Shape ``(samples, channels, ...)``, of rank 3 or more; a float dtype.
        scale: Shape ``(channels,)``, same dtype.
        bias: Shape ``(channels,)``, same dtype.
        mean: Shape ``(channels,)``; a float dtype.
        var: Shape ``(channels,)``; a float dtype.
        epsilon: Added to the variance.
        momentum: No effect; it is for training.

    Returns:
        A tensor like `t`.

    Raises:
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     x = popxl.constant(np.ones((2, 3, 5), np.float32))
        ...     scale, bias, mean, var = (popxl.constant(np.ones(3, np.float32)) for _ in range(4))
        ...     ops.batch_norm_inference(x, scale, bias, mean, var)
        Tensor[batch_norm_inference_out popxl.dtypes.float32 (2, 3, 5)]
    """
    return BATCH_NORM.emit(
        # The reference's messages call the bias `b`.
        {"t": t, "scale": scale, "b": bias, "mean": mean, "var": var},
        "batch_norm_inference_out",
        epsilon=float(epsilon),
        momentum=float(momentum),
    )[0]


def _rule(
    t: ShapeDtype, scale: ShapeDtype, bias: ShapeDtype, mean: ShapeDtype, var: ShapeDtype, **_attributes: Any
) -> ShapeDtype:
    if len(t.shape) < 3:
        raise CoreError(
            f"batch norm requires X to have a rank >= 3: `t` has the shape {list(t.shape)}.",
            hint="axis 0 counts samples, axis 1 channels; reshape `t` to (samples, channels, 1)",
        )
    for argument, spec in (("scale", scale), ("bias", bias), ("mean", mean), ("var", var)):
        if spec.shape != t.shape[1:2]:
            raise CoreError(
                f"expected shape of batch norm input tensor `{argument}` is {list(t.shape[1:2])}, "
                f"not {list(spec.shape)}.",
                hint=f"axis 1 of `t`, of shape {list(t.shape)}, counts the channels",
            )
    same_dtype(t, scale, bias)
    return t


def _batch_norm(t: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float, momentum: float) -> Any:
    x = at_least_float32(t)
    scale, bias, mean, var = (
        v.astype(x.dtype).reshape((1, -1) + (1,) * (t.ndim - 2)) for v in (scale, bias, mean, var)
    )
    return ((x - mean) * (scale * lax.rsqrt(var + epsilon)) + bias).astype(t.dtype)


def _oracle(t: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float = 1e-5, momentum: float = 0.9) -> Any:
    y = np.empty_like(t)
    for c in range(t.shape[1]):
        y[:, c] = scale[c] * (t[:, c] - mean[c]) / np.sqrt(var[c] + epsilon) + bias[c]
    return y


def _samples() -> Sequence[Sample]:
    image = (np.arange(48, dtype=np.float32).reshape(2, 3, 4, 2) % 11 - 5) / 4
    scale, bias, mean, var = np.array(
        [[1.0, -0.5, 2.0], [0.0, 1.0, -1.0], [0.5, -0.25, 3.0], [1.0, 0.25, 4.0]], np.float32
    )
    half, double = (tuple(a.astype(d) for a in (image, scale, bias, mean, var)) for d in (np.float16, np.float64))
    return (
        sample(image, scale, bias, mean, var, tolerance=1e-5),
        sample(image.reshape(2, 3, 8), scale, bias, mean, var, epsilon=0.5, momentum=0.1, tolerance=1e-5),
        sample(*half, tolerance=2e-3),
        # Float32 statistics are not rounded to float16: this mean and variance have no float16.
        sample(half[0], half[1], half[2], mean + np.float32(1e-5), var * np.float32(1e5), tolerance=2e-3),
        sample(image, scale, bias, mean.astype(np.float16), var.astype(np.float64), tolerance=1e-5),
        sample(*double, tolerance=1e-14),
        sample(image, scale, bias, mean, np.array([0.0, -1.0, np.inf], np.float32), tolerance=1e-5),
        sample(np.zeros((0, 3, 2), np.float32), scale, bias, mean, var),
    )


BATCH_NORM = define(
    "BatchNormalization",
    batch_norm_inference,
    lower=_batch_norm,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_oracle,
    samples=_samples,
    gradient=Gradient(refusal="BatchNorm Op has no gradient: it is in inference mode."),
    differences="float32 `mean` and `var` of a float16 `t` are not rounded to float16",
)
