"""What the parts of a run cost on a machine, and what a run is predicted to take. Nothing is measured here."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from popxl.units import format_bytes
from popxl.utils import table_to_string


class Limits(Protocol):
    """How much memory transfers and unfinished computations may take, in bytes; see `popxl.runtime.memory_limits`."""

    @property
    def pool_bytes(self) -> int:
        """Rows on their way."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Rows that are kept."""
        ...

    @property
    def write_bytes(self) -> int:
        """Values that wait to be written."""
        ...

    @property
    def slack_bytes(self) -> int | None:
        """Computations under way; None for no limit."""
        ...


@dataclass(frozen=True, slots=True)
class SegmentCost:
    """What one run of a segment's executable costs.

    Args:
        call_s: Seconds of the thread of the run until the call returns, without those in which it computes.
        compute_s: Seconds of the device.
        is_inline: Whether the call returns only when it has computed, as JAX does with little work on an idle CPU.
        new_bytes: Device memory that it takes beyond its inputs: outputs that reuse no input, and temporaries.
        temporary_bytes: The part of it that is free again afterwards.
    """

    call_s: float = 0.0
    compute_s: float = 0.0
    is_inline: bool = False
    new_bytes: int = 0
    temporary_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a transfer: so many, and so many for each byte."""

    fixed_s: float = 0.0
    s_per_byte: float = 0.0

    def seconds(self, n_bytes: int) -> float:
        """Those of `n_bytes`."""
        return self.fixed_s + self.s_per_byte * n_bytes


@dataclass(frozen=True, slots=True)
class Channel:
    """How fast rows are read from a disk, or written to it, and what that does to computations beside it.

    Args:
        queued: Seconds that a row adds while others wait behind it.
        alone: Seconds of a row that has the disk to itself; they may be more, since part of the disk is idle then.
        contention: Seconds of compute that are lost for a row that is moved beside it.
        own_loss: Share of the disk's speed that is lost beside a computation.
    """

    queued: Line
    alone: Line = field(default_factory=Line)
    contention: Line = field(default_factory=Line)
    own_loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What the parts of a run cost.

    Args:
        segments: Of each segment, by its key.
        read: Reading rows; None for a tier that is memory, where that takes no time.
        write: Writing rows; None alike.
        run_s: Seconds of the thread of the run for each run.
        step_s: Seconds of that thread for each step of the plan.
        evaluate_s: Seconds of it more for an op that the host computes.
        row_s: Seconds of it more for a row that is read or written.
        copy_s_per_byte: Seconds of it for each byte of host streams.
        fetch_s: Seconds of it for each item of an output stream.
        wake_s: Seconds from the end of what it waits for to its going on.
        host_loss: Share of the device's speed that is lost while the thread does something: few cores do both.
    """

    segments: Mapping[Hashable, SegmentCost]
    read: Channel | None = None
    write: Channel | None = None
    run_s: float = 0.0
    step_s: float = 0.0
    evaluate_s: float = 0.0
    row_s: float = 0.0
    copy_s_per_byte: float = 0.0
    fetch_s: float = 0.0
    wake_s: float = 0.0
    host_loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one run of a program will take, once it has run before; ``print`` shows it. `Session.estimate` makes one.

    Attributes:
        step_s: Seconds from the begin of `Session.run` to the end of `Session.wait`.
        compute_s: Seconds in which the device computes.
        load_s: Seconds in which rows are read.
        store_s: Seconds in which rows are written.
        host_s: Seconds in which the thread of the run does something, waits excluded.
        bound_s: Seconds of a run if everything overlapped: the most of compute, of loads and stores together, and of
            the host.
        bound: Which of these it is: ``"compute"``, ``"loads and stores"`` or ``"host"``.
        load_bytes: What a run reads from Streaming Memory, rows that were still in memory excluded.
        store_bytes: What a run writes.
        tier_bytes: Memory of each tier: ``"device"`` at the peak, ``"host"`` (rows on their way, kept ones, and what
            waits to be written, at most), and ``"ram"`` or ``"file"``, where the rows lie.
        stalls: Seconds in which the thread of the run waits, by what it waits for: ``"row"``, ``"store"``,
            ``"computation"`` (for memory that it takes), ``"value"``.
        timeline: Device memory: seconds from the begin of the run, and bytes from then on.
        is_extrapolated: Whether only some iterations of loops were simulated.
    """

    step_s: float
    compute_s: float = 0.0
    load_s: float = 0.0
    store_s: float = 0.0
    host_s: float = 0.0
    bound_s: float = 0.0
    bound: str = "compute"
    load_bytes: int = 0
    store_bytes: int = 0
    tier_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    stalls: Mapping[str, float] = field(default_factory=dict[str, float])
    timeline: tuple[tuple[float, int], ...] = ()
    is_extrapolated: bool = False

    def __str__(self) -> str:
        memory = [("tier", "bytes", ""), *((tier, format_bytes(n), str(n)) for tier, n in self.tier_bytes.items())]
        moved = [
            ("a run", "seconds", "bytes"),
            ("loads", _seconds(self.load_s), format_bytes(self.load_bytes)),
            ("stores", _seconds(self.store_s), format_bytes(self.store_bytes)),
            ("computes", _seconds(self.compute_s), ""),
            ("host works", _seconds(self.host_s), ""),
            *((f"waits for a {cause}", _seconds(s), "") for cause, s in self.stalls.items() if s > 0),
        ]
        share = "" if not self.step_s else f", {self.bound_s / self.step_s:.0%} of the step"
        text = [
            table_to_string(memory),
            table_to_string(moved),
            f"bound: {self.bound}, {_seconds(self.bound_s)} s{share}",
            f"predicted step: {_seconds(self.step_s)} s" + (", extrapolated" if self.is_extrapolated else ""),
        ]
        return "\n".join(line.rstrip() for part in text for line in part.splitlines())


def _seconds(seconds: float) -> str:
    """Three digits that count."""
    if seconds <= 0:
        return "0"
    return f"{seconds:.{max(0, 2 - math.floor(math.log10(seconds)))}f}"
