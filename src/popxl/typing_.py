"""Types of host data, and annotations that are unique objects.

Follows tensors-dtypes.md section 2 and core.md section 8.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar, Union, cast

import numpy as np

from popxl.errors import PopxlNotImplementedError

__all__ = ["HostScalarTensor", "HostTensor", "NewAliasAnnotation", "ScalarType", "host_tensor_types", "is_torch_tensor"]

T = TypeVar("T")

# Unions in the old form: programs read these aliases with typing.get_args.
ScalarType = Union[int, float, bool]  # noqa: UP007
"""One number."""

HostTensor = Union[np.ndarray[Any, Any], Iterable[ScalarType]]  # noqa: UP007
"""Several numbers on the host. A torch tensor is one too, as an iterable; torch itself is not imported for it."""

HostScalarTensor = Union[ScalarType, HostTensor]  # noqa: UP007
"""Host data of any rank."""

host_tensor_types: tuple[type, ...] = (np.ndarray, np.generic, Iterable, int, float, bool)
"""The classes of :data:`HostScalarTensor`, for ``isinstance``."""


def is_torch_tensor(x: object) -> bool:
    """Whether ``x`` is a torch tensor. Never imports torch: where it is not loaded, nothing is one."""
    tensor_type = getattr(sys.modules.get("torch"), "Tensor", None)
    return isinstance(tensor_type, type) and isinstance(x, tensor_type)


class _AliasAnnotation:
    """One annotation made by :func:`NewAliasAnnotation`; equal only to itself."""

    __slots__ = ("__name__", "__supertype__")

    def __init__(self, name: str, supertype: object) -> None:
        self.__name__ = name
        self.__supertype__ = supertype

    def __call__(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise PopxlNotImplementedError(
            f"The annotation {self.__name__} cannot be called.",
            hint=f"use it to annotate an argument, as in `x: {self.__name__}`",
        )

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - `|` is what is defined here

    def __repr__(self) -> str:
        return self.__name__


def NewAliasAnnotation(name: str, tp: T) -> T:  # noqa: N802 - PopXL's name
    """A new annotation that type checkers read as ``tp`` and programs can tell from it.

    Args:
        name: How the annotation prints.
        tp: The type that it stands for.

    Returns:
        A unique object, equal only to itself. Calling it raises ``NotImplementedError``.

    Example:
        >>> Weight = NewAliasAnnotation("Weight", int)
        >>> Weight, Weight is int
        (Weight, False)
    """
    return cast(T, _AliasAnnotation(name, tp))
