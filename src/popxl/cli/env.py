"""``popxl env``: what a report of a bug needs to say of the machine, and nothing that says whose it is."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import popxl
from popxl.units import format_bytes

from .devices import Device, find_devices
from .machine import libc, processor, read_memory
from .main import printable

_PACKAGES = (
    *("jax", "jaxlib", "numpy", "ml_dtypes", "xxhash", "filelock", "lazy_loader"),
    *("jax-cuda12-plugin", "jax-cuda13-plugin", "torch"),
)
_VARIABLES = re.compile(
    r"(POPXL|JAX|XLA|MALLOC|NCCL)_\w*|(CUDA|NVIDIA)_VISIBLE_DEVICES|GLIBC_TUNABLES|LD_PRELOAD|OMP_NUM_THREADS|"
    r"TF_CPP_\w*|TF_GPU_ALLOCATOR|PYTHONMALLOC|PYTHONOPTIMIZE"
)
_SECRET = re.compile(r"KEY|PASSWORD|SECRET|TOKEN|CREDENTIAL")
_NAMES_HOST = re.compile(r"ADDRESS|COORDINATOR|HOST")
_OTHER_HOME = re.compile(r"(/home|/Users)/[^/:,;\s]+")
_IP_ADDRESS = re.compile(r"\b\d{1,3}(\.\d{1,3}){3}\b")


def show() -> int:
    """Print versions, machine, devices and the environment variables that matter. Returns the exit status."""
    for line in describe():
        sys.stdout.write(f"{printable(line)}\n")
        sys.stdout.flush()  # the devices take a second
    return 0


def describe(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """The lines.

    Args:
        environment: The variables of the process.
    """
    yield f"popxl: {popxl.__version__}"
    yield f"Python: {platform.python_version()} ({platform.python_implementation()}, {platform.python_compiler()})"
    for package in _PACKAGES:
        version = _version(package)
        if version:
            yield f"{package}: {version}"
    yield f"system: {_system()}, {platform.system()} {platform.release()}, {platform.machine()}, {libc()}"
    yield f"processor: {processor()}"
    memory = read_memory()
    limit = f", limited to {format_bytes(memory.group_bytes)}" if memory.group_bytes is not None else ""
    yield f"memory: {format_bytes(memory.total_bytes)}, {format_bytes(memory.available_bytes)} available{limit}"
    devices = find_devices()
    if devices.problem:
        yield f"devices: none. {anonymous(devices.problem, environment)}"
    for device in devices.found:
        yield f"device: {_device(device)}"
    for name in sorted(filter(_VARIABLES.fullmatch, environment)):
        yield f"{name}={shown(name, environment[name], environment)}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def _device(device: Device) -> str:
    size = f", {format_bytes(device.memory_bytes)}" if device.memory_bytes else ""
    problem = f" ({device.pinned_problem})" if device.pinned_problem else ""
    return f"{device.platform}, {device.model}{size}; memories: {', '.join(device.memories)}{problem}"


def shown(name: str, value: str, environment: Mapping[str, str]) -> str:
    """What to show of a variable.

    Args:
        name: Its name.
        value: Its value.
        environment: The variables of the process.

    Example:
        >>> shown("POPXL_COORDINATOR", "node7.example:1234", {})
        '<host>:1234'
    """
    if _SECRET.search(name):
        return "<hidden>"
    if _NAMES_HOST.search(name):
        value = re.sub(r"^(?!localhost)(\[[^\]]*\]|[^:]+)", "<host>", value)
    return anonymous(value, environment)


def anonymous(text: str, environment: Mapping[str, str]) -> str:
    """A text without homes, and without the names of user and machine.

    Args:
        text: It.
        environment: The variables of the process.

    Example:
        >>> anonymous("--xla_dump_to=/data/ada/dump /data/ada2", {"HOME": "/data/ada"})
        '--xla_dump_to=~/dump /data/ada2'
    """
    for home in {environment.get("HOME", ""), str(Path.home())}:
        if home.strip("/"):
            text = re.sub(rf"{re.escape(home.rstrip('/'))}(?![\w.-])", "~", text)
    text = _OTHER_HOME.sub(r"\1/<user>", text)
    for name, stands_for in [(_user(), "<user>"), *((host, "<host>") for host in _hosts())]:
        # Whole words only: a user may be called "a".
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", stands_for, text) if name else text
    return _IP_ADDRESS.sub("<address>", text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""  # a container may run as a user that nobody has named


def _hosts() -> list[str]:
    full = socket.gethostname()
    return [full, full.partition(".")[0]]
