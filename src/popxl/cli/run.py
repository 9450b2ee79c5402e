"""``popxl run``: the processes of a job on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from popxl.errors import PopxlValueError
from popxl.job import COORDINATOR, LOCAL_REPLICAS, PROCESS_COUNT, PROCESS_ID

_POLL_S = 0.05
#: How long a process that is told to end may take.
_GRACE_S = 5.0


def run(process_count: int, replicas: int, words: Sequence[str]) -> int:
    """Run a Python program in several processes, and wait for them. If one fails, the others are ended.

    Args:
        process_count: Number of processes.
        replicas: Replicas of the job; `process_count` divides it.
        words: The program and its arguments.

    Returns:
        0, or the exit status of the process that failed first; 128 and its number for one that a signal ended.

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
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for k in range(process_count):
            processes.append(subprocess.Popen([sys.executable, *words], env={**shared, PROCESS_ID: str(k)}))
        return _wait(processes)
    finally:
        _end(processes)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        statuses = [process.poll() for process in processes]
        failed = next((status for status in statuses if status), None)
        if failed is not None:
            return failed if failed > 0 else 128 - failed
        if all(status == 0 for status in statuses):
            return 0
        time.sleep(_POLL_S)


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
