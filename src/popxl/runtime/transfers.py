"""What the executor knows of Streaming Memory: rows by number, in program order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

from popxl.op import Op
from popxl.plan.lookahead import Walk
from popxl.runtime.events import Events
from popxl.runtime.streaming.tier import Tier

Array = Any


class Transfers(ABC):
    """What the executor knows of Streaming Memory. Offsets are checked; calls are in program order, by one thread."""

    @abstractmethod
    def begin(self, walk: Walk) -> None:
        """A run begins; `walk` yields its transfers."""

    @abstractmethod
    def load(self, buffer_id: int, entry: int) -> Array:
        """The row as it is now; it stays unchanged for as long as somebody holds it."""

    @abstractmethod
    def store(self, buffer_id: int, entry: int, value: Array, op: Op | None = None) -> None:
        """Set a row to a value that nobody changes any more."""

    def load_each(self, buffer_id: int, entries: Sequence[int]) -> list[Array]:
        """The rows of a load whose replicas ask for different ones."""
        return [self.load(buffer_id, entry) for entry in entries]

    def change_each(
        self, buffer_id: int, entries: Sequence[int], changed: Callable[[int, Array], Array], op: Op | None = None
    ) -> None:
        """Give rows new values, of which some parts are the old ones: a store whose replicas ask for different rows."""
        for entry in entries:
            self.store(buffer_id, entry, changed(entry, self.load(buffer_id, entry)), op)

    @abstractmethod
    def branch(self, taken: bool) -> None:
        """The device has decided a branch."""

    @abstractmethod
    def end(self, failure: BaseException | None = None) -> None:
        """The run is over; stores may still be under way.

        Args:
            failure: Why the run has failed, if it has. Its stores are then waited for, and what they failed with
                becomes a note of it.
        """

    @abstractmethod
    def drain(self) -> None:
        """Wait until all stores are finished.

        Raises:
            StreamingMemoryError: One of them failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait for what is under way, and let go of everything. Raises no errors of stores."""


@final
class DirectTransfers(Transfers):
    """For tiers whose loads and stores cost nothing, or that can only do one thing at a time."""

    def __init__(self, tier: Tier, events: Events | None = None) -> None:
        self._tier = tier
        self._events = events or Events()

    def begin(self, walk: Walk) -> None:
        """See `Transfers.begin`."""
        del walk

    def load(self, buffer_id: int, entry: int) -> Array:
        """See `Transfers.load`."""
        begin_s = self._events.now()
        value: Array = self._tier.load(buffer_id, entry)
        if begin_s is not None:
            self._events.emit_row("load", "load", value.nbytes, begin_s, (buffer_id, entry))
        return value

    def store(self, buffer_id: int, entry: int, value: Array, op: Op | None = None) -> None:
        """See `Transfers.store`."""
        del op
        begin_s = self._events.now()
        self._tier.store(buffer_id, entry, value)
        if begin_s is not None:
            self._events.emit_row("store", "store", value.nbytes, begin_s, (buffer_id, entry))

    def branch(self, taken: bool) -> None:
        """See `Transfers.branch`."""
        del taken

    def end(self, failure: BaseException | None = None) -> None:
        """See `Transfers.end`."""
        del failure

    def drain(self) -> None:
        """See `Transfers.drain`."""

    def close(self) -> None:
        """See `Transfers.close`."""
