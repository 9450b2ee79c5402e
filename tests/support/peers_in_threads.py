"""The processes of a job as threads of one process, each of which may crash or fail at any step of a commit.

A step is a call of the operating system that a commit makes, or the wait for the others. A process that has crashed
makes no more of them; one that waits for it crashes as well, as the launcher sees to it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from popxl.errors import StreamingMemoryError

STEPS = ("rename", "unlink", "fsync", "fdatasync")


class CrashError(BaseException):
    """The process is gone: nothing may catch it."""


EXPECTED = (StreamingMemoryError, CrashError)


@dataclass
class Faults:
    """What befalls one process, by the numbers of its steps from 0.

    Attributes:
        crash: The step before which it crashes; None for never.
        failing: Steps that the disk refuses.
    """

    crash: int | None = None
    failing: frozenset[int] = frozenset()


@dataclass
class Process:
    """One process of the job, which is a thread.

    Attributes:
        steps: What it did, by name.
        result: What its function returned, the error that it raised, or the crash.
    """

    index: int
    count: int
    job: Job
    faults: Faults
    steps: list[str] = field(default_factory=list)
    has_crashed: bool = False
    result: Any = None

    def step(self, name: str, *, may_fail: bool) -> None:
        if self.has_crashed or len(self.steps) == self.faults.crash:
            self.has_crashed = True
            raise CrashError
        self.steps.append(name)
        if may_fail and len(self.steps) - 1 in self.faults.failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def gather(self, *numbers: int) -> list[tuple[int, ...]]:
        self.step("gather", may_fail=False)
        return self.job.gather(self, numbers)


class Job:
    """A run of one function in all processes."""

    def __init__(self, count: int, faults: Mapping[int, Faults]) -> None:
        self._changed = threading.Condition()
        self._given: dict[int, dict[int, tuple[int, ...]]] = {}
        self._is_ending = False
        self.processes = [Process(k, count, self, faults.get(k, Faults())) for k in range(count)]

    def gather(self, process: Process, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
        with self._changed:
            given = self._given.setdefault(process.steps.count("gather"), {})
            given[process.index] = numbers
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(given) == process.count or self._is_ending)
            if len(given) < process.count:
                process.has_crashed = True
                raise CrashError
        assert len({len(row) for row in given.values()}) == 1, "the processes make different calls"
        return [given[k] for k in range(process.count)]

    def end(self) -> None:
        """A process has ended before its time: those that wait for it are ended."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()


_local = threading.local()


@contextmanager
def counted_steps(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Let the system's calls be steps of the process whose thread makes them."""
    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, _counted(name, getattr(os, name)))
        yield


def _counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*given: Any, **others: Any) -> Any:
        process: Process | None = getattr(_local, "process", None)
        if process is not None:
            subject = Path(f"/proc/self/fd/{given[0]}").readlink() if isinstance(given[0], int) else Path(given[0])
            process.step(f"{name} {subject.name}", may_fail=True)
            if name in ("fsync", "fdatasync"):
                return None  # whoever ends a process leaves the system as it is, so nothing need be on disk
        return call(*given, **others)

    return counted


def run_job(
    count: int, work: Callable[[Process], Any], faults: Mapping[int, Faults] | None = None
) -> Sequence[Process]:
    """Run `work` in each process. A `StreamingMemoryError` that it raises, or a crash, is its result."""
    job = Job(count, faults or {})

    def run(process: Process) -> None:
        _local.process = process
        try:
            process.result = work(process)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller sees it
            process.result = error
            job.end()
        finally:
            _local.process = None

    threads = [threading.Thread(target=run, args=(process,)) for process in job.processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in job.processes:
        if isinstance(process.result, BaseException) and not isinstance(process.result, EXPECTED):
            raise process.result
    return job.processes


@contextmanager
def no_steps() -> Generator[None]:
    """What the system does itself when a process has ended, such as letting go of its locks."""
    process, _local.process = _local.process, None
    try:
        yield
    finally:
        _local.process = process
