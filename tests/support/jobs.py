"""Jobs of several processes, started as a user starts them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

POPXL = str(Path(sys.executable).with_name("popxl"))
# No process of a test waits for another longer than this.
LIMIT_S = 300.0


class RunningJob:
    """``popxl run`` of a program. Its processes write lines; errors go to a file."""

    def __init__(self, program: Path, *words: str, log: Path, processes: int = 2, devices: int = 1) -> None:
        flags = f"--xla_force_host_platform_device_count={devices}"
        self.log = log
        with log.open("ab") as errors:
            self._job = subprocess.Popen(
                [POPXL, "run", "-n", str(processes), str(program), *words],
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            )
        assert self._job.stdout is not None
        self._out = self._job.stdout
        self._received = b""
        self._has_ended = False

    def __enter__(self) -> RunningJob:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._job.terminate()
        self._job.wait()
        self._out.close()

    def lines(self, for_s: float = LIMIT_S) -> Iterator[str]:
        """What the processes write, until there is no more or the time is up."""
        deadline = time.monotonic() + for_s
        while True:
            *whole, self._received = self._received.split(b"\n")
            yield from (line.decode() for line in whole)
            left = deadline - time.monotonic()
            if self._has_ended or left <= 0 or not select.select([self._out], [], [], left)[0]:
                return
            received = os.read(self._out.fileno(), 1 << 16)
            self._has_ended = not received
            self._received += received

    def status(self) -> int:
        """Wait for the end."""
        return self._job.wait(LIMIT_S)


def run_job(program: Path, *words: str, log: Path, devices: int = 1) -> tuple[int, str]:
    """Run a program in two processes; its status and what they wrote, errors too."""
    with RunningJob(program, *words, log=log, devices=devices) as job:
        lines = list(job.lines())
        return job.status(), "\n".join([*lines, log.read_text()])
