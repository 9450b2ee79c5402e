"""Random programs of several replicas: variables of every kind, updated with what differs between replicas.

What they must give comes from `replica_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from replica_examples import assert_equal, session_on
from replica_model import Array, Buffers, Division

import popxl
from popxl import ops
from popxl.ops.collectives import replicated_all_gather

Kind = Literal["resident", "remote", "sharded", "resident shard"]
KINDS: tuple[Kind, ...] = ("resident", "remote", "sharded", "resident shard")
DTYPES = (popxl.float32, popxl.int32, popxl.float16, popxl.uint32)
SHAPES = ((), (1,), (2,), (3,), (5,), (2, 3), (4, 2), (1, 7), (2, 1, 3))
ROWS = 3


@dataclass(frozen=True)
class Grouping:
    """Either a stride and a size, or the group of each replica."""

    stride: int = 1
    size: int = 1
    assignment: tuple[int, ...] = ()

    def make(self, ir: popxl.Ir) -> popxl.ReplicaGrouping:
        if self.assignment:
            return ir.replica_grouping_from_assignments(list(self.assignment))
        return ir.replica_grouping(self.stride, self.size)


@dataclass(frozen=True)
class Spec:
    """One variable. `row` is its row if it is remote; `shards` picks among the possible numbers of shards."""

    kind: Kind
    shape: tuple[int, ...]
    dtype: Any
    grouping: Grouping
    shards: int
    row: int
    all_replicas: bool


@dataclass(frozen=True)
class Step:
    """What a program does with a variable, or with the rows of its buffer."""

    kind: Literal["add own", "add same", "load at own", "store at own", "show", "gather", "skip row"]
    variable: int
    row: int


@dataclass(frozen=True)
class Case:
    """A program, and how it is run. `after` says what happens after each run."""

    replicas: int
    devices: int
    specs: tuple[Spec, ...]
    steps: tuple[Step, ...]
    after: tuple[Literal["nothing", "read", "write", "leave"], ...]


# Drawing


@st.composite
def groupings(draw: Callable[..., Any], replicas: int) -> Grouping:
    """Any grouping of so many replicas."""
    if draw(st.booleans()):
        fitting = [(s, k) for s in range(1, replicas + 1) for k in range(1, replicas + 1) if not replicas % (s * k)]
        return Grouping(*draw(st.sampled_from(fitting)))
    size = draw(st.sampled_from([k for k in range(1, replicas + 1) if replicas % k == 0]))
    order = draw(st.permutations(range(replicas)))
    found = [0] * replicas
    for place, r in enumerate(order):
        found[r] = place // size
    numbers = {g: i for i, g in enumerate(dict.fromkeys(found))}
    return Grouping(assignment=tuple(numbers[g] for g in found))


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    """A program of two to eight replicas."""
    replicas = draw(st.sampled_from((2, 3, 4, 6, 8)))
    specs = draw(
        st.lists(
            st.builds(
                Spec,
                st.sampled_from(KINDS),
                st.sampled_from(SHAPES),
                st.sampled_from(DTYPES),
                groupings(replicas),
                st.integers(0, 3),
                st.integers(0, ROWS - 1),
                st.booleans(),
            ),
            min_size=1,
            max_size=4,
        )
    )
    kinds = ("add own", "add own", "add same", "load at own", "store at own", "show", "gather", "skip row")
    steps = draw(
        st.lists(
            st.builds(Step, st.sampled_from(kinds), st.integers(0, len(specs) - 1), st.integers(0, ROWS - 1)),
            min_size=1,
            max_size=10,
        )
    )
    devices = draw(st.sampled_from([d for d in range(1, replicas + 1) if replicas % d == 0]))
    after = draw(st.lists(st.sampled_from(("nothing", "nothing", "read", "write", "leave")), min_size=1, max_size=3))
    return Case(replicas, devices, tuple(specs), tuple(steps), tuple(after))


# The program and its model


class Held:
    """A variable in the program and in the model."""

    def __init__(self, ir: popxl.Ir, spec: Spec, seed: int, buffers: Buffers) -> None:
        self.spec, self.ir, self._buffers = spec, ir, buffers
        self.grouping = spec.grouping.make(ir)
        self.is_sharded = "shard" in spec.kind
        size = self.grouping.const_rg.group_size
        factors = [k for k in range(1, size + 1) if size % k == 0]
        shards = factors[spec.shards % len(factors)] if self.is_sharded else None
        self.division = Division(
            self.grouping.assignment, spec.shape, shards, self.grouping.const_rg.assignment if shards else ()
        )
        self.dtype = spec.dtype.as_numpy()
        self.host = self._value(seed)
        self.is_each = spec.all_replicas and self.grouping.group_size > 1
        self._make(shards)
        #: What the replicas have; of what is remote, the model's buffers have it.
        self._rows: list[Array] = []
        buffers.add(id(self), ROWS, self.division.row_shape, self.dtype)
        self.was_downloaded = False

    def _value(self, seed: int) -> Array:
        shape = self.division.host_shape()
        return (np.arange(np.prod(shape)).reshape(shape) % 50 + 60 * (seed % 8)).astype(self.dtype)

    def _make(self, shards: int | None) -> None:
        spec = self.spec
        options: Any = {
            "dtype": spec.dtype,
            "replica_grouping": self.grouping,
            "retrieval_mode": "all_replicas" if spec.all_replicas else "one_per_group",
        }
        data = self.host.copy()
        self.buffer: popxl.RemoteBuffer | None = None
        self.resident: popxl.Tensor | None = None
        if spec.kind == "resident":
            self.variable = self.resident = popxl.variable(data, **options)
        elif spec.kind == "resident shard":
            self.variable, self.resident = popxl.replica_sharded_variable(data, shard_over=shards, **options)
        elif spec.kind == "remote":
            self.buffer = popxl.remote_buffer(spec.shape, spec.dtype, ROWS)
            self.variable = popxl.remote_variable(data, self.buffer, spec.row, **options)
        else:
            shape = (self.grouping.const_rg.num_groups, *spec.shape)
            shape = shape if shape[0] > 1 else spec.shape
            self.buffer = popxl.replica_sharded_buffer(shape, spec.dtype, self.grouping, shards, ROWS)
            self.variable = popxl.remote_replica_sharded_variable(data, self.buffer, spec.row, **options)

    def upload(self) -> None:
        self.rows = self.division.upload(self.host)

    @property
    def rows(self) -> list[Array]:
        """What the replicas have of the variable."""
        return self._rows if self.buffer is None else self._buffers.row(id(self), self.spec.row)

    @rows.setter
    def rows(self, rows: Sequence[Array]) -> None:
        if self.buffer is None:
            self._rows = list(rows)
        else:
            self._buffers.set_row(id(self), self.spec.row, rows)

    def load(self) -> popxl.Tensor:
        if self.resident is not None:
            return self.resident
        assert self.buffer is not None
        return ops.remote_load(self.buffer, self.spec.row)

    def store(self, t: popxl.Tensor) -> None:
        if self.buffer is not None:
            ops.remote_store(self.buffer, self.spec.row, t)

    def write(self, seed: int) -> Array:
        self.host = self._value(seed)
        return self.host

    def expected(self) -> Array:
        """What the host reads."""
        return self.division.download_each(self.rows) if self.is_each else self.division.download(self.rows)


class Pair:
    """A program and its model, built together."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.ir = popxl.Ir(replication=case.replicas)
        self.ir.num_host_transfers = max(2 * len(case.steps), 2)
        self.buffers = Buffers(case.replicas)
        self.outputs: list[popxl.DeviceToHostStream] = []
        with self.ir.main_graph, popxl.in_sequence():
            self.held = [Held(self.ir, spec, i, self.buffers) for i, spec in enumerate(case.specs)]
            self.numbers = {d: popxl.h2d_stream((), d) for d in dict.fromkeys(s.dtype for s in case.specs)}
            self.offsets = popxl.h2d_stream((), popxl.uint32)
            # Each stream is used at least once.
            for stream in (*self.numbers.values(), self.offsets):
                self._show(ops.host_load(stream))
            for step in case.steps:
                self._build(step, self.held[step.variable])
        self.inputs: dict[Any, Array] = {}

    def _show(self, t: popxl.Tensor) -> None:
        self.outputs.append(popxl.d2h_stream(t.shape, t.dtype))
        ops.host_store(self.outputs[-1], ops.reshape(t, t.shape))

    def _build(self, step: Step, held: Held) -> None:
        buffer = held.buffer
        match step.kind:
            case "add own" | "add same":
                own = step.kind == "add own"
                t = held.load()
                t += ops.host_load(self.numbers[held.spec.dtype]) if own else popxl.constant(2, held.spec.dtype)
                held.store(t)
            case "load at own" if buffer is not None:
                self._show(ops.remote_load(buffer, ops.host_load(self.offsets)))
            case "store at own" if buffer is not None:
                ops.remote_store(buffer, ops.host_load(self.offsets), ops.remote_load(buffer, step.row))
            case "skip row" if buffer is not None:
                ops.remote_store(buffer, step.row, ops.remote_load(buffer, (step.row + 1) % ROWS))
            case "gather" if held.is_sharded:
                group = self.ir.replica_grouping(
                    held.grouping.const_rg.stride if (held.division.shards or 1) > 1 else 1, held.division.shards
                )
                self._show(replicated_all_gather(held.load(), group=group))
            case _:
                self._show(held.load())

    # The model

    def run(self, session: popxl.Session, seed: int) -> None:
        """Run once, and compare what is stored."""
        count, replicas = self.ir.num_host_transfers, self.case.replicas
        rng = np.random.default_rng(seed)
        self.inputs = {s: rng.integers(0, 9, (count, replicas)).astype(d.as_numpy()) for d, s in self.numbers.items()}
        self.inputs[self.offsets] = rng.integers(0, ROWS, (count, replicas)).astype(np.uint32)
        self._positions = dict.fromkeys(self.inputs, 0)
        expected = [self._item(s) for s in (*self.numbers.values(), self.offsets)]
        for step in self.case.steps:
            expected += [np.stack(shown) for shown in self._play(step, self.held[step.variable])]
        found = session.run(self.inputs)
        for i, (stream, value) in enumerate(zip(self.outputs, expected, strict=True)):
            assert_equal(found[stream][0], value, f"output {i}")

    def _item(self, stream: Any) -> Array:
        self._positions[stream] += 1
        return self.inputs[stream][self._positions[stream] - 1]

    def _play(self, step: Step, held: Held) -> list[list[Array]]:
        is_remote, key = held.buffer is not None, id(held)
        with np.errstate(all="ignore"):
            match step.kind:
                case "add own":
                    numbers = self._item(self.numbers[held.spec.dtype])
                    held.rows = [row + numbers[r] for r, row in enumerate(held.rows)]
                case "add same":
                    held.rows = [row + held.dtype.type(2) for row in held.rows]
                case "load at own" if is_remote:
                    return [self.buffers.load(key, self._item(self.offsets))]
                case "store at own" if is_remote:
                    self.buffers.store(key, self._item(self.offsets), self.buffers.row(key, step.row))
                case "skip row" if is_remote:
                    self.buffers.set_row(key, step.row, self.buffers.row(key, (step.row + 1) % ROWS))
                case "gather" if held.is_sharded:
                    return [self._gathered(held)]
                case _:
                    return [held.rows]
        return []

    def _gathered(self, held: Held) -> list[Array]:
        """For each replica the value that the shards in its own set of shards make."""
        division = held.division
        members = [[q for q, g in enumerate(division.sharding) if g == mine] for mine in division.sharding]
        assert division.shards is not None
        results: list[Array] = []
        for r in range(division.replicas):
            start = members[r].index(r) // division.shards * division.shards
            parts = [held.rows[q] for q in members[r][start : start + division.shards]]
            whole = np.concatenate(parts)
            # A shard of a single number says nothing of its shape (`meta_shape` is empty): shards are strung together.
            results.append(whole[: int(np.prod(division.shape))].reshape(division.shape) if division.shape else whole)
        return results

    def check_variables(self, session: popxl.Session) -> None:
        for i, held in enumerate(self.held):
            assert_equal(session.get_tensor_data(held.variable), held.expected(), f"variable {i}")


def check(case: Case, tier: str, directory: Any) -> None:
    """Run a program and its model side by side."""
    pair = Pair(case)
    session = session_on(pair.ir, tier, case.devices, directory)
    for held in pair.held:
        held.upload()
    session.__enter__()
    try:
        for number, action in enumerate(case.after):
            pair.run(session, number)
            match action:
                case "read":
                    pair.check_variables(session)
                case "write":
                    values = {h.variable: h.write(number + i) for i, h in enumerate(pair.held) if not h.is_each}
                    session.write_variables_data(values)
                    for h in pair.held:
                        if not h.is_each:
                            h.upload()
                case "leave":
                    session.__exit__(None, None, None)
                    pair.check_variables(session)
                    _leave(pair)
                    session.__enter__()
                case _:
                    pass
    finally:
        session.__exit__(None, None, None)
    pair.check_variables(session)


def _leave(pair: Pair) -> None:
    """What is attached again starts from the host's values: members of a group are equal, other rows are zeros."""
    for held in pair.held:
        held.host = held.division.download(held.rows)
        held._buffers.add(id(held), ROWS, held.division.row_shape, held.dtype)
        held.upload()
