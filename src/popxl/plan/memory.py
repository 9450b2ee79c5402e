"""What a program needs, before it runs: device memory, Streaming Memory, and bytes moved between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from popxl.errors import OutOfMemoryError
from popxl.ir import Ir
from popxl.plan.fitting import Change, best_change, changes
from popxl.plan.footprint import Footprint, Live, device_footprint, row_bytes
from popxl.plan.memory_walk import value_bytes
from popxl.plan.replicas import Replicas
from popxl.plan.shards import state_tensors
from popxl.plan.steps import Branch, GraphPlan, Loop, RemoteLoad, RemoteStore, Segment, Step, called_plans
from popxl.units import format_bytes
from popxl.utils import table_to_string

__all__ = [
    "BufferTraffic",
    "Figures",
    "Footprint",
    "Live",
    "check_fits",
    "device_footprint",
    "figures",
    "possible_changes",
    "traffic",
    "value_bytes",
]

_MAX_NAMED = 8


# Traffic


@dataclass(frozen=True, slots=True)
class BufferTraffic:
    """What one run moves between a remote buffer and the device.

    Attributes:
        loads: Number of rows loaded.
        stores: Number of rows stored.
        load_bytes: Their size.
        store_bytes: Their size.
        is_bound: Whether a run may move less: the sides of a branch differ, and the larger number counts.
    """

    loads: int = 0
    stores: int = 0
    load_bytes: int = 0
    store_bytes: int = 0
    is_bound: bool = False

    def __add__(self, other: BufferTraffic) -> BufferTraffic:
        return BufferTraffic(
            self.loads + other.loads,
            self.stores + other.stores,
            self.load_bytes + other.load_bytes,
            self.store_bytes + other.store_bytes,
            self.is_bound or other.is_bound,
        )

    def __mul__(self, count: int) -> BufferTraffic:
        return BufferTraffic(
            self.loads * count,
            self.stores * count,
            self.load_bytes * count,
            self.store_bytes * count,
            self.is_bound and count > 0,
        )

    def __or__(self, other: BufferTraffic) -> BufferTraffic:
        """At most this of either."""
        return BufferTraffic(
            max(self.loads, other.loads),
            max(self.stores, other.stores),
            max(self.load_bytes, other.load_bytes),
            max(self.store_bytes, other.store_bytes),
            self.is_bound or other.is_bound or self != other,
        )


_NONE = BufferTraffic()


def traffic(plan: GraphPlan) -> dict[int, BufferTraffic]:
    """Return what one run moves, by buffer id: loops multiplied, of branches the larger side, loads and stores apart.

    Args:
        plan: The plan of the main graph.
    """
    return {buffer_id: t for buffer_id, t in sorted(_plan_traffic(plan, {}).items()) if t.loads or t.stores}


def _plan_traffic(plan: GraphPlan, known: dict[int, dict[int, BufferTraffic]]) -> dict[int, BufferTraffic]:
    if id(plan) not in known:
        total: dict[int, BufferTraffic] = {}
        for step in plan.steps:
            for buffer_id, moved in _step_traffic(step, known, plan.replicas).items():
                total[buffer_id] = total.get(buffer_id, _NONE) + moved
        known[id(plan)] = total
    return known[id(plan)]


def _step_traffic(
    step: Step, known: dict[int, dict[int, BufferTraffic]], replicas: Replicas
) -> dict[int, BufferTraffic]:
    if isinstance(step, RemoteLoad | RemoteStore):
        nbytes = row_bytes(step, replicas)
        is_load = isinstance(step, RemoteLoad)
        moved = BufferTraffic(1, 0, nbytes, 0) if is_load else BufferTraffic(0, 1, 0, nbytes)
        return {step.buffer_id: moved}
    bodies = [_plan_traffic(body, known) for body in called_plans(step)]
    match step:
        case Loop():
            return {buffer_id: moved * step.count for buffer_id, moved in bodies[0].items()}
        case Branch():
            then, other = bodies
            return {i: then.get(i, _NONE) | other.get(i, _NONE) for i in {**then, **other}}
        case _:
            return bodies[0] if bodies else {}


# Budgets


def check_fits(
    footprint: Footprint, budget_bytes: int | None, possible: Callable[[], Iterable[Change]] = tuple
) -> None:
    """Check that a program stays within a budget of device memory.

    Args:
        footprint: What the program needs.
        budget_bytes: The budget; None for none.
        possible: Gives changes and the peak that each leaves.

    Raises:
        OutOfMemoryError: (a `MemoryError`) if it needs more. The message names the largest tensors at the peak and the
            lines that made them, and one change that makes it fit if there is one.
    """
    if budget_bytes is None or footprint.peak_bytes <= budget_bytes:
        return
    peak = "At the start of a run" if not footprint.step else f"At its peak, in `{footprint.step}`,"
    needs, budget = _exact(footprint.peak_bytes), _exact(budget_bytes)
    lines = [f"{peak} the program needs {needs} of device memory; the budget is {budget}. The largest there:"]
    lines += [f"    {_exact(t.bytes)}: {t.name}, {t.where}" for t in footprint.live[:_MAX_NAMED]]
    rest = footprint.live[_MAX_NAMED:]
    if rest:
        lines.append(f"    {_exact(sum(t.bytes for t in rest))}: {len(rest)} more")
    if footprint.temporary_bytes:
        lines.append(f"    {_exact(footprint.temporary_bytes)}: temporaries of the ops that run then")
    raise OutOfMemoryError(
        "\n".join(lines), where=footprint.where or None, hint=_hint(footprint, budget_bytes, possible())
    )


def _exact(nbytes: int) -> str:
    return f"{nbytes} B" if nbytes < 1024 else f"{format_bytes(nbytes)} ({nbytes} B)"


def _hint(footprint: Footprint, budget_bytes: int, possible: Iterable[Change]) -> str:
    """One change that is known to be enough; else the best known, and what may help."""
    change, is_enough = best_change(possible, budget_bytes)
    if change is not None and is_enough:
        return str(change)
    if change is None or change.peak_bytes >= footprint.peak_bytes:
        return _advice(footprint)
    return f"no variable that is streamed is enough. The best is to {change}. Besides, {_temporary_advice(footprint)}"


def _temporary_advice(footprint: Footprint) -> str:
    """What may help with what is no variable."""
    passing = next((t for t in footprint.live if not t.is_fixed), None)
    if passing is None or footprint.temporary_bytes > passing.bytes:
        return "run smaller micro-batches, so that the ops want less for temporaries, or raise the budget"
    return (
        f"of the rest the largest is {passing.name}, from {passing.where}: store it in a remote buffer until it is "
        "used again, run smaller micro-batches, or raise the budget"
    )


def _advice(footprint: Footprint) -> str:
    """What may help most."""
    largest = footprint.live[0] if footprint.live else None
    if largest is None or footprint.temporary_bytes > largest.bytes:
        return "run smaller micro-batches, so that the ops want less for temporaries, or raise the budget"
    if largest.is_fixed:
        return (
            f"the largest is {largest.name}, which lies on the device all the time; make it a popxl.remote_variable, "
            "and load it where it is used"
        )
    return (
        f"the largest is {largest.name}, from {largest.where}; store it in a remote buffer until it is used again, "
        "or run smaller micro-batches"
    )


# All figures


@dataclass(frozen=True, slots=True)
class Figures:
    """What a program needs. ``print`` shows it as tables.

    Attributes:
        device: Device memory.
        traffic: What one run moves, by buffer id.
        buffer_bytes: Size of each remote buffer in Streaming Memory: entries times the size of a row.
    """

    device: Footprint
    traffic: Mapping[int, BufferTraffic]
    buffer_bytes: Mapping[int, int]

    @property
    def streaming_bytes(self) -> int:
        """Size of all remote buffers."""
        return sum(self.buffer_bytes.values())

    @property
    def load_bytes(self) -> int:
        """What one run loads."""
        return sum(t.load_bytes for t in self.traffic.values())

    @property
    def store_bytes(self) -> int:
        """What one run stores."""
        return sum(t.store_bytes for t in self.traffic.values())

    def __str__(self) -> str:
        device = self.device
        at_most = "at most " if device.is_bound else ""
        text = f"device memory at the peak: {at_most}{format_bytes(device.peak_bytes)}\n"
        rows = [(t.name, format_bytes(t.bytes), t.where) for t in device.live[:_MAX_NAMED]]
        rest = device.live[_MAX_NAMED:]
        if rest:
            rows.append((f"{len(rest)} more", format_bytes(sum(t.bytes for t in rest)), ""))
        if device.temporary_bytes:
            rows.append(("temporaries", format_bytes(device.temporary_bytes), device.where))
        if rows:
            text += table_to_string([("tensor", "size", "made by"), *rows])
        if self.buffer_bytes:
            text += f"\nStreaming Memory: {format_bytes(self.streaming_bytes)}\n"
            text += table_to_string([("buffer", "size", "loads", "bytes", "stores", "bytes"), *self._buffer_rows()])
        return "\n".join(line.rstrip() for line in text.splitlines())

    def _buffer_rows(self) -> list[tuple[str, ...]]:
        rows = [_buffer_row(str(i), size, self.traffic.get(i, _NONE)) for i, size in self.buffer_bytes.items()]
        total = sum(self.traffic.values(), _NONE)
        return [*rows, _buffer_row("total", self.streaming_bytes, total)]


def _buffer_row(name: str, size: int, moved: BufferTraffic) -> tuple[str, ...]:
    def cell(n: int, text: str) -> str:
        return f"<= {text}" if moved.is_bound and n else text

    def cells(count: int, nbytes: int) -> tuple[str, str]:
        return cell(count, str(count)), cell(nbytes, format_bytes(nbytes))

    loads, stores = cells(moved.loads, moved.load_bytes), cells(moved.stores, moved.store_bytes)
    return (name, format_bytes(size), *loads, *stores)


def possible_changes(plan: GraphPlan, ir: Ir, temporary_bytes: Callable[[Segment], int]) -> Callable[[], list[Change]]:
    """Return what computes the changes that `check_fits` may name; arguments as for `figures`."""
    return lambda: changes(plan, temporary_bytes, state_tensors(ir.main_graph))


def figures(plan: GraphPlan, ir: Ir, temporary_bytes: Callable[[Segment], int]) -> Figures:
    """Return what a program needs.

    Args:
        plan: The plan of the main graph.
        ir: The program.
        temporary_bytes: What the executable of a segment wants besides its inputs and outputs.
    """
    replicas = plan.replicas
    sizes = {
        i: (replicas.local if i in replicas.buffers else 1) * b.entries * math.prod(b.shape) * b.dtype.storage.itemsize
        for i, b in ir.remote_buffers.items()
    }
    footprint = device_footprint(plan, temporary_bytes, state_tensors(ir.main_graph))
    return Figures(footprint, traffic(plan), sizes)
