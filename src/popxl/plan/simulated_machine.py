"""A machine in simulated time: a device that does one computation after another, a disk, the thread of the run."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import final

from popxl.plan.costs import Channel, Costs

#: However much the two take from each other, each goes on at this speed.
_SLOWEST = 0.1


@dataclass(slots=True, eq=False)
class Computation:
    """One under way: seconds left, and the device memory while it runs."""

    left_s: float
    live_bytes: int


@dataclass(slots=True, eq=False)
class Request:
    """A row on its way, of `n_bytes` with padding; `earliest_s`: until then it takes even if nothing else goes on."""

    n_bytes: int
    is_write: bool
    row_bytes: int
    left_s: float = 0.0
    earliest_s: float = 0.0
    is_done: bool = False


@final
class Machine:
    """The clock, the device and the disk. Only the thread of the run calls it, and time passes in its calls alone.

    Args:
        costs: How long things take.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self.now_s = 0.0
        #: Number of computations begun, and of those finished: they finish in order.
        self.dispatched = 0
        self.finished = 0
        #: Seconds in which each was busy.
        self.busy_s = {"compute": 0.0, "load": 0.0, "store": 0.0, "host": 0.0}
        #: Seconds that the work takes if nothing else goes on.
        self.work_s = {"compute": 0.0, "load": 0.0, "store": 0.0}
        self.moved_bytes = {"load": 0, "store": 0}
        self.stalls_s = {"row": 0.0, "store": 0.0, "computation": 0.0, "value": 0.0}
        self.timeline: list[tuple[float, int]] = []
        #: Told that a computation has finished.
        self.on_finished: Callable[[], None] = lambda: None
        self._device: deque[Computation] = deque()
        self._disk: deque[Request] = deque()
        self._late: list[tuple[float, int, Request]] = []
        self._numbers = count()
        #: Share of the device's speed that the thread takes just now.
        self._host_loss = 0.0

    # The thread of the run

    def spend(self, seconds: float, *, on_row: bool = False) -> None:
        """The thread is busy. `on_row`: with moving a row, whose cost for the device has that of the thread in it."""
        self.busy_s["host"] += seconds
        self._host_loss = 0.0 if on_row else self._costs.host_loss
        self._pass_until(self.now_s + seconds)
        self._host_loss = 0.0

    def wait(self, is_over: Callable[[], bool], cause: str = "") -> None:
        """The thread waits, for a cause that is counted unless it is empty."""
        begin_s = self.now_s
        while not is_over():
            next_s = self._next_s()
            assert next_s < math.inf, f"the thread waits for a {cause} that nothing will bring"
            self._pass(next_s)
        if self.now_s > begin_s:
            self._pass_until(self.now_s + self._costs.wake_s)
        if cause:
            self.stalls_s[cause] += self.now_s - begin_s

    # The servers

    def compute(self, seconds: float, live_bytes: int) -> int:
        """Hand the device a computation; return its number, from 1."""
        self.work_s["compute"] += seconds
        self._device.append(Computation(seconds, live_bytes))
        self.dispatched += 1
        if len(self._device) == 1:
            self._note(live_bytes)
        return self.dispatched

    @property
    def is_idle(self) -> bool:
        """Whether the device has nothing to do."""
        return not self._device

    def transfer(self, request: Request) -> None:
        """Hand the disk a row."""
        channel, lane = self._channel(request), _lane(request)
        request.left_s = channel.queued.seconds(request.n_bytes)
        request.earliest_s = self.now_s + channel.alone.seconds(request.n_bytes)
        self.work_s[lane] += request.left_s
        self.moved_bytes[lane] += request.row_bytes
        self._disk.append(request)

    def _channel(self, request: Request) -> Channel:
        channel = self._costs.write if request.is_write else self._costs.read
        assert channel is not None
        return channel

    def _rates(self) -> tuple[float, float]:
        """Speeds of the device and of the disk, which take from each other what they share."""
        device = 1.0 - self._host_loss
        if not (self._device and self._disk):
            return device, 1.0
        request = self._disk[0]
        channel = self._channel(request)
        disk = max(_SLOWEST, 1.0 - channel.own_loss)
        alone_s = channel.queued.seconds(request.n_bytes)
        rows_per_s = disk / alone_s if alone_s else 0.0
        return max(_SLOWEST, device - channel.contention.seconds(request.n_bytes) * rows_per_s), disk

    def _pass_until(self, end_s: float) -> None:
        while (next_s := self._next_s()) <= end_s:
            self._pass(next_s)
        self._pass(end_s)

    def _next_s(self) -> float:
        """When something ends next."""
        device, disk = self._rates()
        moments = [self._late[0][0]] if self._late else []
        if self._device:
            moments.append(self.now_s + self._device[0].left_s / device)
        if self._disk:
            moments.append(self.now_s + self._disk[0].left_s / disk)
        return min(moments, default=math.inf)

    def _pass(self, until_s: float) -> None:
        """Let time pass, up to the next end of something at most, and note what has ended by then."""
        seconds = until_s - self.now_s
        device, disk = self._rates()
        self.now_s = until_s
        if self._device:
            self.busy_s["compute"] += seconds
            self._device[0].left_s -= seconds * device
        if self._disk:
            self.busy_s[_lane(self._disk[0])] += seconds
            self._disk[0].left_s -= seconds * disk
        tiny_s = 1e-12 + 1e-14 * until_s  # what rounding leaves
        if self._disk and self._disk[0].left_s <= tiny_s:
            request = self._disk.popleft()
            heapq.heappush(self._late, (max(until_s, request.earliest_s), next(self._numbers), request))
        while self._late and self._late[0][0] <= until_s + tiny_s:
            heapq.heappop(self._late)[2].is_done = True
        if self._device and self._device[0].left_s <= tiny_s:
            self._device.popleft()
            self.finished += 1
            if self._device:
                self._note(self._device[0].live_bytes)
            self.on_finished()

    def _note(self, live_bytes: int) -> None:
        self.timeline.append((self.now_s, live_bytes))


def _lane(request: Request) -> str:
    return "store" if request.is_write else "load"
