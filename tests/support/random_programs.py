"""Random programs: lists of abstract instructions, from which popxl programs and their oracle are both made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from popxl import dtypes, ops

ENTRIES = 3
INT, FLOAT, INDEX = dtypes.int32, dtypes.float32, dtypes.uint32


# What a program is


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of one value."""

    shape: tuple[int, ...]
    dtype: dtypes.dtype


@dataclass(frozen=True)
class Instruction:
    """One step. `args` are numbers of values; new values are numbered from the block's inputs on."""

    kind: str
    args: tuple[int, ...] = ()
    extra: Any = None


@dataclass
class Block:
    """A graph: inputs, steps, outputs. The main block's inputs are the program's variables."""

    inputs: list[Spec]
    by_ref: list[bool]
    steps: list[Instruction] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    specs: list[Spec] = field(default_factory=list)


@dataclass
class Program:
    """The blocks that can be called, the main block, and which limits on inlining apply."""

    subs: list[Block]
    main: Block
    inline: bool

    def __repr__(self) -> str:
        lines = [f"inline={self.inline}"]
        for name, block in [*((f"sub {i}", b) for i, b in enumerate(self.subs)), ("main", self.main)]:
            inputs = ", ".join(
                f"{i}:{s.dtype.name}{list(s.shape)}{'&' * r}"
                for i, (s, r) in enumerate(zip(block.inputs, block.by_ref, strict=True))
            )
            lines.append(f"{name}({inputs}) -> {block.outputs}")
            lines += [f"    {s.kind}{list(s.args)} {'' if s.extra is None else s.extra}" for s in block.steps]
        return "\n".join(lines)


def entries(buffer: int) -> Spec:
    return (Spec((4,), INT), Spec((2, 2), FLOAT))[buffer]


# Elementwise ops: popxl's function, NumPy's, and whether the first operand is overwritten

Table = Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]]

NEW: Table = {
    "add": (ops.add, np.add),
    "sub": (ops.sub, np.subtract),
    "identity": (ops.identity, np.copy),
    "negate": (ops.negate, np.negative),
    "print": (lambda t: ops.print_tensor(t, print_self=False), np.copy),
}
NEW_INT: Table = {
    "mul": (ops.mul, np.multiply),
    "increment_mod": (lambda t: ops.increment_mod(t, 3, 7), lambda a: np.fmod(a + np.int32(3), np.int32(7))),
}
NEW_FLOAT: Table = {"relu": (ops.relu, lambda a: np.maximum(a, 0))}
IN_PLACE: Table = {
    "add_": (ops.add_, np.add),
    "copy_var_update_": (ops.var_updates.copy_var_update_, lambda _a, b: b),
}
IN_PLACE_INT: Table = {
    "increment_mod_": (lambda t: ops.increment_mod_(t, 3, 7), lambda a: np.fmod(a + np.int32(3), np.int32(7)))
}
IN_PLACE_FLOAT: Table = {
    "accumulate_": (lambda t, x: ops.var_updates.accumulate_(t, x, 0.5), lambda a, b: a + np.float32(0.5) * b),
    "relu_": (ops.relu_, lambda a: np.maximum(a, 0)),
}
ELEMENTWISE = {**NEW, **NEW_INT, **NEW_FLOAT, **IN_PLACE, **IN_PLACE_INT, **IN_PLACE_FLOAT}
OPERANDS = dict.fromkeys(("add", "sub", "mul", "add_", "copy_var_update_", "accumulate_"), 2)

# Moves of elements: popxl's view, popxl's copy, and the same on an array (of cell numbers). Each is for one shape.

MOVES: Mapping[str, tuple[tuple[int, ...], Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "transpose": ((2, 2), ops.transpose_, ops.transpose, np.transpose),
    "flatten": ((2, 2), lambda t: ops.reshape_(t, (4,)), lambda t: ops.reshape(t, (4,)), lambda a: a.reshape(4)),
    "square": ((4,), lambda t: ops.reshape_(t, (2, 2)), lambda t: ops.reshape(t, (2, 2)), lambda a: a.reshape(2, 2)),
    "first": ((4,), lambda t: ops.slice_(t, 0, 1), lambda t: ops.slice(t, 0, 1), lambda a: a[0:1]),
    "middle": ((4,), lambda t: ops.slice_(t, 1, 3), lambda t: ops.slice(t, 1, 3), lambda a: a[1:3]),
    "row": ((2, 2), lambda t: ops.slice_(t, 1, 2), lambda t: ops.slice(t, 1, 2), lambda a: a[1:2]),
    "column": ((2, 2), lambda t: ops.slice_(t, 0, 1, axis=1), lambda t: ops.slice(t, 0, 1, axis=1), lambda a: a[:, :1]),
    "reverse": ((4,), lambda t: ops.slice_(t, step=-1), lambda t: ops.slice(t, step=-1), lambda a: a[::-1]),
    "scalar": ((1,), lambda t: ops.reshape_(t, ()), lambda t: ops.reshape(t, ()), lambda a: a.reshape(())),
    "one": ((), lambda t: ops.reshape_(t, (1,)), lambda t: ops.reshape(t, (1,)), lambda a: a.reshape(1)),
}
JOINS: Mapping[str, tuple[tuple[int, ...], int]] = {"join": ((2,), 0), "stack": ((1, 2), 0), "widen": ((2, 1), 1)}


# Making random programs


class Writer:
    """Writes one block, drawing each step."""

    def __init__(self, draw: Callable[..., Any], block: Block, subs: Sequence[Block], *, is_main: bool) -> None:
        self.draw = draw
        self.block = block
        self.subs = subs
        self.is_main = is_main
        block.specs = list(block.inputs)
        #: For each value, the numbers of the values whose memory it may share.
        self.families = [frozenset([i]) for i in range(len(block.inputs))]

    def choose(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def emit(self, kind: str, args: Sequence[int], results: Sequence[Spec], extra: Any = None) -> int:
        self.block.steps.append(Instruction(kind, tuple(args), extra))
        if kind in ("view", "view_join") or kind.endswith("_"):
            self.families.append(frozenset[int]().union(*(self.families[i] for i in args)))
        else:
            self.families += [frozenset([len(self.families) + k]) for k in range(len(results))]
        self.block.specs += results
        return len(self.block.specs) - 1

    def pick(self, spec: Spec) -> int:
        """A value of this spec: one that is there, or else a new constant."""
        there = [i for i, s in enumerate(self.block.specs) if s == spec]
        if not there or self.number(0, 15) == 0:
            return self.emit("constant", (), [spec], self.number(-4, 4) if spec.dtype != INDEX else self.number(0, 5))
        return self.favourite(there)

    def favourite(self, there: list[int]) -> int:
        """One of these values: an input or a recent one more often than others."""
        inputs = [i for i in there if i < len(self.block.inputs)]
        return self.choose(self.choose([inputs or there, there[-2:], there]))

    def offset(self) -> int:
        """An index below the number of entries: computed from an index that is there, from data, or fixed."""
        kind = self.number(0, 3)
        if kind == 0:
            return self.emit("constant", (), [Spec((), INDEX)], self.number(0, ENTRIES - 1))
        if kind == 1:
            index = self.emit("index", [self.pick(Spec((), INT))], [Spec((), INDEX)])
        else:
            index = self.pick(Spec((), INDEX))
        return self.emit("bound", [index], [Spec((), INDEX)], self.number(0, 2))

    def any_number(self) -> tuple[int, Spec]:
        there = [i for i, s in enumerate(self.block.specs) if s.dtype in (INT, FLOAT)]
        i = self.favourite(there) if there else self.pick(self.choose([entries(0), entries(1)]))
        return i, self.block.specs[i]

    def step(self) -> None:
        kinds = ["elementwise"] * 3 + ["in_place"] * 5 + ["view"] * 2 + ["move", "join", "view_join"]
        kinds += ["advance"] * 2 + ["load", "load_", "store", "store"]
        kinds += ["call"] * 3 + ["repeat"] * 4 + ["conditional"] if self.subs else []
        kinds += ["host_load"] if self.is_main else []
        getattr(self, self.choose(kinds))()

    def elementwise(self) -> None:
        i, spec = self.any_number()
        name = self.choose([*NEW, *(NEW_INT if spec.dtype == INT else NEW_FLOAT)])
        self.emit(name, [i, *(self.pick(spec) for _ in range(OPERANDS.get(name, 1) - 1))], [spec])

    def in_place(self) -> None:
        i, spec = self.any_number()
        name = self.choose([*IN_PLACE, *(IN_PLACE_INT if spec.dtype == INT else IN_PLACE_FLOAT)])
        self.emit(name, [i, *(self.pick(spec) for _ in range(OPERANDS.get(name, 1) - 1))], [spec])

    def view(self, kind: str = "view") -> None:
        shapes = {shape for shape, *_ in MOVES.values()}
        there = [i for i, s in enumerate(self.block.specs) if s.shape in shapes and s.dtype in (INT, FLOAT)]
        i = self.choose(there) if there else self.pick(entries(0))
        spec = self.block.specs[i]
        name = self.choose([n for n, (shape, *_) in MOVES.items() if shape == spec.shape])
        shape = MOVES[name][3](np.zeros(spec.shape)).shape
        self.emit(kind, [i], [Spec(shape, spec.dtype)], name)

    def move(self) -> None:
        self.view("move")

    def join(self, kind: str = "join") -> None:
        name = self.choose(list(JOINS))
        shape, axis = JOINS[name]
        spec = Spec(shape, self.choose([INT, FLOAT]))
        joined = tuple(2 * n if a == axis else n for a, n in enumerate(shape))
        self.emit(kind, [self.pick(spec), self.pick(spec)], [Spec(joined, spec.dtype)], axis)

    def view_join(self) -> None:
        self.join("view_join")

    def advance(self) -> None:
        """Index arithmetic, in place or not; or use of an index as a number."""
        kind = self.choose(["next", "next_", "number"])
        self.emit(kind, [self.pick(Spec((), INDEX))], [Spec((), INT if kind == "number" else INDEX)])

    def load(self) -> None:
        buffer = self.number(0, 1)
        self.emit("load", [self.offset()], [entries(buffer)], buffer)

    def load_(self) -> None:
        buffer = self.number(0, 1)
        target = self.pick(entries(buffer))
        self.emit("load_", [self.offset(), target], [entries(buffer)], buffer)

    def store(self) -> None:
        buffer = self.number(0, 1)
        self.emit("store", [self.offset(), self.pick(entries(buffer))], [], buffer)

    def host_load(self) -> None:
        spec = self.choose([entries(0), Spec((), INDEX)])
        self.emit("host_load", [], [spec], (spec, self.number(0, 5)))

    def call(self) -> None:
        g = self.number(0, len(self.subs) - 1)
        sub = self.subs[g]
        self.emit("call", self.arguments(sub), [sub.specs[k] for k in sub.outputs], g)

    def repeat(self) -> None:
        loops = [g for g, sub in enumerate(self.subs) if can_repeat(sub)]
        if not loops:
            return
        g = self.choose(loops)
        sub = self.subs[g]
        count = self.number(0, 3)
        self.emit("repeat", self.arguments(sub), [sub.specs[k] for k in sub.outputs], (g, count))

    def conditional(self) -> None:
        branches = [g for g, sub in enumerate(self.subs) if not any(sub.by_ref)]
        pairs = [(a, b) for a in branches for b in branches if output_specs(self.subs[a]) == output_specs(self.subs[b])]
        if not pairs:
            return
        a, b = self.choose(pairs)
        condition = self.emit("greater", [self.pick(Spec((), INT)), self.pick(Spec((), INT))], [Spec((), dtypes.bool)])
        args = [condition, *self.arguments(self.subs[a]), *self.arguments(self.subs[b])]
        self.emit("conditional", args, list(output_specs(self.subs[a])), (a, b))

    def arguments(self, sub: Block) -> list[int]:
        """Values for the inputs. What goes by reference goes to one input only, and shares no memory with others."""
        chosen = [self.pick(spec) for spec in sub.inputs]
        taken = frozenset[int]()
        for i in [i for i, by_ref in enumerate(sub.by_ref) if by_ref]:
            if chosen.count(chosen[i]) > 1 or taken & self.families[chosen[i]]:
                chosen[i] = self.emit("identity", [chosen[i]], [sub.inputs[i]])
            taken |= self.families[chosen[i]]
        return chosen


def output_specs(block: Block) -> tuple[Spec, ...]:
    return tuple(block.specs[k] for k in block.outputs)


def can_repeat(block: Block) -> bool:
    outputs = output_specs(block)
    return outputs == tuple(block.inputs[: len(outputs)])


SPECS = [entries(0), entries(0), entries(0), entries(1), Spec((), INDEX), Spec((), INT)]


@st.composite
def programs(draw: Callable[..., Any]) -> Program:
    subs: list[Block] = []
    for _ in range(draw(st.integers(1, 3))):
        inputs = [draw(st.sampled_from(SPECS)) for _ in range(draw(st.sampled_from([0, 1, 2, 2, 3, 3])))]
        takes_refs = draw(st.sampled_from([True, True, True, False]))
        by_ref = [takes_refs and draw(st.booleans()) for _ in inputs]
        sub = Block(inputs, by_ref)
        writer = Writer(draw, sub, list(subs), is_main=False)
        for _ in range(draw(st.sampled_from(range(1, 8)))):
            writer.step()
        if draw(st.sampled_from([True, True, False])):  # repeatable: outputs like the first inputs
            sub.outputs = [writer.pick(s) for s in inputs[: draw(st.sampled_from(range(3)))]]
        else:
            numbers = [i for i, s in enumerate(sub.specs) if s.dtype in (INT, FLOAT, INDEX)]
            sub.outputs = [draw(st.sampled_from(numbers)) for _ in range(draw(st.integers(0, 2)))] if numbers else []
        subs.append(sub)
    main = Block([entries(0), entries(0), Spec((), INDEX), entries(1)], [False] * 4)
    writer = Writer(draw, main, subs, is_main=True)
    for _ in range(draw(st.sampled_from(range(5, 25)))):
        writer.step()
    there = [i for i, s in enumerate(main.specs) if s.dtype != dtypes.bool]
    main.outputs = sorted(set(there[-6:]) | set(draw(st.lists(st.sampled_from(there), max_size=3))))
    return Program(subs, main, draw(st.booleans()))
