"""Which slot of each entry holds its value now, which did at the last commit, and which nobody may write to."""

from __future__ import annotations

from typing import final

import numpy as np
import numpy.typing as npt

from .layout import EntryTable
from .tier import BufferSpec


@final
class SlotTable:
    """The entries of one buffer.

    A store to a persistent buffer goes to the slot that the record on disk does not name, so a crash at any instant
    leaves what was committed.

    Threads: an entry is under way in one transfer at most, so its row of the tables has one writer.

    Args:
        spec: The buffer.
        on_disk: Its table in the record on disk, if there is one.
        reopen: Whether the rows go on from ``on_disk``; otherwise they start as zeros.

    Attributes:
        current: The rows as they are.
        torn: Entries whose last store failed, which have no value.
        is_dirty: Whether something was written that may not be on disk yet.
    """

    __slots__ = ("_base", "_protected", "current", "is_dirty", "spec", "torn")

    def __init__(self, spec: BufferSpec, on_disk: EntryTable | None, *, reopen: bool) -> None:
        self.spec = spec
        self.torn: set[int] = set()
        self.is_dirty = False
        self._protected: npt.NDArray[np.uint8] = (
            np.zeros(spec.entries, np.uint8) if on_disk is None else on_disk.slots.copy()
        )
        self._base = EntryTable.empty(spec.entries) if on_disk is None or not reopen else on_disk
        self.current = EntryTable.empty(spec.entries) if self._base is not on_disk else self._base.copy()

    def slot(self, entry: int) -> int:
        """The slot of an entry's value; 0 for one that was never written."""
        return int(self.current.slots[entry])

    def digest(self, entry: int) -> int:
        """The digest of an entry's value."""
        return int(self.current.digests[entry])

    def next_slot(self, entry: int) -> int:
        """Where a store to an entry goes."""
        return 2 if self._protected[entry] == 1 else 1

    def set(self, entry: int, slot: int, digest: int) -> None:
        """An entry has been written."""
        self.current.digests[entry] = digest
        self.current.slots[entry] = slot
        self.torn.discard(entry)
        self.is_dirty = True

    def is_committed(self, entry: int) -> bool:
        """Whether an entry's value is the one of the last commit."""
        return bool(self.current.slots[entry] == self._base.slots[entry])

    def holds(self, entry: int) -> bool:
        """Whether the last commit has a value for an entry."""
        return bool(self._base.slots[entry])

    def tear(self) -> None:
        """What was written since the last commit may be lost."""
        written = (self.current.slots != 0) & (self.current.slots != self._protected)
        self.torn.update(np.flatnonzero(written).tolist())

    def snapshot(self) -> EntryTable:
        """The rows as they are, to publish."""
        return self.current.copy()

    def rebase(self, published: EntryTable) -> None:
        """The record on disk now names ``published``."""
        self._base = published
        self._protected = published.slots.copy()

    def roll_back(self) -> None:
        """Make the rows what they were at the last commit."""
        self.current = self._base.copy()
        self.torn.clear()
