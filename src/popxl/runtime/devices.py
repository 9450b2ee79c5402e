"""Which device a session runs on (spec ``session.md`` §2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from popxl.errors import DeviceError, PopxlValueError
from popxl.ops._jax import jax

#: What each device string asks JAX for; None for its default backend.
_BACKENDS = {"cpu": "cpu", "gpu": "gpu", "ipu_model": None, "ipu_hw": None}


def find_devices(device_desc: str) -> list[Any]:
    """Return the devices of this process for a device string.

    Args:
        device_desc: ``"cpu"``, ``"gpu"``, or the reference's ``"ipu_model"`` and ``"ipu_hw"``, which stand for
            the best device there is.

    Raises:
        PopxlValueError: (a `ValueError`) for an unknown string.
        DeviceError: (a `RuntimeError`) if there is no such device.
    """
    if device_desc not in _BACKENDS:
        raise PopxlValueError(
            f"Incorrect device type provided: {device_desc!r}.", hint=f"use one of {', '.join(map(repr, _BACKENDS))}"
        )
    try:
        return cast("list[Any]", jax.local_devices(backend=_BACKENDS[device_desc]))
    except RuntimeError as error:
        there = ", ".join(sorted({d.platform for d in cast("list[Any]", jax.local_devices())}))
        raise DeviceError(
            f'Failed to acquire device with device_desc="{device_desc}": JAX finds only {there}.',
            hint='use device_desc="cpu", or install a JAX with GPU support (pip install "openpopxl[cuda12]")',
        ) from error


def has_own_memory(device: Any) -> bool:
    """Whether a device computes in another memory than the host's, so that rows have to be copied to it and back."""
    return device.platform != "cpu"


def let_go_of_arguments(device: Any) -> Callable[[], object]:
    """Return what makes JAX drop its references to the arguments of computations that have finished.

    It does so before it counts the memory of a device, which is the least that one can ask it for. A computation lets
    go of its arguments some time after its results are ready, so this may come too soon: whoever counts on it looks
    again (`BlockPool`).
    """
    return device.memory_stats
