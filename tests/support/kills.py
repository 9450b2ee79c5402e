"""Processes that are killed at random instants. Each is forked from one that has imported what they need: it is cheap.

What they do stands in ``killed_work.py``: functions that report the number of each commit, and go on until the end.
"""

from __future__ import annotations

import importlib
import os
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


def say(text: str) -> None:
    """Write a line that no other process's can get between."""
    os.write(1, f"{text}\n".encode())


def serve(module: str, function: str, directory: str) -> None:
    """For each line on standard input begin a process, and kill it at the next one or at the end of the input."""
    work = getattr(importlib.import_module(module), function)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                work(Path(directory), lambda number: say(str(number)))
            except BaseException:  # noqa: BLE001 - whatever it is, the test reports it
                say(f"failed {traceback.format_exc()!r}")
            os._exit(1)
        sys.stdin.readline()
        os.kill(child, signal.SIGKILL)
        say(f"ended {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


class Nursery:
    """Begins processes that do one thing, one at a time, and kills them."""

    def __init__(self, function: str, directory: Path) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "killed_work", function, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._in, self._out = self._server.stdin, self._server.stdout
        self._received = b""

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._in.close()
        self._out.close()
        self._server.wait()

    def kill_one(self, delay_s: float, *, after_report: bool) -> list[int]:
        """Begin a process, and kill it so long after its beginning, or after its first report.

        Returns:
            What it reported.
        """
        self._in.write(b"begin\n")
        reported = [int(self._line())] if after_report else []
        deadline = time.monotonic() + delay_s
        while (left := deadline - time.monotonic()) > 0 and select.select([self._out], [], [], left)[0]:
            self._receive()
        self._in.write(b"kill\n")
        while not (line := self._line()).startswith("ended "):
            reported.append(int(line))
        assert line == f"ended {-signal.SIGKILL}"
        return reported

    def _receive(self) -> None:
        received = os.read(self._out.fileno(), 1 << 16)
        assert received, "the process that begins the others has ended"
        self._received += received

    def _line(self) -> str:
        while b"\n" not in self._received:
            self._receive()
        line, _, self._received = self._received.partition(b"\n")
        assert not line.startswith(b"failed "), line.decode()
        return line.decode()


def kill_at_random_instants(
    function: str, directory: Path, check: Callable[[int], int], *, times: int, seed: int, span_s: float
) -> None:
    """Kill processes that go on from each other; after each, `check` what it left.

    One in four is killed while it opens the directory or soon after, the others after their first commit.

    Args:
        function: Which of ``killed_work.py``. It reports the number of each commit.
        directory: Where it commits to.
        check: Given the last number that was reported, compares what is there; returns which number that has.
        times: How many processes.
        seed: Of the instants.
        span_s: How long a process lives at most after it is ready to be killed.
    """
    chance, reported = random.Random(seed), 0
    with Nursery(function, directory) as nursery:
        for number in range(times):
            numbers = nursery.kill_one(chance.uniform(0.0, span_s), after_report=number % 4 != 3)
            start = reported + 1
            assert numbers == list(range(start, start + len(numbers))), f"after {reported} it went on with {numbers}"
            reported = check(numbers[-1] if numbers else reported)
    assert reported >= times * 3 // 4


if __name__ == "__main__":
    serve(*sys.argv[1:])
