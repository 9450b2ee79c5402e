"""Sizes in bytes as people write them: ``"2GiB"``, ``"512 MB"``."""

from __future__ import annotations

import re
from decimal import Decimal

from popxl.errors import PopxlTypeError, PopxlValueError

_LETTERS = "KMGTP"
#: Decimal units are powers of 1000, binary ones (with an i) powers of 1024.
_FACTORS = {"": 1, "B": 1}
for _power, _letter in enumerate(_LETTERS, 1):
    _FACTORS[f"{_letter}B"] = 1000**_power
    _FACTORS[f"{_letter}IB"] = 1024**_power
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)", re.ASCII)


def parse_bytes(size: str | int | None) -> int | None:
    """Return a size as a number of bytes.

    Args:
        size: A number of bytes, or a text of a number and a unit: ``B``, ``kB``, ``MB``, ... are powers of 1000,
            ``KiB``, ``MiB``, ... of 1024, in upper or lower case. None stays None: no limit. A fraction of a byte is
            dropped.

    Raises:
        PopxlValueError: (a `ValueError`) for a negative number, a text that is no size, and an unknown unit.
        PopxlTypeError: (a `TypeError`) for anything else.

    Example:
        >>> parse_bytes("2GiB"), parse_bytes("512 MB"), parse_bytes(123), parse_bytes(None)
        (2147483648, 512000000, 123, None)
    """
    if size is None:
        return None
    if isinstance(size, int) and not isinstance(size, bool):
        if size < 0:
            raise PopxlValueError(f"A size cannot be negative: {size} bytes.", hint='use a number such as "2GiB"')
        return size
    if not isinstance(size, str):
        raise PopxlTypeError(
            f"Cannot read {size!r} of type {type(size).__name__} as a size.",
            hint='use a whole number of bytes, or a text such as "2GiB"',
        )
    found = _SIZE.fullmatch(size.strip())
    factor = _FACTORS.get(found[2].upper()) if found else None
    if found is None or factor is None:
        raise PopxlValueError(
            f"Cannot read {size!r} as a size.",
            hint="write a number and a unit: B, kB, MB, GB, TB, PB (powers of 1000) or KiB, MiB, GiB, TiB, PiB "
            "(powers of 1024)",
        )
    return int(Decimal(found[1]) * factor)


def format_bytes(n: int) -> str:
    """Return a number of bytes as a short text, in binary units.

    Args:
        n: The number of bytes.

    Example:
        >>> format_bytes(1000), format_bytes(1536), format_bytes(2**31)
        ('1000 B', '1.50 KiB', '2.00 GiB')
    """
    if abs(n) < 1024:
        return f"{n} B"
    value, units = n / 1024, iter(_LETTERS)
    unit = next(units)
    # What would round to 1024 belongs to the next unit.
    while abs(value) >= 1023.995 and unit != _LETTERS[-1]:
        value, unit = value / 1024, next(units)
    return f"{value:.2f} {unit}iB"
