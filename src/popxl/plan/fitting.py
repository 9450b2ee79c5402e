"""What would make a program fit: the peak of its device memory with something streamed, computed, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from popxl.plan.footprint import fixed_values
from popxl.plan.memory_walk import Analysis, FrameWalk, Made, value_bytes
from popxl.plan.slots import used_slots, written_slots
from popxl.plan.steps import GraphPlan, Segment, Step
from popxl.tensor import Tensor, Variable
from popxl.units import format_bytes

#: So many of the largest variables are tried.
_MOST_TRIED = 16


@dataclass(frozen=True, slots=True)
class Change:
    """Something to change, and the peak of device memory after it.

    Attributes:
        what: The advice, beginning with a verb.
        peak_bytes: The peak.
    """

    what: str
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.what}: the peak is then {format_bytes(self.peak_bytes)} ({self.peak_bytes} B)"


class _StreamedWalk(FrameWalk):
    """The main graph's walk where some variables are on the device only during the steps that use them."""

    def __init__(self, analysis: Analysis, plan: GraphPlan, streamed: dict[int, int]) -> None:
        super().__init__(analysis, plan)
        self._streamed = streamed

    def _do(self, step: Step) -> None:
        used = [slot for slot in dict.fromkeys(used_slots(step)) if slot in self._streamed]
        for slot in used:
            self.bind(slot, self.new(self._streamed[slot], None))
        # What was loaded is not overwritten in place, so a new value takes memory besides.
        changed = [self.new(self._streamed[slot], None, held=True) for slot in used if slot in written_slots(step)]
        self._reaches(0)
        super()._do(step)
        for m in changed:
            self._end(m)
        for slot in used:
            self.bind(slot, self._outside)


def changes(plan: GraphPlan, temporary_bytes: Callable[[Segment], int], resident: Iterable[Tensor]) -> list[Change]:
    """Return what could be streamed, with the peak that is left: each of the largest variables, then all of them.

    A variable that is streamed is loaded before each step of the main graph that uses it, a call as a whole, and lies
    on the device until that step is done. Inside a graph that it is passed to it could be loaded later.

    Args:
        plan: The plan of the main graph.
        temporary_bytes: What the executable of a segment wants besides its inputs and outputs.
        resident: Variables that lie on the device.
    """
    resident = list(resident)
    slots = {v: slot for slot, v in plan.variables if isinstance(v, Variable)}
    known = [*slots, *(v for v in resident if isinstance(v, Variable))]
    sizes = {v: value_bytes(v, plan.replicas) for v in dict.fromkeys(known)}
    largest = sorted(sizes, key=lambda v: -sizes[v])
    analysis = Analysis(temporary_bytes)

    def peak(streamed: Container[Tensor]) -> int:
        walk = _StreamedWalk(analysis, plan, {slot: sizes[v] for v, slot in slots.items() if v in streamed})
        for t in fixed_values(plan, resident):
            if t not in streamed:
                walk.new(value_bytes(t, plan.replicas), Made(t), held=True)
        for slot, v in plan.variables:
            if v in streamed:
                walk.bind(slot, walk._outside)  # pyright: ignore[reportPrivateUsage]
            else:
                walk.bind(slot, walk.new(value_bytes(v, plan.replicas), Made(v), held=True))
        walk.walk()
        return walk.peak

    found = [
        Change(f"make {v.id} a popxl.remote_variable, and load it where it is used", peak({v}))
        for v in largest[:_MOST_TRIED]
        if sizes[v]
    ]
    if len(largest) > 1:
        what = f"make all {len(largest)} variables remote ones (popxl.remote_variable), each loaded where it is used"
        found.append(Change(what, peak(set(largest))))
    return found


def best_change(found: Iterable[Change], budget_bytes: int) -> tuple[Change | None, bool]:
    """The first change that is enough, else the one that leaves least; and whether it is enough."""
    candidates = list(found)
    fitting = next((c for c in candidates if c.peak_bytes <= budget_bytes), None)
    if fitting is not None:
        return fitting, True
    return min(candidates, key=lambda c: c.peak_bytes, default=None), False
