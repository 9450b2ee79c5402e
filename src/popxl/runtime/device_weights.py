"""The device's values of variables, and their way between host, device and Streaming Memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from popxl.ir import Ir
from popxl.ops._jax import jax
from popxl.runtime.streaming.alloc import aligned_copy
from popxl.runtime.streaming.tier import BufferSpec, Tier
from popxl.tensor import Tensor, Variable

Array = Any


class DeviceWeights:
    """Variables of one session (spec ``session.md`` §2.3, ``remote-memory.md`` §1).

    Args:
        ir: The program.
        device: The device.
        tier: Streaming Memory.
    """

    def __init__(self, ir: Ir, device: Any, tier: Tier) -> None:
        self._device = device
        self._tier = tier
        self._buffers = [BufferSpec(i, b.shape, b.dtype.storage, b.entries) for i, b in ir.remote_buffers.items()]
        #: The device's value of each variable that is not remote.
        self.values: dict[Tensor, Array] = {}

    def attach(self) -> None:
        """Open Streaming Memory; its rows are zeros."""
        self._tier.open(self._buffers)

    def detach(self) -> None:
        """Drop the device's values and close Streaming Memory."""
        self.values.clear()
        self._tier.close()

    def upload(self, variables: Iterable[Variable]) -> None:
        """Copy host values to the device, and remote ones to their rows."""
        with jax.default_device(self._device), jax.enable_x64(True):
            for v in variables:
                value = v.host_value.view(v.dtype.storage)
                if not v.location_info.isRemote():
                    self.values[v] = _device_copy(value)
                else:
                    buffer_id, entry = v.location_info.getRemoteBufferInfo()
                    keeps = self._tier.capabilities.zero_copy_load or self._tier.capabilities.asynchronous
                    self._tier.store(buffer_id, entry, _device_copy(value) if keeps else value)

    def download(self, variables: Iterable[Variable]) -> None:
        """Copy the device's values and the rows of remote variables to the host."""
        for v in variables:
            if not v.location_info.isRemote():
                value = self.values[v]
            else:
                value = self._tier.load(*v.location_info.getRemoteBufferInfo())
            self.replace_host_value(v, np.asarray(value).view(v.dtype.as_numpy()))

    @staticmethod
    def replace_host_value(v: Variable, value: np.ndarray[Any, Any]) -> None:
        """Overwrite the host's array of a variable; a memory map is flushed."""
        v.host_value[...] = value
        if isinstance(v.host_value, np.memmap):
            v.host_value.flush()


def _device_copy(value: np.ndarray[Any, Any]) -> Array:
    """Return a copy on the device, never an alias: the user may change the host's array at any time.

    The copy is made here because JAX's own compiles a program for each shape. Nobody else knows this memory, so a
    CPU device may use it in place.
    """
    return jax.device_put(aligned_copy(value))
