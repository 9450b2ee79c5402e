"""Which offsets and conditions the host computes, so that nothing waits for the device (popxl.plan.host_values)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from plan_machine import PlanMachine

import popxl
from popxl import ops
from popxl.plan import GraphPlan, plan_program
from popxl.plan.steps import Branch, Compute, Evaluate, RemoteLoad, RemoteStore, Step, called_plans

INDEX = popxl.uint32


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


def steps(plan: GraphPlan) -> Iterator[Step]:
    """The steps of a plan and of those it calls."""
    for step in plan.steps:
        yield step
        for body in called_plans(step):
            yield from steps(body)


def waits(ir: popxl.Ir) -> list[bool]:
    """Whether each transfer or host-driven branch waits for the device, in order."""
    return [s.waits for s in steps(plan_program(ir)) if isinstance(s, RemoteLoad | RemoteStore | Branch)]


def index(value: int = 0) -> popxl.Tensor:
    return popxl.constant(value, INDEX)


class Rows:
    """A program with a buffer of 8 rows; row k holds k."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.buffer = popxl.remote_buffer((), popxl.int32, 8)
            self.out = popxl.d2h_stream((), popxl.int32)

    def load(self, offset: int | popxl.Tensor) -> popxl.Tensor:
        return ops.remote_load(self.buffer, offset)

    def run(self, items: Any = None) -> int:
        """What the program stores to `out`."""
        rows = {(self.buffer.remote_buffer_id, e): np.array(e, np.int32) for e in range(8)}
        variables = {v: v.host_value for v in self.ir.main_graph.variables}
        machine = PlanMachine(plan_program(self.ir), rows, variables)
        return int(machine.run(items or {})[self.out])


@pytest.fixture
def rows() -> Rows:
    return Rows()


# What the host knows


def test_a_fixed_offset(rows: Rows) -> None:
    with rows.ir.main_graph:
        ops.host_store(rows.out, rows.load(3))
    assert waits(rows.ir) == [False]
    assert rows.run() == 3


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda i: i + 2, 5),
        (lambda i: i * 2 - 1, 5),
        (lambda i: ops.add_(ops.identity(i), index(4)), 7),
        (lambda i: ops.increment_mod(i, 3, 4), 2),
        (lambda i: ops.cast(ops.cast(i, popxl.int32) + 1, INDEX), 4),
        (lambda i: ops.reshape(ops.reshape(i, (1, 1)) + 1, (1,)), 4),
        (lambda i: ops.slice(ops.reshape(i, (1,)), 0, 1), 3),
        (lambda i: ops.where(ops.greater(i, index(2)), i - 1, i), 2),
    ],
)
def test_integer_arithmetic(rows: Rows, compute: Callable[[popxl.Tensor], popxl.Tensor], expected: int) -> None:
    with rows.ir.main_graph:
        ops.host_store(rows.out, rows.load(compute(index(3))))
    assert waits(rows.ir) == [False]
    assert rows.run() == expected


def test_integer_arithmetic_runs_on_the_host(rows: Rows) -> None:
    with rows.ir.main_graph:
        ops.host_store(rows.out, rows.load(ops.increment_mod(index(3) * 2 + 1, 1, 4)))
    plan = plan_program(rows.ir)
    assert [type(s) for s in plan.steps if isinstance(s, Evaluate | Compute)] == [Evaluate] * 3


def test_an_item_of_a_host_stream(rows: Rows) -> None:
    with rows.ir.main_graph:
        stream = popxl.h2d_stream((), INDEX)
        ops.host_store(rows.out, rows.load(ops.host_load(stream) + 1))
    assert waits(rows.ir) == [False]
    assert rows.run({stream: np.array(4, np.uint32)}) == 5


def test_a_carried_counter(rows: Rows) -> None:
    def body(i: popxl.Tensor, total: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        return i + 1, total + rows.load(i)

    with rows.ir.main_graph:
        total = popxl.variable(0, popxl.int32)
        _, total = ops.repeat(rows.ir.create_graph(body, index(), total), 5, index(2), total)
        ops.host_store(rows.out, total)
    assert waits(rows.ir) == [False]
    assert rows.run() == 2 + 3 + 4 + 5 + 6


def test_a_counter_that_is_incremented_in_place(rows: Rows) -> None:
    def body(i: popxl.TensorByRef, total: popxl.TensorByRef) -> None:
        ops.add_(total, rows.load(i))
        i += 1

    with rows.ir.main_graph:
        i, total = index(1) + 1, popxl.variable(0, popxl.int32)
        ops.repeat(rows.ir.create_graph(body, i, total), 4, i, total)
        ops.host_store(rows.out, total + rows.load(i))
    assert waits(rows.ir) == [False, False]
    assert rows.run() == 2 + 3 + 4 + 5 + 6


def test_the_counters_of_nested_loops(rows: Rows) -> None:
    def inner(j: popxl.Tensor, i: popxl.Tensor, total: popxl.TensorByRef) -> popxl.Tensor:
        ops.add_(total, rows.load(i * 2 + j))
        return j + 1

    with rows.ir.main_graph:
        total = popxl.variable(0, popxl.int32)
        inner_graph = rows.ir.create_graph(inner, index(), index(), total)

        def outer(i: popxl.Tensor, total: popxl.TensorByRef) -> popxl.Tensor:
            ops.repeat(inner_graph, 2, 0, i, total)
            return i + 1

        ops.repeat(rows.ir.create_graph(outer, index(), total), 4, 0, total)
        ops.host_store(rows.out, total)
    assert waits(rows.ir) == [False]
    assert rows.run() == sum(range(8))


def test_arguments_of_calls_whatever_the_call_site(rows: Rows) -> None:
    with rows.ir.main_graph:
        layer = rows.ir.create_graph(lambda i: rows.load(i), index())
        block = rows.ir.create_graph(lambda i: ops.call(layer, i + 1)[0], index())
        (a,), (b,) = ops.call(layer, 1), ops.call(block, 6)
        ops.host_store(rows.out, a * 10 + b)
    assert waits(rows.ir) == [False, False]
    assert rows.run() == 17


def test_outputs_of_calls_and_loops(rows: Rows) -> None:
    with rows.ir.main_graph:
        double = rows.ir.create_graph(lambda i: i + i, index())
        (i,) = ops.repeat(double, 2, index(1))
        (i,) = ops.call(rows.ir.create_graph(lambda i: i + 1, i), i)
        ops.host_store(rows.out, rows.load(i))
    assert waits(rows.ir) == [False]
    assert rows.run() == 5


def test_an_argument_that_a_call_overwrites(rows: Rows) -> None:
    def advance(i: popxl.TensorByRef) -> None:
        i += 2

    with rows.ir.main_graph:
        i = index(1) + 0
        ops.call(rows.ir.create_graph(advance, i), i)
        ops.host_store(rows.out, rows.load(i))
    assert waits(rows.ir) == [False]
    assert rows.run() == 3


def test_arguments_of_branches(rows: Rows) -> None:
    with rows.ir.main_graph:
        g = rows.ir.create_graph(lambda i: rows.load(i), index())
        h = rows.ir.create_graph(lambda i, k: rows.load(i + k), index(), index())
        condition = ops.greater(index(3), index(5))
        ops.host_store(rows.out, *ops.conditional(condition, g, h, [2], [4, 3]))
    assert waits(rows.ir) == [False, False, False]
    assert rows.run() == 7


def test_a_call_site_in_a_graph_that_is_never_called_does_not_count(rows: Rows) -> None:
    with rows.ir.main_graph:
        layer = rows.ir.create_graph(lambda i: rows.load(i), index())
        rows.ir.create_graph(lambda i: ops.call(layer, i), popxl.variable(0, INDEX))
        ops.host_store(rows.out, *ops.call(layer, 2))
    assert waits(rows.ir) == [False]
    assert rows.run() == 2


def test_an_offset_that_the_device_reads_as_well(rows: Rows) -> None:
    def body(i: popxl.Tensor, total: popxl.TensorByRef) -> popxl.Tensor:
        seen = ops.cast(i, popxl.int32)
        i += 1
        ops.add_(total, seen * 100 + rows.load(i))
        return i

    with rows.ir.main_graph:
        total = popxl.variable(0, popxl.int32)
        ops.repeat(rows.ir.create_graph(body, index(), total), 3, 0, total)
        ops.host_store(rows.out, total)
    assert waits(rows.ir) == [False]
    assert rows.run() == 100 * (0 + 1 + 2) + 1 + 2 + 3


def test_integers_that_steer_nothing_stay_on_the_device(ir: popxl.Ir) -> None:
    with ir.main_graph:
        out = popxl.d2h_stream((), INDEX)
        ops.host_store(out, index(3) + 1)
    assert [type(s) for s in plan_program(ir).steps if isinstance(s, Evaluate | Compute)] == [Compute]


# What only the device knows


@pytest.mark.parametrize(
    "offset",
    [
        lambda: popxl.variable(1, INDEX),
        lambda: popxl.variable(1, INDEX) + 1,
        lambda: index(1) + popxl.variable(1, INDEX),
        lambda: ops.slice(popxl.variable([1, 2], INDEX), 0, 1),
        lambda: ops.cast(popxl.constant(1.5), INDEX),
        lambda: ops.cast(ops.sum(popxl.variable([1, 2], popxl.int32)), INDEX),
    ],
)
def test_offsets_from_device_data_wait(rows: Rows, offset: Callable[[], popxl.Tensor]) -> None:
    with rows.ir.main_graph:
        ops.host_store(rows.out, rows.load(offset()))
    assert waits(rows.ir) == [True]


def test_an_offset_that_was_loaded_from_a_buffer_waits(rows: Rows) -> None:
    with rows.ir.main_graph:
        ops.host_store(rows.out, rows.load(rows.load(6)))
    assert waits(rows.ir) == [False, True]
    assert rows.run() == 6


def test_a_store_at_an_offset_from_device_data_waits(rows: Rows) -> None:
    with rows.ir.main_graph:
        ops.remote_store(rows.buffer, popxl.variable(1, INDEX), popxl.constant(5, popxl.int32))
    assert waits(rows.ir) == [True]


def test_one_call_site_with_device_data_makes_the_argument_unknown(rows: Rows) -> None:
    with rows.ir.main_graph:
        layer = rows.ir.create_graph(lambda i: rows.load(i), index())
        ops.call(layer, 2)
        ops.host_store(rows.out, *ops.call(layer, popxl.variable(3, INDEX)))
    assert waits(rows.ir) == [True, True]
    assert rows.run() == 3


def test_a_carried_value_that_meets_device_data_waits(rows: Rows) -> None:
    def body(i: popxl.Tensor, step: popxl.Tensor, total: popxl.TensorByRef) -> popxl.Tensor:
        ops.add_(total, rows.load(i))
        return i + step

    with rows.ir.main_graph:
        total, step = popxl.variable(0, popxl.int32), popxl.variable(2, INDEX)
        ops.repeat(rows.ir.create_graph(body, index(), step, total), 3, 0, step, total)
        ops.host_store(rows.out, total)
    assert waits(rows.ir) == [True]
    assert rows.run() == 0 + 2 + 4


def test_an_offset_that_is_overwritten_through_a_view_waits(rows: Rows) -> None:
    with rows.ir.main_graph:
        i = index(1) + 0
        ops.add_(ops.reshape_(i, (1,)), popxl.variable([2], INDEX))
        ops.host_store(rows.out, rows.load(i))
    assert waits(rows.ir) == [True]
    assert rows.run() == 3


def test_a_condition_from_device_data_waits(rows: Rows) -> None:
    with rows.ir.main_graph:
        load, same = rows.ir.create_graph(rows.load, index()), rows.ir.create_graph(lambda x: x, rows.load(0))
        ops.host_store(rows.out, *ops.conditional(popxl.variable(True, popxl.bool), load, same, [4], [5]))
    assert waits(rows.ir) == [False, True, False]
    assert rows.run() == 4
