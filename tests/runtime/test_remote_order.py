"""Loads and stores happen in the order of the program, and rows and tensors never share what changes (§1, §4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops

T: Any = Any
SIZE = 32


@pytest.fixture(params=[False, True], ids=["free", "in_sequence"])
def order(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """What the program is wrapped in; it makes no difference to what it does."""
    return popxl.in_sequence if request.param else nullcontext


class Bench:
    """Two buffers of two rows, each row with a variable that starts at 1, 2, 3 and 4; `outputs` are streamed."""

    def __init__(self, memory: str, order: Callable[[], Any] = nullcontext) -> None:
        self.memory = memory
        self.order = order
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.a, self.b = (popxl.remote_buffer((SIZE,), popxl.float32, 2) for _ in range(2))
            self.rows = [
                popxl.remote_variable(np.full(SIZE, value, np.float32), buffer, offset)
                for value, buffer, offset in ((1, self.a, 0), (2, self.a, 1), (3, self.b, 0), (4, self.b, 1))
            ]
            self.out = popxl.d2h_stream((SIZE,), popxl.float32)
        self.stored = 0

    @contextmanager
    def main(self) -> Iterator[None]:
        with self.ir.main_graph, self.order():
            yield

    def show(self, t: T) -> None:
        ops.host_store(self.out, t)
        self.stored += 1

    def run(self, runs: int = 1) -> tuple[list[list[float]], list[float]]:
        """Return what each run streamed, and what the rows hold at the end; every element must agree."""
        self.ir.num_host_transfers = max(1, self.stored)
        streamed: list[list[float]] = []
        with popxl.Session(self.ir, streaming_memory=self.memory) as session:
            for _ in range(runs):
                outputs = session.run()
                items = outputs[self.out].reshape(-1, SIZE) if outputs else np.zeros((0, SIZE))
                assert (items == items[:, :1]).all()
                streamed.append(items[:, 0].tolist())
            rows = session.get_tensors_data(self.rows).values()
        assert all((row == row[0]).all() for row in rows)
        return streamed, [float(row[0]) for row in rows]


def number(value: float) -> T:
    return popxl.constant(np.full(SIZE, value, np.float32))


# The patterns of §4


def test_load_change_store(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():
        ops.remote_store(bench.a, 0, ops.remote_load(bench.a, 0) + 10)
    assert bench.run(2)[1] == [21, 2, 3, 4]


def test_load_change_in_place_store(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():
        x = ops.remote_load(bench.a, 0)
        x += 10
        ops.remote_store(bench.a, 0, x)
    assert bench.run(2)[1] == [21, 2, 3, 4]


def test_load_accumulate_store(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():
        x = ops.remote_load(bench.a, 0)
        ops.var_updates.accumulate_(x, number(10))
        ops.remote_store(bench.a, 0, x)
        bench.show(x)
    assert bench.run(2) == ([[11], [21]], [21, 2, 3, 4])


def test_store_then_load(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():
        ops.remote_store(bench.a, 0, number(7))
        bench.show(ops.remote_load(bench.a, 0))
    assert bench.run() == ([[7]], [7, 2, 3, 4])


def test_load_then_unrelated_store(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():
        x = ops.remote_load(bench.a, 0)
        ops.remote_store(bench.a, 0, number(7))
        bench.show(x)
    assert bench.run(2) == ([[1], [7]], [7, 2, 3, 4])


def test_last_of_two_stores_wins(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():
        ops.remote_store(bench.a, 0, number(7))
        ops.remote_store(bench.a, 0, number(8))
    assert bench.run()[1] == [8, 2, 3, 4]


def test_other_rows_and_buffers_stay(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():
        ops.remote_store(bench.b, 1, ops.remote_load(bench.a, 0))
    assert bench.run()[1] == [1, 2, 3, 1]


def test_rows_change_places(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():
        x, y = ops.remote_load(bench.a, 0), ops.remote_load(bench.b, 1)
        ops.remote_store(bench.a, 0, y)
        ops.remote_store(bench.b, 1, x)
    assert bench.run()[1] == [4, 2, 3, 1]
    assert bench.run()[1] == [1, 2, 3, 4]  # another session goes on from there


def test_calls_of_a_graph_that_stores_happen_in_order(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():

        def double_and_add(x: T) -> None:
            ops.remote_store(bench.a, 0, ops.remote_load(bench.a, 0) * 2 + x)

        graph = bench.ir.create_graph(double_and_add, number(0))
        for value in (1, 5):
            ops.call(graph, number(value))
        bench.show(ops.remote_load(bench.a, 0))
    assert bench.run() == ([[11]], [11, 2, 3, 4])  # (1 * 2 + 1) * 2 + 5


def test_loop_iterations_happen_in_order(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():

        def body() -> None:
            x = ops.remote_load(bench.a, 0)
            x += 1
            ops.remote_store(bench.a, 0, x)
            ops.remote_store(bench.a, 1, ops.remote_load(bench.a, 1) + x)

        ops.repeat(bench.ir.create_graph(body), 3)
    assert bench.run()[1] == [4, 2 + 2 + 3 + 4, 3, 4]


def test_store_between_two_loads_is_seen_by_the_second(memory: str, order: Callable[[], Any]) -> None:
    bench = Bench(memory, order)
    with bench.main():
        first = ops.remote_load(bench.a, 0)
        ops.remote_store(bench.a, 0, first * 3)
        second = ops.remote_load(bench.a, 0)
        ops.remote_store(bench.a, 0, second * 3)
        for t in (first, second, ops.remote_load(bench.a, 0)):
            bench.show(t)
    assert bench.run(2) == ([[1, 3, 9], [9, 27, 81]], [81, 2, 3, 4])


# What is loaded is a copy


def test_loaded_value_is_unchanged_by_later_stores(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        x = ops.remote_load(bench.a, 0)
        for value in (7, 8):
            ops.remote_store(bench.a, 0, number(value))
        bench.show(x)
        bench.show(x + 0)
    assert bench.run()[0] == [[1, 1]]


def test_in_place_change_of_a_loaded_tensor_leaves_the_row(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        x = ops.remote_load(bench.a, 0)
        x += 10
        bench.show(x)
        bench.show(ops.remote_load(bench.a, 0))
    assert bench.run(3) == ([[11, 1]] * 3, [1, 2, 3, 4])


def test_loads_of_one_row_are_independent(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        x, y = ops.remote_load(bench.a, 0), ops.remote_load(bench.a, 0)
        x += 10
        y += 20
        for t in (x, y, ops.remote_load(bench.a, 0)):
            bench.show(t)
    assert bench.run(2)[0] == [[11, 21, 1]] * 2


def test_in_place_change_through_a_graph_leaves_the_row(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():

        def change(x: popxl.TensorByRef) -> None:
            x += 10

        x = ops.remote_load(bench.a, 0)
        graph = bench.ir.create_graph(change, x)
        ops.call(graph, x)
        ops.repeat(graph, 2, x)
        bench.show(x)
        bench.show(ops.remote_load(bench.a, 0))
    assert bench.run(2) == ([[31, 1]] * 2, [1, 2, 3, 4])


def test_in_place_change_of_a_part_of_a_loaded_tensor_leaves_the_row(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        x = ops.remote_load(bench.a, 0)
        for half in (ops.slice_(x, 0, SIZE // 2), ops.slice_(x, SIZE // 2, SIZE)):
            half += 10
        bench.show(x)
        bench.show(ops.remote_load(bench.a, 0))
    assert bench.run(2) == ([[11, 1]] * 2, [1, 2, 3, 4])


def test_row_that_was_never_written_stays_zero_whatever_happens_to_what_is_loaded(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        zeros = popxl.remote_buffer((SIZE,), popxl.float32, 2)
        x = ops.remote_load(zeros, 0)
        x += 10
        bench.show(ops.remote_load(zeros, 0))
        bench.show(ops.remote_load(zeros, 1))
    assert bench.run(2)[0] == [[0, 0]] * 2


def test_variable_loaded_in_place_is_independent_of_its_row_in_later_runs(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        v = popxl.variable(np.zeros(SIZE, np.float32))
        bench.show(ops.remote_load(bench.a, 0))
        v += 10
        bench.show(v)
        ops.remote_load_(bench.a, 0, v)
    assert bench.run(3) == ([[1, 10], [1, 11], [1, 11]], [1, 2, 3, 4])


# What is stored is a copy


def test_in_place_change_of_a_stored_tensor_leaves_the_row(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        x = number(5) + 1
        ops.remote_store(bench.a, 0, x)
        x += 10
        bench.show(x)
        bench.show(ops.remote_load(bench.a, 0))
    assert bench.run(2) == ([[16, 6]] * 2, [6, 2, 3, 4])


def test_variable_that_changes_after_it_was_stored_leaves_the_row(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        v = popxl.variable(np.zeros(SIZE, np.float32))
        before = ops.remote_load(bench.a, 0)
        v += 1
        bench.show(before)
        ops.remote_store(bench.a, 0, v)
    assert bench.run(4) == ([[1], [1], [2], [3]], [4, 2, 3, 4])


def test_one_tensor_stored_twice_gives_two_rows(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        x = number(5) + 1
        ops.remote_store(bench.a, 0, x)
        ops.remote_store(bench.a, 1, x)
        y = ops.remote_load(bench.a, 0)
        y += 10
        ops.remote_store(bench.a, 0, y)
    assert bench.run()[1] == [16, 6, 3, 4]


def test_row_moved_within_streaming_memory_is_a_copy(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        ops.remote_store(bench.b, 0, ops.remote_load(bench.a, 0))
        x = ops.remote_load(bench.b, 0)
        x += 10
        ops.remote_store(bench.b, 0, x)
    assert bench.run(2)[1] == [1, 2, 11, 4]


@pytest.mark.parametrize(
    "make",
    [
        lambda bench: number(6),
        lambda bench: popxl.variable(np.full(SIZE, 6, np.float32)),
        lambda bench: ops.slice_(popxl.variable(np.full(2 * SIZE, 6, np.float32)), 3, SIZE + 3),
        lambda bench: popxl.variable(np.full((2, SIZE // 2), 6, np.float32)).reshape_((SIZE,)),
        lambda bench: number(3) * 2,
    ],
    ids=["constant", "variable", "slice", "reshaped", "computed"],
)
def test_any_tensor_can_be_stored(make: Callable[[Bench], T], memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        ops.remote_store(bench.a, 0, make(bench))
    assert bench.run()[1] == [6, 2, 3, 4]


def test_input_of_a_graph_can_be_stored(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        x = number(6)
        ops.call(bench.ir.create_graph(lambda x: ops.remote_store(bench.a, 0, x), x), x)
    assert bench.run()[1] == [6, 2, 3, 4]


# Loading in place


def test_load_in_place_changes_every_alias(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        z = popxl.variable(np.zeros(SIZE, np.float32))
        view = z.reshape_((2, SIZE // 2))
        alias = ops.remote_load_(bench.a, 1, z)
        for t in (z, alias, view.reshape((SIZE,))):
            bench.show(t)
    assert bench.run()[0] == [[2, 2, 2]]


def test_load_leaves_other_tensors(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        z = popxl.variable(np.zeros(SIZE, np.float32))
        bench.show(ops.remote_load(bench.a, 1))
        bench.show(z)
    assert bench.run()[0] == [[2, 0]]


def test_load_into_a_view_changes_that_part(memory: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32)
        popxl.remote_variable([8.0, 9.0], buffer, 0)
        z = popxl.variable(np.arange(6, dtype=np.float32).reshape(3, 2))
        ops.remote_load_(buffer, 0, ops.slice_(z, 1, 2).reshape_((2,)))
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
        assert session.get_tensor_data(z).tolist() == [[0, 1], [8, 9], [4, 5]]


def test_load_into_an_argument_by_value_changes_the_copy_only(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        z = popxl.variable(np.zeros(SIZE, np.float32))
        (result,) = ops.call(bench.ir.create_graph(lambda z: ops.remote_load_(bench.a, 1, z), z), z)
        bench.show(result)
        bench.show(z)
    assert bench.run(2)[0] == [[2, 0]] * 2


def test_load_into_an_argument_by_reference_changes_the_callers_tensor(memory: str) -> None:
    bench = Bench(memory)
    with bench.main():
        z = popxl.variable(np.zeros(SIZE, np.float32))

        def load(z: popxl.TensorByRef) -> None:
            ops.remote_load_(bench.a, 1, z)

        ops.call(bench.ir.create_graph(load, z), z)
        bench.show(z)
        z += 1
        bench.show(z)
        bench.show(ops.remote_load(bench.a, 1))
    assert bench.run(2)[0] == [[2, 3, 2]] * 2


def test_worked_example_of_loading_in_place(memory: str) -> None:
    data = np.random.default_rng(0).normal(size=(1, 3, 5)).astype(np.float32)
    ir = popxl.Ir()
    ir.num_host_transfers = 3
    with ir.main_graph:
        buffer = popxl.remote_buffer((1, 3, 5), popxl.float32, 1)
        out = popxl.d2h_stream((1, 3, 5), popxl.float32)
        ops.remote_store(buffer, 0, popxl.variable(data))
        z = popxl.variable(np.zeros((1, 3, 5), np.float32))
        untouched = ops.remote_load(buffer, 0)
        ops.host_store(out, z)
        alias = ops.remote_load_(buffer, 0, z)
        ops.host_store(out, z)
        ops.host_store(out, alias)
        ops.remote_store(buffer, 0, untouched)
    with popxl.Session(ir, streaming_memory=memory) as session:
        before, of_z, of_alias = session.run()[out]
    assert not before.any()
    np.testing.assert_array_equal(of_z, data)
    np.testing.assert_array_equal(of_alias, data)


def test_worked_example_of_independent_rows(memory: str) -> None:
    data = np.random.default_rng(0).normal(size=(2, 7, 11)).astype(np.float16)
    ir = popxl.Ir()
    ir.num_host_transfers = 2
    with ir.main_graph:
        buffer = popxl.remote_buffer((7, 11), popxl.float16, 2)
        out = popxl.d2h_stream((7, 11), popxl.float16)
        for i in range(2):
            ops.remote_store(buffer, i, popxl.constant(data[i]))
        for i in range(2):
            ops.host_store(out, ops.remote_load(buffer, i))
    with popxl.Session(ir, streaming_memory=memory) as session:
        np.testing.assert_array_equal(session.run()[out], data)
