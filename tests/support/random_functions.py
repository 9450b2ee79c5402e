"""Random differentiable functions: lists of instructions, from which popxl graphs and jax functions are both made.

Values stay small: a bound is known for each of them, and tanh brings them back where it grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from function_kinds import COUNT, FAMILIES, FLAG, FLOATS, KINDS, MATRIX, NUMBER, SHORT, VECTOR, Spec
from hypothesis import strategies as st

# What a function is

CONTROL = ("call", "conditional", "repeat")


@dataclass(frozen=True)
class Step:
    """One instruction. `args` are numbers of values; new values are numbered from the block's inputs on."""

    kind: str
    args: tuple[int, ...] = ()
    extra: Any = None


@dataclass
class Block:
    """A graph: inputs, steps, outputs."""

    inputs: list[Spec]
    steps: list[Step] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    specs: list[Spec] = field(default_factory=list)


@dataclass
class Function:
    """The graphs that can be called, the function itself, and what is differentiated where."""

    subs: list[Block]
    main: Block
    provided: list[int]
    required: list[int]
    seed: int
    differentiate_first: bool

    def __repr__(self) -> str:
        lines = [f"{self.provided=} {self.required=} {self.seed=} {self.differentiate_first=}"]
        for name, block in [*((f"sub {i}", b) for i, b in enumerate(self.subs)), ("main", self.main)]:
            lines.append(f"{name}{block.inputs} -> {block.outputs}")
            first = len(block.inputs)
            for step in block.steps:
                lines.append(f"    {first}: {step.kind}{list(step.args)} {'' if step.extra is None else step.extra}")
                first += results_of(step, self.subs)
        return "\n".join(lines)


def results_of(step: Step, subs: Sequence[Block]) -> int:
    if step.kind in CONTROL:
        return len(subs[step.extra[0]].outputs)
    return 2 if step.kind == "ends" else 1


# Making random functions

LIMIT = 3.0
"""The largest value that an instruction may take; one that may be larger goes through tanh first."""
ENTRY = 1.5
"""The largest value that a graph may take or give."""


class Writer:
    """Writes one block, drawing each step."""

    def __init__(self, chance: Random, block: Block, subs: Sequence[Block], depths: Sequence[int]) -> None:
        self.chance = chance
        self.block = block
        self.subs = subs
        #: How deep the calls of each graph that can be called go, itself counted.
        self.depths = depths
        self.depth = 0
        block.specs = list(block.inputs)
        self.bounds = [ENTRY] * len(block.inputs)

    def choose(self, options: Sequence[Any]) -> Any:
        return self.chance.choice(options)

    def number(self, low: int, high: int) -> int:
        return self.chance.randint(low, high)

    def emit(self, kind: str, args: Sequence[int], results: Sequence[Spec], bound: float, extra: Any = None) -> int:
        self.block.steps.append(Step(kind, tuple(args), extra))
        self.block.specs += results
        self.bounds += [bound] * len(results)
        return len(self.block.specs) - 1

    def compute(self, name: str, args: Sequence[int]) -> int:
        kind = KINDS[name]
        args = [self.bounded(i, LIMIT) for i in args]
        return self.emit(name, args, [kind.gives], kind.bound(*(self.bounds[i] for i in args)))

    def bounded(self, i: int, limit: float) -> int:
        """The value `i`, or if it may be larger than `limit`, its tanh."""
        if self.bounds[i] <= limit or self.block.specs[i] in (COUNT, FLAG):
            return i
        spec = self.block.specs[i]
        return self.emit(f"tanh {spec}", [i], [spec], 1.0)

    def pick(self, spec: Spec) -> int:
        """A value of this spec: a recent one more often than others; made from others if there is none."""
        there = [i for i, s in enumerate(self.block.specs) if s == spec]
        if there:
            return self.choose(self.choose([there[-1:], there[-2:], there]))
        if spec == FLAG:
            return self.emit("odd", [self.pick(COUNT)], [FLAG], 0.0)
        if spec == COUNT:
            return self.emit("count", [], [COUNT], 0.0, self.number(0, 7))
        if spec == SHORT:
            return self.compute("lengths", [self.pick(MATRIX)])
        return self.emit("constant", [], [spec], 1.0, self.number(0, 1000))

    def step(self) -> None:
        kinds = ["formula"] * 6 + ["ends"]
        if self.subs:
            kinds += ["call"] * 3 + ["repeat"] * 2 + ["conditional"] * 2
        getattr(self, self.choose(kinds))()

    def formula(self) -> None:
        name = self.choose(FAMILIES[self.choose(list(FAMILIES))])
        self.compute(name, [self.pick(spec) for spec in KINDS[name].takes])

    def ends(self) -> None:
        """An instruction with two results; often only one of them is used."""
        i = self.bounded(self.pick(MATRIX), LIMIT)
        self.emit("ends", [i], [VECTOR, VECTOR], self.bounds[i])

    def called(self, options: Sequence[int]) -> int:
        g = self.choose(options)
        self.depth = max(self.depth, self.depths[g])
        return g

    def arguments(self, sub: Block) -> list[int]:
        return [self.bounded(self.pick(spec), ENTRY) for spec in sub.inputs]

    def results(self, sub: Block) -> list[Spec]:
        return [sub.specs[k] for k in sub.outputs]

    def call(self) -> None:
        g = self.called(range(len(self.subs)))
        self.emit("call", self.arguments(self.subs[g]), self.results(self.subs[g]), ENTRY, (g,))

    def repeat(self) -> None:
        loops = [g for g, s in enumerate(self.subs) if self.results(s) == s.inputs[: len(s.outputs)]]
        if loops:
            g = self.called(loops)
            extra = (g, self.choose([0, 1, 2, 3, 3]))
            self.emit("repeat", self.arguments(self.subs[g]), self.results(self.subs[g]), ENTRY, extra)

    def conditional(self) -> None:
        count = len(self.subs)
        pairs = [
            (a, b)
            for a in range(count)
            for b in range(count)
            if self.results(self.subs[a]) == self.results(self.subs[b])
        ]
        a, b = self.choose(pairs)
        self.called([a])
        self.called([b])
        args = [self.pick(FLAG), *self.arguments(self.subs[a]), *self.arguments(self.subs[b])]
        self.emit("conditional", args, self.results(self.subs[a]), ENTRY, (a, b))

    def combined(self, spec: Spec) -> int:
        """A value of this spec; a float is computed from others, so that a block does more than pass inputs on."""
        if spec == COUNT:
            return self.pick(COUNT)
        return self.compute(f"{self.choose(['add', 'sub', 'mul', 'div'])} {spec}", [self.pick(spec), self.pick(spec)])

    def called_results(self) -> list[int]:
        """The floats that calls, branches and loops gave."""
        found: list[int] = []
        first = len(self.block.inputs)
        for step in self.block.steps:
            count = results_of(step, self.subs)
            if step.kind in CONTROL:
                found += [i for i in range(first, first + count) if self.block.specs[i] != COUNT]
            first += count
        return found

    def finish(self, outputs: Sequence[int]) -> None:
        self.block.outputs = [self.bounded(i, ENTRY) for i in outputs]


@st.composite
def functions(draw: Callable[..., Any]) -> Function:
    """Random functions with up to three graphs to call, of which later ones may call earlier ones.

    Only their sizes are drawn one by one: choices made by hypothesis prefer what comes first.
    """
    chance = Random(draw(st.integers(0, 2**32 - 1)))
    subs: list[Block] = []
    depths: list[int] = []
    for size in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)):
        inputs = chance.choices([*FLOATS, COUNT], k=chance.randint(0, 3))
        block = Block([chance.choice(FLOATS), *inputs])
        writer = Writer(chance, block, subs, depths)
        for _ in range(size):
            writer.step()
        # What is like the first inputs can be repeated.
        like = block.inputs[: chance.randint(1, len(block.inputs))]
        writer.finish([writer.combined(spec) for spec in chance.choice([like, like, [VECTOR]])])
        subs.append(block)
        depths.append(writer.depth + 1)
    return _function(chance, subs, depths, draw(st.integers(1, 10)))


def _function(chance: Random, subs: list[Block], depths: list[int], size: int) -> Function:
    main = Block([VECTOR, MATRIX, NUMBER, COUNT])
    writer = Writer(chance, main, subs, depths)
    for _ in range(size):
        writer.step()
    wanted = [VECTOR, COUNT, NUMBER, MATRIX][: chance.randint(1, 4)]
    called = writer.called_results()
    outputs = [*(writer.combined(spec) for spec in wanted), *chance.sample(called, min(len(called), 4))]
    # The last output makes sure that there is an input that leads to an output.
    writer.finish([*outputs, writer.compute("scaled ()", [2])])
    floats = [k for k, i in enumerate(main.outputs) if main.specs[i] != COUNT]
    provided = chance.sample(floats, chance.randint(1, len(floats)))
    leading = paths(subs, main, [main.outputs[k] for k in provided]) & set(range(len(main.inputs)))
    if not leading:
        provided, leading = [*provided, floats[-1]], {2}
    required = chance.sample(sorted(leading), chance.randint(1, len(leading)))
    return Function(subs, main, provided, required, chance.randrange(2**16), chance.random() < 0.5)


def paths(subs: Sequence[Block], block: Block, goals: Sequence[int]) -> set[int]:
    """The values of a block that the values `goals` depend on differentiably."""
    found = set(goals)
    last = len(block.specs)
    for step in reversed(block.steps):
        last -= results_of(step, subs)
        given = [k for k in range(results_of(step, subs)) if last + k in found]
        if given:
            found |= {step.args[i] for i in _arguments_on_path(subs, step, given)}
    return {i for i in found if block.specs[i] not in (COUNT, FLAG)}


def _arguments_on_path(subs: Sequence[Block], step: Step, given: Sequence[int]) -> set[int]:
    if step.kind == "conditional":
        split = 1 + len(subs[step.extra[0]].inputs)
        then_inputs, else_inputs = (_inputs_on_path(subs, subs[g], given) for g in step.extra)
        return {1 + i for i in then_inputs} | {split + i for i in else_inputs}
    if step.kind == "call":
        return _inputs_on_path(subs, subs[step.extra[0]], given)
    if step.kind == "repeat":
        g, count = step.extra
        carried = set(given)
        for _ in range(len(subs[g].outputs) + 1):
            inputs = _inputs_on_path(subs, subs[g], sorted(carried))
            carried |= {i for i in inputs if i < len(subs[g].outputs)}
        return inputs if count else set(given)
    return set() if step.kind.startswith("detach") else set(range(len(step.args)))


def _inputs_on_path(subs: Sequence[Block], sub: Block, given: Sequence[int]) -> set[int]:
    leading = paths(subs, sub, [sub.outputs[k] for k in given])
    return {i for i in range(len(sub.inputs)) if i in leading}


def function_of(kinds: Sequence[str], seed: int, *, differentiate_first: bool) -> Function:
    """A function that is not random: each of these instructions, of its inputs; every float is provided."""
    inputs = [VECTOR, VECTOR, MATRIX, MATRIX, NUMBER, NUMBER, COUNT]
    main = Block(inputs)
    writer = Writer(Random(seed), main, [], [])
    outputs: list[int] = []
    for name in kinds:
        there = {spec: [i for i, each in enumerate(inputs) if each == spec] for spec in KINDS[name].takes}
        # Operands of one shape are different inputs, as far as there are two.
        args = [there[spec].pop() if there[spec] else writer.pick(spec) for spec in KINDS[name].takes]
        outputs.append(writer.compute(name, args))
    main.outputs = [i for i in outputs if main.specs[i] not in (COUNT, FLAG)]
    provided = list(range(len(main.outputs)))
    required = sorted(paths([], main, main.outputs) & set(range(len(inputs))))
    return Function([], main, provided, required, seed, differentiate_first)
