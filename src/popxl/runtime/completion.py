"""Which computations have finished. Dispatch is asynchronous; memory that one reads is free only when it has run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, final

from popxl.runtime.events import Events


@final
class Completion:
    """Numbers the computations of a device in order of dispatch, by the *token* that each returns.

    A token is a small output that nothing else uses: it is ready when the computation has finished.

    Args:
        slack_bytes: How much memory computations that have not finished may take in outputs, temporaries and rows
            that were loaded for them, beyond one at a time; None for no limit.
        let_go: Makes the device's library drop its references to the arguments of what has finished. JAX does so
            when it is next called, and a thread that only waits does not call it.
        events: Hears of waits.
    """

    def __init__(
        self,
        slack_bytes: int | None = None,
        let_go: Callable[[], object] = lambda: None,
        events: Events | None = None,
    ) -> None:
        self.slack_bytes = slack_bytes
        self.events = events or Events()
        self._let_go = let_go
        #: Number of computations dispatched so far.
        self.dispatched = 0
        #: Number of the last one of which all before it and itself have finished.
        self.finished = 0
        self._tokens: deque[tuple[Any, int]] = deque()
        self._unfinished_bytes = 0
        #: What computations took that have finished, but whose arguments the device's library may still hold.
        self._kept_bytes = 0
        #: Of the unfinished, rows loaded for the next computation.
        self._loaded_bytes = 0

    def admit(self, new_bytes: int) -> None:
        """Wait until there is room for a computation or a row that takes `new_bytes`, or nothing is under way."""
        if self.slack_bytes is None:
            return
        if self._kept_bytes and self._unfinished_bytes + self._kept_bytes + new_bytes > self.slack_bytes:
            self.let_go()
        while self._tokens and self._unfinished_bytes + new_bytes > self.slack_bytes:
            self.wait_for_oldest()

    def add_row(self, nbytes: int) -> None:
        """Note a row that was loaded: whatever is computed next is taken to be what reads it."""
        self._loaded_bytes += nbytes
        self._unfinished_bytes += nbytes

    def add(self, token: Any, new_bytes: int) -> None:
        """Note a computation that has just been dispatched."""
        self.dispatched += 1
        self._tokens.append((token, new_bytes + self._loaded_bytes))
        self._unfinished_bytes += new_bytes
        self._loaded_bytes = 0
        if len(self._tokens) >= 64:  # tokens are memory too
            self.poll()

    def poll(self) -> None:
        """Find out what has finished, without waiting."""
        while self._tokens and self._tokens[0][0].is_ready():
            self._pop()

    def wait_for_oldest(self) -> bool:
        """Wait for the oldest computation that is under way; return whether there was one."""
        self.poll()
        if not self._tokens:
            return False
        begin_s = self.events.wait_begins()
        try:
            self._tokens[0][0].block_until_ready()
        finally:  # one that failed has finished too; whoever reads its results hears of it
            self._pop()
            if begin_s is not None:
                self.events.emit("host", "wait for computation", 0, begin_s)
        self.let_go()
        return True

    def let_go(self) -> None:
        """Make the arguments of what has finished go, which are not referred to elsewhere."""
        self.poll()
        self._let_go()
        self._kept_bytes = 0

    def wait(self) -> None:
        """Wait until all have finished."""
        while self.wait_for_oldest():
            pass
        self.events.settle()

    def _pop(self) -> None:
        _, nbytes = self._tokens.popleft()
        self._unfinished_bytes -= nbytes
        self._kept_bytes += nbytes
        self.finished += 1
