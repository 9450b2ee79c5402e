"""``popxl run``: the processes of a job on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from popxl.errors import PopxlValueError
from popxl.job import COORDINATOR, LOCAL_REPLICAS, PROCESS_COUNT, PROCESS_ID

_POLL_S = 0.02
#: How long a process that is told to end may take.
_GRACE_S = 5.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(process_count: int, replicas: int, words: Sequence[str]) -> int:
    """Run a Python program in several processes, and wait for them. If one fails, the others are ended.

    A signal that ends this process (SIGINT, SIGTERM, SIGHUP) ends them all.

    Args:
        process_count: Number of processes.
        replicas: Replicas of the job; `process_count` divides it.
        words: The program and its arguments.

    Returns:
        0, or the exit status of the process that failed first; 128 and its number for one that a signal ended, or if
        a signal ended the job.

    Raises:
        PopxlValueError: (a `ValueError`) if the replicas cannot be divided.
    """
    if replicas % process_count:
        raise PopxlValueError(
            f"{replicas} replicas cannot be divided over {process_count} processes.",
            hint="make --replicas a multiple of --processes",
        )
    shared = {
        **os.environ,
        PROCESS_COUNT: str(process_count),
        COORDINATOR: f"localhost:{_free_port()}",
        LOCAL_REPLICAS: str(replicas // process_count),
    }
    command = [sys.executable, str(Path(__file__).with_name("program.py")), *words]
    processes: list[subprocess.Popen[bytes]] = []
    with _signals() as received:
        try:
            for k in range(process_count):
                processes.append(subprocess.Popen(command, env={**shared, PROCESS_ID: str(k)}))
            return _wait(processes, received)
        finally:
            _end(processes)


@contextlib.contextmanager
def _signals() -> Generator[list[int]]:
    """Note the signals that should end the job, rather than end this process and leave the others alone."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may ask for signals
        return
    # One that is ignored stays so, as `nohup` wants it.
    wanted = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]], received: Sequence[int]) -> int:
    while True:
        statuses = [process.poll() for process in processes]
        if received:
            return 128 + received[0]
        failed = sorted((status for status in statuses if status), key=_likely_consequence)
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if all(status == 0 for status in statuses):
            return 0
        time.sleep(_POLL_S)


def _likely_consequence(status: int) -> int:
    """Orders several that failed at once: JAX aborts a process, or raises an error there, because another is gone."""
    return 2 if status == -signal.SIGABRT else 1 if status > 0 else 0


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: a process whose peer is gone would wait for it."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])
