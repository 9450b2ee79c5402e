"""Compiles the segments of a plan with XLA, each distinct one once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from jax.experimental.compilation_cache.compilation_cache import reset_cache

from popxl.ops._jax import jax
from popxl.plan.steps import Compute, GraphPlan, Segment, called_plans
from popxl.runtime.lowering import segment_avals, segment_function
from popxl.runtime.placement import Placement


@dataclass(frozen=True, slots=True)
class Executable:
    """A compiled segment.

    Attributes:
        call: Takes the segment's inputs; gives its outputs and a token.
        new_bytes: Device memory that a call takes beyond its inputs: outputs that reuse no input, and temporaries.
        temporary_bytes: The part of it that is free again when the call has run.
    """

    call: Callable[..., Any]
    new_bytes: int
    temporary_bytes: int


# XLA compiles outside the GIL; tracing does not, so a few threads are enough.
_THREADS = 4
# Giving memory back takes some milliseconds, so only where compiling took long.
_TRIM_AFTER_S = 0.5


def compile_plan(plan: GraphPlan, placement: Placement, cache_directory: str | None) -> dict[Hashable, Executable]:
    """Return the executable of each distinct segment of a plan and of the plans it calls, by the segment's key.

    Args:
        plan: The plan.
        placement: Where the executables run.
        cache_directory: Where compiled programs are kept for later processes, if anywhere.
    """
    segments = {s.key: s for s in plan_segments(plan)}
    begin_s = perf_counter()
    with _persistent_cache(cache_directory), ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(partial(_compile, placement=placement), segments.values())
        executables = dict(zip(segments, found, strict=True))
    if perf_counter() - begin_s > _TRIM_AFTER_S:
        _give_back_freed_memory()
    return executables


def _give_back_freed_memory() -> None:
    """Give the system what compiling has taken and freed: glibc keeps it otherwise, 100 MiB for a transformer layer."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def plan_segments(plan: GraphPlan) -> Iterator[Segment]:
    """Yield every segment of a plan and of the plans it calls, those of each plan once."""
    seen: set[int] = set()
    stack = [plan]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for step in current.steps:
            if isinstance(step, Compute):
                yield step.segment
            stack += called_plans(step)


def _compile(segment: Segment, placement: Placement) -> Executable:
    with jax.default_device(placement.stage(segment.ipu)), jax.enable_x64(True):
        avals, shardings = segment_avals(segment, placement.sharding)
        wanted: dict[str, Any] = {} if shardings[-1] is None else {"out_shardings": tuple(shardings)}
        function = jax.jit(segment_function(segment), donate_argnums=segment.donated, **wanted)
        lowered: Any = function.lower(*avals)
        compiled: Any = lowered.compile()
        memory: Any = compiled.memory_analysis()
        if memory is None:  # not every backend tells
            return Executable(compiled, 0, 0)
        temporary = int(memory.temp_size_in_bytes)
        fresh = int(memory.output_size_in_bytes) - int(memory.alias_size_in_bytes)
        return Executable(compiled, fresh + temporary, temporary)


@contextmanager
def _persistent_cache(directory: str | None) -> Generator[None]:
    """Let JAX keep compiled programs in `directory` while the block runs."""
    if directory is None:
        yield
        return
    settings: dict[str, Any] = {
        "jax_compilation_cache_dir": directory,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    _configure(settings)
    try:
        yield
    finally:
        _configure(before)


def _configure(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX opens the directory once per process otherwise, and would stay with the first one for good.
    reset_cache()
