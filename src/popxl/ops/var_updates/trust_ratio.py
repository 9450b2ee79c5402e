"""`adam_var_update`, the step with LAMB's trust ratio (spec ``ops-updates.md`` §4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.errors import PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import jnp
from popxl.ops.var_updates.utils import (
    arithmetic_dtype,
    check_same_shape,
    check_scalar,
    tensors_and_numbers,
    update,
)
from popxl.tensor import Tensor


def adam_var_update(
    t: Tensor,
    x: Tensor,
    r1: Tensor,
    r2: Tensor,
    learning_rate: float | Tensor | None = None,
    max_weight_norm: float | Tensor | None = None,
) -> Tensor:
    """Take the step `x` from the weight `t`, **in place**: ``t - learning_rate * ratio * x``.

    The ratio is LAMB's: ``min(sqrt(r1), max_weight_norm) / sqrt(r2)``. It is 1 if `r1`, `r2` or `max_weight_norm`
    is 0. Computes in float32 at least and rounds once, to the dtype of `t`.

    Args:
        t: The weight; any float dtype.
        x: The step: shape of `t`, any float dtype.
        r1: The square of the weight's norm (`popxl.ops.lamb_square`): float, shape ``()``.
        r2: The square of the step's norm: float, shape ``()``.
        learning_rate: A number, or a float tensor with shape ``()``.
        max_weight_norm: A number, or a float tensor with shape ``()``. None does not limit the weight's norm.

    Returns:
        An alias of `t`.

    Raises:
        PopxlValueError: (a `ValueError`) if there is no learning rate.
        PopxlTypeError: (a `TypeError`) if an argument is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if shapes differ, something is no scalar, or a dtype is no float.

    Example:
        The weight's norm is 2 and the step's is 1, so the step is made twice as long.

        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     w, x = popxl.variable([2.0], name="w"), popxl.constant([1.0])
        ...     r1, r2 = popxl.constant(4.0), popxl.constant(1.0)
        ...     ops.var_updates.adam_var_update(w, x, r1, r2, learning_rate=0.5, max_weight_norm=10.0)
        Tensor[adam_var_update__w popxl.dtypes.float32 (1,)]
    """
    if learning_rate is None:
        raise PopxlValueError(
            "adam_var_update requires learning_rate to not be None.", hint="pass learning_rate=, a float or a tensor"
        )
    tensors, numbers = tensors_and_numbers(learning_rate=learning_rate, max_weight_norm=max_weight_norm)
    return update(
        ADAM_VAR_UPDATE,
        "adam_var_update",
        {"t": t, "x": x, "r1": r1, "r2": r2, **tensors},
        same_place=False,
        connected=tuple(tensors),
        **numbers,
    )


def _rule(
    t: ShapeDtype,
    x: ShapeDtype,
    r1: ShapeDtype,
    r2: ShapeDtype,
    *factors: ShapeDtype,
    connected: tuple[str, ...],
    **_numbers: Any,
) -> ShapeDtype:
    check_same_shape("adam_var_update", t, x, "`t` and `x`")
    for name, spec in zip(("r1", "r2", *connected), (r1, r2, *factors), strict=True):
        check_scalar("adam_var_update", name, spec)
    return t


def _lower(t: Any, x: Any, r1: Any, r2: Any, *factors: Any, connected: tuple[str, ...], **numbers: float | None) -> Any:
    wide = arithmetic_dtype(t, x)
    given = {name: wide(number) for name, number in numbers.items() if number is not None}
    given |= {name: factor.astype(wide) for name, factor in zip(connected, factors, strict=True)}
    weight_norm, step_norm = jnp.sqrt(r1.astype(wide)), jnp.sqrt(r2.astype(wide))
    no_ratio = (weight_norm == 0) | (step_norm == 0)
    if "max_weight_norm" in given:
        no_ratio = no_ratio | (given["max_weight_norm"] == 0)
        weight_norm = jnp.minimum(weight_norm, given["max_weight_norm"])
    ratio = jnp.where(no_ratio, 1, weight_norm / step_norm)
    return (t.astype(wide) - given["learning_rate"] * ratio * x.astype(wide)).astype(t.dtype)


def _samples() -> Sequence[Sample]:
    t, x = np.array([[2.0, -1.0]], np.float32), np.array([[1.0, 0.25]], np.float32)
    r1, r2, zero = np.array(4.0, np.float32), np.array(0.5, np.float32), np.array(0.0, np.float32)
    return (
        sample(t, x, r1, r2, 0.5, 10.0),
        sample(t, x, r1, r2, 0.5, 0.1),
        sample(t, x, r1, r2, 0.5),
        sample(t, x, r1, r2, np.array(0.5, np.float32), np.array(1.5, np.float16)),
        sample(t, x, r1, r2, 0.5, np.array(0.0, np.float32)),
        sample(t, x, r1, r2, 0.5, 0.0),
        sample(t, x, zero, r2, 0.5, 10.0),
        sample(t, x, r1, zero, 0.5, 10.0),
        sample(t, x, zero, zero, np.array(0.1, np.float16)),
        sample(t.astype(np.float16), x, r1, r2, 0.1, 10.0, tolerance=1e-3),
        sample(t, x.astype(np.float16), r1.astype(np.float16), r2, 0.1, 10.0),
        sample(t.astype(np.float64), x, r1.astype(np.float64), r2, 0.1, tolerance=1e-14),
        sample(t, x, np.array(np.nan, np.float32), r2, 0.5, 10.0),
        sample(t, x, np.array(np.inf, np.float32), r2, 0.5, 10.0),
        sample(np.zeros((0,), np.float32), np.zeros((0,), np.float32), zero, zero, 0.5),
    )


def _oracle(t: Any, x: Any, r1: Any, r2: Any, learning_rate: Any, max_weight_norm: Any = None) -> Any:
    limit = np.inf if max_weight_norm is None else max_weight_norm
    ratio = 1.0 if 0 in (r1, r2, limit) else np.minimum(np.sqrt(r1), limit) / np.sqrt(r2)
    return t - learning_rate * ratio * x


ADAM_VAR_UPDATE = define(
    "AdamVarUpdate",
    adam_var_update,
    lower=_lower,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_oracle,
    samples=_samples,
    mutates=(0,),
    optimizer=True,
    elementwise=True,
    differences="without `learning_rate` a `ValueError` when the op is made; without `max_weight_norm` the norm has no "
    "limit; a constant `max_weight_norm` of 0 makes the ratio 1, as a tensor does",
)
