"""What the updates of variables share (spec ``ops-updates.md`` §1)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlTypeError
from popxl.op import ShapeDtype
from popxl.ops._define import Declaration
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

Factor = float | Tensor | None


def update(declaration: Declaration, prefix: str, tensors: Mapping[str, Tensor], **attributes: Any) -> Tensor:
    """Add an op that overwrites `t`, the first of `tensors`.

    Returns:
        The alias of `t`, named ``<prefix>__<name of t>``, with the meta shape of `t`.
    """
    check_in_graph(get_current_graph(), **tensors)
    t = tensors["t"]
    (updated,) = declaration.emit(tensors, f"{prefix}__{t.name}", **attributes)
    updated.meta_shape = t.meta_shape
    return updated


def tensors_and_numbers(**arguments: Factor) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    """Sort arguments that may be tensors or numbers, by whether they are read at run time or fixed now.

    Args:
        arguments: Tensors, numbers, or None.

    Returns:
        The tensors, which become inputs of the op; and for each argument the number, which becomes an attribute,
        or None.

    Raises:
        PopxlTypeError: (a `TypeError`) if one is something else.

    Example:
        >>> tensors_and_numbers(beta1=0.5, beta2=None)
        ({}, {'beta1': 0.5, 'beta2': None})
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    numbers = {
        name: None if value is None or isinstance(value, Tensor) else checked_number(name, value)
        for name, value in arguments.items()
    }
    return tensors, numbers


def checked_number(name: str, value: object) -> float:
    """Return a number as a float.

    Raises:
        PopxlTypeError: (a `TypeError`) if it is none.
    """
    if not isinstance(value, Real):
        raise PopxlTypeError(
            f"`{name}` is {value!r}, which is neither a number nor a tensor.", hint="pass a float or a scalar tensor"
        )
    return float(value)


def check_given(**arguments: object) -> None:
    """Check that no argument is None.

    Raises:
        PopxlTypeError: (a `TypeError`) naming the first that is.
    """
    for name, value in arguments.items():
        if value is None:
            checked_number(name, value)


def check_same_shape(api: str, t: ShapeDtype | Tensor, x: ShapeDtype | Tensor, names: str = "`t` and `X`") -> None:
    """Check that two operands have one shape: nothing is broadcast here.

    Raises:
        CoreError: (a `RuntimeError`) if not.
    """
    if t.shape != x.shape:
        raise CoreError(
            f"{api} needs {names} of one shape, not {list(t.shape)} and {list(x.shape)}.",
            hint=f"reshape or broadcast {names.split()[-1]} first",
        )


def check_scalar(api: str, name: str, spec: ShapeDtype | None) -> None:
    """Check that what is read at run time, if it is, has the shape ``()``.

    Raises:
        CoreError: (a `RuntimeError`) if not.
    """
    if spec is not None and spec.shape:
        raise CoreError(
            f"The {name} of {api} must be a scalar, not of shape {list(spec.shape)}.",
            hint="reshape it to () with popxl.ops.reshape",
        )


def arithmetic_dtype(*arrays: Any) -> type[np.floating[Any]]:
    """The type that updates compute in: float32, or float64 if an array has it."""
    return np.float64 if any(a.dtype == np.float64 for a in arrays) else np.float32
