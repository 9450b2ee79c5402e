"""Values of a simulated run: sizes, without contents. Python's own references say how long each lives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final


@dataclass(slots=True)
class Ledger:
    """Bytes that live."""

    live_bytes: int = 0


@final
class Value:
    """A value on the device; `number`: of the computation that makes it, 0 for what is there."""

    __slots__ = ("_ledger", "nbytes", "number", "on_gone")

    def __init__(self, ledger: Ledger, nbytes: int, number: int = 0) -> None:
        self._ledger = ledger
        self.nbytes = nbytes
        self.number = number
        self.on_gone: Callable[[], None] | None = None
        ledger.live_bytes += nbytes

    def reuse(self) -> None:
        """Something else takes its memory."""
        self._ledger.live_bytes -= self.nbytes
        self.nbytes = 0

    def __del__(self) -> None:
        self._ledger.live_bytes -= self.nbytes
        if self.on_gone is not None:
            self.on_gone()
