"""Sums, means and moving averages kept in a tensor (spec ``ops-updates.md`` §1-§2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, NUMBERS, Declaration, Sample, define, define_variant, sample
from popxl.ops.utils import check_in_graph
from popxl.ops.var_updates.utils import (
    Factor,
    arithmetic_dtype,
    check_given,
    check_same_shape,
    check_scalar,
    checked_number,
    tensors_and_numbers,
    update,
)
from popxl.tensor import Tensor

Kind = Literal["sum", "square", "mean", "moving_average", "moving_average_square"]


def accumulate_(t: Tensor, X: Tensor, f: float | Tensor | None = None) -> Tensor:  # noqa: N803 - PopXL's names
    """Add `X`, or ``f * X``, to `t` in place. Computes in float32 at least and rounds once, to the dtype of `t`.

    Args:
        t: The sum; any float dtype.
        X: What to add: shape of `t`, any float dtype.
        f: Factor: a number, or a float tensor with shape ``()``. A number of exactly 0 leaves `t` as it is.

    Returns:
        An alias of `t`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `f` is something else.
        CoreError: (a `RuntimeError`) if the shapes differ, `f` is no scalar, or a dtype is no float.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     total = popxl.variable([1.0, 2.0], name="total")
        ...     ops.var_updates.accumulate_(total, popxl.constant([0.5, 0.5]), 2.0)
        Tensor[accumulate__total popxl.dtypes.float32 (2,)]
    """
    return _accumulate(ACCUMULATE, "sum", t, X, f)


def _accumulate(declaration: Declaration, kind: Kind, t: Tensor, x: Tensor, f: Factor) -> Tensor:
    tensors, numbers = tensors_and_numbers(f=f)
    prefix = declaration.function.__name__.removesuffix("_")
    return update(declaration, prefix, {"t": t, "X": x, **tensors}, kind=kind, factor=numbers["f"])


def _accumulate_rule(
    t: ShapeDtype, x: ShapeDtype, f: ShapeDtype | None = None, *, kind: Kind, **_attributes: Any
) -> ShapeDtype:
    api = "accumulate_" if kind == "sum" else f"accumulate_{kind}_"
    check_same_shape(api, t, x)
    check_scalar(api, "step" if kind == "mean" else "factor", f)
    return t


def _lower_accumulate(t: Any, x: Any, f: Any = None, *, kind: Kind, factor: float | None) -> Any:
    if factor == 0.0 and kind in ("sum", "square"):
        return t
    wide = arithmetic_dtype(t, x)
    total, summand = t.astype(wide), x.astype(wide)
    if kind in ("square", "moving_average_square"):
        summand = summand * summand
    weight = wide(1 if factor is None else factor) if f is None else f.astype(wide)
    match kind:
        case "sum" | "square":
            result = total + weight * summand
        case "mean":
            share = 1 / (weight + 1)
            result = (1 - share) * total + share * summand
        case "moving_average" | "moving_average_square":
            # Of a number, the rest is taken before it is rounded.
            rest = 1 - weight if factor is None else wide(1 - factor)
            result = weight * total + rest * summand
    return result.astype(t.dtype)


_T, _X = np.array([[1.0, -2.0]], np.float32), np.array([[0.5, 4.0]], np.float32)


def _accumulate_samples() -> Sequence[Sample]:
    return (
        sample(_T, _X),
        sample(_T, _X, 0.25),
        sample(_T, _X, np.array(-3.0, np.float32)),
        sample(_T.astype(np.float16), _X, 0.1, tolerance=1e-3),
        sample(_T, _X.astype(np.float16), np.array(0.1, np.float16), tolerance=1e-6),
        sample(_T, np.array([[np.inf, 1.0]], np.float32), 0.0, tolerance=0),
        sample(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)),
    )


def _accumulate_oracle(t: Any, X: Any, f: Any = None) -> Any:  # noqa: N803
    return t.copy() if isinstance(f, float) and not f else t + X * (1 if f is None else f)


ACCUMULATE = define(
    "Accumulate",
    accumulate_,
    lower=_lower_accumulate,
    rule=_accumulate_rule,
    dtypes=FLOATS,
    oracle=_accumulate_oracle,
    samples=_accumulate_samples,
    mutates=(0,),
    optimizer=True,
    elementwise=True,
    differences="a constant factor of 0 changes nothing; computes in float32 and rounds once",
)


def accumulate_square_(t: Tensor, X: Tensor, f: float | Tensor = 1.0) -> Tensor:  # noqa: N803 - PopXL's names
    """Add ``f * X * X`` to `t` in place. Computes in float32 at least and rounds once, to the dtype of `t`.

    Args:
        t: The sum of squares; any float dtype.
        X: Shape of `t`, any float dtype. It is squared before it is rounded to the dtype of `t`.
        f: Factor, as for `accumulate_`.

    Returns:
        An alias of `t`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `f` is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if the shapes differ, `f` is no scalar, or a dtype is no float.
    """
    check_given(f=f)
    return _accumulate(ACCUMULATE_SQUARE, "square", t, X, f)


def _square_samples() -> Sequence[Sample]:
    return (
        sample(_T, _X),
        sample(_T, _X, 0.5),
        sample(_T, _X, np.array(-3.0, np.float32)),
        # Its square is beyond float16, the result is not.
        sample(_T.astype(np.float16), _X * 1000, 1e-6, tolerance=1e-3),
        sample(_T, _X.astype(np.float16) * 1000, np.array(0.1, np.float16)),
        sample(_T.astype(np.float64), _X, 0.1, tolerance=1e-15),
        sample(_T, np.array([[np.nan, 1.0]], np.float32), 0.0, tolerance=0),
        sample(np.float32(1.0), np.float32(3.0), 0.5),
        sample(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)),
    )


def _square_oracle(t: Any, X: Any, f: Any = 1.0) -> Any:  # noqa: N803
    return _accumulate_oracle(t, X**2, f)


ACCUMULATE_SQUARE = define_variant(
    ACCUMULATE,
    accumulate_square_,
    oracle=_square_oracle,
    samples=_square_samples,
    differences="a constant factor of 0 changes nothing; `X` is squared before it is rounded to the dtype of `t`",
)


def accumulate_mean_(t: Tensor, X: Tensor, step: float | Tensor) -> Tensor:  # noqa: N803 - PopXL's names
    """Make `t` the mean of one more value, in place: ``(1 - b) * t + b * X`` where ``b = 1 / (step + 1)``.

    Computes in float32 at least and rounds once, to the dtype of `t`.

    Args:
        t: The mean so far; any float dtype. At step 0 it has the weight 0, but its NaNs and infinities stay.
        X: The next value: shape of `t`, any float dtype.
        step: How many values `t` is the mean of: a number, or a tensor of numbers with shape ``()``.

    Returns:
        An alias of `t`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `step` is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if the shapes differ, `step` is no scalar, or a dtype is not supported.
    """
    if not isinstance(step, Tensor):
        number = checked_number("step", step)
        check_in_graph(get_current_graph(), t=t, X=X)
        check_same_shape("accumulate_mean_", t, X)
        step = constant(number, dtypes.float32)
    return update(ACCUMULATE_MEAN, "accumulate_mean", {"t": t, "X": X, "step": step}, kind="mean", factor=None)


def _mean_oracle(t: Any, X: Any, step: Any) -> Any:  # noqa: N803
    b = 1 / (np.float64(step) + 1)
    return (1 - b) * t + b * X


ACCUMULATE_MEAN = define_variant(
    ACCUMULATE,
    accumulate_mean_,
    dtypes={"t": FLOATS, "X": FLOATS, "step": NUMBERS},
    oracle=_mean_oracle,
    samples=lambda: (
        sample(_T, _X, 0.0),
        sample(_T, _X, 1),
        sample(_T, _X, np.array(2.0, np.float32)),
        sample(_T, _X, np.array(6, np.int32)),
        sample(_T.astype(np.float16), _X, np.array(4, np.uint8), tolerance=1e-3),
        sample(_T, _X.astype(np.float16), np.array(2.0, np.float16)),
        sample(_T.astype(np.float64), _X.astype(np.float64), 3.0, tolerance=1e-15),
        sample(np.array([np.nan, np.inf, 1.0], np.float32), np.array([1.0, 1.0, -np.inf], np.float32), 0.0),
        sample(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), 1.0),
    ),
)


def accumulate_moving_average_(t: Tensor, X: Tensor, f: float | Tensor) -> Tensor:  # noqa: N803 - PopXL's names
    """Move `t` towards `X` in place: ``f * t + (1 - f) * X``.

    Computes in float32 at least and rounds once, to the dtype of `t`.

    Args:
        t: The average; any float dtype.
        X: The next value: shape of `t`, any float dtype.
        f: How much of `t` stays: a number, or a float tensor with shape ``()``.

    Returns:
        An alias of `t`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `f` is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if the shapes differ, `f` is no scalar, or a dtype is no float.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     m, grad = popxl.variable([0.0, 0.0], name="m"), popxl.constant([1.0, 2.0])
        ...     ops.var_updates.accumulate_moving_average_(m, grad, f=0.9)
        Tensor[accumulate_moving_average__m popxl.dtypes.float32 (2,)]
    """
    check_given(f=f)
    return _accumulate(ACCUMULATE_MOVING_AVERAGE, "moving_average", t, X, f)


def _average_samples() -> Sequence[Sample]:
    return (
        sample(_T, _X, 0.9),
        sample(_T, _X, 0),
        sample(_T, _X, 1.0),
        sample(_T, _X, np.array(0.999, np.float32)),
        sample(_T.astype(np.float16), _X, 0.9, tolerance=1e-3),
        sample(_T, _X.astype(np.float16), np.array(0.9, np.float16)),
        sample(_T.astype(np.float64), _X.astype(np.float64), 0.9, tolerance=1e-15),
        sample(np.array([np.nan, np.inf, 1.0], np.float32), np.array([1.0, 1.0, -np.inf], np.float32), 0.5),
        sample(np.float32(1.0), np.float32(3.0), 0.9),
        sample(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), 0.9),
    )


def _average_oracle(t: Any, X: Any, f: Any) -> Any:  # noqa: N803
    return f * t + (1 - f) * X


ACCUMULATE_MOVING_AVERAGE = define_variant(
    ACCUMULATE, accumulate_moving_average_, oracle=_average_oracle, samples=_average_samples
)


def accumulate_moving_average_square_(
    t: Tensor,
    X: Tensor,  # noqa: N803 - PopXL's names
    f: float | Tensor,
) -> Tensor:
    """Move `t` towards the square of `X` in place: ``f * t + (1 - f) * X * X``.

    Computes in float32 at least and rounds once, to the dtype of `t`.

    Args:
        t: The average of squares; any float dtype.
        X: Shape of `t`, any float dtype. It is squared before it is rounded to the dtype of `t`.
        f: How much of `t` stays: a number, or a float tensor with shape ``()``.

    Returns:
        An alias of `t`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `f` is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if the shapes differ, `f` is no scalar, or a dtype is no float.
    """
    check_given(f=f)
    return _accumulate(ACCUMULATE_MOVING_AVERAGE_SQUARE, "moving_average_square", t, X, f)


def _average_square_oracle(t: Any, X: Any, f: Any) -> Any:  # noqa: N803
    return _average_oracle(t, X**2, f)


ACCUMULATE_MOVING_AVERAGE_SQUARE = define_variant(
    ACCUMULATE,
    accumulate_moving_average_square_,
    oracle=_average_square_oracle,
    samples=lambda: (
        *_average_samples(),
        sample(_T.astype(np.float16), np.array([[1e3, -1e-4]], np.float32), 0.999, tolerance=1e-3),
    ),
    differences="`X` is squared before it is rounded to the dtype of `t`",
)
