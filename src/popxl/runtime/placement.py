"""Where replicas and their values lie: one device, several, or several processes with some each.

A value that varies between replicas is one array with an axis over all replicas in front, divided over the devices; any
other is whole on every device. With one device both are ordinary arrays, and nothing here copies or moves them.

Rows of Streaming Memory lie in the host's memory. A CPU uses them there. A GPU has memory of its own: what is stored is
copied to page-locked host memory, and what is loaded is copied to the device, both by the device's copy engines, while
it computes; nobody waits for them but who needs the value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, final

import numpy as np

from popxl.errors import DeviceError, PopxlValueError
from popxl.ir import Ir
from popxl.ops._jax import jax, jnp
from popxl.runtime.devices import find_devices, has_own_memory
from popxl.runtime.streaming.alloc import aligned_copy

Array = Any
_AXIS = "replicas"
_PAGE_LOCKED = "pinned_host"  # JAX's word


@final
class Placement:
    """The devices of a session.

    Args:
        devices: All devices of the job, those of a process one after the other.
        local_devices: Those of this process.
        replicas: Replicas of the job; the number of devices divides it.
        stages: The device of each IPU, where they have one each; there is one replica then.
    """

    def __init__(
        self, devices: Sequence[Any], local_devices: Sequence[Any], replicas: int, stages: Sequence[Any] = ()
    ) -> None:
        self.device_count = len(devices)
        self.device = local_devices[0]
        self.replicas = replicas
        self._stages = tuple(stages)
        self.has_stages = bool(stages)
        self._is_one = len(devices) == 1
        self._is_local = len(devices) == len(local_devices)
        first = list(devices).index(local_devices[0]) * replicas // len(devices)
        #: The replicas of this process.
        self.local_replicas = range(first, first + replicas * len(local_devices) // len(devices))
        self._shardings = _shardings(devices)
        self._local_shardings = self._shardings if self._is_local else _shardings(local_devices)
        #: Whether rows have to be copied to the device and back.
        self.has_own_memory = has_own_memory(self.device)
        one = jax.sharding.SingleDeviceSharding(self.device, memory_kind=self.device.default_memory().kind)
        #: Where this process's part of a row goes.
        self._row_shardings = (one, one) if self._is_one else self._local_shardings

    def stage(self, ipu: int) -> Any:
        """The device that runs what is placed on an IPU."""
        return self._stages[ipu] if self._stages else self.device

    def move(self, values: Sequence[Array], ipu: int) -> list[Array]:
        """The values on the device of an IPU; what the host has goes there by itself."""
        device = self._stages[ipu]
        return [
            jax.device_put(value, device) if isinstance(value, jax.Array) and value.device != device else value
            for value in values
        ]

    def sharding(self, varies: bool) -> Any:
        """Where a value lies, for the compiler; None if there is one device."""
        return None if self._is_one else self._shardings[varies]

    def put(self, value: Array, varies: bool) -> Array:
        """Give the devices a value.

        Args:
            value: A NumPy array, or what `local` returned. What varies has this process's replicas in front.
            varies: Whether it varies.
        """
        if self._is_one:
            return value
        sharding = self._shardings[varies]
        if self._is_local:
            is_there = isinstance(value, jax.Array) and value.sharding == sharding
            return value if is_there else jax.device_put(value, sharding)
        shape = (self.replicas, *value.shape[1:]) if varies else tuple(value.shape)
        if not isinstance(value, jax.Array):
            return jax.make_array_from_process_local_data(sharding, np.asarray(value), shape)
        parts = [shard.data for shard in value.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    def put_row(self, row: Array, varies: bool) -> Array:
        """Give the devices a row of Streaming Memory, as `put` does; nobody waits for the copy, if there is one."""
        if not self.has_own_memory:
            return self.put(row, varies)
        # JAX refers to the row until it has been copied, so its memory is not filled again before.
        return self.put(jax.device_put(row, self._row_shardings[varies]), varies)

    def keep_row(self, value: Array, varies: bool) -> Array:
        """What Streaming Memory is given of a value: this process's part, in the host's memory. Does not wait."""
        local = self.local(value, varies)
        if not self.has_own_memory or not isinstance(local, jax.Array):
            return local
        return jax.device_put(local, local.sharding.with_memory_kind(_PAGE_LOCKED))

    def new_row(self, value: np.ndarray[Any, Any], varies: bool) -> Array:
        """A row that the host has made, of this process's replicas, as Streaming Memory keeps it: never an alias."""
        if not self.has_own_memory:
            return self.local(self.put_copy(value, varies), varies)
        copy = aligned_copy(value)
        return jax.device_put(copy, self._row_shardings[varies].with_memory_kind(_PAGE_LOCKED))

    def put_copy(self, value: np.ndarray[Any, Any], varies: bool, ipu: int = 0) -> Array:
        """Give the devices a copy of a value, never an alias: whoever has the array may change it at any time.

        `ipu` says which device, where IPUs have one each.

        The copy is made here because JAX's own compiles a program for each shape. Nobody else knows this memory, so a
        CPU device may use it in place.
        """
        copy = aligned_copy(value)
        return jax.device_put(copy, self.stage(ipu)) if self._is_one else self.put(copy, varies)

    def local(self, value: Array, varies: bool) -> Array:
        """This process's part of a value: of what varies, its own replicas. Neither waits nor copies."""
        if self._is_local or not isinstance(value, jax.Array) or value.is_fully_addressable:
            return value
        shape = (len(self.local_replicas), *value.shape[1:]) if varies else tuple(value.shape)
        parts = [shard.data for shard in value.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, self._local_shardings[varies], parts)

    def everywhere(self, value: Array) -> np.ndarray[Any, Any]:
        """The values of all replicas. All processes ask for it at the same time."""
        if not self._is_local and not value.is_fully_replicated:
            gather: Any = jax.jit(_same, out_shardings=self._shardings[False])
            value = gather(value)
        return np.asarray(value)

    def select(self, values: Mapping[int, Array], choices: np.ndarray[Any, Any]) -> Array:
        """For each replica its part of the value that it chooses, by the number of the value."""
        (_, result), *rest = values.items()
        for number, value in rest:
            result = self.where(choices == number, value, result)
        return result

    def where(self, mask: np.ndarray[Any, Any], value: Array, other: Array) -> Array:
        """`value` for the replicas of the mask, `other` for the rest."""
        choose: Any = jax.jit(_choose, out_shardings=self.sharding(varies=True))
        return choose(mask, value, other)

    def __repr__(self) -> str:
        return f"Placement[{self.replicas} replicas on {self.device_count} devices]"


def find_placement(ir: Ir, device_desc: str, device_count: int | None) -> Placement:
    """Return where the replicas of a program run, or the IPUs of a program with one replica.

    Args:
        ir: The program.
        device_desc: ``"cpu"``, ``"gpu"``, or the reference's ``"ipu_model"`` and ``"ipu_hw"``, which stand for
            the best device there is.
        device_count: Devices of this process to use; None for as many as there are and as divide its replicas. With
            one replica and as many devices as IPUs that ops are placed on, each IPU has a device of its own.

    Raises:
        PopxlValueError: (a `ValueError`) for an unknown string, or devices that cannot be given equally many replicas.
        DeviceError: (a `RuntimeError`) if there are no such devices.
    """
    replicas, local_replicas = ir.replication_factor, ir.instance_replication_factor
    ipu_count = 1 + max((op.ipu for graph in ir.reachable_graphs() for op in graph.ops), default=0)
    found = find_devices(device_desc)
    if replicas == 1 and 1 < ipu_count <= len(found) and device_count in (None, ipu_count):
        return Placement(found[:1], found[:1], 1, found[:ipu_count])
    if device_count is None:
        device_count = max(d for d in range(1, len(found) + 1) if local_replicas % d == 0)
    if device_count < 1 or local_replicas % device_count:
        raise PopxlValueError(
            f"{local_replicas} replicas cannot be divided over {device_count} devices.",
            hint=f"use a number of devices that divides {local_replicas}",
        )
    if device_count > len(found):
        raise DeviceError(
            f"Failed to acquire device with device_desc={device_desc!r}: {device_count} are wanted, and JAX finds "
            f"{len(found)}.",
            hint="on a CPU, set XLA_FLAGS=--xla_force_host_platform_device_count=8 before JAX starts",
        )
    local = found[:device_count]
    if local_replicas == replicas:
        return Placement(local, local, replicas)
    return Placement(_devices_of_all(device_count, local[0].platform), local, replicas)


def _devices_of_all(device_count: int, platform: str) -> list[Any]:
    """The first devices of each process, in the order of the processes."""
    by_process: dict[int, list[Any]] = {}
    for device in cast("list[Any]", jax.devices(platform)):
        by_process.setdefault(device.process_index, []).append(device)
    return [device for process in sorted(by_process) for device in by_process[process][:device_count]]


def _shardings(devices: Sequence[Any]) -> tuple[Any, Any]:
    """Where a value lies that is equal on all replicas, and one that varies."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (_AXIS,))
    spec = jax.sharding.PartitionSpec
    return jax.sharding.NamedSharding(mesh, spec()), jax.sharding.NamedSharding(mesh, spec(_AXIS))


def _same(value: Array) -> Array:
    return value


def _choose(mask: Array, value: Array, other: Array) -> Array:
    return jax.vmap(jnp.where)(mask, value, other)
