"""The device's values of variables, and their way between host, device and Streaming Memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from popxl.errors import StreamingMemoryError
from popxl.ir import Ir
from popxl.ops._jax import jax
from popxl.plan.replicas import Replicas
from popxl.plan.shards import resident_shards
from popxl.runtime.completion import Completion
from popxl.runtime.overlap import OverlappedTransfers
from popxl.runtime.replica_rows import find_layout
from popxl.runtime.streaming.alloc import aligned_copy
from popxl.runtime.streaming.blocks import BlockPool
from popxl.runtime.streaming.page_lock import find_page_lock
from popxl.runtime.streaming.tier import BufferSpec
from popxl.runtime.transfers import DirectTransfers, Transfers
from popxl.tensor import Tensor, Variable

if TYPE_CHECKING:
    from popxl.runtime.compiled import Compiled

Array = Any
#: Given the bytes of an upload, returns what lasts as long as it does, and is told the bytes of each part.
OnUpload = Callable[[int], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True, slots=True)
class _Committed:
    """The host's value of a variable that it reads from a commit, from the rows of one process or of all."""

    readers: tuple[Callable[[], np.ndarray[Any, Any]], ...]
    host_form: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]

    def __call__(self) -> np.ndarray[Any, Any]:
        rows = [reader() for reader in self.readers]
        return self.host_form(rows[0] if len(rows) == 1 else np.concatenate(rows))


class DeviceWeights:
    """Variables of one session (spec ``session.md`` §2.3, ``remote-memory.md`` §1), while it is attached.

    Args:
        program: The program.
        completion: The computations of the devices.
        on_upload: Shows how far an upload has come; None for nothing.
    """

    def __init__(self, program: Compiled, completion: Completion, on_upload: OnUpload | None = None) -> None:
        ir, replicas, tier = program.ir, program.plan.replicas, program.tier
        self._replicas = replicas
        self._placement = program.placement
        self._tier = tier
        self._completion = completion
        self._on_upload = on_upload or _unseen
        self._limits = program.limits
        self._buffers = remote_buffers(ir, replicas)
        variables = ir.main_graph.variables
        self._remote = [v for v in variables if v.location_info.isRemote()]
        self._layouts = {v: find_layout(ir, v) for v in variables}
        self._shards = {(s.buffer_id, s.entry): s for s in resident_shards(ir.main_graph)}
        self._resident = resident_buffers(ir, replicas) if tier.capabilities.commits else {}
        #: What the last commit stored for each variable on the device; it is stored again when it is another one.
        self._committed: dict[Tensor, weakref.ref[Any]] = {}
        #: The device's value of each variable that is not remote, and of each shard.
        self.values: dict[Tensor, Array] = {}
        #: How rows are moved.
        self.transfers: Transfers = DirectTransfers(tier, completion.events)

    def attach(self) -> None:
        """Open Streaming Memory. Its rows are zeros, or what the last commit made them if the tier goes on from one."""
        specs = [*self._buffers, *self._resident.values()]
        self._tier.open(specs)
        if self._tier.capabilities.asynchronous:
            device = self._placement.device
            lock = find_page_lock(device.platform, device.local_hardware_id or 0)
            pool = BlockPool(self._limits.pool_bytes, self._completion, lock, lent_limit_bytes=self._limits.lent_bytes)
            self.transfers = OverlappedTransfers(
                self._tier,
                specs,
                pool,
                self._limits.write_bytes,
                self._limits.cache_bytes,
                self._completion.events,
            )
        else:
            self.transfers = DirectTransfers(self._tier, self._completion.events)

    def detach(self) -> None:
        """Drop the device's values and close Streaming Memory."""
        self.transfers.close()
        self.transfers = DirectTransfers(self._tier, self._completion.events)
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

    # Commits

    def commit(self) -> int:
        """Publish all variables as they are now; return the generation's number.

        Raises:
            StreamingMemoryError: A store has failed, or the commit; the last one stands.
        """
        failure: StreamingMemoryError | None = None
        try:
            self._store_shards()
            for v, spec in self._resident.items():
                if self._has_changed(v):
                    row = self._placement.keep_row(self.values[v], self._replicas.varies(v))
                    self.transfers.store(spec.buffer_id, 0, row)
            self.transfers.drain()
        except StreamingMemoryError as error:
            failure = error
        generation = self._tier.commit(failure)
        self._committed = {t: weakref.ref(value) for t, value in self.values.items()}
        # What the host read from the last commit, it reads from this one: the last one's rows may be overwritten now.
        self._read_from_commit(v for v in self._remote if isinstance(v.host_source, _Committed))
        return generation

    def _has_changed(self, t: Tensor) -> bool:
        last = self._committed.get(t)
        return last is None or last() is not self.values[t]

    def _read_from_commit(self, variables: Iterable[Variable]) -> None:
        """Let the host read `variables`, which are remote, from the last commit, or give it copies."""
        for v in variables:
            row = v.location_info.getRemoteBufferInfo()
            processes = [None] if self._has_all_parts(v) else range(self._replicas.count // self._replicas.local)
            readers = [self._tier.committed_reader(*row, process) for process in processes]
            known = [reader for reader in readers if reader is not None]
            if v.gives_each_replica or len(known) < len(readers):
                self.fetch(v)
            else:
                v.host_value = _Committed(tuple(known), partial(self._host_form, v))

    def restore(self, variables: Iterable[Variable]) -> list[Variable]:
        """Take what the last commit holds of `variables`, if the tier goes on from one; return the others."""
        found: list[Variable] = []
        missing: list[Variable] = []
        with jax.default_device(self._placement.device), jax.enable_x64(True):
            for v in variables:
                if v.location_info.isRemote():
                    is_there = self._tier.holds(*v.location_info.getRemoteBufferInfo())
                else:
                    spec = self._resident.get(v)
                    is_there = spec is not None and self._tier.holds(spec.buffer_id, 0)
                    if spec is not None and is_there:
                        self.values[v] = self._put_copy(v, np.asarray(self.transfers.load(spec.buffer_id, 0)))
                (found if is_there else missing).append(v)
            self._load_shards(found)
        return missing

    # Between host and device

    def upload(self, variables: Iterable[Variable]) -> None:
        """Copy host values to the device, and remote ones to their rows."""
        sizes = {v: math.prod(v.shape_on_host) * v.dtype.nbytes for v in variables}
        show = self._on_upload(sum(sizes.values()))
        with show as add_bytes, jax.default_device(self._placement.device), jax.enable_x64(True):
            for v, n_bytes in sizes.items():
                self._upload_one(v)
                add_bytes(n_bytes)
            self._load_shards(sizes)
            self.transfers.drain()

    def _upload_one(self, v: Variable) -> None:
        # A function of its own: what a lazy variable has made is gone before the next one makes something.
        value = v.host_value.view(v.dtype.storage)
        if self._varies(v):
            value = self._layouts[v].rows(value, self._placement.local_replicas)
        if v.location_info.isRemote():
            row = self._placement.new_row(value, self._varies(v))
            self.transfers.store(*v.location_info.getRemoteBufferInfo(), row)
        else:
            self.values[v] = self._put_copy(v, value)

    def download(self, variables: Iterable[Variable], *, is_committed: bool) -> None:
        """Make the host's values those of the device and of Streaming Memory.

        What is remote is not copied where the host can go on reading it where it is: from a row in RAM, or from the
        last commit. `is_committed`: whether nothing has changed since that.
        """
        self._store_shards()
        committed: list[Variable] = []
        for v in variables:
            if v.location_info.isRemote() and v.memory_map is None and self._tier.capabilities.commits:
                committed.append(v)
            else:
                self._download_one(v)
        if self._tier.capabilities.commits and not is_committed:
            self.commit()
        self._read_from_commit(committed)

    def fetch(self, v: Variable) -> None:
        """Copy the value of one variable to the host."""
        if v.location_info.isRemote() and v.location_info.getRemoteBufferInfo() in self._shards:
            self._store_shards()
        value = self._value(v)
        if self._varies(v):
            value = self._placement.everywhere(self._placement.put(value, varies=True))
        rows = np.asarray(value)
        self.replace_host_value(v, self._host_form(v, rows))
        if v.gives_each_replica:
            own = self._layouts[v].of_each_replica(rows) if self._varies(v) else np.stack([rows] * self._replicas.count)
            v.replica_values = own.view(v.dtype.as_numpy())

    def _download_one(self, v: Variable) -> None:
        is_row = v.location_info.isRemote() and v.memory_map is None and self._tier.capabilities.zero_copy_load
        if is_row and self._has_all_parts(v) and not v.gives_each_replica:
            row = self._value(v)
            v.host_value = lambda: self._host_form(v, np.array(row))
        else:
            self.fetch(v)

    def _has_all_parts(self, v: Variable) -> bool:
        """Whether this process has all that there is of a variable."""
        return self._replicas.local == self._replicas.count or not self._varies(v)

    def _host_form(self, v: Variable, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The host's value, from what all replicas have."""
        return (self._layouts[v].host(value) if self._varies(v) else value).view(v.dtype.as_numpy())

    def _varies(self, v: Variable) -> bool:
        if v.location_info.isRemote():
            return v.location_info.getRemoteBufferInfo()[0] in self._replicas.buffers
        return self._replicas.varies(v)

    def _value(self, v: Variable) -> Array:
        """What this process's replicas have of a variable."""
        if v.location_info.isRemote():
            return self.transfers.load(*v.location_info.getRemoteBufferInfo())
        return self._local(v)

    def _local(self, t: Tensor) -> Array:
        return self._placement.local(self.values[t], self._replicas.varies(t))

    def _put_copy(self, t: Tensor, value: np.ndarray[Any, Any]) -> Array:
        varies = self._varies(t) if isinstance(t, Variable) else self._replicas.varies(t)
        # On the device of its first use, where IPUs have one each.
        ipu = next((op.ipu for op in t.consumers), 0) if self._placement.has_stages else 0
        return self._placement.put_copy(value, varies, ipu)

    # Shards

    def _load_shards(self, variables: Iterable[Variable]) -> None:
        """Load the shards that lie on the device from the rows of their variables."""
        for v in variables:
            row = v.location_info.getRemoteBufferInfo()
            shard = self._shards.get(row) if v.location_info.isRemote() else None
            if shard is not None:
                self.values[shard.tensor] = self._put_copy(shard.tensor, np.asarray(self.transfers.load(*row)))

    def _store_shards(self) -> None:
        """Store the shards that lie on the device to the rows of their variables."""
        for row, shard in self._shards.items():
            if self._has_changed(shard.tensor):
                # A copy: a row keeps what it was given, and the next run overwrites this memory.
                self.transfers.store(*row, aligned_copy(np.asarray(self._local(shard.tensor))))

    @staticmethod
    def replace_host_value(v: Variable, value: np.ndarray[Any, Any]) -> None:
        """Overwrite the host's array of a variable; a memory map is flushed."""
        v.replica_values = None
        if v.is_lazy:
            v.host_value = np.array(value)
            return
        v.host_value[...] = value
        if v.memory_map is not None:
            v.memory_map.flush()


def _unseen(_total_bytes: int) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(lambda _: None)


def remote_buffers(ir: Ir, replicas: Replicas) -> list[BufferSpec]:
    """The program's remote buffers as this process stores them, with the variables that live in them."""
    names: dict[int, list[tuple[int, str]]] = {}
    for v in ir.main_graph.variables:
        if v.location_info.isRemote():
            buffer_id, entry = v.location_info.getRemoteBufferInfo()
            names.setdefault(buffer_id, []).append((entry, v.id))
    return [
        BufferSpec(
            i,
            (replicas.local, *b.shape) if i in replicas.buffers else b.shape,
            b.dtype.storage,
            b.entries,
            tuple(sorted(names.get(i, []))),
        )
        for i, b in ir.remote_buffers.items()
    ]


def resident_buffers(ir: Ir, replicas: Replicas) -> dict[Variable, BufferSpec]:
    """A buffer of one entry for each variable on the device: a commit stores them too."""
    first = max(ir.remote_buffers, default=0) + 1
    resident = [v for v in ir.main_graph.variables if not v.location_info.isRemote()]
    shapes = [(replicas.local, *v.shape) if replicas.varies(v) else v.shape for v in resident]
    return {
        v: BufferSpec(first + k, shape, v.dtype.storage, 1, ((0, v.id),))
        for k, (v, shape) in enumerate(zip(resident, shapes, strict=True))
    }
