"""The device's values of variables, and their way between host, device and Streaming Memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from popxl.ir import Ir
from popxl.ops._jax import jax
from popxl.runtime.completion import Completion
from popxl.runtime.memory_limits import MemoryLimits
from popxl.runtime.overlap import OverlappedTransfers
from popxl.runtime.streaming.alloc import aligned_copy
from popxl.runtime.streaming.blocks import BlockPool
from popxl.runtime.streaming.tier import BufferSpec, Tier
from popxl.runtime.transfers import DirectTransfers, Transfers
from popxl.tensor import Tensor, Variable

Array = Any


@dataclass(frozen=True, slots=True)
class _Committed:
    """The host's value of a variable that it reads from a commit."""

    reader: Callable[[], np.ndarray[Any, Any]]
    dtype: np.dtype[Any]

    def __call__(self) -> np.ndarray[Any, Any]:
        return self.reader().view(self.dtype)


class DeviceWeights:
    """Variables of one session (spec ``session.md`` §2.3, ``remote-memory.md`` §1), while it is attached.

    Args:
        ir: The program.
        device: The device.
        tier: Streaming Memory.
        completion: The computations of the device.
        limits: How much memory transfers may take.
    """

    def __init__(self, ir: Ir, device: Any, tier: Tier, completion: Completion, limits: MemoryLimits) -> None:
        self._device = device
        self._tier = tier
        self._completion = completion
        self._limits = limits
        self._buffers = remote_buffers(ir)
        self._remote = [v for v in ir.main_graph.variables if v.location_info.isRemote()]
        self._resident = resident_buffers(ir) if tier.capabilities.commits else {}
        #: What the last commit stored for each variable on the device; it is stored again when it is another one.
        self._committed: dict[Variable, weakref.ref[Any]] = {}
        #: The device's value of each variable that is not remote.
        self.values: dict[Tensor, Array] = {}
        #: How rows are moved.
        self.transfers: Transfers = DirectTransfers(tier)

    def attach(self) -> None:
        """Open Streaming Memory. Its rows are zeros, or what the last commit made them if the tier goes on from one."""
        specs = [*self._buffers, *self._resident.values()]
        self._tier.open(specs)
        if self._tier.capabilities.asynchronous:
            pool = BlockPool(self._limits.pool_bytes, self._completion)
            self.transfers = OverlappedTransfers(
                self._tier, specs, pool, self._limits.write_bytes, self._limits.cache_bytes
            )
        else:
            self.transfers = DirectTransfers(self._tier)

    def detach(self) -> None:
        """Drop the device's values and close Streaming Memory."""
        self.transfers.close()
        self.transfers = DirectTransfers(self._tier)
        self._completion.wait()
        self.values.clear()
        self._committed.clear()
        self._tier.close()

    def wait(self) -> None:
        """Wait until the device has computed every value and Streaming Memory has taken every row.

        Raises:
            StreamingMemoryError: A store has failed.
        """
        self._completion.wait()
        self.transfers.drain()

    def commit(self) -> int:
        """Publish all variables as they are now; return the generation's number.

        Raises:
            StreamingMemoryError: A store has failed, or the commit; the last one stands.
        """
        for v, spec in self._resident.items():
            value = self.values[v]
            last = self._committed.get(v)
            if last is None or last() is not value:
                self.transfers.store(spec.buffer_id, 0, value)
        self.transfers.drain()
        generation = self._tier.commit()
        self._committed = {v: weakref.ref(self.values[v]) for v in self._resident}
        # What the host read from the last commit, it reads from this one: the last one's rows may be overwritten now.
        self._read_from_commit(v for v in self._remote if isinstance(v.host_source, _Committed))
        return generation

    def _read_from_commit(self, variables: Iterable[Variable]) -> None:
        """Let the host read `variables`, which are remote, from the last commit, or give it copies."""
        for v in variables:
            reader = self._tier.committed_reader(*v.location_info.getRemoteBufferInfo())
            if reader is None:
                self.fetch(v)
            else:
                v.host_value = _Committed(reader, v.dtype.as_numpy())

    def restore(self, variables: Iterable[Variable]) -> list[Variable]:
        """Take what the last commit holds of `variables`, if the tier goes on from one; return the others."""
        missing: list[Variable] = []
        with jax.default_device(self._device), jax.enable_x64(True):
            for v in variables:
                if v.location_info.isRemote():
                    if not self._tier.holds(*v.location_info.getRemoteBufferInfo()):
                        missing.append(v)
                elif v in self._resident and self._tier.holds(self._resident[v].buffer_id, 0):
                    self.values[v] = _device_copy(np.asarray(self.transfers.load(self._resident[v].buffer_id, 0)))
                else:
                    missing.append(v)
        return missing

    def upload(self, variables: Iterable[Variable]) -> None:
        """Copy host values to the device, and remote ones to their rows."""
        with jax.default_device(self._device), jax.enable_x64(True):
            for v in variables:
                value = _device_copy(v.host_value.view(v.dtype.storage))
                if not v.location_info.isRemote():
                    self.values[v] = value
                else:
                    self.transfers.store(*v.location_info.getRemoteBufferInfo(), value)
            self.transfers.drain()

    def download(self, variables: Iterable[Variable], *, is_committed: bool) -> None:
        """Make the host's values those of the device and of Streaming Memory.

        What is remote is not copied where the host can go on reading it where it is: from a row in RAM, or from the
        last commit. `is_committed`: whether nothing has changed since that.
        """
        committed: list[Variable] = []
        for v in variables:
            if v.location_info.isRemote() and v.memory_map is None and self._tier.capabilities.commits:
                committed.append(v)
            else:
                self._download_one(v)
        if committed:
            if not is_committed:
                self.commit()
            self._read_from_commit(committed)

    def fetch(self, v: Variable) -> None:
        """Copy the value of one variable to the host."""
        self.replace_host_value(v, np.asarray(self._value(v)).view(v.dtype.as_numpy()))

    def _download_one(self, v: Variable) -> None:
        if v.location_info.isRemote() and v.memory_map is None and self._tier.capabilities.zero_copy_load:
            row = self._value(v)
            v.host_value = lambda: np.array(row).view(v.dtype.as_numpy())
        else:
            self.fetch(v)

    def _value(self, v: Variable) -> Array:
        if v.location_info.isRemote():
            return self.transfers.load(*v.location_info.getRemoteBufferInfo())
        return self.values[v]

    @staticmethod
    def replace_host_value(v: Variable, value: np.ndarray[Any, Any]) -> None:
        """Overwrite the host's array of a variable; a memory map is flushed."""
        if v.is_lazy:
            v.host_value = np.array(value)
            return
        v.host_value[...] = value
        if v.memory_map is not None:
            v.memory_map.flush()


def remote_buffers(ir: Ir) -> list[BufferSpec]:
    """The program's remote buffers, with the variables that live in them."""
    names: dict[int, list[tuple[int, str]]] = {}
    for v in ir.main_graph.variables:
        if v.location_info.isRemote():
            buffer_id, entry = v.location_info.getRemoteBufferInfo()
            names.setdefault(buffer_id, []).append((entry, v.id))
    return [
        BufferSpec(i, b.shape, b.dtype.storage, b.entries, tuple(sorted(names.get(i, []))))
        for i, b in ir.remote_buffers.items()
    ]


def resident_buffers(ir: Ir) -> dict[Variable, BufferSpec]:
    """A buffer of one entry for each variable on the device: a commit stores them too."""
    first = max(ir.remote_buffers, default=0) + 1
    resident = [v for v in ir.main_graph.variables if not v.location_info.isRemote()]
    return {v: BufferSpec(first + k, v.shape, v.dtype.storage, 1, ((0, v.id),)) for k, v in enumerate(resident)}


def _device_copy(value: np.ndarray[Any, Any]) -> Array:
    """Return a copy on the device, never an alias: the user may change the host's array at any time.

    The copy is made here because JAX's own compiles a program for each shape. Nobody else knows this memory, so a
    CPU device may use it in place.
    """
    return jax.device_put(aligned_copy(value))
