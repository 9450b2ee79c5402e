"""Random programs against the state model of remote-memory.md §1, which NumPy's own aliasing expresses.

One function, `play`, performs a program in a world. In the `Model` a tensor is an array, a view is a view, passing by
reference is passing the array, and everything happens at once; in the `Builder` the same calls build a program.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import popxl
from popxl import ops
from popxl.errors import RemoteOffsetError

BUFFERS, ROWS, SHAPE = 2, 3, (16,)
T: Any = Any


@dataclass(frozen=True)
class Command:
    """What to do: `a` and `b` pick tensors, `buffer` and `row` a row; `offset` says how the row is told."""

    kind: str
    a: int = 0
    b: int = 0
    buffer: int = 0
    row: int = 0
    offset: str = "static"
    body: tuple[Command, ...] = ()
    other: tuple[Command, ...] = ()


@dataclass
class Scope:
    """What a graph sees: tensors, an integer that the host knows, and one that only the device knows."""

    tensors: list[T]
    index: T
    number: T


def play(world: Any, commands: Sequence[Command], scope: Scope) -> None:
    tensors = scope.tensors
    for c in commands:
        a, b = tensors[c.a % len(tensors)], tensors[c.b % len(tensors)]
        match c.kind:
            case "load":
                tensors.append(world.load(c.buffer, world.offset(c, scope)))
            case "load_":
                tensors.append(world.load_(c.buffer, world.offset(c, scope), a))
            case "store":
                world.store(c.buffer, world.offset(c, scope), a)
            case "add":
                tensors.append(world.add(a, b))
            case "add_":
                world.add_(a, b)
            case "increase_":
                world.increase_(a)
            case "increase part_":
                world.increase_part_(a)
            case "view":
                tensors.append(world.view(a))
            case "out":
                world.out(a)
            case "step index_":
                world.step_(scope.index)
            case "step number_":
                world.step_(scope.number)
            case "call":
                tensors.append(world.call(c.body, a, b, scope))
            case "repeat":
                tensors.append(world.repeat(c.body, c.row, a, b, scope))
            case "branch":
                tensors.append(world.branch(c.body, c.other, a, scope, c.offset == "device"))
            case _:
                raise AssertionError(c.kind)


class Model:
    """Does everything at once, on NumPy arrays."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.rows = rng.integers(-9, 9, (BUFFERS, ROWS, *SHAPE)).astype(np.int32)
        self.variables = list(rng.integers(-9, 9, (2, *SHAPE)).astype(np.int32))
        self.number = np.array(seed % ROWS, np.uint32)
        self.rng = rng
        self.start_run()

    def start_run(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at  # number of the streamed offset that is out of range
        self.offsets: list[int] = []
        self.flags: list[bool] = []
        self.outputs: list[np.ndarray] = []

    def run(self, program: Sequence[Command], fails_at: int | None) -> bool:
        """Run the program, and return whether it came to its end."""
        self.start_run(fails_at)
        try:
            play(self, program, Scope(list(self.variables), np.array(0, np.uint32), self.number))
        except RemoteOffsetError:
            return False
        return True

    def offset(self, c: Command, scope: Scope) -> int:
        match c.offset:
            case "static" | "constant":
                return c.row
            case "index":
                return int(scope.index)
            case "computed":
                return (int(scope.index) + c.row) % ROWS
            case "device":
                return int(scope.number)
        fails = len(self.offsets) == self.fails_at
        self.offsets.append(ROWS if fails else int(self.rng.integers(ROWS)))
        if fails:
            raise RemoteOffsetError("Offset out of range.")
        return self.offsets[-1]

    def load(self, buffer: int, offset: int) -> T:
        return self.rows[buffer, offset].copy()

    def load_(self, buffer: int, offset: int, t: T) -> T:
        t[...] = self.rows[buffer, offset]
        return t

    def store(self, buffer: int, offset: int, t: T) -> None:
        self.rows[buffer, offset] = t

    def add(self, a: T, b: T) -> T:
        return a + b

    def add_(self, a: T, b: T) -> None:
        a += b.copy()

    def increase_(self, t: T) -> None:
        t += 1

    def increase_part_(self, t: T) -> None:
        t[3:9] += 10

    def view(self, t: T) -> T:
        return t.reshape(SHAPE)

    def out(self, t: T) -> None:
        self.outputs.append(t.copy())

    def step_(self, t: T) -> None:
        t[...] = (t + 1) % ROWS

    def call(self, body: Sequence[Command], by_ref: T, by_value: T, scope: Scope) -> T:
        inner = Scope([by_ref, by_value.copy()], scope.index.copy(), scope.number.copy())
        play(self, body, inner)
        return inner.tensors[-1].copy()

    def repeat(self, body: Sequence[Command], count: int, carried: T, by_ref: T, scope: Scope) -> T:
        index, carried = scope.index.copy(), carried.copy()
        for _ in range(count):
            inner = Scope([carried, by_ref], index, scope.number.copy())
            play(self, body, inner)
            carried, index = inner.tensors[-1].copy(), np.asarray((inner.index + 1) % ROWS)
        return carried

    def branch(self, then: Sequence[Command], other: Sequence[Command], t: T, scope: Scope, device: bool) -> T:
        if device:
            taken = int(scope.number) == 0
        else:
            taken = bool(self.rng.integers(2))
            self.flags.append(taken)
        inner = Scope([t.copy()], scope.index.copy(), scope.number.copy())
        play(self, then if taken else other, inner)
        return inner.tensors[-1].copy()


class Builder:
    """Builds the program; `model` gives the variables their first values."""

    def __init__(self, model: Model, program: Sequence[Command]) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.buffers = [popxl.remote_buffer(SHAPE, popxl.int32, ROWS) for _ in range(BUFFERS)]
            self.rows = [
                popxl.remote_variable(model.rows[i, j], b, j) for i, b in enumerate(self.buffers) for j in range(ROWS)
            ]
            self.variables = [popxl.variable(v) for v in model.variables]
            self.number = popxl.variable(model.number, popxl.uint32)
            self.offsets = popxl.h2d_stream((), popxl.uint32, "offsets")
            self.flags = popxl.h2d_stream((), popxl.bool, "flags")
            self.outputs = popxl.d2h_stream(SHAPE, popxl.int32, "outputs")
            index = ops.increment_mod(popxl.constant(0, popxl.uint32), 0, ROWS)
            play(self, program, Scope(list(self.variables), index, self.number))

    def offset(self, c: Command, scope: Scope) -> Any:
        match c.offset:
            case "static":
                return c.row
            case "constant":
                return popxl.constant(c.row, popxl.uint32)
            case "index":
                return scope.index
            case "computed":
                return ops.increment_mod(scope.index, c.row, ROWS)
            case "device":
                return scope.number
        return ops.host_load(self.offsets)

    def load(self, buffer: int, offset: Any) -> T:
        return ops.remote_load(self.buffers[buffer], offset)

    def load_(self, buffer: int, offset: Any, t: T) -> T:
        return ops.remote_load_(self.buffers[buffer], offset, t)

    def store(self, buffer: int, offset: Any, t: T) -> None:
        ops.remote_store(self.buffers[buffer], offset, t)

    def add(self, a: T, b: T) -> T:
        return a + b

    def add_(self, a: T, b: T) -> None:
        a += b

    def increase_(self, t: T) -> None:
        t += 1

    def increase_part_(self, t: T) -> None:
        part = ops.slice_(t, 3, 9)
        part += 10

    def view(self, t: T) -> T:
        return t.reshape_(SHAPE)

    def out(self, t: T) -> None:
        ops.host_store(self.outputs, t)

    def step_(self, t: T) -> None:
        ops.increment_mod_(t, 1, ROWS)

    def call(self, body: Sequence[Command], by_ref: T, by_value: T, scope: Scope) -> T:
        def function(by_ref: popxl.TensorByRef, by_value: T, index: T, number: T) -> T:
            inner = Scope([by_ref, by_value], index, number)
            play(self, body, inner)
            return inner.tensors[-1]

        arguments = (by_ref, _other(by_value, by_ref), scope.index, scope.number)
        return ops.call(self.ir.create_graph(function, *arguments), *arguments)[0]

    def repeat(self, body: Sequence[Command], count: int, carried: T, by_ref: T, scope: Scope) -> T:
        def function(index: T, carried: T, by_ref: popxl.TensorByRef, number: T) -> tuple[T, T]:
            inner = Scope([carried, by_ref], index, number)
            play(self, body, inner)
            return ops.increment_mod(inner.index, 1, ROWS), inner.tensors[-1]

        arguments = (scope.index, _other(carried, by_ref), by_ref, scope.number)
        return ops.repeat(self.ir.create_graph(function, *arguments), count, *arguments)[1]

    def branch(self, then: Sequence[Command], other: Sequence[Command], t: T, scope: Scope, device: bool) -> T:
        def graph(body: Sequence[Command]) -> Any:
            def function(t: T, index: T, number: T) -> T:
                inner = Scope([t], index, number)
                play(self, body, inner)
                return inner.tensors[-1]

            return self.ir.create_graph(function, *arguments)

        arguments = (t, scope.index, scope.number)
        condition = ops.equal(scope.number, popxl.constant(0, popxl.uint32)) if device else ops.host_load(self.flags)
        return ops.conditional(condition, graph(then), graph(other), arguments, arguments)[0]


def _other(t: T, by_ref: T) -> T:
    """The same value, but not the very tensor that is passed by reference, which a call refuses."""
    return ops.identity(t) if t == by_ref else t


# Programs

SIMPLE = ("load", "load_", "store", "add", "add_", "increase_", "increase part_", "view", "out")
OFFSETS = ("static", "constant", "index", "computed", "device", "stream")
small = st.integers(0, 5)
simple = st.builds(
    Command,
    kind=st.sampled_from((*SIMPLE, *SIMPLE, "step index_", "step number_")),
    a=small,
    b=small,
    buffer=st.integers(0, BUFFERS - 1),
    row=st.integers(0, ROWS - 1),
    offset=st.sampled_from(OFFSETS),
)


def blocks(depth: int) -> st.SearchStrategy[tuple[Command, ...]]:
    if not depth:
        return st.lists(simple, min_size=1, max_size=5).map(tuple)
    control = st.builds(
        Command,
        kind=st.sampled_from(("call", "repeat", "branch")),
        a=small,
        b=small,
        row=st.integers(0, 3),
        offset=st.sampled_from(("device", "stream")),
        body=blocks(depth - 1),
        other=blocks(depth - 1),
    )
    return st.lists(st.one_of(simple, simple, simple, control), min_size=1, max_size=8).map(tuple)


def check_variables(session: popxl.Session, built: Builder, model: Model) -> None:
    wanted = [*model.rows.reshape(-1, *SHAPE), *model.variables, model.number]
    tensors = [*built.rows, *built.variables, built.number]
    values = session.get_tensors_data(tensors)
    for t, expected in zip(tensors, wanted, strict=True):
        np.testing.assert_array_equal(values[t], expected, err_msg=repr(t))


def run_once(
    session: popxl.Session, built: Builder, model: Model, program: Sequence[Command], fails_at: int | None
) -> None:
    completes = model.run(program, fails_at)
    count = built.ir.num_host_transfers
    items = {built.offsets: np.zeros(count, np.uint32), built.flags: np.zeros(count, bool)}
    items[built.offsets][: len(model.offsets)] = model.offsets
    items[built.flags][: len(model.flags)] = model.flags
    inputs = {s: items[s] for s in session.expected_inputs()}
    if not completes:
        with pytest.raises(RemoteOffsetError, match=f"Offset {ROWS} is outside"):
            session.run(inputs)
        # Where in the program the variables are now is not told; from here on they are what they are.
        values = session.get_tensors_data([*built.variables, built.number])
        for t, value in zip(values, [*model.variables, model.number], strict=True):
            value[...] = values[t]
        check_variables(session, built, model)
        return
    outputs = session.run(inputs)
    for stored in outputs.values():
        np.testing.assert_array_equal(stored[: len(model.outputs)], np.array(model.outputs).reshape(-1, *SHAPE))


def check(memory: str, program: Sequence[Command], seed: int, actions: Sequence[str]) -> None:
    model = Model(seed)
    built = Builder(model, program)
    built.ir.num_host_transfers = 500  # more than any of these programs makes
    session = popxl.Session(built.ir, streaming_memory=memory)
    session.__enter__()
    try:
        for action in actions:
            run_once(session, built, model, program, fails_at=seed % 3 if action == "fail" else None)
            match action:
                case "fetch":
                    check_variables(session, built, model)
                case "enter again":
                    session.__exit__(None, None, None)
                    check_variables(session, built, model)
                    session.__enter__()
                case "write":
                    model.rows[0, 0], model.variables[0][...] = 77, -5
                    session.write_variables_data(
                        {built.rows[0]: model.rows[0, 0], built.variables[0]: model.variables[0]}
                    )
    finally:
        session.__exit__(None, None, None)
    check_variables(session, built, model)


C = Command
ACTIONS = ("none", "fetch", "enter again", "write", "fail")


@pytest.mark.parametrize("kind", ["ram", "file"])
@settings(
    max_examples=40,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),  # explaining takes minutes here
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(program=blocks(2), seed=st.integers(0, 5), actions=st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=4))
# A variable's memory is a row's at the end of a run: the next run must not overwrite it.
@example(program=(C("load"), C("increase_"), C("out", a=2), C("store", a=0)), seed=0, actions=["none", "none", "none"])
# A run that fails before a dead value is replaced: the variable keeps it.
@example(
    program=(C("call", body=(C("repeat", body=(C("load_"),)), C("load_", offset="stream"))),), seed=0, actions=["fail"]
)
# One storage by reference and by value: the copy is taken at the call.
@example(
    program=(C("view"), C("call", b=2, body=(C("increase_"), C("add", b=1))), C("out", a=3)), seed=0, actions=["none"]
)
def test_programs_do_what_the_model_says(
    kind: str, program: tuple[Command, ...], seed: int, actions: list[str]
) -> None:
    if kind == "ram":
        check("ram", program, seed, actions)
    else:
        with tempfile.TemporaryDirectory() as directory:
            check(f"file:{directory}", program, seed, actions)
