"""The checks of ``popxl doctor`` that look at the machine rather than at a directory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from popxl.units import format_bytes

from .devices import Devices, find_devices
from .finding import Finding, Level
from .machine import Memory, has_nvidia_driver, libc, read_memory

_LEAST_MEMORY_BYTES = 1 << 30
_LEAST_OPEN_FILES = 1024
_LEAST_LOCKED_BYTES = 1 << 30


def check_machine() -> Iterator[Finding]:
    """Look at memory, limits, the C library and the devices."""
    yield memory_finding(read_memory())
    yield open_files_finding(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield malloc_finding()
    devices = find_devices()
    yield devices_finding(devices)
    if not devices.problem:
        yield locked_memory_finding(devices, resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])
        yield from pinned_findings(devices)


def memory_finding(memory: Memory) -> Finding:
    """Whether there is enough host memory to stream rows through."""
    group = (
        f", limited to {format_bytes(memory.group_bytes)} for this process" if memory.group_bytes is not None else ""
    )
    swap = f"{format_bytes(memory.swap_bytes)} of swap" if memory.swap_bytes else "no swap"
    fact = f"{format_bytes(memory.available_bytes)} of {format_bytes(memory.total_bytes)} available{group}, {swap}"
    if memory.usable_bytes < _LEAST_MEMORY_BYTES:
        mend = "end other programs or raise the container's limit; StreamingMemory(host_memory=...) limits a session"
        return Finding(Level.WARN, "host memory", fact, mend)
    return Finding(Level.OK, "host memory", fact)


def open_files_finding(limit: int) -> Finding:
    """Whether a process may have enough files open.

    Args:
        limit: The soft limit of open files.
    """
    if limit == resource.RLIM_INFINITY:
        return Finding(Level.OK, "open files", "no limit")
    fact = f"at most {limit} at once, and each remote buffer takes one"
    if limit < _LEAST_OPEN_FILES:
        return Finding(Level.WARN, "open files", fact, "ulimit -n 65536")
    return Finding(Level.OK, "open files", fact)


def malloc_finding() -> Finding:
    """What frees host memory."""
    if "malloc" in os.environ.get("LD_PRELOAD", ""):
        return Finding(Level.OK, "malloc", f"LD_PRELOAD={os.environ['LD_PRELOAD']} takes the place of the C library's")
    arenas = os.environ.get("MALLOC_ARENA_MAX")
    if arenas:
        return Finding(Level.OK, "malloc", f"{libc()}, MALLOC_ARENA_MAX={arenas}")
    return Finding(
        Level.OK,
        "malloc",
        f"{libc()}, MALLOC_ARENA_MAX is not set; with MALLOC_ARENA_MAX=1 a run keeps less memory that was freed",
    )


def devices_finding(devices: Devices) -> Finding:
    """What programs can run on."""
    if devices.problem:
        return Finding(Level.FAIL, "devices", devices.problem, 'pip install --upgrade "openpopxl"; see `popxl env`')
    names = [
        device.model + (f" with {format_bytes(device.memory_bytes)}" if device.memory_bytes else "")
        for device in devices.accelerators
    ]
    if names:
        return Finding(Level.OK, "devices", ", ".join(names))
    fact = "JAX finds the CPU only"
    if not has_nvidia_driver():
        return Finding(Level.OK, "devices", fact)
    chosen = os.environ.get("JAX_PLATFORMS")
    mend = "unset JAX_PLATFORMS" if chosen else 'pip install "openpopxl[cuda12]"'
    return Finding(Level.WARN, "devices", f"{fact}, and the driver of an NVIDIA GPU is there", mend)


def locked_memory_finding(devices: Devices, limit: int) -> Finding:
    """Whether enough memory may be locked for the copies of a GPU.

    Args:
        devices: What there is.
        limit: The soft limit of locked memory, in bytes.
    """
    fact = "no limit" if limit == resource.RLIM_INFINITY else f"at most {format_bytes(limit)}"
    if not devices.accelerators:
        return Finding(Level.OK, "locked memory", f"{fact}; a CPU needs none")
    if limit != resource.RLIM_INFINITY and limit < _LEAST_LOCKED_BYTES:
        return Finding(Level.WARN, "locked memory", f"{fact}, so copies to the GPU may be slow", "ulimit -l unlimited")
    return Finding(Level.OK, "locked memory", fact)


def pinned_findings(devices: Devices) -> Iterator[Finding]:
    """Whether JAX has page-locked host memory for each device that copies from it."""
    for device in devices.accelerators:
        if device.pinned_problem:
            mend = "update the GPU's driver and JAX; free host memory, and see locked memory above"
            yield Finding(Level.WARN, "pinned memory", f"{device.model}: {device.pinned_problem}", mend)
        else:
            yield Finding(Level.OK, "pinned memory", f"{device.model} copies from pinned_host")
