"""Lists of types to parametrise tests with. Follows core.md section 1."""

from __future__ import annotations

from popxl.dtypes import ALL_DTYPES, dtype
from popxl.dtypes import bool as bool_dtype

__all__ = ["get_all_dtypes", "get_all_int_dtypes"]


def get_all_dtypes() -> list[dtype]:
    """Every tensor type but ``popxl.bool``, in a new list.

    Example:
        >>> len(get_all_dtypes())
        15
    """
    return [d for d in ALL_DTYPES if d is not bool_dtype]


def get_all_int_dtypes(include_signed: bool = True, include_unsigned: bool = True) -> list[dtype]:
    """The integer types, by growing size, in a new list.

    Args:
        include_signed: Whether to list ``int8`` to ``int64``.
        include_unsigned: Whether to list ``uint8`` to ``uint64``, after the signed ones.

    Example:
        >>> [d.name for d in get_all_int_dtypes(include_signed=False)]
        ['uint8', 'uint16', 'uint32', 'uint64']
    """
    return [d for d in ALL_DTYPES if d.is_int and (include_signed if d.is_signed else include_unsigned)]
