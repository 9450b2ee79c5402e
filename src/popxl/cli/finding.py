"""What one check of ``popxl doctor`` found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .main import printable


class Level(Enum):
    """How bad it is: streaming works, it works but not as well as it could, it cannot work."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        level: How bad it is.
        what: What was looked at, in a word or two.
        fact: What was found, with its values.
        mend: What to do about it; empty if there is nothing to do.

    Example:
        >>> print(Finding(Level.WARN, "open files", "at most 256 at once", "ulimit -n 65536"))
        WARN  open files: at most 256 at once. Mend: ulimit -n 65536
    """

    level: Level
    what: str
    fact: str
    mend: str = ""

    def __str__(self) -> str:
        mend = f". Mend: {self.mend.rstrip('.')}" if self.mend else ""
        return printable(f"{self.level.value:5} {self.what}: {self.fact.rstrip('.')}{mend}")
