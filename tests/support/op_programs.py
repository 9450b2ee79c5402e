"""Random programs of ops: lists of abstract instructions, each drawn where the interpreter says what it gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from op_interpreter import Approx, Array, Cells, Machine, Unsettled
from op_kinds import DTYPES, FLOATS, INTS, KINDS, Dtypes, Shape, fits

LEAVES = ("variable", "constant", "host_load", "init")


def data(shape: Shape, dtype: np.dtype[Any], seed: int) -> Array:
    """Small numbers; floats are multiples of 1/4. Every third time there are no negative ones."""
    count = int(np.prod(shape, dtype=int))
    numbers = np.random.default_rng(seed).integers(-16, 17, count) if seed else np.arange(count) % 33 - 16
    if seed % 3 == 1 or dtype.kind == "u":
        numbers = abs(numbers) + 1
    if dtype.kind == "b":
        numbers = numbers > 0
    elif dtype.kind == "f":
        numbers = numbers / 4
    elif seed % 4 == 3:  # sums and products that wrap around
        large = dtype.type(np.iinfo(dtype).max) - abs(numbers).astype(dtype)
        numbers = np.where(numbers % 3 == 0, large, numbers.astype(dtype))
    return np.reshape(numbers, shape).astype(dtype)


@dataclass(frozen=True, repr=False)
class Instruction:
    """One step. `args` are numbers of values; its results get the next numbers, from `first` on."""

    kind: str
    args: tuple[int, ...]
    attributes: dict[str, Any]
    first: int
    results: tuple[Cells, ...]

    def __repr__(self) -> str:
        names = [f"v{self.first + i}: {t.dtype.name}{list(t.shape)}" for i, t in enumerate(self.results)]
        written = [f"v{i}" for i in self.args] + [f"{name}={value}" for name, value in self.attributes.items()]
        return f"{', '.join(names) or '_'} = {self.kind}({', '.join(written)})"


class Program:
    """Instructions and what they must give.

    Attributes:
        instructions: The steps.
        stores: What each "store" must see, in order.
        variables: For each "variable", its value at the end.
    """

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.stores: list[Approx] = []
        self.variables: list[Approx] = []

    def __repr__(self) -> str:
        return "\n".join(["Program:", *(f"    {step}" for step in self.instructions)])


class Script:
    """Writes a program while a machine runs it."""

    def __init__(self) -> None:
        self.program = Program()
        self.machine = Machine()
        self.tensors: list[Cells] = []

    def emit(self, kind: str, *args: int, **attributes: Any) -> int:
        """Add an instruction; return the number of its first result. If it is `Unsettled`, nothing happens."""
        results = self._run(kind, [self.tensors[i] for i in args], attributes)
        first = len(self.tensors)
        self.program.instructions.append(Instruction(kind, args, attributes, first, tuple(results)))
        self.tensors += results
        return first

    def _run(self, kind: str, args: list[Cells], attributes: dict[str, Any]) -> list[Cells]:
        if kind in LEAVES:
            value = np.zeros(attributes["shape"], attributes["dtype"]) if kind == "init" else data(**attributes)
            return [self.machine.new(Approx.exact(value), fixed=kind == "constant")]
        if kind == "store":
            self.program.stores.append(self.machine.read(args[0]))
            return []
        row = KINDS[kind]
        run = {"compute": self.machine.compute, "update": self.machine.update, "view": self.machine.view}[row.effect]
        return run(row.meaning, args, **attributes)

    def finish(self) -> Program:
        variables = (step.results[0] for step in self.program.instructions if step.kind == "variable")
        self.program.variables = [self.machine.read(t) for t in variables]
        return self.program


# Drawing


def _names(focus: str) -> list[str]:
    names = [name for name, row in KINDS.items() for _ in range(row.weight)]
    if focus:
        names += [name for name, row in KINDS.items() for _ in range(4 * row.weight) if row.effect in focus]
    return names


class Writer(Script):
    """Draws a program. Kinds of ops ask it for their operands."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        #: Few dtypes, so that there is something to combine.
        self.dtypes = (self.choose((*FLOATS, FLOATS[1])), self.choose(INTS), self.choose(DTYPES))
        self.views: set[int] = set()
        #: Whether the next operand is what an op overwrites: often a view, which is what such ops may get wrong.
        self.seeks_target = False

    # Numbers and choices

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def choose(self, options: Sequence[Any]) -> Any:
        return self._random.choice(options)

    def flip(self) -> bool:
        return self.number(0, 1) == 1

    def some(self, options: Sequence[Any], least: int = 0) -> list[Any]:
        """Some of the options, each once, in any order."""
        rest = list(options)
        return [rest.pop(self.number(0, len(rest) - 1)) for _ in range(self.number(least, len(options)))]

    def signed(self, axis: int, rank: int) -> int:
        """The axis, counted from the front or from the end."""
        return axis - rank if self.flip() else axis

    # Values

    def shape_of(self, i: int) -> Shape:
        return self.tensors[i].shape

    def dtype_of(self, i: int) -> np.dtype[Any]:
        return self.tensors[i].dtype

    def value(self, i: int) -> Array:
        return self.machine.read(self.tensors[i]).value

    def dtype_among(self, dtypes: Dtypes) -> np.dtype[Any]:
        return self.choose([d for d in self.dtypes if d in dtypes] or dtypes)

    def new_shape(self, least_rank: int = 0) -> Shape:
        rank = max(self.choose((0, 1, 1, 2, 2, 2, 3, 3, 3, 4)), least_rank)
        if self.choose(range(4)) == 0:  # equal lengths: only values tell axes apart
            return (2 if rank == 4 else self.choose((2, 3)),) * rank
        lengths: list[int] = []
        for _ in range(rank):
            room = 32 // max(int(np.prod(lengths, dtype=int)), 1)
            lengths.append(min(self.choose((2, 3, 1, 4, 2, 3, 2, 5) * 4 + (0,)), max(room, 1)))
        return tuple(lengths)

    def leaf(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        kind = self.choose(("variable", "host_load", "constant") * 3 + ("variable", "variable", "init"))
        if kind == "init":
            return self.emit(kind, shape=shape, dtype=dtype)
        return self.emit(kind, shape=shape, dtype=dtype, seed=self.number(0, 255))

    def existing(self, accepts: Callable[[Cells], bool]) -> int | None:
        """A value that fits, a recent one more often than others; none now and then though there is one."""
        with_empty = self.choose(range(12)) == 0
        found = [i for i, t in enumerate(self.tensors) if accepts(t) and (with_empty or t.places.size)]
        views = [i for i in found if i in self.views] if self.seeks_target else []
        self.seeks_target = False
        if not found or self.choose(range(12)) == 0:
            return None
        if views and self.choose(range(3)):
            return self.choose(views)
        return self.choose(found[-4:] if self.flip() else found)

    def any(self, dtypes: Dtypes, least_rank: int = 0) -> int:
        """A value of one of the dtypes."""
        i = self.existing(lambda t: t.dtype in dtypes and len(t.shape) >= least_rank)
        return self.leaf(self.new_shape(least_rank), self.dtype_among(dtypes)) if i is None else i

    def like(self, shape: Shape, dtype: np.dtype[Any]) -> int:
        """A value of this shape and dtype."""
        i = self.existing(lambda t: t.shape == shape and t.dtype == dtype)
        return self.leaf(shape, dtype) if i is None else i

    def beside(self, shape: Shape, dtype: np.dtype[Any], *, into: bool = False) -> int:
        """A value that broadcasts with this shape; with `into`, to it."""
        i = self.existing(lambda t: t.dtype == dtype and fits(shape, t.shape, into=into))
        if i is not None:
            return i
        stretch = not into and self.flip()
        lengths = [self.number(1, 3) if n == 1 and stretch else min(n, self.choose((n, n, n, 1))) for n in shape]
        dropped = self.number(0, len(lengths))
        if 0 not in shape[:dropped]:
            lengths = lengths[dropped:]
        return self.leaf(tuple(lengths), dtype)

    def step(self, names: Sequence[str]) -> None:
        name = self.choose(names)
        if name == "store":
            if self.tensors:
                self.emit(name, self.choose(range(len(self.tensors))))
            return
        row = KINDS[name]
        self.seeks_target = row.effect == "update"
        args, attributes = row.draw(self)
        first = self.emit(name, *args, **attributes)
        if row.effect == "view" or (row.effect == "update" and args[0] in self.views):
            self.views.add(first)
            self.views.update(args)


def write_program(seed: int, least: int, most: int, focus: str) -> Program:
    writer = Writer(seed)
    names = ["store", "store", *_names(focus)]
    count = writer.number(least, most)
    done = 0
    while done < count:
        try:
            writer.step(names)
            done += 1
        except Unsettled:
            continue
    everything = range(len(writer.tensors))
    seen = {everything[-1]}
    for options in (everything, sorted(writer.views)):
        seen |= {writer.choose(options) for _ in range(writer.number(1, 4) if options else 0)}
    for i in sorted(seen):
        writer.emit("store", i)
    return writer.finish()


@st.composite
def op_programs(
    draw: Callable[[st.SearchStrategy[int]], int], least: int = 5, most: int = 50, focus: str = ""
) -> Program:
    """Programs of `least` to `most` ops; `focus` names effects of kinds that are drawn more often.

    Only a seed is drawn. Hypothesis would spend five programs of six on variations of the one before, and would
    need a thousand runs to make one smaller; `reduced` knows what an instruction is, and needs tens.
    """
    return write_program(draw(st.integers(0, 2**63)), least, most, focus)


# Making a failing program smaller


def reduced(program: Program, fails: Callable[[Program], bool], attempts: int = 200) -> Program:
    """A program that still fails, with instructions left out, or replaced by variables, where that can be.

    Args:
        program: A program that fails.
        fails: Whether another one does.
        attempts: How often to ask, at most.
    """
    size = max(len(program.instructions) // 2, 1)
    while attempts > 0:
        before = program
        start = len(program.instructions) - size
        while start > -size and attempts > 0:
            for as_variables in (False, True) if size == 1 else (False,):
                smaller = _rewritten(program, range(start, start + size), as_variables=as_variables)
                attempts -= smaller is not None
                if smaller is not None and fails(smaller):
                    program = smaller
                    break
            start = min(start, len(program.instructions)) - size
        if size == 1 and program is before:
            break
        size = max(size // 2, 1)
    return program


def _rewritten(program: Program, places: range, *, as_variables: bool) -> Program | None:
    """The program without the instructions at these places, and without those that cannot do without their results."""
    script = Script()
    numbers: dict[int, int] = {}
    for place, step in enumerate(program.instructions):
        first = None
        if place not in places:
            if all(a in numbers for a in step.args):
                with suppress(Unsettled):
                    first = script.emit(step.kind, *(numbers[a] for a in step.args), **step.attributes)
        elif as_variables:
            if step.kind in LEAVES or not step.results:
                return None
            made = [script.emit("variable", shape=t.shape, dtype=t.dtype, seed=1) for t in step.results]
            first = made[0]
        if first is not None:
            numbers |= {step.first + i: first + i for i in range(len(step.results))}
    return script.finish() if script.tensors else None
