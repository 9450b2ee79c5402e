"""`Session.estimate`: measure what a program consists of, and predict what a run of it takes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from popxl.errors import PopxlNotImplementedError, StreamingMemoryError
from popxl.ops._jax import jax
from popxl.plan.costs import Costs, Prediction, SegmentCost
from popxl.plan.footprint import reachable_plans
from popxl.plan.lookahead import ComingBranch, ComingStore, lookahead
from popxl.plan.simulation import simulate
from popxl.plan.slots import written_slots
from popxl.plan.steps import GraphPlan, HostLoad, HostStore
from popxl.runtime.compiled import Compiled
from popxl.runtime.compiler import Executable, plan_segments
from popxl.runtime.device_weights import remote_buffers, resident_buffers
from popxl.runtime.placement import Placement
from popxl.runtime.streaming.file import FileTier
from popxl.runtime.streaming.tier import BufferSpec

from .disk_probe import DiskCosts, DiskUse, probe_disk, with_contention
from .probe import Arguments, host_loss, median_s, on_device, probe_host, probe_segments, run_counts, run_once

#: What computes less than this in a run has nothing to lose to the disk.
_SHORT_S = 1e-3


def estimate(program: Compiled, prepare: Callable[[], object] = lambda: None) -> Prediction:
    """Predict what a run takes, without running the program or touching its data. It takes some seconds.

    Args:
        program: The program.
        prepare: What a session does with the arrays of a run before it begins.

    Raises:
        PopxlNotImplementedError: (a `NotImplementedError`) for one of several processes.
        StreamingMemoryError: The disk cannot be measured.
    """
    if program.plan.replicas.local != program.plan.replicas.count:
        raise PopxlNotImplementedError(
            "A program that runs in several processes cannot be estimated: they share the machine.",
            hint="estimate it with as many replicas as a process has",
        )
    costs = _costs(program)
    costs = replace(costs, run_s=costs.run_s + median_s(prepare))
    remote = [v for v in program.ir.main_graph.variables if v.location_info.isRemote()]
    uploaded = [v.location_info.getRemoteBufferInfo() for v in remote]
    prediction = simulate(program.plan, costs, program.limits, uploaded=uploaded)
    return replace(prediction, tier_bytes=tier_bytes(program))


def _costs(program: Compiled) -> Costs:
    plan, placement = program.plan, program.placement
    buffers = [spec for spec in remote_buffers(program.ir, plan.replicas) if spec.entry_bytes and spec.entries]
    has_rows = program.tier.capabilities.asynchronous and not placement.has_own_memory
    allowed = program.limits.pool_bytes + (program.limits.slack_bytes or 0)
    segments, wake_s = probe_segments(plan, program.executables, placement, allowed, has_rows=has_rows)
    copied = [t for p in reachable_plans(plan) for s in p.steps for t in _copied(s)]
    host = probe_host(plan, placement, max((t.nelms * t.dtype.nbytes for t in copied), default=0))
    disk: DiskCosts | None = None
    longest = _longest(program, segments)
    if isinstance(program.tier, FileTier) and buffers and (program.figures.load_bytes or program.figures.store_bytes):
        use = DiskUse(
            tuple(sorted({spec.entry_bytes for spec in buffers})), program.limits, program.tier.capabilities.checksums
        )
        try:
            disk = probe_disk(program.tier.directory, use)
            disk = _beside_compute(longest, use, disk, program.tier)
        except OSError as error:
            raise StreamingMemoryError(
                f"The disk of {program.tier.directory} cannot be measured: {error}.",
                hint="name a directory that can be written to, with a few hundred MiB free",
            ) from error
    return Costs(
        segments,
        None if disk is None else disk.read,
        None if disk is None else disk.write,
        host.run_s,
        host.step_s,
        host.evaluate_s,
        0.0 if disk is None else disk.row_s,
        host.copy_s_per_byte,
        host.fetch_s,
        wake_s,
        0.0 if longest is None else longest.loses_to_host(),
    )


def _copied(step: object) -> Sequence[Any]:
    if isinstance(step, HostLoad):
        return step.op.outputs
    return step.op.inputs if isinstance(step, HostStore) else ()


@dataclass(frozen=True, slots=True)
class _Longest:
    """The segment that computes longest in a run, for measuring what others take from it."""

    executable: Executable
    arguments: Arguments
    placement: Placement
    compute_s: float

    def loses_to_host(self) -> float:
        """See `popxl.plan.costs.Costs.host_loss`."""
        with on_device(self.placement):
            return host_loss(self.executable, self.arguments.take)


def _longest(program: Compiled, segments: Mapping[Hashable, SegmentCost]) -> _Longest | None:
    """None if no segment computes for long enough to see what it loses."""
    counts = run_counts(program.plan)
    key = max(counts, key=lambda k: counts[k] * segments[k].compute_s, default=None)
    if key is None or counts[key] * segments[key].compute_s < _SHORT_S:
        return None
    segment = next(s for s in plan_segments(program.plan) if s.key == key)
    with on_device(program.placement):
        arguments = Arguments(segment, program.placement, 0, has_rows=True)
    return _Longest(program.executables[key], arguments, program.placement, segments[key].compute_s)


def _beside_compute(longest: _Longest | None, use: DiskUse, disk: DiskCosts, tier: FileTier) -> DiskCosts:
    """Measure what the segment that computes longest and the disk take from each other."""
    if longest is None:
        return disk
    times = max(1, round(0.02 / longest.compute_s))

    def compute() -> float:
        return sum(run_once(longest.executable, longest.arguments.take()).total_s for _ in range(times))

    with on_device(longest.placement):
        compute()
        found = with_contention(tier.directory, use, disk, compute)
        jax.effects_barrier()
    return found


# Bytes


def tier_bytes(program: Compiled) -> dict[str, int]:
    """Bytes that a program takes of each tier once it has run, and has been committed twice where there are commits.

    Args:
        program: The program.
    """
    limits, replicas = program.limits, program.plan.replicas
    stored = _stored_rows(program.plan)
    buffers = remote_buffers(program.ir, replicas)
    sizes = {"device": program.figures.device.peak_bytes}
    if not program.tier.capabilities.asynchronous:
        return {**sizes, "ram": sum(len(_taken(spec, stored)) * spec.entry_bytes for spec in buffers)}
    rows = any(spec.entries for spec in buffers)
    sizes["host"] = limits.pool_bytes + limits.cache_bytes + limits.write_bytes + limits.copy_bytes if rows else 0
    total = 0
    for spec in buffers:
        written = _written(spec, stored)
        # A store goes beside what the last commit holds.
        total += (len(_taken(spec, stored)) + (len(written) if spec.is_persistent else 0)) * spec.padded_bytes
    changed = set(_changed(program.plan))
    for v, spec in resident_buffers(program.ir, replicas).items():
        total += (2 if v in changed else 1) * spec.padded_bytes
    return {**sizes, "file": total}


def _changed(plan: GraphPlan) -> list[object]:
    """The variables that a run gives new values: their slot is written."""
    slots = dict(plan.variables)
    return [slots[slot] for step in plan.steps for slot in written_slots(step) if slot in slots]


def _stored_rows(plan: GraphPlan) -> dict[int, set[int] | None]:
    """The entries of each buffer that a run stores to; None for any."""
    found: dict[int, set[int] | None] = {}
    walk = lookahead(plan, lambda _stream, position: np.asarray(position))
    taken: bool | None = None
    while True:
        try:
            coming = walk.send(taken)
        except StopIteration:
            return found
        taken = None
        if isinstance(coming, ComingStore):
            entries = found.setdefault(coming.buffer_id, set())
            if coming.entry is None:
                found[coming.buffer_id] = None
            elif entries is not None:
                entries.add(coming.entry)
        elif isinstance(coming, ComingBranch):
            taken = True


def _written(spec: BufferSpec, stored: Mapping[int, set[int] | None]) -> set[int]:
    entries = stored.get(spec.buffer_id, set())
    return set(range(spec.entries)) if entries is None else entries & set(range(spec.entries))


def _taken(spec: BufferSpec, stored: Mapping[int, set[int] | None]) -> set[int]:
    """The entries that take room: those of variables, and those stored to."""
    return {entry for entry, _ in spec.names} | _written(spec, stored)
