"""Offsets that are known when the program runs: where they come from, and when they are out of range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import RemoteOffsetError

ENTRIES = 4
T: Any = Any


class Rows:
    """A buffer whose row i holds i + 1, each with a variable, and an offset that a stream gives."""

    def __init__(self, memory: str, dtype: Any = popxl.uint32, shape: tuple[int, ...] = ()) -> None:
        self.memory = memory
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.buffer = popxl.remote_buffer((2,), popxl.float32, ENTRIES)
            self.variables = [
                popxl.remote_variable(np.full(2, i + 1, np.float32), self.buffer, i) for i in range(ENTRIES)
            ]
            self.offset = popxl.h2d_stream(shape, dtype, "offset")
            self.out = popxl.d2h_stream((2,), popxl.float32, "out")

    def session(self) -> popxl.Session:
        return popxl.Session(self.ir, streaming_memory=self.memory)

    def values(self, session: popxl.Session) -> list[float]:
        values = session.get_tensors_data(self.variables)
        assert all(v[0] == v[1] for v in values.values())
        return [float(v[0]) for v in values.values()]


# Where an offset may come from

INTEGERS = [popxl.int8, popxl.int16, popxl.int32, popxl.int64, popxl.uint8, popxl.uint16, popxl.uint32, popxl.uint64]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: d.name)
def test_offset_of_any_integer_type_comes_from_a_stream(dtype: Any, shape: tuple[int, ...]) -> None:
    rows = Rows("ram", dtype, shape)
    with rows.ir.main_graph:
        offset = ops.host_load(rows.offset)
        t = ops.remote_load(rows.buffer, offset)
        ops.host_store(rows.out, t)
        ops.remote_store(rows.buffer, offset, t * 10)
    with rows.session() as session:
        for i in (2, 0):
            assert session.run({rows.offset: np.full(shape, i, dtype.as_numpy())})[rows.out].tolist() == [i + 1] * 2
        assert rows.values(session) == [10, 2, 30, 4]


def from_constant(rows: Rows) -> T:
    return popxl.constant(2, popxl.int32)


def from_variable(rows: Rows) -> T:
    return popxl.variable(2, popxl.uint32)


def from_variable_of_one_element(rows: Rows) -> T:
    return popxl.variable([2], popxl.int32)


def from_arithmetic_on_constants(rows: Rows) -> T:
    return popxl.constant(5, popxl.uint32) - 3


def from_arithmetic_on_a_variable(rows: Rows) -> T:
    return popxl.variable(1, popxl.uint32) * 2


def from_a_view(rows: Rows) -> T:
    return popxl.variable([0, 2], popxl.uint32)[1].reshape_((1,))


def from_a_graph(rows: Rows) -> T:
    one = popxl.constant(1, popxl.uint32)
    return ops.call(rows.ir.create_graph(lambda t: t + t, one), one)[0]


def from_a_loop(rows: Rows) -> T:
    zero = popxl.constant(0, popxl.uint32)
    return ops.repeat(rows.ir.create_graph(lambda t: t + 1, zero), 2, zero)[0]


def from_a_branch(rows: Rows) -> T:
    then, other = (rows.ir.create_graph(lambda i=i: popxl.constant(i, popxl.uint32)) for i in (2, 3))
    return ops.conditional(popxl.constant(True), then, other)[0]


def from_a_row(rows: Rows) -> T:
    buffer = popxl.remote_buffer((), popxl.int32, 1)
    popxl.remote_variable(2, buffer, 0, popxl.int32)
    return ops.remote_load(buffer, 0)


SOURCES = [
    from_constant,
    from_variable,
    from_variable_of_one_element,
    from_arithmetic_on_constants,
    from_arithmetic_on_a_variable,
    from_a_view,
    from_a_graph,
    from_a_loop,
    from_a_branch,
    from_a_row,
]


@pytest.mark.parametrize("source", SOURCES)
def test_offset_comes_from_anywhere(source: Callable[[Rows], T], memory: str) -> None:
    rows = Rows(memory)
    with rows.ir.main_graph:
        offset = source(rows)
        t = ops.remote_load(rows.buffer, offset)
        ops.host_store(rows.out, t)
        ops.remote_store(rows.buffer, offset, t + 20)
    with rows.session() as session:
        assert session.run()[rows.out].tolist() == [3, 3]
        assert rows.values(session) == [1, 2, 23, 4]


@pytest.mark.parametrize("source", SOURCES)
def test_offset_from_anywhere_is_passed_into_a_graph(source: Callable[[Rows], T], memory: str) -> None:
    rows = Rows(memory)
    with rows.ir.main_graph:
        offset = source(rows)

        def body(offset: T) -> None:
            ops.remote_store(rows.buffer, offset, ops.remote_load(rows.buffer, offset) + 20)

        ops.call(rows.ir.create_graph(body, offset), offset)
    with rows.session() as session:
        session.run()
        assert rows.values(session) == [1, 2, 23, 4]


def test_offset_changed_in_place_addresses_the_new_row(memory: str) -> None:
    rows = Rows(memory)
    rows.ir.num_host_transfers = 2
    with rows.ir.main_graph:
        offset = popxl.variable(0, popxl.uint32)
        for _ in range(2):
            ops.host_store(rows.out, ops.remote_load(rows.buffer, offset))
            offset += 1
    with rows.session() as session:
        assert session.run()[rows.out][:, 0].tolist() == [1, 2]
        assert session.run()[rows.out][:, 0].tolist() == [3, 4]


def test_load_from_row_told_by_another_load_of_the_same_buffer(memory: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        chain = popxl.remote_buffer((), popxl.int32, ENTRIES)
        for i, following in enumerate((2, 0, 3, 1)):
            popxl.remote_variable(following, chain, i, popxl.int32)
        out = popxl.d2h_stream((), popxl.int32)
        i = popxl.constant(0, popxl.int32)
        (last,) = ops.repeat(ir.create_graph(lambda i: ops.remote_load(chain, i), i), 3, i)
        ops.host_store(out, last)
    with popxl.Session(ir, streaming_memory=memory) as session:
        assert session.run()[out] == 1  # 0 -> 2 -> 3 -> 1


# Loops


def test_worked_example_of_a_loop_over_rows(memory: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buf = popxl.remote_buffer((2,), popxl.float32, entries=4)
        rows = [popxl.remote_variable(np.full(2, i + 1, np.float32), buf, i) for i in range(4)]

        def step(i: T, x: T, b: popxl.RemoteBuffer) -> tuple[T, T]:
            w = ops.remote_load(b, i)
            x = x + w
            ops.remote_store(b, i, w * 2)
            return i + 1, x

        i0, x0 = popxl.constant(0, popxl.uint32), popxl.constant(np.zeros(2, np.float32))
        i_last, y = ops.repeat(ir.create_graph(step, i0, x0, buf), 4, i0, x0)
        i_out, y_out = popxl.d2h_stream((), popxl.uint32), popxl.d2h_stream((2,), popxl.float32)
        ops.host_store(i_out, i_last)
        ops.host_store(y_out, y)
    with popxl.Session(ir, streaming_memory=memory) as session:
        outputs = session.run()
        assert outputs[i_out] == 4
        assert outputs[y_out].tolist() == [10, 10]
        assert [session.get_tensor_data(v).tolist() for v in rows] == [[2, 2], [4, 4], [6, 6], [8, 8]]


def test_loop_of_no_iterations_touches_no_row(memory: str) -> None:
    rows = Rows(memory)
    with rows.ir.main_graph:
        i0 = popxl.constant(0, popxl.uint32)

        def step(i: T) -> T:
            ops.remote_store(rows.buffer, i, ops.remote_load(rows.buffer, i) * 5)
            return i + 1

        ops.repeat(rows.ir.create_graph(step, i0), 0, i0)
    with rows.session() as session:
        before = (session.streaming_memory.counters.loads, session.streaming_memory.counters.stores)
        session.run()
        assert (session.streaming_memory.counters.loads, session.streaming_memory.counters.stores) == before
        assert rows.values(session) == [1, 2, 3, 4]


def test_nested_loops_address_row_times_steps_plus_step(memory: str) -> None:
    steps = 2
    rows = Rows(memory)
    with rows.ir.main_graph:
        zero = popxl.constant(0, popxl.uint32)

        def inner(i: T) -> T:
            ops.remote_store(rows.buffer, i, ops.remote_load(rows.buffer, i) + 10)
            return i + 1

        inner_graph = rows.ir.create_graph(inner, zero)

        def outer(i: T) -> T:
            return ops.repeat(inner_graph, steps, i)[0]

        ops.repeat(rows.ir.create_graph(outer, zero), ENTRIES // steps, zero)
    with rows.session() as session:
        session.run()
        assert rows.values(session) == [11, 12, 13, 14]


def test_one_graph_called_with_other_offsets_touches_other_rows(memory: str) -> None:
    rows = Rows(memory)
    with rows.ir.main_graph:

        def body(offset: T) -> None:
            ops.remote_store(rows.buffer, offset, ops.remote_load(rows.buffer, offset) + 10)

        graph = rows.ir.create_graph(body, popxl.TensorSpec((), popxl.uint32))
        for i in (3, 1, 3):
            ops.call(graph, popxl.constant(i, popxl.uint32))
    with rows.session() as session:
        session.run()
        assert rows.values(session) == [1, 12, 3, 24]


@pytest.mark.parametrize("known_to_the_host", [True, False])
@pytest.mark.parametrize("taken", [True, False])
def test_only_the_branch_taken_touches_rows(taken: bool, known_to_the_host: bool, memory: str) -> None:
    rows = Rows(memory)
    with rows.ir.main_graph:
        flag = popxl.constant(taken) if known_to_the_host else popxl.variable(taken)

        def touch(row: int) -> Any:
            def body() -> T:
                ops.remote_store(rows.buffer, row, ops.remote_load(rows.buffer, row) + 10)
                return popxl.constant(0.0)

            return rows.ir.create_graph(body)

        ops.conditional(flag, touch(0), touch(3))
    with rows.session() as session:
        session.run()
        assert rows.values(session) == ([11, 2, 3, 4] if taken else [1, 2, 3, 14])


# Out of range


def in_main(rows: Rows, use: Callable[[T], None]) -> None:
    use(ops.host_load(rows.offset))


def in_graph(rows: Rows, use: Callable[[T], None]) -> None:
    offset = ops.host_load(rows.offset)
    ops.call(rows.ir.create_graph(use, offset), offset)


def in_loop(rows: Rows, use: Callable[[T], None]) -> None:
    def body(offset: T) -> T:
        use(offset)
        return offset + 0

    offset = ops.host_load(rows.offset)
    ops.repeat(rows.ir.create_graph(body, offset), 2, offset)


def in_branch(rows: Rows, use: Callable[[T], None]) -> None:
    def body(offset: T) -> T:
        use(offset)
        return offset + 0

    offset = ops.host_load(rows.offset)
    graph = rows.ir.create_graph(body, offset)
    ops.conditional(popxl.variable(True), graph, rows.ir.create_graph(lambda x: x + 0, offset), [offset], [offset])


def on_device(rows: Rows, use: Callable[[T], None]) -> None:
    use(ops.host_load(rows.offset) + popxl.variable(0, rows.offset.dtype))


PLACES = [in_main, in_graph, in_loop, in_branch, on_device]


@pytest.mark.parametrize("kind", ["load", "load_", "store"])
@pytest.mark.parametrize("place", PLACES)
def test_offset_out_of_range_is_refused_when_it_is_used(place: Callable[..., None], kind: str, memory: str) -> None:
    rows = Rows(memory, popxl.int32)
    with rows.ir.main_graph:
        counted = popxl.variable(np.arange(3), popxl.int64, name="counted")
        counted += 2**40

        def use(offset: T) -> None:
            if kind == "load":
                ops.remote_store(rows.buffer, offset, ops.remote_load(rows.buffer, offset) + 10)
            elif kind == "load_":
                t = ops.init((2,), popxl.float32, init_type="zero")
                ops.remote_store(rows.buffer, offset, ops.remote_load_(rows.buffer, offset, t) + 10)
            else:
                ops.remote_store(rows.buffer, offset, popxl.constant([50.0, 50.0]))

        place(rows, use)
        counted += 2**41
    with rows.session() as session:
        for offset in (ENTRIES, -1, 2**31 - 1):
            session.weights_from_host()
            with pytest.raises(RemoteOffsetError, match=f"Offset {offset} is outside") as caught:
                session.run({rows.offset: offset})
            message = str(caught.value)
            for part in (repr(rows.buffer), f"{ENTRIES} entries", __file__, "in use", "Hint:"):
                assert part in message
            # No row was touched, and the variables are as they were at that point of the program.
            assert rows.values(session) == [1, 2, 3, 4]
            assert session.get_tensor_data(counted).tolist() == [2**40, 2**40 + 1, 2**40 + 2]
            session.write_variable_data(counted, np.arange(3))
        session.run({rows.offset: 2})
        changed = 50 if kind == "store" else 23 if place is in_loop else 13
        assert rows.values(session) == [1, 2, changed, 4]
        assert session.get_tensor_data(counted)[0] == 2**40 + 2**41


def test_what_was_stored_before_the_refusal_stays(memory: str) -> None:
    rows = Rows(memory)
    with rows.ir.main_graph:
        offset = ops.host_load(rows.offset)
        ops.remote_store(rows.buffer, 0, popxl.constant([9.0, 9.0]))
        ops.remote_load(rows.buffer, offset)
        ops.remote_store(rows.buffer, 1, popxl.constant([9.0, 9.0]))
    with rows.session() as session:
        with pytest.raises(ValueError, match="Offset 99"):
            session.run({rows.offset: np.uint32(99)})
        assert rows.values(session) == [9, 2, 3, 4]


def test_row_is_not_overwritten_by_the_run_after_a_refusal(memory: str) -> None:
    rows = Rows(memory)
    with rows.ir.main_graph:
        v = popxl.variable(np.zeros(2, np.float32))
        check = popxl.h2d_stream((), popxl.uint32)
        v += 1
        ops.remote_store(rows.buffer, ops.host_load(rows.offset), v)
        ops.remote_load(rows.buffer, ops.host_load(check))
        v += 1
    with rows.session() as session:
        with pytest.raises(ValueError, match="Offset 99"):
            session.run({rows.offset: np.uint32(0), check: np.uint32(99)})  # row 0 and v hold the same now
        session.run({rows.offset: np.uint32(1), check: np.uint32(0)})
        assert rows.values(session) == [1, 2, 3, 4]
        assert session.get_tensor_data(v).tolist() == [3, 3]


def test_variable_passed_by_reference_is_whole_after_a_refusal(memory: str) -> None:
    rows = Rows(memory)
    with rows.ir.main_graph:
        v = popxl.variable(np.zeros(64, np.float32))
        offset = ops.host_load(rows.offset)

        def body(v: popxl.TensorByRef, offset: T) -> None:
            v += 1
            ops.remote_load(rows.buffer, offset)
            v += 1

        graph = rows.ir.create_graph(body, v, offset)
        ops.call(graph, v, offset)
        ops.repeat(graph, 2, inputs_dict={graph.inputs[0]: v, graph.inputs[1]: offset})
    with rows.session() as session:
        with pytest.raises(ValueError, match="Offset 99"):
            session.run({rows.offset: np.uint32(99)})
        assert session.get_tensor_data(v).tolist() == [1] * 64
        session.run({rows.offset: np.uint32(0)})
        assert session.get_tensor_data(v).tolist() == [7] * 64


@pytest.mark.parametrize("runs", ["once", "twice", 0, 2])
def test_an_offset_may_pass_through_a_graph_that_transfers_nothing(memory: str, runs: str | int) -> None:
    rows = Rows(memory)
    with rows.ir.main_graph:
        x = popxl.variable(np.ones(4, np.float32))

        def layer(i: T, t: T) -> tuple[T, T]:
            for _ in range(200):  # too large to become part of the graph that calls it
                t = ops.sin(t) + 1.0
            return i, t

        offset = popxl.constant(2, popxl.uint32)
        graph = rows.ir.create_graph(layer, offset, x)
        if isinstance(runs, int):
            passed, _ = ops.repeat(graph, runs, offset, x)
        else:
            if runs == "twice":
                ops.call(graph, offset, x)
            passed, _ = ops.call(graph, offset, x)
        ops.remote_store(rows.buffer, passed, ops.remote_load(rows.buffer, passed) + 10)
        ops.host_load(rows.offset)
    with rows.session() as session:
        session.run({rows.offset: np.uint32(0)})
        assert rows.values(session) == [1, 2, 13, 4]
