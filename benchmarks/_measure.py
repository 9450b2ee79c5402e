"""What the benchmarks share: sides timed in turn in one process, medians with ranges, and a table."""

from __future__ import annotations

import operator
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each round, by the wall clock and of the processor (all threads of this process)."""

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]

    def per(self, count: int) -> Timing:
        """The same for one of `count` equal parts of a round."""
        return Timing(tuple(s / count for s in self.wall_s), tuple(s / count for s in self.cpu_s))

    def plus(self, other: Timing) -> Timing:
        """Both, round by round."""
        return Timing(*(tuple(map(operator.add, *pair)) for pair in self._pairs(other)))

    def minus(self, other: Timing) -> Timing:
        """This side without the other, round by round."""
        return Timing(*(tuple(map(operator.sub, *pair)) for pair in self._pairs(other)))

    def _pairs(self, other: Timing) -> Sequence[tuple[Sequence[float], Sequence[float]]]:
        return (self.wall_s, other.wall_s), (self.cpu_s, other.cpu_s)

    @property
    def cpu(self) -> Timing:
        """With processor seconds in place of wall seconds: other processes disturb those less."""
        return Timing(self.cpu_s, self.cpu_s)


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Run `action` once; return its wall and processor seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 1) -> dict[str, Timing]:
    """Time each side once a round, in turn and every other round backwards, so that a slow moment hits all alike.

    Args:
        sides: What to run, by name.
        rounds: How often.
        warm_up: Rounds before that, which do not count.
    """
    names = list(sides)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for i in range(-warm_up, rounds):
        for name in names if i % 2 == 0 else reversed(names):
            sample = timed(sides[name])
            if i >= 0:
                samples[name].append(sample)
    return {name: Timing(*map(tuple, zip(*taken, strict=True))) for name, taken in samples.items()}


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """``median (min..max)`` of `values`, each multiplied by `scale`."""
    low, middle, high = (f"{scale * v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}..{high})"


def ratio(a: Timing, b: Timing, digits: int = 2) -> str:
    """``median (min..max)`` of `a` over `b`, round by round: the rounds of a pair saw the same machine."""
    return spread([x / y for x, y in zip(a.wall_s, b.wall_s, strict=True)], digits=digits)


def median_ratio(a: Timing, b: Timing) -> float:
    """Median of `a` over `b`, round by round."""
    return statistics.median(x / y for x, y in zip(a.wall_s, b.wall_s, strict=True))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table, its columns aligned."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * w for w in widths])
    print()
    for line in lines:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |")
    print()


def print_verdict(what: str, value: float, limit: float) -> None:
    """Print whether `value` keeps its target; a target is a statement about a machine, never a failed run."""
    kept = "kept" if value <= limit else "MISSED"
    print(f"Target {kept}: {what} is {value:.2f}, wanted at most {limit:g}.")


class OtherLoad:
    """How busy the rest of the machine was inside the ``with`` block, in cores; Linux only.

    Example:
        >>> with OtherLoad() as load:
        ...     pass
        >>> load.text().startswith("Other processes used")
        True
    """

    def __enter__(self) -> OtherLoad:
        self._start = self._now()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Wall seconds, busy seconds of the whole machine, processor seconds of this process and its children."""
        own = os.times()
        busy = float("nan")
        stat = Path("/proc/stat")
        if stat.exists():
            fields = [int(f) for f in stat.read_text(encoding="ascii").splitlines()[0].split()[1:8]]
            busy = (sum(fields) - fields[3] - fields[4]) / CLOCK_TICKS_PER_S  # all but idle and waiting for I/O
        return time.perf_counter(), busy, own.user + own.system + own.children_user + own.children_system

    def text(self) -> str:
        """The noise of the block in one line."""
        wall, busy, own = (b - a for a, b in zip(self._start, self._end, strict=True))
        cores = os.cpu_count()
        if busy != busy or wall == 0.0:
            return f"Other processes used an unknown part of {cores} cores."
        return f"Other processes used {max(0.0, busy - own) / wall:.1f} of {cores} cores meanwhile."
