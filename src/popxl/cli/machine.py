"""What the operating system tells of this machine. Each function returns what it knows where a source is missing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# A group without a limit says so with a number near this one, rounded to pages.
_NO_LIMIT_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class Memory:
    """Host memory in bytes.

    Attributes:
        total_bytes: Of the machine.
        available_bytes: What could be had now without swapping.
        swap_bytes: Of swap space.
        group_bytes: What the control group of this process may take, as a container sets it; None for no limit.
    """

    total_bytes: int
    available_bytes: int
    swap_bytes: int
    group_bytes: int | None

    @property
    def usable_bytes(self) -> int:
        """What a program that starts now can hope for."""
        return min(self.available_bytes, self.group_bytes if self.group_bytes is not None else self.available_bytes)


def read_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> Memory:
    """Return what there is of host memory.

    Args:
        proc: Where the kernel tells of processes.
        cgroups: Where it tells of control groups.
    """
    fields = dict(line.split(":", 1) for line in _text(proc / "meminfo").splitlines() if ":" in line)

    def in_bytes(name: str) -> int:
        return 1024 * int(fields.get(name, "0 kB").split()[0])

    limit = _group_limit(_text(proc / "self/cgroup"), cgroups)
    return Memory(in_bytes("MemTotal"), in_bytes("MemAvailable"), in_bytes("SwapTotal"), limit)


def _group_limit(memberships: str, cgroups: Path) -> int | None:
    """The smallest limit of this process's group and those around it; version 1 and 2 of control groups."""
    limits: list[int] = []
    for line in memberships.splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        elif not controllers:
            root, name = cgroups, "memory.max"
        else:
            continue
        # A container may see its own group as the root, under another name than it has outside.
        here = root / group.lstrip("/")
        for directory in (here, *here.parents):
            text = _text(directory / name).strip()
            if text.isdecimal() and int(text) < _NO_LIMIT_BYTES:
                limits.append(int(text))
            if directory == root:
                break
    return min(limits, default=None)


def libc() -> str:
    """The C library and its version, such as ``"glibc 2.36"``."""
    return " ".join(platform.libc_ver()).strip() or "unknown C library"


def processor() -> str:
    """The model of the processor, and how many cores this process may use."""
    lines = (line.partition(":") for line in _text(_PROC / "cpuinfo").splitlines())
    model = next((value.strip() for name, _, value in lines if name.strip() == "model name"), platform.machine())
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return f"{model}, {usable} of {there} cores"


def has_nvidia_driver() -> bool:
    """Whether the driver of NVIDIA GPUs is loaded."""
    return (_PROC / "driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
