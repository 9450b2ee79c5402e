"""The element types of PopXL tensors.

Each type is one object, the same for all its names: ``half is float16``. Follows tensors-dtypes.md section 1.

The names ``bool`` and ``float`` of this module are tensor types; it reaches the builtins as ``builtins.bool``
and ``builtins.float``.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from typing import Any, ClassVar, NoReturn, cast

import numpy as np
import numpy.typing as npt

from popxl.errors import PopxlError, PopxlTypeError, PopxlValueError

__all__ = [
    "ALL_DTYPES",
    "bool",
    "complex64",
    "complex128",
    "double",
    "dtype",
    "float",
    "float8_143",
    "float8_152",
    "float16",
    "float32",
    "float64",
    "half",
    "int8",
    "int16",
    "int32",
    "int64",
    "np_dtype_float8_143",
    "np_dtype_float8_152",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]


class TorchNotFoundError(PopxlError, ModuleNotFoundError):
    """A torch type was asked for and torch is not installed."""


class dtype:  # noqa: N801 - PopXL's name
    """The element type of a tensor.

    There is one object per type, so ``is`` and ``==`` mean the same. Programs take the objects from ``popxl``
    (``popxl.float32``) or convert with :meth:`as_dtype`; the constructor always raises.

    Raises:
        PopxlTypeError: On construction.

    Example:
        >>> import numpy as np
        >>> dtype.as_dtype(np.float16)
        popxl.dtypes.float16
        >>> dtype.from_name("int32").as_numpy()
        dtype('int32')
    """

    __slots__ = ("__weakref__", "_is_complex", "_is_floating_point", "_is_int", "_is_signed", "_name", "_np", "_torch")

    _name: str
    _is_complex: builtins.bool
    _is_int: builtins.bool
    _is_floating_point: builtins.bool
    _is_signed: builtins.bool
    _np: np.dtype[Any]
    _torch: str | None

    _by_name: ClassVar[dict[str, dtype]] = {}
    _by_numpy: ClassVar[dict[np.dtype[Any], dtype]] = {}

    def __init__(self) -> None:
        raise PopxlTypeError(
            f"Cannot create {type(self).__module__}.{type(self).__qualname__} instances.",
            hint='use one of the types of popxl, such as popxl.float32, or dtype.as_dtype("float32")',
        )

    @classmethod
    def _define(cls, name: str, numpy_type: npt.DTypeLike, torch_name: str | None = None) -> dtype:
        """Make the one object of a type, known from then on to the look-ups."""
        self = object.__new__(cls)
        self._name = name
        self._np = np.dtype(numpy_type)
        self._torch = torch_name
        self._is_complex = name.startswith("complex")
        self._is_floating_point = name.startswith("float")
        self._is_int = name.startswith(("int", "uint"))
        self._is_signed = not name.startswith(("uint", "bool"))
        cls._by_name[name] = self
        cls._by_numpy[self._np] = self
        return self

    @property
    def name(self) -> str:
        """The canonical name, ``"float16"`` for ``popxl.half``."""
        return self._name

    @property
    def is_complex(self) -> builtins.bool:
        """Whether the elements are complex numbers."""
        return self._is_complex

    @property
    def is_int(self) -> builtins.bool:
        """Whether the elements are integers, signed or not; ``bool`` is no integer type."""
        return self._is_int

    @property
    def is_floating_point(self) -> builtins.bool:
        """Whether the elements are real floating-point numbers, the float8 types included."""
        return self._is_floating_point

    @property
    def is_signed(self) -> builtins.bool:
        """Whether the elements can be negative."""
        return self._is_signed

    @property
    def storage(self) -> np.dtype[Any]:
        """The NumPy type of an element on the device: ``uint8`` codes for float8, else as :meth:`as_numpy`."""
        return np.dtype(np.uint8) if self._np.names else self._np

    @property
    def nbytes(self) -> int:
        """The size of one element in bytes."""
        return self._np.itemsize

    @classmethod
    def from_name(cls, name: str) -> dtype:
        """The type with this canonical name.

        Args:
            name: Such as ``"float32"``. Aliases such as ``"half"`` are not accepted.

        Returns:
            The type.

        Raises:
            PopxlValueError: The name is not a canonical one.

        Example:
            >>> dtype.from_name("float8_143")
            popxl.dtypes.float8_143
        """
        try:
            return cls._by_name[name]
        except (KeyError, TypeError):
            raise PopxlValueError(
                f"There is no tensor type named {name!r}.", hint=f"use one of {', '.join(cls._by_name)}"
            ) from None

    @classmethod
    def as_dtype(cls, type_value: Any) -> dtype:
        """The tensor type that a type, name, array or tensor stands for.

        Tried in this order: canonical name, Python type (``bool``, ``float``), NumPy type, torch type, whatever
        ``numpy.dtype`` makes of it, and last the ``dtype`` attribute of arrays and tensors. NumPy's rules give
        ``float64`` for ``"float"``, ``"double"`` and None, and ``int64`` for the Python type ``int``.

        Args:
            type_value: The thing to look up; a :class:`dtype` is returned as it is.

        Returns:
            The type.

        Raises:
            PopxlValueError: Nothing in the order above applies.

        Example:
            >>> dtype.as_dtype(builtins.float), dtype.as_dtype("float")
            (popxl.dtypes.float32, popxl.dtypes.float64)
        """
        found = cls._look_up(type_value)
        if found is None:
            found = cls._look_up(getattr(type_value, "dtype", None)) if hasattr(type_value, "dtype") else None
        if found is None:
            raise PopxlValueError(
                f"There is no tensor type for {type_value!r} of type {type(type_value).__name__}.",
                hint=f"use one of the types of popxl: {', '.join(cls._by_name)} (in native byte order)",
            )
        return found

    @classmethod
    def _look_up(cls, value: Any) -> dtype | None:
        """The type for a type or a name; None if there is none, or if ``value`` is an array or tensor."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value in cls._by_name:
            return cls._by_name[value]
        if value is builtins.bool:
            return bool
        if value is builtins.float:
            return float32
        torch_name = _torch_dtype_name(value)
        if torch_name is not None:
            return next((d for d in ALL_DTYPES if d._torch == torch_name), None)
        # numpy.dtype(obj) would itself go through obj.dtype, with a warning if that is no NumPy type.
        if hasattr(value, "dtype") and not isinstance(value, type):
            return None
        try:
            numpy_type: np.dtype[Any] = np.dtype(cast(Any, value))
            return cls._by_numpy.get(numpy_type)
        except (TypeError, ValueError, SyntaxError):
            return None

    def as_numpy(self) -> np.dtype[Any]:
        """The NumPy type of host data; for float8 a structure of one unsigned byte.

        Example:
            >>> float8_152.as_numpy()
            dtype([('float8_152', 'u1')])
        """
        return self._np

    def as_torch(self) -> Any:
        """The torch type of host data.

        Returns:
            A ``torch.dtype``.

        Raises:
            TorchNotFoundError: torch is not installed; it is a ``ModuleNotFoundError``.
            PopxlTypeError: torch has no such type: ``uint16``, ``uint32``, ``uint64`` and float8.
        """
        try:
            torch = importlib.import_module("torch")
        except ModuleNotFoundError as error:
            raise TorchNotFoundError(
                f"The torch type of {self!r} needs torch, which is not installed.", hint="pip install torch"
            ) from error
        if self._torch is None:
            raise PopxlTypeError(
                f"torch has no counterpart of {self!r}.", hint="convert on the host with as_numpy() instead"
            )
        return getattr(torch, self._torch)

    def __repr__(self) -> str:
        return f"popxl.dtypes.{self._name}"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # Copies and pickles must give the one object back.
        return dtype.from_name, (self._name,)

    def __init_subclass__(cls) -> NoReturn:
        raise PopxlTypeError("popxl.dtypes.dtype cannot be subclassed.", hint="use the types of popxl")


def _torch_dtype_name(value: Any) -> str | None:
    """``"float32"`` for ``torch.float32``; None for what is no torch type. Never imports torch."""
    torch = sys.modules.get("torch")
    torch_dtype = getattr(torch, "dtype", None)
    if not isinstance(torch_dtype, type) or not isinstance(value, torch_dtype):
        return None
    return str(value).removeprefix("torch.")


np_dtype_float8_143: np.dtype[Any] = np.dtype([("float8_143", "u1")])
np_dtype_float8_152: np.dtype[Any] = np.dtype([("float8_152", "u1")])

_define = dtype._define  # pyright: ignore[reportPrivateUsage] - the only place that makes types

bool = _define("bool", np.bool_, "bool")
int8 = _define("int8", np.int8, "int8")
int16 = _define("int16", np.int16, "int16")
int32 = _define("int32", np.int32, "int32")
int64 = _define("int64", np.int64, "int64")
uint8 = _define("uint8", np.uint8, "uint8")
uint16 = _define("uint16", np.uint16)
uint32 = _define("uint32", np.uint32)
uint64 = _define("uint64", np.uint64)
float8_143 = _define("float8_143", np_dtype_float8_143)
float8_152 = _define("float8_152", np_dtype_float8_152)
float16 = half = _define("float16", np.float16, "float16")
float32 = float = _define("float32", np.float32, "float32")
float64 = double = _define("float64", np.float64, "float64")
complex64 = _define("complex64", np.complex64, "complex64")
complex128 = _define("complex128", np.complex128, "complex128")

ALL_DTYPES: tuple[dtype, ...] = (
    bool,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
    float8_143,
    float8_152,
    float16,
    float32,
    float64,
    complex64,
    complex128,
)
"""Every tensor type once."""
