"""How long a run will take: the plan walked as the executor does it, in simulated time. No JAX, no threads, no data.

The thread of the run dispatches computations, which the device does one after the other; a disk moves rows one after
the other; reading ahead, write-behind and how far the thread runs ahead are bounded by the same limits, and decided by
the same rules, as in a real run (`popxl.plan.simulated_transfers`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from popxl.plan.costs import Channel, Costs, Limits, Line, Prediction, SegmentCost
from popxl.plan.simulated_run import SimulatedRun, step_count
from popxl.plan.steps import Branch, Call, GraphPlan, Loop, Step

__all__ = ["Channel", "Costs", "Limits", "Line", "Prediction", "SegmentCost", "simulate"]

#: A run of more steps is not simulated to its end.
_MAX_STEPS = 10_000
_MAX_POINTS = 4096


def simulate(
    plan: GraphPlan,
    costs: Costs,
    limits: Limits,
    *,
    uploaded: Sequence[tuple[int, int]] = (),
    max_steps: int = _MAX_STEPS,
) -> Prediction:
    """Predict what a run of a program takes.

    Offsets and conditions are followed where they depend on loop counters and constants. Items of host streams are
    taken to differ from each other, and a branch that the device decides goes to its longer side. Of a run of more than
    `max_steps` steps, some iterations of its loops are simulated, and the rest is taken to go on like them.

    Args:
        plan: The plan of the main graph.
        costs: How long things take.
        limits: How much memory there is.
        uploaded: Rows that are stored before the first run, in their order: the first ones are kept in memory.
        max_steps: How many steps to simulate, about.

    Returns:
        The prediction for a run that is not the first; `tier_bytes` is empty.
    """
    total = step_count(plan)
    if total <= max_steps:
        return _prediction(_simulated(plan, costs, limits, uploaded))
    few, many = _shortened(plan, total, max_steps // 2), _shortened(plan, total, max_steps)
    few_steps, many_steps = step_count(few), step_count(many)
    shorter, longer = (_simulated(p, costs, limits, uploaded) for p in (few, many))
    if many_steps <= few_steps:  # nothing but loops that cannot be shortened further
        return _prediction(_simulated(plan, costs, limits, uploaded))
    return _prediction(longer.plus(longer.minus(shorter), (total - many_steps) / (many_steps - few_steps)))


@dataclass(frozen=True, slots=True)
class _Figures:
    """Of one simulated run: seconds and bytes, which add up, and memory over time."""

    seconds: Mapping[str, float]
    timeline: tuple[tuple[float, int], ...]
    is_extrapolated: bool = False

    def minus(self, other: _Figures) -> _Figures:
        return self._with({name: value - other.seconds[name] for name, value in self.seconds.items()})

    def plus(self, other: _Figures, times: float) -> _Figures:
        return self._with({name: value + times * other.seconds[name] for name, value in self.seconds.items()})

    def _with(self, seconds: Mapping[str, float]) -> _Figures:
        return _Figures(seconds, self.timeline, is_extrapolated=True)


def _simulated(plan: GraphPlan, costs: Costs, limits: Limits, uploaded: Sequence[tuple[int, int]]) -> _Figures:
    """Simulate a run after another one, which has left rows in memory."""
    run = SimulatedRun(plan, costs, limits, uploaded)
    if limits.cache_bytes and costs.read is not None:
        run.run()
    machine = run.machine
    before, begin_s = _numbers(run), machine.now_s
    machine.timeline.clear()
    live_bytes = run.ledger.live_bytes
    run.run()
    seconds = {name: value - before[name] for name, value in _numbers(run).items()}
    points = [(begin_s, live_bytes), *machine.timeline, (machine.now_s, run.ledger.live_bytes)]
    return _Figures(seconds, _thinned((moment - begin_s, nbytes) for moment, nbytes in points))


def _numbers(run: SimulatedRun) -> dict[str, float]:
    machine = run.machine
    return {
        "step": machine.now_s,
        **{f"busy {lane}": s for lane, s in machine.busy_s.items()},
        **{f"work {lane}": s for lane, s in machine.work_s.items()},
        **{f"moved {lane}": float(n) for lane, n in machine.moved_bytes.items()},
        **{f"stall {cause}": s for cause, s in machine.stalls_s.items()},
    }


def _prediction(found: _Figures) -> Prediction:
    s = found.seconds
    bounds = {
        "compute": s["work compute"],
        "loads and stores": s["work load"] + s["work store"],
        "host": s["busy host"],
    }
    bound = max(bounds, key=lambda name: bounds[name])
    return Prediction(
        s["step"],
        s["busy compute"],
        s["busy load"],
        s["busy store"],
        s["busy host"],
        bounds[bound],
        bound,
        round(s["moved load"]),
        round(s["moved store"]),
        stalls={name.removeprefix("stall "): value for name, value in s.items() if name.startswith("stall ")},
        timeline=found.timeline,
        is_extrapolated=found.is_extrapolated,
    )


def _thinned(points: Iterable[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """At most so many points, of those left out the highest."""
    points = list(points)
    stride = -(-len(points) // _MAX_POINTS)
    if stride <= 1:
        return tuple(points)
    groups = (points[i : i + stride] for i in range(0, len(points), stride))
    return tuple((group[0][0], max(nbytes for _, nbytes in group)) for group in groups)


def _shortened(plan: GraphPlan, total: int, max_steps: int) -> GraphPlan:
    """The plan with fewer iterations of its loops, so that it has about `max_steps` steps."""
    most = total
    least = 1
    # The most iterations of each loop that keep within the number.
    while least < most:
        middle = (least + most + 1) // 2
        if step_count(_capped(plan, middle, {})) <= max_steps:
            least = middle
        else:
            most = middle - 1
    return _capped(plan, least, {})


def _capped(plan: GraphPlan, cap: int, known: dict[int, GraphPlan]) -> GraphPlan:
    if id(plan) not in known:
        known[id(plan)] = dataclasses.replace(plan, steps=tuple(_capped_step(s, cap, known) for s in plan.steps))
    return known[id(plan)]


def _capped_step(step: Step, cap: int, known: dict[int, GraphPlan]) -> Step:
    def capped(call: Call) -> Call:
        return dataclasses.replace(call, body=_capped(call.body, cap, known))

    match step:
        case Call():
            return capped(step)
        case Loop():
            return dataclasses.replace(step, call=capped(step.call), count=min(step.count, cap))
        case Branch():
            return dataclasses.replace(step, then_call=capped(step.then_call), else_call=capped(step.else_call))
        case _:
            return step
