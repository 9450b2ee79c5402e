"""Activation functions (spec ``ops-math.md`` §3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from popxl.op import Gradient
from popxl.ops._define import FLOATS, define, define_inplace
from popxl.ops._jax import at_least_float32, jax, jnp, late
from popxl.ops._points import points
from popxl.ops._rules import same
from popxl.tensor import Tensor

Arrays = Sequence[Any]

# Gradients

_SATURATED = 1000.0
"""Beyond it, a smooth rectifier is the identity, or 0, in every dtype."""


def _in_float32(activation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The lowering of an activation that computes float16 in float32, where its inner terms do not overflow."""
    return lambda t: activation(at_least_float32(t)).astype(t.dtype)


def _slope_of(activation: Callable[[Any], Any]) -> Gradient:
    """The gradient of a smooth rectifier: its derivative, also where terms of the derivative would overflow."""

    def rule(grads: Arrays, inputs: Arrays, _outputs: Arrays) -> Arrays:
        t = jnp.clip(at_least_float32(inputs[0]), -_SATURATED, _SATURATED)
        _, slope = jax.jvp(activation, (t,), (jnp.ones_like(t),))
        return [grads[0] * slope]

    return Gradient(rule)


def _tanh_gradient(grads: Arrays, _inputs: Arrays, outputs: Arrays) -> Arrays:
    out = at_least_float32(outputs[0])
    return [grads[0] * (1 - out * out)]


def _relu_gradient(grads: Arrays, _inputs: Arrays, outputs: Arrays) -> Arrays:
    return [jnp.where(outputs[0] > 0, grads[0], 0)]


# Hyperbolic tangent


def tanh(t: Tensor) -> Tensor:
    """Hyperbolic tangent.

    Args:
        t: Float dtype.

    Returns:
        A tensor of the same shape and dtype.
    """
    return TANH.emit({"t": t}, "tanh_out")[0]


TANH = define(
    "Tanh",
    tanh,
    lower=late(lambda: jnp.tanh),
    rule=same,
    dtypes=FLOATS,
    oracle=np.tanh,
    samples=lambda: points(-0.5, 0.0, 1e-4, 3.0, kinks=(-np.inf, np.inf, np.nan)),
    gradient=Gradient(_tanh_gradient),
    elementwise=True,
)

# Rectifiers


def relu(t: Tensor) -> Tensor:
    """Rectified linear unit, ``max(t, 0)``. NaN stays NaN. The gradient at 0 is 0.

    Args:
        t: Float dtype.

    Returns:
        A tensor of the same shape and dtype.
    """
    return RELU.emit({"t": t}, "relu_out")[0]


def _relu_oracle(t: Any) -> Any:
    return np.where(t < 0, 0.0, t)


RELU = define(
    "Relu",
    relu,
    lower=late(lambda: jax.nn.relu),
    rule=same,
    dtypes=FLOATS,
    oracle=_relu_oracle,
    samples=lambda: points(-2.0, 1.5, kinks=(-0.0, 0.0, -np.inf, np.inf, np.nan), tolerance=0),
    gradient=Gradient(_relu_gradient),
    elementwise=True,
)


def relu_(t: Tensor) -> Tensor:
    """Do `relu` in place. Returns an alias of `t`."""
    return RELU_.emit({"t": t}, "relu_inplace_out")[0]


RELU_ = define_inplace("ReluInplace", relu_, RELU)


def gelu(t: Tensor) -> Tensor:
    """Gaussian error linear unit, tanh form: ``0.5 t (1 + tanh(0.7978845608 t + 0.0356774081 t^3))``.

    Args:
        t: Float dtype.

    Returns:
        A tensor of the same shape and dtype.
    """
    return GELU.emit({"t": t}, "gelu_out")[0]


def _gelu_oracle(t: Any) -> Any:
    return 0.5 * t * (1 + np.tanh(0.7978845608 * t + 0.0356774081 * t**3))


_gelu = late(lambda: partial(jax.nn.gelu, approximate=True))

GELU = define(
    "Gelu",
    gelu,
    lower=_in_float32(_gelu),
    rule=same,
    dtypes=FLOATS,
    oracle=_gelu_oracle,
    # The formula's coefficients are given to ten digits.
    samples=lambda: points(
        -3.0, -0.5, 0.0, 0.5, 3.0, 300.0, -300.0, kinks=(np.inf, -np.inf, np.nan), double_tolerance=1e-9
    ),
    gradient=_slope_of(_gelu),
    elementwise=True,
)


def gelu_(t: Tensor) -> Tensor:
    """Do `gelu` in place. Returns an alias of `t`."""
    return GELU_.emit({"t": t}, "gelu_inplace_out")[0]


GELU_ = define_inplace("GeluInplace", gelu_, GELU)


def geluerf(t: Tensor) -> Tensor:
    """Gaussian error linear unit, exact: ``0.5 t (1 + erf(t / sqrt 2))``.

    Args:
        t: Float dtype.

    Returns:
        A tensor of the same shape and dtype.
    """
    return GELUERF.emit({"t": t}, "geluerf_out")[0]


def _geluerf_oracle(t: Any) -> Any:
    erf = [math.erf(x / math.sqrt(2)) for x in np.ravel(t)]
    return 0.5 * t * (1 + np.reshape(erf, np.shape(t)))


_geluerf = late(lambda: partial(jax.nn.gelu, approximate=False))

GELUERF = define(
    "GeluErf",
    geluerf,
    lower=_in_float32(_geluerf),
    rule=same,
    dtypes=FLOATS,
    oracle=_geluerf_oracle,
    samples=lambda: points(-3.0, -0.5, 0.0, 0.5, 3.0, 300.0, -300.0, kinks=(np.inf, -np.inf, np.nan)),
    gradient=_slope_of(_geluerf),
    elementwise=True,
)


def geluerf_(t: Tensor) -> Tensor:
    """Do `geluerf` in place. Returns an alias of `t`."""
    return GELUERF_.emit({"t": t}, "geluerf_inplace_out")[0]


GELUERF_ = define_inplace("GeluErfInplace", geluerf_, GELUERF)


def swish(t: Tensor) -> Tensor:
    """Swish, also called SiLU: ``t sigmoid(t)``.

    Args:
        t: Float dtype.

    Returns:
        A tensor of the same shape and dtype.
    """
    return SWISH.emit({"t": t}, "swish_out")[0]


def _swish_oracle(t: Any) -> Any:
    return t / (1 + np.exp(-t))


_swish = late(lambda: jax.nn.swish)

SWISH = define(
    "Swish",
    swish,
    lower=_in_float32(_swish),
    rule=same,
    dtypes=FLOATS,
    oracle=_swish_oracle,
    samples=lambda: points(-3.0, -0.5, 0.0, 0.5, 3.0, 300.0, -300.0, kinks=(np.inf, -np.inf, np.nan)),
    gradient=_slope_of(_swish),
    elementwise=True,
)


def swish_(t: Tensor) -> Tensor:
    """Do `swish` in place. Returns an alias of `t`."""
    return SWISH_.emit({"t": t}, "swish_inplace_out")[0]


SWISH_ = define_inplace("SwishInplace", swish_, SWISH)
