"""Which coming loads may be read ahead: what lies between the run and the walk that looks ahead of it.

A run (`popxl.runtime.overlap`) and its simulation (`popxl.plan.simulated_transfers`) decide this alike, and move rows
in batches of the same sizes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from popxl.plan.lookahead import Coming, ComingBranch, ComingLoad, ComingStore, Row, Walk

#: How many transfers the walk may be ahead of the run; rows of no size need a limit too.
MAX_AHEAD = 4096
#: Reads ahead are started together up to this many bytes, so that small neighbours share a request.
READ_BATCH_BYTES = 4 << 20
#: Stores are handed over together up to this many, and up to so many bytes.
WRITE_BATCH, WRITE_BATCH_BYTES = 256, 4 << 20


@dataclass(slots=True, eq=False)
class _Ahead:
    """A transfer that the walk has seen and the run has not come to.

    Attributes:
        coming: What it is.
        number: Its place in the run.
        followers: For a store: rows whose loads come later and wait for it.
    """

    coming: Coming
    number: int
    followers: list[Row] = field(default_factory=list[Row])


@final
class Window:
    """The coming transfers of a run, as far as the walk has got.

    A coming load is fetched at once, unless a store to its row, or one to an unknown row of its buffer, comes first:
    then it waits for that store.

    Args:
        entries: Number of entries of each buffer, by id.
        fetch: Provides for one more coming load of a row; False if there is no memory for it just now.

    Example:
        >>> def walk():
        ...     yield from [ComingLoad(1, 0), ComingStore(1, 2), ComingLoad(1, 2)]
        >>> fetched = []
        >>> window = Window({1: 4}, lambda row: fetched.append(row) is None)
        >>> window.begin(walk())
        >>> window.look()
        >>> fetched, window.pass_by(ComingLoad, (1, 0)), window.pass_by(ComingStore, (1, 2))
        ([(1, 0)], (), [(1, 2)])
    """

    def __init__(self, entries: Mapping[int, int], fetch: Callable[[Row], bool]) -> None:
        self._entries = entries
        self._fetch = fetch
        self._walk: Walk | None = None
        self._is_at_branch = False
        self._ahead: deque[_Ahead] = deque()
        self._seen = 0
        #: What the walk has yielded last, if it is a load for which there was no memory yet, and its row.
        self._next: _Ahead | None = None
        self._refused: Row | None = None
        #: The last coming store of each row; of a buffer, with entry None, where the row is not known yet.
        self._stores: dict[tuple[int, int | None], _Ahead] = {}

    def begin(self, walk: Walk) -> None:
        """A run begins."""
        self._walk = walk

    def end(self) -> None:
        """The run is over, or has failed."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None
        self._ahead.clear()
        self._stores.clear()
        self._next = self._refused = None
        self._is_at_branch = False

    def look(self) -> None:
        """Look as far ahead as there is memory."""
        while self._walk is not None and len(self._ahead) < MAX_AHEAD:
            ahead = self._next if self._next is not None else self._see()
            if ahead is None:
                break
            # What was refused is tried again at every transfer of the run: straight away.
            row = self._refused if self._refused is not None else self._note(ahead)
            if row is not None and not self._fetch(row):
                self._next, self._refused = ahead, row
                break
            self._next = self._refused = None
            self._ahead.append(ahead)

    def pass_by(self, kind: type[Coming], row: Row | None = None) -> Sequence[Row]:
        """The run has come to a transfer; return the rows that may be fetched now that it is done."""
        if self._ahead:
            ahead = self._ahead.popleft()
        else:
            ahead = self._next if self._next is not None else self._see()
            self._next = self._refused = None
            if ahead is None:
                return ()
        coming = ahead.coming
        if not isinstance(coming, kind):
            raise AssertionError(f"the walk saw {coming}, the run came to {kind.__name__} of {row}")
        if not isinstance(coming, ComingStore):
            return ()
        if self._stores.get((coming.buffer_id, coming.entry)) is ahead:
            del self._stores[coming.buffer_id, coming.entry]
        return ahead.followers

    def branch(self, taken: bool) -> None:
        """The device has decided a branch."""
        if self._walk is None:
            return
        self.pass_by(ComingBranch)
        self._is_at_branch = False
        self._next = self._see(taken)

    def _see(self, taken: bool | None = None) -> _Ahead | None:
        """The next transfer of the walk; None at a branch that is not decided, and at the end."""
        if self._walk is None or self._is_at_branch:
            return None
        try:
            coming = self._walk.send(taken)
        except (StopIteration, LookupError):  # a stream that is too short: the run says so when it comes there
            self._walk = None
            return None
        self._is_at_branch = isinstance(coming, ComingBranch)
        self._seen += 1
        return _Ahead(coming, self._seen)

    def _note(self, ahead: _Ahead) -> Row | None:
        """Look at a coming transfer; return the row to fetch if it is a load that need not wait for a store."""
        coming = ahead.coming
        if isinstance(coming, ComingStore):
            self._stores[coming.buffer_id, coming.entry] = ahead
        elif isinstance(coming, ComingLoad) and self._is_known(coming):
            row = (coming.buffer_id, coming.entry or 0)
            stores = [s for s in (self._stores.get(row), self._stores.get((coming.buffer_id, None))) if s is not None]
            if not stores:
                return row
            max(stores, key=lambda s: s.number).followers.append(row)
        return None

    def _is_known(self, coming: ComingLoad) -> bool:
        """Whether the row is known and exists; the run reports one that does not."""
        return coming.entry is not None and 0 <= coming.entry < self._entries[coming.buffer_id]
