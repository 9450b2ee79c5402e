"""Ways to stream a program: a tier, how it orders what it does, how far is read ahead, and within what memory."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from program_runs import Results, peak_bytes, run_popxl
from random_programs import Program

import popxl
from popxl.plan import window
from popxl.runtime.memory_limits import MemoryLimits
from popxl.runtime.streaming.tier import BufferSpec
from popxl.testing.faults import FaultTier

PAGE = 4096


@dataclass(frozen=True)
class Way:
    """How a program is streamed. Sizes are in pages, one of which holds any row here; None is what a user gets.

    Attributes:
        tier: ``ram``, ``file``, or ``any order``: one that finishes requests in an order of its own.
        seed: Of that order.
        patience: How many requests that tier lets gather.
        ahead: How many transfers the walk may be ahead of the run.
        pool: Memory to read into.
        unwritten: What may wait to be written.
        host: The limit for rows in host memory that a user sets.
        slack: What the user's limit for the device leaves beyond what the program needs.
    """

    tier: str
    seed: int
    patience: int
    ahead: int
    pool: int | None
    unwritten: int | None
    host: int | None
    slack: int | None


def _pages(least: int, most: int) -> st.SearchStrategy[int | None]:
    return st.one_of(st.none(), st.integers(least, most))


ways = st.builds(
    Way,
    tier=st.sampled_from(["any order", "any order", "file", "file", "ram"]),
    seed=st.integers(0, 2**16),
    patience=st.integers(1, 5),
    ahead=st.sampled_from([1, 2, 3, 8, window.MAX_AHEAD]),
    pool=_pages(1, 6),
    unwritten=_pages(0, 4),
    host=_pages(1, 12),
    slack=_pages(0, 4),
)


def run_in_way(program: Program, way: Way) -> Results:
    """What the program gives, streamed like that. Asserts that the tier was used as it was promised."""
    device_memory = None if way.slack is None else peak_bytes(program) + way.slack * PAGE
    with _depths(way), tempfile.TemporaryDirectory() as directory:
        match way.tier:
            case "file":
                host = None if way.host is None else way.host * PAGE
                return run_popxl(program, popxl.StreamingMemory(f"file:{directory}", host_memory=host), device_memory)
            case "any order":
                tier = FaultTier(seed=way.seed, patience=way.patience)
                results = run_popxl(program, popxl.StreamingMemory(tier=tier), device_memory)
                assert tier.broken_promises == []
                return results
            case _:
                return run_popxl(program, way.tier, device_memory)


@contextmanager
def _depths(way: Way) -> Iterator[None]:
    """Sets what no user sets. Programs here are far too small for what is usual to be a limit."""
    choose = MemoryLimits.choose.__func__  # type: ignore[attr-defined]

    def chosen(cls: type[MemoryLimits], buffers: Iterable[BufferSpec], *sizes: Any, **others: Any) -> MemoryLimits:
        found: MemoryLimits = choose(cls, buffers, *sizes, **others)
        pool = found.pool_bytes if way.pool is None else min(found.pool_bytes, way.pool * PAGE)
        write = found.write_bytes if way.unwritten is None else min(found.write_bytes, way.unwritten * PAGE)
        return dataclasses.replace(found, pool_bytes=pool, write_bytes=write)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryLimits, "choose", classmethod(chosen))
        patch.setattr(window, "MAX_AHEAD", way.ahead)
        yield
