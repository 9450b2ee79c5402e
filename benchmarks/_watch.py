"""Watches the memory of a child process, from its parent, so that the child is not disturbed. Linux only."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_S = 0.002


@dataclass(slots=True)
class Child:
    """What was seen of one process, in bytes.

    Attributes:
        peaks: Anonymous memory at its peak, by phase.
        facts: What it said itself.
    """

    peaks: dict[str, int] = field(default_factory=dict[str, int])
    facts: dict[str, int] = field(default_factory=dict[str, int])


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process, shared memory included; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields.get(name, "0 kB").split()[0]) << 10 for name in ("RssAnon", "RssShmem"))


def watch(command: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Run a child that prints ``phase NAME`` when one begins and ``fact NAME BYTES``; return what was seen."""
    child, phase = Child(), "start"
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment}) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        rest = b""
        while True:
            ended = process.poll() is not None
            rest += process.stdout.read() or b""
            *lines, rest = rest.split(b"\n")
            for line in lines:
                kind, name, *value = line.decode().split()
                if kind == "phase":
                    phase = name
                else:
                    child.facts[name] = int(value[0])
            child.peaks[phase] = max(child.peaks.get(phase, 0), anonymous_bytes(process.pid))
            if ended:
                break
            time.sleep(SAMPLE_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return child
