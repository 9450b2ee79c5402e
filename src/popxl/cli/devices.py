"""Which devices JAX finds.

A process of its own asks it: a driver that hangs, or a jaxlib for another processor, ends that one and not the command
that wants to tell of it. Run as a program, which is what that process does, this file imports nothing of popxl.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

_LIMIT_S = 120.0
_PINNED = "pinned_host"


@dataclass(frozen=True, slots=True)
class Device:
    """One device.

    Attributes:
        platform: JAX's name for its kind: ``"cpu"``, ``"gpu"``, ...
        model: What its maker calls it.
        memory_bytes: What JAX may take of its memory; None if it does not tell.
        memories: JAX's names of the memories that it can use.
        pinned_problem: Why page-locked host memory cannot be used; empty if it can, and for a CPU.
    """

    platform: str
    model: str
    memory_bytes: int | None
    memories: Sequence[str]
    pinned_problem: str


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices of this machine that JAX finds.

    Attributes:
        found: They; none if there is a problem.
        problem: Why JAX cannot be asked, in one line; empty if it can.
    """

    found: tuple[Device, ...] = ()
    problem: str = ""

    @property
    def accelerators(self) -> tuple[Device, ...]:
        """Those with memory of their own."""
        return tuple(device for device in self.found if device.platform != "cpu")


def find_devices(limit_s: float = _LIMIT_S) -> Devices:
    """Ask JAX for its devices; takes a second or two.

    Args:
        limit_s: How long to wait, in seconds.
    """
    # -P: this file's directory has modules whose names others may want to import.
    command = [sys.executable, "-P", __file__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Devices(problem=f"JAX did not answer within {limit_s:g} s")
    answer = done.stdout.rstrip("\n").rpartition("\n")[2]  # a driver may print something before
    if done.returncode == 0:
        found = cast("list[dict[str, Any]]", json.loads(answer))
        return Devices(tuple(Device(**fields) for fields in found))
    if done.returncode < 0:
        return Devices(problem=f"JAX ended its process with {signal.Signals(-done.returncode).name}")
    return Devices(problem=done.stderr.rstrip().rpartition("\n")[2] or f"exit status {done.returncode}")


def _tell() -> None:
    # A look must not take three quarters of a GPU from the programs that run there.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    devices = cast("list[Any]", jax.local_devices())
    sys.stdout.write("\n" + json.dumps([asdict(_describe(device, jax)) for device in devices]) + "\n")


def _describe(device: Any, jax: Any) -> Device:
    memories = tuple(str(memory.kind) for memory in device.addressable_memories())
    statistics = cast("dict[str, int]", device.memory_stats() or {})
    problem = _pinned_problem(device, memories, jax)
    return Device(device.platform, device.device_kind, statistics.get("bytes_limit"), memories, problem)


def _pinned_problem(device: Any, memories: Sequence[str], jax: Any) -> str:
    if device.platform == "cpu":
        return ""
    if _PINNED not in memories:
        return f"JAX offers only {', '.join(memories)}"
    try:
        jax.device_put(0.0, jax.sharding.SingleDeviceSharding(device, memory_kind=_PINNED)).block_until_ready()
    except Exception as error:  # noqa: BLE001 - told to the user
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


if __name__ == "__main__":
    _tell()
