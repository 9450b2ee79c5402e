"""The steps of Adam, LAMB and AdaMax (spec ``ops-updates.md`` §3).

One type of op computes all three; they tell apart how the second moment is used. Inputs that may be missing, or be
numbers, come last; the attribute `connected` names those that are there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from popxl.aliasing import is_writable
from popxl.context import get_current_graph
from popxl.errors import PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, NUMBERS, Declaration, Sample, define, define_variant, sample
from popxl.ops._jax import jnp
from popxl.ops.unary import identity
from popxl.ops.utils import check_in_graph
from popxl.ops.var_updates.utils import (
    Factor,
    arithmetic_dtype,
    check_given,
    check_same_shape,
    check_scalar,
    tensors_and_numbers,
)
from popxl.tensor import Tensor

Mode = Literal["adam", "lamb", "adamax"]


def adam_updater(
    acc_first_order: Tensor,
    acc_second_order: Tensor,
    weight: Tensor | None = None,
    time_step: Tensor | None = None,
    weight_decay: float | Tensor | None = None,
    beta1: float | Tensor | None = None,
    beta2: float | Tensor | None = None,
    epsilon: float | Tensor = 1e-07,
) -> Tensor:
    """Compute Adam's step ``m / (sqrt(v) + epsilon) + weight_decay * weight`` from moments that are up to date.

    With a `time_step`, which is **incremented in place first**, to ``T``, the moments are corrected for having
    started at zero: ``m / (1 - beta1^T)``, ``v / (1 - beta2^T)``. Nothing else is modified; scale the result by the
    learning rate and subtract it from the weight. Computes in float32 at least and rounds once.

    Args:
        acc_first_order: The first moment ``m``; any float dtype.
        acc_second_order: The second moment ``v``: same shape, any float dtype.
        weight: The weight: same shape, any float dtype. Used for weight decay only.
        time_step: How many steps were made: shape ``()``, any number dtype. None for no correction. In a called
            graph it must be an input by reference to be kept. A constant stays as it is.
        weight_decay: Decoupled weight decay (AdamW's); None or 0 for none.
        beta1: How much of ``m`` stayed in each step.
        beta2: How much of ``v`` stayed in each step.
        epsilon: Added to the root, after the correction.

    A `weight_decay`, `beta1`, `beta2` or `epsilon` is a number, or a float tensor with shape ``()``.

    Returns:
        The step: dtype of `weight` if there is weight decay, of `acc_first_order` otherwise.

    Raises:
        PopxlValueError: (a `ValueError`) if weight decay has no `weight`, or `time_step` has no betas.
        PopxlTypeError: (a `TypeError`) if an argument is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if shapes differ or a dtype is not supported.

    Example:
        AdamW; in graphs where nothing else orders the ops, put them in `popxl.in_sequence`.

        >>> import popxl
        >>> from popxl import ops
        >>> from popxl.ops import var_updates
        >>> with popxl.Ir().main_graph, popxl.in_sequence():
        ...     w, grad = popxl.variable([1.0, 2.0]), popxl.constant([0.5, -0.5])
        ...     m, v, step = popxl.variable([0.0, 0.0]), popxl.variable([0.0, 0.0]), popxl.variable(0.0)
        ...     m = var_updates.accumulate_moving_average_(m, grad, f=0.9)
        ...     v = var_updates.accumulate_moving_average_square_(v, grad, f=0.999)
        ...     x = var_updates.adam_updater(m, v, w, step, weight_decay=0.01, beta1=0.9, beta2=0.999)
        ...     w = var_updates.accumulate_(w, x, -0.001)
    """
    return _updater(
        ADAM_UPDATER,
        "adam",
        acc_first_order,
        acc_second_order,
        weight,
        time_step,
        weight_decay=weight_decay,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
    )


def _updater(
    declaration: Declaration,
    mode: Mode,
    m: Tensor,
    v: Tensor,
    weight: Tensor | None,
    time_step: Tensor | None,
    **factors: Factor,
) -> Tensor:
    decay = factors["weight_decay"]
    decays = isinstance(decay, Tensor) or bool(decay)
    _check_missing(mode, decays, weight, time_step, factors)
    check_given(epsilon=factors["epsilon"])
    tensors, numbers = tensors_and_numbers(**factors)
    optional = {name: t for name, t in (("weight", weight), ("time_step", time_step)) if t is not None}
    # What is not connected must be of this graph as well.
    check_in_graph(get_current_graph(), acc_first_order=m, acc_second_order=v, **optional, **tensors)
    if not decays:
        optional.pop("weight", None)
        numbers["weight_decay"] = None
    if time_step is None:
        for name in ("beta1", "beta2"):
            tensors.pop(name, None)
            numbers[name] = None
    elif not is_writable(time_step):
        # Its copy counts, and nobody sees it.
        optional["time_step"] = identity(time_step)
    connected = (*optional, *tensors)
    inputs = {"acc_first_order": m, "acc_second_order": v, **optional, **tensors}
    attributes: dict[str, Any] = {"mode": mode, "connected": connected, **numbers}
    mutates = () if time_step is None else (2 + connected.index("time_step"),)
    return declaration.emit(inputs, f"{mode}_updater_out", mutates=mutates, **attributes)[0]


def _check_missing(
    mode: Mode, decays: bool, weight: Tensor | None, time_step: Tensor | None, factors: dict[str, Factor]
) -> None:
    if decays and weight is None:
        raise PopxlValueError(
            "Weight decay requires weight to not be None.",
            hint=f"pass weight= to {mode}_updater, or weight_decay=None",
        )
    if mode == "adamax":
        if time_step is None:
            raise PopxlValueError(
                "AdaMax requires time_step to not be None.", hint="pass time_step=, a variable that starts at 0"
            )
        check_given(beta1=factors["beta1"])
    elif time_step is not None and (factors["beta1"] is None or factors["beta2"] is None):
        raise PopxlValueError(
            "Bias correction requires both beta1 and beta2 to not be None.",
            hint=f"pass both betas to {mode}_updater, or leave out time_step=",
        )


def _updater_rule(
    m: ShapeDtype, v: ShapeDtype, *optional: ShapeDtype, mode: Mode, connected: tuple[str, ...], **_numbers: Any
) -> ShapeDtype:
    api = f"{mode}_updater"
    given = dict(zip(connected, optional, strict=True))
    check_same_shape(api, m, v, "`acc_first_order` and `acc_second_order`")
    weight = given.pop("weight", m)
    check_same_shape(api, m, weight, "`acc_first_order` and `weight`")
    for name, spec in given.items():
        check_scalar(api, name, spec)
    return ShapeDtype(m.shape, weight.dtype)


def _lower_updater(
    m: Any, v: Any, *optional: Any, mode: Mode, connected: tuple[str, ...], **numbers: float | None
) -> Any:
    given = dict(zip(connected, optional, strict=True))
    weight, time_step = given.get("weight"), given.get("time_step")
    wide = arithmetic_dtype(m, v, m if weight is None else weight)

    def factor(name: str) -> Any:
        return given[name].astype(wide) if name in given else wide(numbers[name])

    first, second = m.astype(wide), v.astype(wide)
    if time_step is not None:
        time_step = time_step + 1
        steps = time_step.astype(wide)
        first = first / _one_minus_power(given.get("beta1", numbers["beta1"]), steps)
        if mode != "adamax":
            second = second / _one_minus_power(given.get("beta2", numbers["beta2"]), steps)
    step = first / ((second if mode == "adamax" else jnp.sqrt(second)) + factor("epsilon"))
    if weight is not None:
        step = step + factor("weight_decay") * weight.astype(wide)
    step = step.astype(m.dtype if weight is None else weight.dtype)
    return step if time_step is None else (step, time_step)


def _one_minus_power(beta: Any, steps: Any) -> Any:
    """``1 - beta^steps``, exact to the last digits for betas near 1 as well, where the plain formula cancels."""
    if isinstance(beta, float):
        return -jnp.expm1(steps * steps.dtype.type(math.log(beta))) if beta > 0 else 1 - beta**steps
    beta = beta.astype(steps.dtype)
    return jnp.where(beta > 0, -jnp.expm1(steps * jnp.log(beta)), 1 - beta**steps)


_M, _V = np.array([[0.1, -0.2, 0.0]], np.float32), np.array([[0.01, 0.09, 0.0]], np.float32)
_W = np.array([[1.0, -3.0, 0.5]], np.float32)


def _scalar(value: float, dtype: Any = np.float32) -> Any:
    return np.array(value, dtype)


def _adam_samples() -> Sequence[Sample]:
    half_m, half_v = _M.astype(np.float16), _V.astype(np.float16)
    wide_m, wide_v = _M.astype(np.float64), _V.astype(np.float64)
    return (
        sample(_M, _V, tolerance=2e-6),
        sample(_M, _V, _W, None, 0.0, 0.9, 0.99, 1e-3, tolerance=2e-6),
        sample(_M, _V, _W, None, 0.1, tolerance=2e-6),
        sample(_M, _V, None, _scalar(0.0), None, 0.9, 0.99, tolerance=2e-6),
        sample(_M, _V, _W, _scalar(6, np.int32), 0.01, 0.9, 0.999, tolerance=2e-6),
        sample(_M, _V, _W, _scalar(0.0), 0.01, 0.9, 0.999999, 1e-5, tolerance=2e-6),
        sample(_M, _V, _W, _scalar(3.0), *(_scalar(x) for x in (0.01, 0.9, 0.999, 1e-5)), tolerance=2e-6),
        sample(_M, _V, _W, _scalar(3, np.uint8), 0.01, 0.9, _scalar(0.0), _scalar(0.5, np.float16), tolerance=2e-6),
        sample(half_m, _V, _W, _scalar(1.0, np.float16), 0.01, 0.9, 0.99, tolerance=2e-6),
        sample(half_m, half_v, _W, _scalar(1.0), 0.0, 0.9, 0.99, tolerance=1e-3),
        sample(_M, half_v, _W.astype(np.float16), _scalar(1.0), 0.5, 0.9, 0.99, tolerance=1e-3),
        sample(wide_m, wide_v, None, _scalar(4.0), None, 0.9, 0.999, tolerance=1e-13),
        sample(*(_scalar(x) for x in (0.1, 0.01)), None, _scalar(1.0), None, 0.0, 0.0),
        sample(np.array([np.inf, np.nan, 1.0], np.float32), np.array([1.0, 1.0, -1.0], np.float32)),
        sample(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)),
    )


def _adam_oracle(
    m: Any, v: Any, w: Any = None, t: Any = None, wd: Any = None, b1: Any = None, b2: Any = None, eps: Any = 1e-7
) -> Any:
    if t is not None:
        t = np.float64(t) + 1
        m, v = m / (1 - b1**t), v / (1 - b2**t)
    x = m / (np.sqrt(v) + eps)
    return x if wd is None or wd == 0 else x + wd * w


_DTYPES = {
    **dict.fromkeys(("acc_first_order", "acc_second_order", "weight", "weight_decay", "beta1", "epsilon"), FLOATS),
    "time_step": NUMBERS,
}

ADAM_UPDATER = define(
    "AdamUpdater",
    adam_updater,
    lower=_lower_updater,
    rule=_updater_rule,
    dtypes={**_DTYPES, "beta2": FLOATS},
    oracle=_adam_oracle,
    samples=_adam_samples,
    gradient=None,
    optimizer=True,
    elementwise=True,
    differences="computes in float32 and rounds once; `weight_decay=None` is 0.0; the corrections `1 - beta^T` do not "
    "cancel for betas near 1; a constant `time_step` stays as it is",
)


def lamb_updater(
    acc_first_order: Tensor,
    acc_second_order: Tensor,
    weight: Tensor | None = None,
    time_step: Tensor | None = None,
    weight_decay: float | Tensor | None = None,
    beta1: float | Tensor | None = None,
    beta2: float | Tensor | None = None,
    epsilon: float | Tensor = 1e-07,
) -> Tensor:
    """Compute LAMB's step before its trust ratio, which `adam_var_update` applies; the same as `adam_updater`.

    Args:
        acc_first_order: As for `adam_updater`.
        acc_second_order: As for `adam_updater`.
        weight: As for `adam_updater`.
        time_step: As for `adam_updater`: **incremented in place**.
        weight_decay: As for `adam_updater`.
        beta1: As for `adam_updater`.
        beta2: As for `adam_updater`.
        epsilon: As for `adam_updater`.

    Returns:
        As from `adam_updater`.

    Raises:
        PopxlValueError: (a `ValueError`) as from `adam_updater`.
        PopxlTypeError: (a `TypeError`) as from `adam_updater`.
        CoreError: (a `RuntimeError`) as from `adam_updater`.
    """
    return _updater(
        LAMB_UPDATER,
        "lamb",
        acc_first_order,
        acc_second_order,
        weight,
        time_step,
        weight_decay=weight_decay,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
    )


LAMB_UPDATER = define_variant(
    ADAM_UPDATER,
    lamb_updater,
    oracle=_adam_oracle,
    samples=_adam_samples,
    differences="the same as of `adam_updater`",
)


def adamax_updater(
    acc_first_order: Tensor,
    acc_second_order: Tensor,
    weight: Tensor | None = None,
    time_step: Tensor | None = None,
    weight_decay: float | Tensor | None = None,
    beta1: float | Tensor = 0.9,
    epsilon: float | Tensor = 1e-07,
) -> Tensor:
    """Compute AdaMax's step ``m / (1 - beta1^T) / (v + epsilon) + weight_decay * weight``.

    `time_step` is **incremented in place first**, to ``T``. Nothing else is modified. Computes in float32 at least
    and rounds once.

    Args:
        acc_first_order: The first moment ``m``; any float dtype.
        acc_second_order: The infinity norm ``v``, the maximum of ``beta2 * v`` and the gradient's absolute value:
            same shape, any float dtype. It is not corrected.
        weight: As for `adam_updater`.
        time_step: As for `adam_updater`, but it must be given.
        weight_decay: As for `adam_updater`.
        beta1: How much of ``m`` stayed in each step.
        epsilon: Added to ``v``.

    A `weight_decay`, `beta1` or `epsilon` is a number, or a float tensor with shape ``()``.

    Returns:
        The step: dtype of `weight` if there is weight decay, of `acc_first_order` otherwise.

    Raises:
        PopxlValueError: (a `ValueError`) if weight decay has no `weight`, or there is no `time_step`.
        PopxlTypeError: (a `TypeError`) if an argument is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if shapes differ or a dtype is not supported.
    """
    return _updater(
        ADAMAX_UPDATER,
        "adamax",
        acc_first_order,
        acc_second_order,
        weight,
        time_step,
        weight_decay=weight_decay,
        beta1=beta1,
        epsilon=epsilon,
    )


def _adamax_samples() -> Sequence[Sample]:
    half_m, half_v = _M.astype(np.float16), _V.astype(np.float16)
    return (
        sample(_M, _V, None, _scalar(0.0), tolerance=2e-6),
        sample(_M, _V, _W, _scalar(6, np.int32), 0.01, 0.99, 1e-3, tolerance=2e-6),
        sample(_M, _V, _W, _scalar(3.0), *(_scalar(x) for x in (0.01, 0.9, 1e-5)), tolerance=2e-6),
        sample(half_m, _V, _W, _scalar(1.0, np.float16), 0.01, tolerance=2e-6),
        # 1e-7 is hardly a float16, but the sum with it is not rounded.
        sample(half_m, half_v, None, _scalar(1.0), 0.0, 0.5, tolerance=1e-3),
        sample(_M.astype(np.float64), _V.astype(np.float64), None, _scalar(4, np.int64), tolerance=1e-13),
        sample(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), None, _scalar(0.0)),
    )


def _adamax_oracle(m: Any, v: Any, w: Any = None, t: Any = None, wd: Any = None, b1: Any = 0.9, eps: Any = 1e-7) -> Any:
    x = m / (1 - b1 ** (np.float64(t) + 1)) / (v + eps)
    return x if wd is None or wd == 0 else x + wd * w


ADAMAX_UPDATER = define_variant(
    ADAM_UPDATER,
    adamax_updater,
    dtypes=_DTYPES,
    oracle=_adamax_oracle,
    samples=_adamax_samples,
    differences="computes in float32 and rounds once",
)
