"""How much memory a plan needs at its peak: the executor's walk, with sizes instead of arrays.

A frame's slots name *memories*, which are counted while anything holds them. Two slots may name one memory (an argument
and the callee's input, a printed value and its copy), so sizes of slots cannot just be added. What a called plan
does is summed up once for each *pattern* of its arguments (which of them are one memory, and which its caller keeps
holding anyway), however many calls there are; a loop is walked until its iterations repeat.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from popxl.plan.replicas import ONE_REPLICA, Replicas
from popxl.plan.steps import (
    Branch,
    Call,
    Compute,
    Evaluate,
    Free,
    GraphPlan,
    HostLoad,
    Loop,
    Print,
    RemoteLoad,
    Segment,
    Step,
    Transferred,
    Value,
)
from popxl.tensor import Constant


def value_bytes(value: Value, replicas: Replicas = ONE_REPLICA) -> int:
    """Return the size of a value on a device; a constant of one number stays on the host, and counts 0."""
    if isinstance(value, Constant) and value.nelms == 1:
        return 0
    t = value.tensor if isinstance(value, Transferred) else value
    copies = replicas.per_device if replicas.varies(t) else 1
    return copies * math.prod(t.shape) * t.dtype.storage.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """Which value a memory holds, and the step that put it there."""

    value: Value
    step: Step | None = None


@dataclass(slots=True, eq=False)
class _Memory:
    """Memory of one value. `holders` are slots and the like of this frame; `held`: something outside holds it too."""

    nbytes: int
    made: Made | None = None
    held: bool = False
    holders: int = 0
    gone: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _New:
    """A memory that a called plan makes and hands to its caller."""

    nbytes: int
    made: Made | None


#: For each argument the number of its memory (-1: not counted); for each memory whether it is held, and its size.
_Pattern: TypeAlias = tuple[tuple[int, ...], tuple[tuple[bool, int], ...]]
#: A step of a plan, and which iteration or side of it.
Moment: TypeAlias = tuple[int, int]
_START: Moment = (-1, 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Summary:
    """What a plan does to its caller's memory.

    Attributes:
        peak: The most that lives, less what lived at the start.
        at: When.
        inputs: For each input, the number of the memory that holds its final value: first the pattern's, then `made`.
        outputs: The same for each output.
        made: New memories.
        consumed: The pattern's memories that segments have overwritten.
        is_bound: Whether `peak` may be too much.
    """

    peak: int
    at: Moment
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    made: tuple[_New, ...]
    consumed: tuple[int, ...]
    is_bound: bool

    def source(self, number: int | None, memories: Sequence[_Memory], outside: _Memory) -> _Memory | _New:
        """What a number stands for; `memories` are the pattern's."""
        assert number is not None, "a value is wanted that the called plan has freed"
        if number < 0:
            return outside
        return memories[number] if number < len(memories) else self.made[number - len(memories)]


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of a segment: each output, and whether it takes the memory of an input; what a run adds to them."""

    outputs: tuple[tuple[int, bool], ...]
    fresh: int
    temporary: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What lives at a moment, apart from the plan's arguments; of these, the numbers of the memories that are gone."""

    values: list[tuple[int, Made]]
    gone: set[int]
    temporary_bytes: int
    step: Step | None


@dataclass(slots=True)
class Analysis:
    """What is known of plans and segments so far."""

    temporary_bytes: Callable[[Segment], int]
    #: Stands for everything that is not counted: integers on the host; constants, which are counted once.
    outside: _Memory = field(default_factory=lambda: _Memory(0, held=True))
    _summaries: dict[tuple[int, _Pattern], _Summary] = field(default_factory=dict["tuple[int, _Pattern]", _Summary])
    _sizes: dict[int, _Sizes] = field(default_factory=dict[int, _Sizes])

    def summary(self, plan: GraphPlan, pattern: _Pattern) -> _Summary:
        """Return what a plan does, called with such arguments."""
        key = (id(plan), pattern)
        if key not in self._summaries:
            frame = FrameWalk(self, plan)
            frame.enter(pattern)
            frame.walk()
            self._summaries[key] = frame.summary()
        return self._summaries[key]

    def sizes(self, segment: Segment) -> _Sizes:
        """Return the sizes of a segment."""
        if id(segment) not in self._sizes:
            donated = {segment.inputs[i] for i in segment.donated}
            outputs = tuple((value_bytes(v, segment.replicas), v in donated) for v in segment.outputs)
            fresh = sum(n for n, reuses in outputs if not reuses)
            self._sizes[id(segment)] = _Sizes(outputs, fresh, self.temporary_bytes(segment))
        return self._sizes[id(segment)]


class FrameWalk:
    """One walk over a plan; `live` starts at 0, whatever lives in the frames around it.

    Args:
        analysis: What the walks share.
        plan: The plan.
        stop: The moment to take a snapshot of, if any; the walk ends there.
    """

    def __init__(self, analysis: Analysis, plan: GraphPlan, stop: Moment | None = None) -> None:
        self._analysis = analysis
        self._outside = analysis.outside
        self._plan = plan
        self._stop = stop
        self._slots: list[_Memory | None] = [None] * plan.slot_count
        for slot, _ in plan.constants:
            self._slots[slot] = self._outside
        self._inputs: list[_Memory] = []
        self._made: list[_Memory] = []
        self._index = -1
        self.live = 0
        self.peak = 0
        self.at = _START
        self.is_bound = False
        self.snapshot: Snapshot | None = None

    def enter(self, pattern: _Pattern) -> None:
        """Take arguments; the caller counts them while they live."""
        numbers, memories = pattern
        self._inputs = [_Memory(nbytes, held=held) for held, nbytes in memories]
        for slot, k in zip(self._plan.inputs, numbers, strict=True):
            self.bind(slot, self._inputs[k] if k >= 0 else self._outside)

    def walk(self) -> None:
        """Walk the steps in order."""
        if self._reaches(0):
            self._freeze()
        for index, step in enumerate(self._plan.steps):
            if self.snapshot is not None:
                return
            self._index = index
            self._do(step)

    def _do(self, step: Step) -> None:
        match step:
            case Compute():
                self._compute(step)
            case Evaluate():
                self.bind(step.output, self._outside)
            case HostLoad() | RemoteLoad():
                self._load(step)
            case Print():
                self.bind(step.output, self._get(step.input))
            case Call():
                self._call(step)
            case Loop():
                self._loop(step)
            case Branch():
                self._branch(step)
            case Free():
                self._clear(step.slots)
            case _:  # stores and checks keep nothing
                pass

    def summary(self) -> _Summary:
        """Sum up the walk for callers."""
        numbers = {id(m): k for k, m in enumerate(self._inputs)} | {id(self._outside): -1}
        made: list[_New] = []

        def number(slot: int) -> int | None:
            m = self._slots[slot]
            if m is None:
                return None
            if id(m) not in numbers:
                numbers[id(m)] = len(self._inputs) + len(made)
                made.append(_New(m.nbytes, m.made))
            return numbers[id(m)]

        inputs = tuple(number(slot) for slot in self._plan.inputs)
        outputs = tuple(number(slot) for slot in self._plan.outputs)
        # What nobody held is gone, too; only what was held and is gone was overwritten, and the caller must know.
        consumed = tuple(k for k, m in enumerate(self._inputs) if m.gone)
        return _Summary(self.peak, self.at, inputs, outputs, tuple(made), consumed, self.is_bound)

    # Memories

    def new(self, nbytes: int, made: Made | None, *, held: bool = False) -> _Memory:
        """Begin a memory."""
        m = _Memory(nbytes, made, held)
        self.live += nbytes
        if self._stop is not None:
            self._made.append(m)
        return m

    def bind(self, slot: int, m: _Memory) -> None:
        """Put a memory into a slot, in place of what is there."""
        self.hold(m)
        self._clear((slot,))
        self._slots[slot] = m

    def _get(self, slot: int) -> _Memory:
        m = self._slots[slot]
        assert m is not None, f"slot {slot} of {self._plan!r} is read while it is empty"
        return m

    def _clear(self, slots: Iterable[int]) -> None:
        for slot in slots:
            m = self._slots[slot]
            if m is not None:
                self._slots[slot] = None
                self.let_go((m,))

    def hold(self, m: _Memory) -> _Memory:
        """Count one more holder of a memory."""
        m.holders += 1
        return m

    def let_go(self, memories: Iterable[_Memory]) -> None:
        """Count one holder less of each; what nobody holds ends."""
        for m in memories:
            m.holders -= 1
            if m.holders <= 0 and not m.held:
                self._end(m)

    def _end(self, m: _Memory) -> None:
        if not m.gone:
            m.gone = True
            self.live -= m.nbytes

    # The peak

    def _reaches(self, more: int, part: int = 0) -> bool:
        """Note that `more` bytes live now; whether it is the moment to take a snapshot of."""
        if self.live + more > self.peak:
            self.peak, self.at = self.live + more, (self._index, part)
        return self._stop == (self._index, part)

    def _freeze(self, arriving: Iterable[tuple[int, Made]] = (), temporary: int = 0) -> None:
        values = [(m.nbytes, m.made) for m in self._made if not m.gone and m.made is not None]
        gone = {k for k, m in enumerate(self._inputs) if m.gone}
        step = self._plan.steps[self._index] if self._index >= 0 else None
        self.snapshot = Snapshot([*values, *arriving], gone, temporary, step)

    def _freeze_inside(self, body: GraphPlan, pattern: _Pattern, memories: Sequence[_Memory], at: Moment) -> None:
        """Take the snapshot at the peak of a called plan."""
        inner = FrameWalk(self._analysis, body, at)
        inner.enter(pattern)
        inner.walk()
        found = inner.snapshot
        assert found is not None
        gone = {id(memories[k]) for k in found.gone}
        values = [(m.nbytes, m.made) for m in self._made if not m.gone and id(m) not in gone and m.made is not None]
        dead = {k for k, m in enumerate(self._inputs) if m.gone or id(m) in gone}
        step = self._plan.steps[self._index] if found.step is None else found.step
        self.snapshot = Snapshot([*values, *found.values], dead, found.temporary_bytes, step)

    # Steps

    def _compute(self, step: Compute) -> None:
        segment = step.segment
        sizes = self._analysis.sizes(segment)
        outputs = zip(step.outputs, segment.outputs, sizes.outputs, strict=True)
        if self._reaches(sizes.fresh + sizes.temporary):
            arriving = [(n, Made(v, step)) for _, v, (n, reuses) in outputs if not reuses]
            self._freeze(arriving, sizes.temporary)
            return
        for i in segment.donated:
            self._end(self._get(step.inputs[i]))
        for slot, v, (nbytes, _) in outputs:
            self.bind(slot, self.new(nbytes, Made(v, step)))

    def _load(self, step: HostLoad | RemoteLoad) -> None:
        t = step.op.outputs[0]
        nbytes = value_bytes(t, self._plan.replicas)
        if self._reaches(nbytes):
            self._freeze([(nbytes, Made(t, step))])
        self.bind(step.output, self.new(nbytes, Made(t, step)))

    def _call(self, call: Call) -> None:
        arguments = [self.hold(self._get(slot)) for slot in call.inputs]
        self._clear(call.released)
        returned = self._run(call.body, arguments, 0)
        for position, slot in call.written_back:
            self.bind(slot, returned.input(position))
        for k, slot in enumerate(call.outputs):
            if slot >= 0:
                self.bind(slot, returned.output(k))
        returned.close()
        self.let_go(arguments)

    def _loop(self, loop: Loop) -> None:
        call, first = loop.call, 2
        carried = range(first, first + len(call.outputs))
        initial = [self._outside, self._outside, *(self._get(slot) for slot in call.inputs)]
        state = [self.hold(m) for m in initial]
        self._clear(call.released)
        names = {id(m): k for k, m in enumerate(initial, 1)}
        left, number, seen = loop.count, 0, dict[object, int]()
        while left:
            # What follows depends on which memories there are, not on when they were made.
            pattern, memories = _pattern(state)
            now = (number > 0, pattern, tuple(names.get(id(m), 0) for m in memories), self.live)
            period = number - seen.setdefault(now, number)
            left = left % period if period else left
            if not left:
                break
            arguments = [self.hold(m) for m in state]
            for k in carried:
                self._replace(state, k, self._outside)
            returned = self._run(call.body, arguments, number)
            for position, slot in call.written_back:
                self._replace(state, position, returned.input(position))
                self.bind(slot, state[position])
            for k in carried:
                self._replace(state, k, returned.output(k - 1))
            returned.close()
            self.let_go(arguments)
            if self.snapshot is not None:
                return
            left, number = left - 1, number + 1
        if not loop.count:
            for position, slot in call.written_back:
                self.bind(slot, state[position])
        for k, slot in zip(carried, call.outputs, strict=True):
            if slot >= 0:
                self.bind(slot, state[k])
        self.let_go(state)

    def _replace(self, state: list[_Memory], k: int, m: _Memory) -> None:
        self.hold(m)
        self.let_go((state[k],))
        state[k] = m

    def _run(self, body: GraphPlan, arguments: Sequence[_Memory], part: int) -> _Returned:
        """Run a called plan on arguments that it holds."""
        pattern, memories = _pattern(arguments)
        summary = self._note_body(body, pattern, memories, part)
        for k in summary.consumed:
            self._end(memories[k])
        return _Returned(self, summary, memories, self._outside)

    def _note_body(self, body: GraphPlan, pattern: _Pattern, memories: Sequence[_Memory], part: int) -> _Summary:
        summary = self._analysis.summary(body, pattern)
        self.is_bound |= summary.is_bound
        if self._reaches(summary.peak, part):
            self._freeze_inside(body, pattern, memories, summary.at)
        return summary

    def _branch(self, branch: Branch) -> None:
        """Walk both sides; afterwards, outputs that differ between them are memories of their own."""
        calls = (branch.then_call, branch.else_call)
        assert not any(call.written_back for call in calls), "a branch overwrites nothing of its caller"
        then_ends, else_ends = (self._side(call, part) for part, call in enumerate(calls))
        joined: dict[tuple[int, int], _Memory] = {}
        targets: dict[int, _Memory] = {}
        for k, slot in enumerate(calls[0].outputs):
            if slot < 0:
                continue
            a, b = then_ends[k], else_ends[k]
            key = (id(a), id(b))
            if key not in joined:
                joined[key] = self.hold(self._join(a, b, Made(branch.op.outputs[k], branch)))
            targets[slot] = joined[key]
        # One memory of one side that is two on the other counts twice.
        self.is_bound |= any(len({key[side] for key in joined}) < len(joined) for side in (0, 1))
        for slot, m in targets.items():
            self.bind(slot, m)
        self.let_go(joined.values())
        # What the sides have let go of, the `Free` that follows takes out of the slots.

    def _side(self, call: Call, part: int) -> list[_Memory | _New]:
        """Walk one side of a branch, and return what its outputs are; nothing here changes."""
        arguments = [self.hold(self._get(slot)) for slot in call.inputs]
        released = [self._get(slot) for slot in call.released]
        for m in released:
            m.holders -= 1
        pattern, memories = _pattern(arguments)
        summary = self._note_body(call.body, pattern, memories, part)
        for m in released:
            m.holders += 1
        self.let_go(arguments)
        outputs = zip(call.outputs, summary.outputs, strict=False)
        return [self._outside if slot < 0 else summary.source(n, memories, self._outside) for slot, n in outputs]

    def _join(self, a: _Memory | _New, b: _Memory | _New, made: Made) -> _Memory:
        """The memory after a branch of what is `a` after one side and `b` after the other."""
        if isinstance(a, _Memory) and a is b:
            return a
        if isinstance(a, _New) and isinstance(b, _New):
            return self.new(a.nbytes, a.made)
        # One side passes on an argument. If that is held anyway, its run needs less than this.
        self.is_bound = True
        return self.new(max(a.nbytes, b.nbytes), made)


@dataclass(slots=True)
class _Returned:
    """What a called plan hands back: memories of the caller, and new ones, which begin when they are asked for."""

    _frame: FrameWalk
    _summary: _Summary
    _memories: Sequence[_Memory]
    _outside: _Memory
    _made: dict[int, _Memory] = field(default_factory=dict[int, _Memory])

    def input(self, position: int) -> _Memory:
        """The final value of an input."""
        return self._take(self._summary.inputs[position])

    def output(self, k: int) -> _Memory:
        """An output."""
        return self._take(self._summary.outputs[k])

    def close(self) -> None:
        """Let go of the new ones."""
        self._frame.let_go(self._made.values())

    def _take(self, number: int | None) -> _Memory:
        source = self._summary.source(number, self._memories, self._outside)
        if isinstance(source, _Memory):
            return source
        assert number is not None
        if number not in self._made:
            self._made[number] = self._frame.hold(self._frame.new(source.nbytes, source.made))
        return self._made[number]


def _pattern(values: Sequence[_Memory]) -> tuple[_Pattern, list[_Memory]]:
    """The pattern of arguments, each of which is held once, and their memories."""
    times = Counter(id(m) for m in values)
    numbers: dict[int, int] = {}
    memories: list[_Memory] = []
    for m in values:
        # Memory of size 0 stands for what is not counted.
        if id(m) not in numbers:
            numbers[id(m)] = len(memories) if m.nbytes else -1
            if m.nbytes:
                memories.append(m)
    kinds = tuple((m.held or m.holders > times[id(m)], m.nbytes) for m in memories)
    return (tuple(numbers[id(m)] for m in values), kinds), memories
