"""Scaled sums (spec ``ops-math.md`` §4)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlTypeError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOATS, Declaration, Sample, define, define_inplace, sample
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops.utils import check_in_graph, element_count
from popxl.tensor import Tensor

Arrays = Sequence[Any]


def scaled_add(X: Tensor, Y: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 1.0) -> Tensor:  # noqa: N803
    """Add two tensors, each multiplied by a number, ``a X + b Y``, computed in float32 at least.

    Args:
        X: Float dtype.
        Y: Float dtype, which may be another; same shape as `X`.
        a: Scale of `X`: a number, or a float tensor of one element.
        b: Scale of `Y`, likewise.

    Returns:
        The sum, of the shape and dtype of `X`.

    Raises:
        PopxlTypeError: (a `TypeError`) if a scale is neither a number nor a tensor.
        CoreError: (a `RuntimeError`) if the shapes differ or a scale has more or fewer elements than one.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.scaled_add(popxl.constant([1.0, 2.0]), popxl.constant([0.5, 0.5]), b=-0.1)
        Tensor[scaled_add_out popxl.dtypes.float32 (2,)]
    """
    check_in_graph(get_current_graph(), X=X, Y=Y)
    return _emit(SCALED_ADD, "scaled_add_out", X, Y, a, b)


def scaled_add_(X: Tensor, Y: Tensor, a: float | Tensor = 1.0, b: float | Tensor = 1.0) -> Tensor:  # noqa: N803
    """Do `scaled_add` in place: a step of gradient descent is ``scaled_add_(weight, gradient, b=-learning_rate)``.

    Returns:
        An alias of `X`, named ``"scaled_add__<name of X>"``.
    """
    check_in_graph(get_current_graph(), X=X, Y=Y)
    return _emit(SCALED_ADD_, f"scaled_add__{X.name}", X, Y, a, b)


def _emit(declaration: Declaration, name: str, x: Tensor, y: Tensor, a: float | Tensor, b: float | Tensor) -> Tensor:
    scales = {"a": a, "b": b}
    tensors = {argument: scale for argument, scale in scales.items() if isinstance(scale, Tensor)}
    return declaration.emit({"X": x, "Y": y, **tensors}, name, a=_number("a", a), b=_number("b", b))[0]


def _number(argument: str, scale: float | Tensor) -> float | None:
    """The scale as a number; None if it is a tensor."""
    if isinstance(scale, Tensor):
        return None
    if not isinstance(scale, Real):
        raise PopxlTypeError(
            f"The scale `{argument}` is {scale!r}, which is neither a number nor a Tensor.",
            hint="pass a number, or a tensor of one element",
        )
    return float(scale)


def _rule(x: ShapeDtype, y: ShapeDtype, *scales: ShapeDtype, a: float | None, b: float | None) -> ShapeDtype:
    if x.shape != y.shape:
        raise CoreError(
            f"The shapes of `X` and `Y` differ: {list(x.shape)} and {list(y.shape)}; scaled_add does not broadcast.",
            hint="use popxl.ops.mul and popxl.ops.add, which broadcast",
        )
    for argument, scale in zip(_of_tensors(a, b), scales, strict=True):
        if element_count(scale.shape) != 1:
            raise CoreError(
                f"The scale `{argument}` has {element_count(scale.shape)} elements (shape {list(scale.shape)}), not 1.",
                hint="use popxl.ops.mul and popxl.ops.add, which broadcast",
            )
    return x


def _of_tensors(a: float | None, b: float | None) -> Sequence[str]:
    """Which scales are tensors."""
    return [argument for argument, number in (("a", a), ("b", b)) if number is None]


def _scales(arrays: Arrays, a: float | None, b: float | None) -> tuple[Any, Any]:
    left = iter([at_least_float32(t).reshape(()) for t in arrays])
    return (next(left) if a is None else a), (next(left) if b is None else b)


def _scaled_add(x: Any, y: Any, *scales: Any, a: float | None, b: float | None) -> Any:
    of_x, of_y = _scales(scales, a, b)
    # Products are as wide as the sum: with one of float64, that of the other is no float32.
    wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return (of_x * x.astype(wide) + of_y * y.astype(wide)).astype(x.dtype)


def _gradient(grads: Arrays, inputs: Arrays, _outputs: Arrays, a: float | None, b: float | None) -> Arrays:
    grad, x, y = (at_least_float32(t) for t in (grads[0], *inputs[:2]))
    of_x, of_y = _scales(inputs[2:], a, b)
    of_scales = {"a": lambda: jnp.sum(grad * x), "b": lambda: jnp.sum(grad * y)}
    to_scales = [
        of_scales[argument]().reshape(t.shape) for argument, t in zip(_of_tensors(a, b), inputs[2:], strict=True)
    ]
    return [of_x * grad, of_y * grad, *to_scales]


def _oracle(x: Any, y: Any, a: Any = 1.0, b: Any = 1.0) -> Any:
    return np.reshape(a, ()) * x + np.reshape(b, ()) * y


def _samples() -> Sequence[Sample]:
    x = np.array([[1.5, -2.0, 3.25], [0.5, 4.0, -1.0]], np.float32)
    y = np.array([[0.25, 100.0, -3.0], [2.0, -0.5, 1e-3]], np.float32)
    scale, half = np.array([[2.5]], np.float32), np.float16(0.1)
    return (
        sample(x, y),
        sample(x, y, 0.5, -0.1),
        sample(x, y, b=-0.1),
        sample(x, y, 2, scale),
        sample(x, y, scale, 0.1),
        sample(x, y, scale, half),
        sample(x.astype(np.float16), y.astype(np.float16), -0.1, half, tolerance=1e-3),
        sample(x.astype(np.float16), y, 0.1, scale, tolerance=1e-3),
        sample(x, y.astype(np.float16), half, 0.3),
        sample(x.astype(np.float64), y.astype(np.float64), 0.1, np.array([0.3]), tolerance=1e-15),
        # What float16 cannot hold, before it is scaled.
        sample(np.array([6e4, 1.0], np.float16), np.array([6e4, 2.0], np.float16), 0.5, 0.25, tolerance=1e-3),
        sample(np.float32(2.0), np.float32(3.0), 4.0),
        sample(np.array([np.inf, 1.0, np.nan], np.float32), np.array([1.0, -np.inf, 0.0], np.float32), 2.0, 0.5),
        sample(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)),
    )


SCALED_ADD = define(
    "ScaledAdd",
    scaled_add,
    lower=_scaled_add,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_oracle,
    samples=_samples,
    gradient=Gradient(_gradient),
    elementwise=True,
    differences="numbers and tensors can be mixed as scales; it has a gradient",
)
SCALED_ADD_ = define_inplace("ScaledAddLhsInplace", scaled_add_, SCALED_ADD)
