"""Who owns which memory: what a segment may overwrite, and what it must not (popxl.plan.assemble).

Each hazard is a small program, walked with NumPy by a machine that refuses memory which was freed or donated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from plan_machine import PlanMachine

import popxl
from popxl import ops
from popxl.plan import GraphPlan, plan_program
from popxl.plan import program as plan_program_module
from popxl.plan.steps import Compute, called_plans

accumulate_ = ops.var_updates.accumulate_


@pytest.fixture(autouse=True)
def nothing_is_inlined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_program_module, "SMALL_GRAPH_OPS", -1)
    monkeypatch.setattr(plan_program_module, "SMALL_LOOP_OPS", -1)


class Program:
    """A main graph and what to fetch from it."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.buffer = popxl.remote_buffer((2,), popxl.float32, 4)
            self.one = popxl.constant([1.0, 1.0])
        self.streams: list[popxl.DeviceToHostStream] = []

    def fetch(self, *tensors: popxl.Tensor) -> None:
        """Store tensors to the host."""
        for t in tensors:
            self.streams.append(popxl.d2h_stream(t.shape, t.dtype))
            ops.host_store(self.streams[-1], t)

    def run(self, runs: int = 1) -> list[list[float]]:
        """The first element of each fetched tensor, in each run."""
        self.plan = plan_program(self.ir)
        buffer_id = self.buffer.remote_buffer_id
        rows = {(buffer_id, e): np.full(2, 10.0 * e, np.float32) for e in range(4)}
        machine = PlanMachine(self.plan, rows, {v: v.host_value for v in self.ir.main_graph.variables})
        results = [machine.run({}) for _ in range(runs)]
        self.rows = [float(machine.rows[buffer_id, e].read()[0]) for e in range(4)]
        return [[float(found[s].flat[0]) for s in self.streams] for found in results]

    def donated(self) -> list[str]:
        """The values that segments overwrite, by name."""
        return [
            v.tensor.name if not isinstance(v, popxl.Tensor) else v.name
            for step in compute_steps(plan_program(self.ir))
            for v in (step.segment.inputs[i] for i in step.segment.donated)
        ]


def compute_steps(plan: GraphPlan) -> Iterator[Compute]:
    for step in plan.steps:
        if isinstance(step, Compute):
            yield step
        for body in called_plans(step):
            yield from compute_steps(body)


@pytest.fixture
def program() -> Program:
    return Program()


# What is overwritten


def test_a_variable_is_updated_in_its_own_memory(program: Program) -> None:
    with program.ir.main_graph:
        x = popxl.variable([1.0, 2.0], name="x")
        x += program.one
    assert program.donated() == ["x"]


@pytest.mark.parametrize("count", [None, 1, 5])
def test_a_variable_is_updated_in_its_own_memory_inside_a_call_or_loop(program: Program, count: int | None) -> None:
    def body(w: popxl.TensorByRef) -> None:
        accumulate_(w, w)

    with program.ir.main_graph:
        x = popxl.variable([1.0, 2.0], name="x")
        g = program.ir.create_graph(body, x)
        if count is None:
            ops.call(g, x)
        else:
            ops.repeat(g, count, x)
    assert program.donated() == ["w"]


def test_the_result_of_a_call_is_updated_in_its_own_memory(program: Program) -> None:
    with program.ir.main_graph:
        x = popxl.variable([1.0, 2.0], name="x")
        (y,) = ops.call(program.ir.create_graph(lambda x: x + x, x), x)
        ops.print_tensor(x, print_self=False)  # ends nothing: y is computed by the call
        y += program.one
        program.fetch(y)
    assert program.donated() == ["add_out"]
    assert program.run() == [[3]]


def test_memory_is_overwritten_only_by_what_is_still_wanted(program: Program) -> None:
    with program.ir.main_graph:
        x = popxl.variable([1.0, 2.0], name="x")
        y = x + program.one
        program.fetch(y)
    assert program.donated() == []


# What is never overwritten. Each hazard takes a tensor x of ones, which is a variable or computed, and returns the
# values it fetches in the first and in the second run where x is a variable; and the rows after the second.


ROWS = [0.0, 10.0, 20.0, 30.0]
Expected = tuple[list[float], list[float], list[float]]
Hazard = Callable[[Program, popxl.Tensor], Expected]
HAZARDS: dict[str, Hazard] = {}


def hazard(name: str) -> Callable[[Hazard], Hazard]:
    def register(build: Hazard) -> Hazard:
        HAZARDS[name] = build
        return build

    return register


@hazard("a value that was stored")
def stored(p: Program, x: popxl.Tensor) -> Expected:
    ops.remote_store(p.buffer, 0, x)
    x += p.one
    p.fetch(x, ops.remote_load(p.buffer, 0))
    return [2, 1], [3, 2], [2, 10, 20, 30]


@hazard("a value that is yet to be fetched")
def fetched(p: Program, x: popxl.Tensor) -> Expected:
    p.fetch(x)
    x += p.one
    p.fetch(x)
    return [1, 2], [2, 3], ROWS


@hazard("what a print gives, which is the same memory")
def printed(p: Program, x: popxl.Tensor) -> Expected:
    y = ops.print_tensor(x, print_self=False)
    x += p.one
    p.fetch(x + p.one, y)
    return [3, 1], [4, 2], ROWS


@hazard("an argument by value")
def by_value(p: Program, x: popxl.Tensor) -> Expected:
    (y,) = ops.call(p.ir.create_graph(lambda x: accumulate_(x, x), x), x)
    p.fetch(x + p.one, y)
    return [2, 2], [2, 2], ROWS


@hazard("an argument that a call passes through")
def passed_through(p: Program, x: popxl.Tensor) -> Expected:
    (y,) = ops.call(p.ir.create_graph(lambda x: x, x), x)
    y += p.one
    p.fetch(x + p.one, y)
    return [2, 2], [2, 2], ROWS


@hazard("an argument that a call passes through and its caller changes")
def passed_through_and_changed(p: Program, x: popxl.Tensor) -> Expected:
    (y,) = ops.call(p.ir.create_graph(lambda x: x, x), x)
    x += p.one
    p.fetch(x + p.one, y)
    return [3, 1], [4, 2], ROWS


@hazard("an argument by reference that a call also returns")
def by_reference_and_returned(p: Program, x: popxl.Tensor) -> Expected:
    def body(x: popxl.TensorByRef) -> popxl.Tensor:
        return accumulate_(x, x)

    (y,) = ops.call(p.ir.create_graph(body, x), x)
    x += p.one
    p.fetch(x + p.one, y)
    return [4, 2], [8, 6], ROWS


@hazard("an argument that a call stores")
def stored_in_a_call(p: Program, x: popxl.Tensor) -> Expected:
    ops.call(p.ir.create_graph(lambda x: ops.remote_store(p.buffer, 0, x), x), x)
    x += p.one
    p.fetch(x + p.one, ops.remote_load(p.buffer, 0))
    return [3, 1], [4, 2], [2, 10, 20, 30]


@hazard("an argument by reference and its in-place successor by value")
def by_reference_and_by_value(p: Program, x: popxl.Tensor) -> Expected:
    def body(x: popxl.TensorByRef, y: popxl.Tensor) -> popxl.Tensor:
        accumulate_(x, y)
        return x + y

    successor = accumulate_(x, p.one)
    (y,) = ops.call(p.ir.create_graph(body, x, x), x, successor)
    p.fetch(x + p.one, y)
    return [5, 6], [11, 15], ROWS


@hazard("one of two outputs that are the same value")
def same_output_twice(p: Program, x: popxl.Tensor) -> Expected:
    def body(x: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        y = x + x
        return y, y

    a, b = ops.call(p.ir.create_graph(body, x), x)
    a += p.one
    p.fetch(a, b)
    return [3, 2], [3, 2], ROWS


@hazard("what only one of two branches passes through")
def one_branch_passes_through(p: Program, x: popxl.Tensor) -> Expected:
    yes = popxl.variable(True, popxl.bool)
    same, more = p.ir.create_graph(lambda x: x, x), p.ir.create_graph(lambda x: x + x, x)
    (y,) = ops.conditional(yes, same, more, [x], [x])
    (z,) = ops.conditional(yes, more, same, [x], [x])
    y += p.one
    z += p.one
    p.fetch(x + p.one, y, z)
    return [2, 2, 3], [2, 2, 3], ROWS


@hazard("the initial value that a loop of no iterations returns")
def no_iterations(p: Program, x: popxl.Tensor) -> Expected:
    def body(x: popxl.TensorByRef) -> popxl.Tensor:
        accumulate_(x, x)
        return x + x

    (y,) = ops.repeat(p.ir.create_graph(body, x), 0, x)
    x += p.one
    p.fetch(x + p.one, y)
    return [3, 1], [4, 2], ROWS


@hazard("the initial value of a carried input")
def initial_value(p: Program, x: popxl.Tensor) -> Expected:
    (y,) = ops.repeat(p.ir.create_graph(lambda x: accumulate_(x, x), x), 3, x)
    p.fetch(x + p.one, y)
    return [2, 8], [2, 8], ROWS


@hazard("what a loop stored in the iteration before")
def stored_in_the_iteration_before(p: Program, x: popxl.Tensor) -> Expected:
    def body(i: popxl.Tensor, x: popxl.TensorByRef) -> popxl.Tensor:
        accumulate_(x, x)
        ops.remote_store(p.buffer, i, x)
        return i + 1

    i = popxl.constant(0, popxl.uint32)
    ops.repeat(p.ir.create_graph(body, i, x), 3, i, x)
    p.fetch(x + p.one, *(ops.remote_load(p.buffer, k) for k in range(3)))
    return [9, 2, 4, 8], [65, 16, 32, 64], [16, 32, 64, 30]


@hazard("a carried output that a loop stored in the iteration before")
def carried_and_stored(p: Program, x: popxl.Tensor) -> Expected:
    def body(x: popxl.TensorByRef, i: popxl.TensorByRef) -> popxl.Tensor:
        y = x + x
        ops.remote_store(p.buffer, i, y)
        accumulate_(x, y)
        i += 1
        return y

    i = popxl.constant(0, popxl.uint32) + 0
    (y,) = ops.repeat(p.ir.create_graph(body, x, i), 3, x, i)
    p.fetch(x + p.one, y, *(ops.remote_load(p.buffer, k) for k in range(3)))
    return [13, 8, 2, 4, 8], [145, 96, 24, 48, 96], [24, 48, 96, 30]


@hazard("two carried values that a loop swaps")
def swapped(p: Program, x: popxl.Tensor) -> Expected:
    def body(a: popxl.TensorByRef, b: popxl.TensorByRef) -> tuple[popxl.Tensor, popxl.Tensor]:
        accumulate_(a, popxl.constant([1.0, 1.0]))
        return b, a

    b = popxl.variable([5.0, 5.0])
    outputs = ops.repeat(p.ir.create_graph(body, x, b), 3, x, b)
    five = popxl.constant([5.0, 5.0])
    p.fetch(x + p.one, b + p.one, *outputs)
    ops.var_updates.copy_var_update_(b, five)
    # Before each iteration: (1, 5), (5, 2), (2, 6), in the second run (3, 5), (5, 4), (4, 6).
    return [4, 7, 6, 3], [6, 7, 6, 5], ROWS


@pytest.mark.parametrize("name", HAZARDS)
@pytest.mark.parametrize("kind", ["variable", "computed"])
def test_never_overwritten(program: Program, name: str, kind: str) -> None:
    with program.ir.main_graph:
        x = popxl.variable([1.0, 1.0])
        if kind == "computed":
            x = x * program.one
        first, second, rows = HAZARDS[name](program, x)
    assert program.run() == [first]
    if kind == "variable":
        assert program.run(2) == [first, second]
        assert program.rows == rows


def test_a_row_is_not_overwritten_by_what_is_done_to_the_loaded_tensor(program: Program) -> None:
    with program.ir.main_graph:
        x = ops.remote_load(program.buffer, 1)
        x += program.one
        program.fetch(x, ops.remote_load(program.buffer, 1))
    assert program.run(2) == [[11, 10]] * 2


def test_a_row_that_became_a_variable_is_not_overwritten_in_the_next_run(program: Program) -> None:
    with program.ir.main_graph:
        x = popxl.variable([1.0, 1.0])
        x += program.one
        program.fetch(x + program.one)
        ops.remote_load_(program.buffer, 3, x)
    assert program.run(3) == [[3], [32], [32]]
    assert program.rows == ROWS


def test_a_variable_that_became_a_row_is_not_overwritten_in_the_next_run(program: Program) -> None:
    with program.ir.main_graph:
        x, i = popxl.variable([1.0, 1.0]), popxl.variable(0, popxl.uint32)
        x += program.one
        ops.remote_store(program.buffer, i, x)
        i += 1
        program.fetch(ops.remote_load(program.buffer, 0))
    assert program.run(3) == [[2], [2], [2]]
    assert program.rows == [2, 3, 4, 30]


# Views


def test_a_row_loaded_into_a_view_is_part_of_the_whole(program: Program) -> None:
    with program.ir.main_graph:
        x = popxl.variable([[1.0, 1.0], [2.0, 2.0]])
        row = ops.reshape_(ops.slice_(x, 0, 1), (2,))
        ops.remote_load_(program.buffer, 3, row)
        program.fetch(row, x, ops.slice(x, 1, 2))
    assert program.run() == [[30, 30, 2]]


def test_a_view_that_a_call_takes_by_reference_and_leaves_costs_nothing(program: Program) -> None:
    def body(x: popxl.TensorByRef) -> popxl.Tensor:
        return ops.print_tensor(x, print_self=False)

    with program.ir.main_graph:
        x = popxl.variable([[1.0, 2.0]]) * popxl.constant(3.0)
        view = ops.transpose_(x)
        (y,) = ops.call(program.ir.create_graph(body, view), view)
        program.fetch(y)
    assert program.run() == [[3]]
    assert all(step.outputs for step in compute_steps(program.plan))


def test_tensors_by_reference_that_are_parts_of_one_are_written_in_order(program: Program) -> None:
    def body(a: popxl.TensorByRef, b: popxl.TensorByRef) -> None:
        accumulate_(a, b)
        accumulate_(b, a)

    with program.ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        parts: Sequence[popxl.Tensor] = [ops.slice_(x, i, i + 1) for i in range(2)]
        ops.call(program.ir.create_graph(body, *parts), *parts)
        program.fetch(*parts)
    assert program.run() == [[3, 5]]
