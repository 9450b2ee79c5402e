"""How long the executables of a program take on this device, and the host's part of a step. Nobody's data are used."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Any, final

import numpy as np

from popxl.op import Effect
from popxl.ops._jax import jax, jnp
from popxl.plan.costs import SegmentCost
from popxl.plan.footprint import reachable_plans
from popxl.plan.lookahead import evaluate
from popxl.plan.steps import Compute, Evaluate, Free, GraphPlan, Loop, Segment, called_plans
from popxl.runtime.compiler import Executable, plan_segments
from popxl.runtime.completion import Completion
from popxl.runtime.executor import Executor
from popxl.runtime.host_io import HostStreams
from popxl.runtime.lowering import segment_avals
from popxl.runtime.placement import Placement
from popxl.runtime.streaming.alloc import aligned_copy
from popxl.runtime.streaming.blocks import Region
from popxl.runtime.streaming.ram import RamTier
from popxl.runtime.transfers import DirectTransfers
from popxl.tensor import Tensor

Array = Any
#: A segment is run until its runs have taken so long together, but so often at least, and at most.
_LONG_S, _LEAST, _MOST = 0.2, 5, 200
#: Of what is longer than this two runs are enough.
_VERY_LONG_S = 1.0
#: Segments shorter than this are also run several at a time: whoever waits for one of them is told of its end too late.
_SHORT_S, _TOGETHER = 5e-3, 8
#: In a run the arguments do not come from the processor's caches; here as many sets as this take turns.
_COLD_BYTES, _MOST_SETS = 64 << 20, 8


@final
class Arguments:
    """Arguments for a segment's executable, all zeros, as a run would give them.

    Args:
        segment: The segment.
        placement: The devices.
        allowed_bytes: How much memory they may take; one set of them is made in any case.
        has_rows: Whether loads read rows into the host's memory, rather than hand out what lies in Streaming Memory.
    """

    def __init__(self, segment: Segment, placement: Placement, allowed_bytes: int, *, has_rows: bool) -> None:
        self._placement = placement
        self._device = placement.stage(segment.ipu)
        self._avals, _ = segment_avals(segment, placement.sharding)
        self._donated = segment.donated
        self._is_row = [has_rows and _is_loaded(v) for v in segment.inputs]
        self.nbytes = sum(_nbytes(aval) for aval in self._avals)
        fitting = min(allowed_bytes, _COLD_BYTES) // max(1, self.nbytes)
        self._sets = [self._made() for _ in range(max(1, min(_MOST_SETS, fitting)))]
        self._next = 0

    def take(self, *, is_own: bool = False) -> list[Array]:
        """A set of arguments; those that are donated are new. `is_own`: nor are they given to anybody else."""
        self._next = (self._next + 1) % len(self._sets)
        arguments = self._sets[self._next]
        for i in self._donated:
            if is_own or (isinstance(arguments[i], jax.Array) and arguments[i].is_deleted()):
                arguments[i] = self._one(i)
        jax.block_until_ready([a for a in arguments if isinstance(a, jax.Array)])
        return list(arguments)

    def _made(self) -> list[Array]:
        return [self._one(i) for i in range(len(self._avals))]

    def _one(self, i: int) -> Array:
        aval: Any = self._avals[i]
        if aval.shape == () and np.issubdtype(aval.dtype, np.integer):
            return np.zeros((), aval.dtype)  # the host's own
        if i in self._donated or not _nbytes(aval):
            value = np.zeros(aval.shape, aval.dtype)
            # Memory of its own, that the executable can reuse.
            return jax.device_put(value, self._where(aval), may_alias=False)
        memory = Region(_nbytes(aval)).memory  # as rows lie in
        value: np.ndarray[Any, Any] = np.ndarray(aval.shape, aval.dtype, buffer=memory)
        value.fill(0)  # untouched, all of it would be one page
        value.flags.writeable = False
        return value if self._is_row[i] and aval.sharding is None else jax.device_put(value, self._where(aval))

    def _where(self, aval: Any) -> Any:
        return self._device if aval.sharding is None else aval.sharding


def _nbytes(aval: Any) -> int:
    return int(np.prod(aval.shape, dtype=np.int64)) * np.dtype(aval.dtype).itemsize


def _is_loaded(value: object) -> bool:
    producer = value.producer if isinstance(value, Tensor) else None
    return producer is not None and producer.definition.effect in (Effect.REMOTE_LOAD, Effect.HOST_LOAD)


def probe_segments(
    plan: GraphPlan,
    executables: Mapping[Hashable, Executable],
    placement: Placement,
    allowed_bytes: int,
    *,
    has_rows: bool,
) -> tuple[dict[Hashable, SegmentCost], float]:
    """Time each distinct executable of a plan on zeros; return also the seconds of `Costs.wake_s`.

    Args:
        plan: The plan of the main graph.
        executables: The executable of each segment, by its key.
        placement: Where they run.
        allowed_bytes: How much memory arguments may take beside one set of them.
        has_rows: Whether loads read rows into the host's memory.
    """
    segments = {segment.key: segment for segment in plan_segments(plan)}
    with on_device(placement):
        floor_s = _call_seconds(placement.device)
        found = {
            key: _cost(executables[key], Arguments(segment, placement, allowed_bytes, has_rows=has_rows), floor_s)
            for key, segment in segments.items()
        }
    late_s = [wake_s for _, wake_s in found.values() if wake_s is not None]
    return {key: cost for key, (cost, _) in found.items()}, statistics.median(late_s) if late_s else 0.0


def host_loss(executable: Executable, take: Callable[[], Sequence[Array]]) -> float:
    """Share of the device's speed that an executable loses while this thread does something besides."""
    idle_s: list[float] = []
    busy_s: list[float] = []
    for _ in range(_LEAST):
        idle_s.append(run_once(executable, take()).total_s)
        busy_s.append(run_once(executable, take(), is_busy=True).total_s)
    return max(0.0, 1.0 - statistics.median(idle_s) / statistics.median(busy_s))


@contextmanager
def on_device(placement: Placement) -> Generator[None]:
    """The settings of a run."""
    with jax.default_device(placement.device), jax.enable_x64(True):
        yield


@dataclass(frozen=True, slots=True)
class _Run:
    call_s: float
    total_s: float
    is_inline: bool


def run_once(executable: Executable, arguments: Sequence[Array], *, is_busy: bool = False) -> _Run:
    """Run an executable and wait for it, asleep or busy."""
    begin_s = perf_counter()
    *results, token = executable.call(*arguments)
    called_s = perf_counter()
    is_inline = bool(token.is_ready())
    while is_busy and not token.is_ready():
        pass
    token.block_until_ready()
    end_s = perf_counter()
    del results
    return _Run(called_s - begin_s, end_s - begin_s, is_inline)


def _cost(executable: Executable, arguments: Arguments, floor_s: float) -> tuple[SegmentCost, float | None]:
    """What an executable costs, and how late whoever waits for it is told of its end, if that can be seen."""
    run_once(executable, arguments.take())
    runs: list[_Run] = []
    total_s = 0.0
    while len(runs) < _LEAST or (total_s < _LONG_S and len(runs) < _MOST):
        runs.append(run_once(executable, arguments.take()))
        total_s += runs[-1].total_s
        if total_s > _VERY_LONG_S and len(runs) >= 2:
            break
    call_s, run_s = (statistics.median(seconds) for seconds in ([r.call_s for r in runs], [r.total_s for r in runs]))
    is_inline = statistics.median(r.is_inline for r in runs) > 0.5
    wake_s: float | None = None
    if is_inline:
        called_s, compute_s = min(call_s, floor_s), max(0.0, call_s - floor_s)
    else:
        called_s, compute_s = call_s, max(0.0, run_s - call_s)
        if run_s < _SHORT_S:
            each_s = _seconds_together(executable, arguments)
            # Where calls take longer than the device, how long it takes cannot be seen like this.
            compute_s = each_s if each_s > call_s else min(compute_s, each_s)
            wake_s = max(0.0, run_s - call_s - compute_s)
    return SegmentCost(called_s, compute_s, is_inline, executable.new_bytes, executable.temporary_bytes), wake_s


def _seconds_together(executable: Executable, arguments: Arguments) -> float:
    """Seconds of each of several runs that follow each other."""
    seconds: list[float] = []
    for _ in range(_LEAST):
        sets = [arguments.take(is_own=True) for _ in range(_TOGETHER)]
        begin_s = perf_counter()
        tokens = [executable.call(*each)[-1] for each in sets]
        jax.block_until_ready(tokens)
        seconds.append((perf_counter() - begin_s) / _TOGETHER)
    return statistics.median(seconds)


# The host


def _add_one(x: Array) -> tuple[Array, Array]:
    return x + 1, jnp.zeros((), jnp.uint8)


@cache
def _adder(device: Any) -> Any:
    """The least that can be called: an executable with one argument."""
    with jax.default_device(device):
        function: Any = jax.jit(_add_one)
        return function.lower(jnp.zeros((), jnp.float32)).compile()


@cache
def _fetch_seconds(device: Any) -> float:
    """Seconds that it takes to have a small array of the device on the host."""
    with jax.default_device(device):
        x = jnp.zeros((), jnp.float32)
        values = iter([_adder(device)(x)[0].block_until_ready() for _ in range(30)])  # each remembers its copy
    return median_s(lambda: np.asarray(next(values)))


@cache
def _call_seconds(device: Any) -> float:
    """Seconds that a call of an executable takes at least."""
    with jax.default_device(device):
        x = jnp.zeros((), jnp.float32)
        compiled = _adder(device)
        return statistics.median(run_once(Executable(compiled, 0, 0), [x]).call_s for _ in range(50))


@dataclass(frozen=True, slots=True)
class HostCosts:
    """Seconds of the thread of the run, as in `popxl.plan.costs.Costs`."""

    run_s: float
    step_s: float
    evaluate_s: float
    copy_s_per_byte: float
    fetch_s: float


def probe_host(plan: GraphPlan, placement: Placement, copied_bytes: int) -> HostCosts:
    """Time what the executor itself does.

    Args:
        plan: The plan of the main graph.
        placement: The devices.
        copied_bytes: Size of a large item of a host stream.
    """
    steps = 128
    empty_s, full_s = (median_s(_walker(n, placement)) for n in (0, steps))
    found = next((s for p in reachable_plans(plan) for s in p.steps if isinstance(s, Evaluate)), None)
    evaluate_s = 0.0
    if found is not None:
        inputs = [np.ones(t.shape, t.dtype.storage) for t in found.op.inputs]
        evaluate_s = median_s(lambda: evaluate(found, inputs))
    nbytes = min(max(copied_bytes, 1 << 12), 16 << 20)
    source = np.ones(nbytes, np.uint8)
    copy_s = median_s(lambda: aligned_copy(source))
    return HostCosts(
        empty_s, max(0.0, full_s - empty_s) / (2 * steps), evaluate_s, copy_s / nbytes, _fetch_seconds(placement.device)
    )


def median_s(action: Callable[[], object], times: int = 30) -> float:
    """Seconds that an action takes, the median of several times."""
    seconds: list[float] = []
    for _ in range(times):
        begin_s = perf_counter()
        action()
        seconds.append(perf_counter() - begin_s)
    return statistics.median(seconds)


class _Token:
    def is_ready(self) -> bool:
        return True


def _walker(steps: int, placement: Placement) -> Callable[[], None]:
    """What runs a plan of computations that compute nothing, each followed by a step that frees something."""
    segment = Segment((), (), (), (), "nothing")
    token = _Token()
    pair = (Compute(segment, (0,), (1,)), Free((1,)))
    none: frozenset[int] = frozenset()
    plan = GraphPlan("", 2, (), (), (), (), pair * steps, none, none, none)

    def nothing(value: Array) -> tuple[Array, _Token]:
        return value, token

    executor = Executor(plan, {"nothing": Executable(nothing, 0, 0)}, placement, Completion())
    streams, transfers = HostStreams({}, {}), DirectTransfers(RamTier())
    return lambda: executor.run({}, streams, transfers)


# The plan


def run_counts(plan: GraphPlan) -> dict[Hashable, int]:
    """How often a run of a plan runs each segment, by its key; of branches both sides."""
    known: dict[int, dict[Hashable, int]] = {}

    def of(p: GraphPlan) -> dict[Hashable, int]:
        if id(p) not in known:
            counts: dict[Hashable, int] = {}
            for step in p.steps:
                if isinstance(step, Compute):
                    counts[step.segment.key] = counts.get(step.segment.key, 0) + 1
                for body in called_plans(step):
                    for key, n in of(body).items():
                        counts[key] = counts.get(key, 0) + n * (step.count if isinstance(step, Loop) else 1)
            known[id(p)] = counts
        return known[id(p)]

    return of(plan)
