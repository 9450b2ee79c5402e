"""Memory figures of a plan. The oracle walks the plan as the executor does, with arrays that only have a size and
that Python's reference counts free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from program_runs import Builder, limits
from random_programs import Program, programs

import popxl
from popxl import ops
from popxl.errors import OutOfMemoryError
from popxl.plan import GraphPlan, plan_program
from popxl.plan.memory import (
    BufferTraffic,
    Figures,
    Footprint,
    Live,
    check_fits,
    device_footprint,
    figures,
    traffic,
    value_bytes,
)
from popxl.plan.steps import (
    Branch,
    Call,
    Compute,
    Evaluate,
    Free,
    HostLoad,
    Loop,
    Print,
    RemoteLoad,
    Segment,
    Transferred,
    called_plans,
)

# The oracle


class Meter:
    """Counts the bytes that are there."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0

    def note(self, more: int = 0) -> None:
        self.peak = max(self.peak, self.live + more)


class Array:
    """So many bytes, until nobody refers to them or somebody deletes them."""

    def __init__(self, meter: Meter, nbytes: int) -> None:
        self.meter, self.nbytes = meter, nbytes
        meter.live += nbytes
        meter.note()

    def delete(self) -> None:
        self.meter.live -= self.nbytes
        self.nbytes = 0

    def __del__(self) -> None:
        self.delete()


Frame = list[Any]


def size(value: Any) -> int:
    t = value.tensor if isinstance(value, Transferred) else value
    return np.empty(t.shape, t.dtype.storage).nbytes


def temporaries(segment: Segment) -> int:
    """Some number that differs between segments."""
    return len(segment.items) * 7 % 23


class Machine:
    """Walks a plan as `popxl.runtime.executor` does, line by line, with arrays that have nothing but a size.

    Args:
        plan: The plan.
        resident: Variables on the device.
        decide: Takes the decisions of branches.
    """

    def __init__(self, plan: GraphPlan, resident: Sequence[popxl.Tensor], decide: Callable[[], bool]) -> None:
        self.meter = Meter()
        self.plan = plan
        self.decide = decide
        self.variables = {v: Array(self.meter, size(v)) for v in resident}
        self.constants: dict[Any, Array] = {}
        self.make_constants(plan)

    def make_constants(self, plan: GraphPlan) -> None:
        for _, c in plan.constants:
            if c not in self.constants:
                self.constants[c] = Array(self.meter, size(c) if c.nelms > 1 else 0)
        for step in plan.steps:
            for body in called_plans(step):
                self.make_constants(body)

    def run(self) -> None:
        frame = self.new_frame(self.plan)
        for slot, v in self.plan.variables:
            frame[slot] = self.variables[v]
        self.walk(self.plan, frame)
        for slot, v in self.plan.variables:
            self.variables[v] = frame[slot]

    def new_frame(self, plan: GraphPlan) -> Frame:
        frame: Frame = [None] * plan.slot_count
        for slot, c in plan.constants:
            frame[slot] = self.constants[c]
        return frame

    def walk(self, plan: GraphPlan, frame: Frame) -> None:
        for step in plan.steps:
            match step:
                case Compute():
                    self.compute(frame, step)
                case Evaluate():
                    frame[step.output] = Array(self.meter, 0)
                case HostLoad() | RemoteLoad():
                    frame[step.output] = Array(self.meter, size(step.op.outputs[0]))
                case Print():
                    frame[step.output] = frame[step.input]
                case Call():
                    self.call(frame, step)
                case Loop():
                    self.loop(frame, step)
                case Branch():
                    self.call(frame, step.then_call if self.decide() else step.else_call)
                case Free():
                    for slot in step.slots:
                        frame[slot] = None
                case _:
                    pass

    def compute(self, frame: Frame, step: Compute) -> None:
        segment = step.segment
        arguments = [frame[i] for i in step.inputs]
        assert all(isinstance(a, Array) for a in arguments)
        reused = {segment.inputs[i]: arguments[i] for i in segment.donated}
        results = [None if v in reused else Array(self.meter, size(v)) for v in segment.outputs]
        self.meter.note(temporaries(segment))
        for k, v in enumerate(segment.outputs):
            if v in reused:
                assert reused[v].nbytes == size(v), "memory of another size, or twice, is donated"
                reused[v].delete()
                results[k] = Array(self.meter, size(v))
        for k, slot in enumerate(step.outputs):
            frame[slot] = results[k]

    def call(self, frame: Frame, step: Call) -> None:
        inner = self.new_frame(step.body)
        for slot, i in zip(step.body.inputs, step.inputs, strict=True):
            inner[slot] = frame[i]
        for slot in step.released:
            frame[slot] = None
        self.walk(step.body, inner)
        for position, slot in step.written_back:
            frame[slot] = inner[step.body.inputs[position]]
        for k, slot in enumerate(step.outputs):
            if slot >= 0:
                frame[slot] = inner[step.body.outputs[k]]

    def loop(self, frame: Frame, step: Loop) -> None:
        call = step.call
        state = [None, None, *(frame[i] for i in call.inputs)]
        for slot in call.released:
            frame[slot] = None
        carried = len(call.outputs)
        for _ in range(step.count):
            state[:2] = [Array(self.meter, 0), Array(self.meter, 0)]
            inner = self.new_frame(call.body)
            for k, slot in enumerate(call.body.inputs):
                inner[slot] = state[k]
            state[2 : 2 + carried] = [None] * carried
            self.walk(call.body, inner)
            for position, slot in call.written_back:
                state[position] = frame[slot] = inner[call.body.inputs[position]]
            state[2 : 2 + carried] = [inner[slot] for slot in call.body.outputs[1 : 1 + carried]]
        if not step.count:
            for position, slot in call.written_back:
                frame[slot] = state[position]
        for k, slot in enumerate(call.outputs):
            if slot >= 0:
                frame[slot] = state[2 + k]


class Decisions:
    """All ways through the branches of a run, one after the other."""

    def __init__(self) -> None:
        self.taken: list[bool] = []
        self.position = 0

    def __call__(self) -> bool:
        if self.position == len(self.taken):
            self.taken.append(False)
        self.position += 1
        return self.taken[self.position - 1]

    def advance(self) -> bool:
        """Go to the next way; whether there is one."""
        self.position = 0
        while self.taken and self.taken[-1]:
            self.taken.pop()
        if self.taken:
            self.taken[-1] = True
        return bool(self.taken)


def on_device(ir: popxl.Ir) -> list[popxl.Tensor]:
    return [v for v in ir.main_graph.variables if not v.location_info.isRemote()]


def measured_peak(plan: GraphPlan, ir: popxl.Ir, most: int = 64) -> tuple[int, bool]:
    """The largest peak over the ways through branches, and whether these were all of them."""
    peak, decisions = 0, Decisions()
    for _ in range(most):
        machine = Machine(plan, on_device(ir), decisions)
        machine.run()
        peak = max(peak, machine.meter.peak)
        del machine
        if not decisions.advance():
            return peak, True
    return peak, False


# Random programs

MANY = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


def check_random_program(program: Program) -> None:
    ir = Builder(program).ir
    with limits(inline=program.inline):
        plan = plan_program(ir)
    found = device_footprint(plan, temporaries, on_device(ir))
    peak, is_largest = measured_peak(plan, ir)
    if is_largest and not found.is_bound:
        assert found.peak_bytes == peak
    else:
        assert found.peak_bytes >= peak
    assert sum(t.bytes for t in found.live) + found.temporary_bytes == found.peak_bytes
    assert [t.bytes for t in found.live] == sorted((t.bytes for t in found.live), reverse=True)


@given(programs())
@settings(MANY, max_examples=200)
def test_the_peak_is_what_a_walk_with_sized_arrays_measures(program: Program) -> None:
    check_random_program(program)


@given(programs())
@settings(MANY, max_examples=10_000)
@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_peak_of_many_programs_is_what_a_walk_measures(program: Program) -> None:
    check_random_program(program)


@given(programs())
@settings(MANY, max_examples=50)
def test_a_second_run_needs_no_more_than_the_first(program: Program) -> None:
    ir = Builder(program).ir
    with limits(inline=program.inline):
        plan = plan_program(ir)
    machine = Machine(plan, on_device(ir), lambda: True)
    machine.run()
    machine.run()
    assert machine.meter.peak <= device_footprint(plan, temporaries, on_device(ir)).peak_bytes


# By hand. A vector is 1024 bytes.

VECTOR = ((256,), popxl.float32)
SIZE = 1024


class Written:
    """A main graph to write, with a buffer of eight vectors."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.buffer = popxl.remote_buffer(*VECTOR, 8)

    def __enter__(self) -> Written:
        self._graph = self.ir.main_graph
        self._graph.__enter__()
        return self

    def __exit__(self, *_error: object) -> None:
        self._graph.__exit__(*_error)

    def variable(self, name: str = "x") -> popxl.Variable:
        return popxl.variable(np.zeros(VECTOR[0]), VECTOR[1], name=name)

    def load(self, entry: int) -> popxl.Tensor:
        return ops.remote_load(self.buffer, entry)

    def store(self, entry: int, t: popxl.Tensor) -> None:
        ops.remote_store(self.buffer, entry, t)

    def plan(self) -> GraphPlan:
        with limits(inline=False):
            return plan_program(self.ir)

    def footprint(self, temporary: Callable[[Segment], int] = lambda _segment: 0) -> Footprint:
        return device_footprint(self.plan(), temporary)

    @property
    def peak(self) -> float:
        """In vectors."""
        return self.footprint().peak_bytes / SIZE


@pytest.fixture
def p() -> Written:
    return Written()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(popxl.float16, 12), (popxl.float32, 24), (popxl.int64, 48), (popxl.bool, 6), (popxl.float8_143, 6)],
)
def test_a_value_is_as_large_as_its_elements(p, dtype, expected):
    with p:
        assert value_bytes(popxl.variable(np.zeros((2, 3), dtype.as_numpy()), dtype)) == expected


def test_a_constant_of_one_number_stays_on_the_host(p):
    with p:
        assert [value_bytes(popxl.constant(1.0)), value_bytes(popxl.constant([1.0, 2.0]))] == [0, 8]


def test_a_transferred_value_is_as_large_as_its_view(p):
    with p:
        x = popxl.variable(np.zeros(512), popxl.float32)
        ops.remote_load_(p.buffer, 0, ops.slice_(x, 0, 256))
    (op,) = [step.op for step in p.plan().steps if isinstance(step, RemoteLoad)]
    assert value_bytes(Transferred(op, op.mutates[0])) == SIZE


def test_an_update_in_place_needs_no_memory(p):
    with p:
        ops.add_(p.variable(), popxl.constant(1.0))
    assert p.peak == 1


def test_a_result_lives_beside_what_it_is_made_of(p):
    with p:
        p.store(0, p.variable() + 1.0)
    assert p.peak == 2


def test_a_row_counts_while_its_slot_holds_it(p):
    with p:
        for entry in range(4):
            p.store(entry, p.load(entry))
    assert p.peak == 1


def test_rows_that_are_used_together_live_together(p):
    with p:
        rows = [p.load(k) for k in range(3)]
        p.store(0, rows[0] + rows[1] + rows[2])
    # Three rows and the sum: a row is not a segment's to overwrite.
    assert p.peak == 4


def test_the_old_value_of_a_loaded_variable_lives_until_the_run_ends(p):
    with p:
        x = p.variable()
        ops.remote_load_(p.buffer, 0, x)
        ops.remote_load_(p.buffer, 1, x)
    # The value before the run, the first row and, while it arrives, the second.
    assert p.peak == 3


def test_a_printed_value_is_the_same_memory(p):
    with p:
        p.store(0, ops.print_tensor(p.load(0), print_self=False))
    assert p.peak == 1


def test_an_argument_is_the_same_memory_in_caller_and_callee(p):
    with p:
        x = p.variable()
        inner = p.ir.create_graph(lambda t: t + 1.0, x)
        graph = p.ir.create_graph(lambda t: ops.call(inner, t)[0], x)
        p.store(0, ops.call(graph, x)[0])
    assert p.peak == 2


def test_a_callee_reuses_the_memory_of_what_it_overwrites(p):
    with p:
        x = p.variable()

        def body(t: popxl.TensorByRef) -> None:
            ops.add_(t, popxl.constant(1.0))

        ops.call(p.ir.create_graph(body, x), x)
    assert p.peak == 1


def test_a_callee_frees_an_argument_that_its_caller_needs_no_more(p):
    with p:
        x = p.load(0)
        inner = p.ir.create_graph(lambda t: t + 1.0, x)
        graph = p.ir.create_graph(lambda t: ops.call(inner, ops.call(inner, t)[0])[0], x)
        p.store(0, ops.call(graph, x)[0])
    # When the second sum is made, the row is gone.
    assert p.peak == 2


def test_a_caller_that_needs_an_argument_later_keeps_it(p):
    with p:
        x = p.load(0)
        inner = p.ir.create_graph(lambda t: t + 1.0, x)
        graph = p.ir.create_graph(lambda t: ops.call(inner, ops.call(inner, t)[0])[0], x)
        y = ops.call(graph, x)[0]
        p.store(0, y)
        p.store(1, x)
    assert p.peak == 3


def test_a_constant_counts_once_however_many_graphs_use_it(p):
    with p:
        c = popxl.constant(np.ones(256), popxl.float32)
        p.store(0, c)
        graph = p.ir.create_graph(lambda t: t + 1.0, c)
        p.store(1, ops.call(graph, c)[0])
        p.store(2, ops.call(graph, c)[0])
    assert p.peak == 2


def test_temporaries_count_where_their_segment_runs(p):
    with p:
        p.store(0, p.load(0) + 1.0)
        p.store(0, p.load(0) + p.load(1))

    def peak(one_row: int, two_rows: int) -> tuple[int, int]:
        found = p.footprint(lambda s: (one_row, two_rows)[len([v for v in s.inputs if value_bytes(v)]) - 1])
        return found.peak_bytes, found.temporary_bytes

    # Segments of 2 and 3 vectors.
    assert peak(0, 100) == (3 * SIZE + 100, 100)
    assert peak(SIZE, 0) == (3 * SIZE, 1024)
    assert peak(9 * SIZE, 100) == (11 * SIZE, 9 * SIZE)


def test_a_carried_value_is_replaced_in_each_iteration(p):
    with p:
        x = p.load(0)
        graph = p.ir.create_graph(lambda t: t + 1.0, x)
        p.store(0, ops.repeat(graph, 10, x)[0])
    assert p.peak == 2


def test_iterations_that_repeat_are_walked_once(p):
    with p:
        x = p.load(0)
        graph = p.ir.create_graph(lambda t: t + 1.0, x)
        # One by one, these would take hours.
        p.store(0, ops.repeat(graph, 10**9, x)[0])
    assert p.peak == 2


def test_values_that_change_places_are_where_the_last_iteration_puts_them(p):
    def peak_after(count: int) -> float:
        q = Written()
        with q:
            x, y = q.load(0), q.load(1)
            graph = q.ir.create_graph(lambda a, b: (b, a), x, y)
            a, _b = ops.repeat(graph, count, x, y)
            q.store(2, x)
            # From here on only `a` and `y` are needed: one vector if they are the same one.
            for entry in (3, 4):
                q.store(entry, q.load(entry))
            q.store(5, a)
            q.store(6, y)
        return q.peak

    # After an odd number of swaps, `a` is what `y` was.
    assert [peak_after(n) for n in (1, 2, 999_999_999, 1_000_000_000)] == [2, 3, 2, 3]


def branch(p: Written, then_rows: int, else_rows: int) -> popxl.Tensor:
    """Add so many rows on each side."""

    def side(rows: int) -> Callable[[], popxl.Tensor]:
        def build() -> popxl.Tensor:
            loaded = [p.load(k) for k in range(rows)]
            total = loaded[0] + 1.0
            for row in loaded[1:]:
                total = total + row
            return total

        return build

    condition = popxl.variable(True, popxl.bool)
    graphs = [p.ir.create_graph(side(n)) for n in (then_rows, else_rows)]
    return ops.conditional(condition, graphs[0], graphs[1], [], [])[0]


@pytest.mark.parametrize(("then_rows", "else_rows"), [(1, 3), (3, 1)])
def test_a_branch_needs_what_its_larger_side_needs(p, then_rows, else_rows):
    with p:
        p.store(0, branch(p, then_rows, else_rows))
    found = p.footprint()
    assert (found.peak_bytes, found.is_bound) == (4 * SIZE + 1, False)


def test_a_side_that_passes_on_an_argument_makes_the_peak_a_bound(p):
    with p:
        x = p.variable()
        condition = popxl.variable(True, popxl.bool)
        same = p.ir.create_graph(lambda t: t, x)
        new = p.ir.create_graph(lambda t: t + 1.0, x)
        p.store(0, ops.conditional(condition, same, new, [x], [x])[0])
    found = p.footprint()
    assert (found.peak_bytes, found.is_bound) == (2 * SIZE + 1, True)


def test_the_bound_of_a_called_graph_is_one_of_its_caller(p):
    with p:
        x = p.variable()
        condition = popxl.variable(True, popxl.bool)
        same = p.ir.create_graph(lambda t: t, x)
        new = p.ir.create_graph(lambda t: t + 1.0, x)
        graph = p.ir.create_graph(lambda c, t: ops.conditional(c, same, new, [t], [t])[0], condition, x)
        p.store(0, ops.call(graph, condition, x)[0])
    assert p.footprint().is_bound


def test_outputs_that_are_one_memory_on_one_side_make_the_peak_a_bound(p):
    def pair(row: int) -> tuple[popxl.Tensor, popxl.Tensor]:
        loaded = p.load(row)
        return loaded, loaded

    with p:
        condition = popxl.variable(True, popxl.bool)
        one, two = p.ir.create_graph(pair, 0), p.ir.create_graph(lambda: (p.load(0), p.load(1)))
        first, second = ops.conditional(condition, one, two, [], [])
        p.store(2, first + second)
    found = p.footprint()
    assert (found.peak_bytes, found.is_bound) == (3 * SIZE + 1, True)


def test_variables_that_no_step_uses_count_if_they_are_on_the_device(p):
    with p:
        p.store(0, p.variable() + 1.0)
        p.variable("unused")
        popxl.remote_variable(np.zeros(VECTOR[0], np.float32), p.buffer, 1)
    assert figures(p.plan(), p.ir, lambda _segment: 0).device.peak_bytes == 3 * SIZE


# What lives at the peak


def test_what_lives_at_the_peak_is_named_with_the_lines_that_made_it(p):
    with p:
        x = p.variable("weights")
        row = p.load(0)
        graph = p.ir.create_graph(lambda a, b: a * b, x, row)
        p.store(0, ops.call(graph, x, row)[0])
    found = p.footprint(lambda _segment: 5)
    by_name = {t.name.rsplit("/")[-1].split("_offset")[0]: t for t in found.live}
    weights, product = by_name["weights"], by_name["mul_out"]
    assert weights.is_fixed
    assert weights.where.startswith("a variable, used by Call in the main graph, made at ")
    assert product.where.startswith("Mul in ")
    assert "test_memory.py:" in product.where
    assert product.step == found.step == "%2 = compute(%0, %1) [Mul]"
    assert [t.where.split(" ")[0] for t in found.live if t not in (weights, product)] == ["RemoteLoad"]
    assert [t.bytes for t in found.live] == [SIZE] * 3
    assert found.peak_bytes == 3 * SIZE + 5


def test_an_argument_that_inner_graphs_have_let_go_of_does_not_live(p):
    def body(t: popxl.Tensor) -> None:
        p.store(1, t)
        rows = [p.load(k) for k in (2, 3, 4)]
        p.store(0, rows[0] + rows[1] + rows[2])

    with p:
        x = p.load(0)
        inner = p.ir.create_graph(body, x)

        def call_inner(t: popxl.Tensor) -> None:
            ops.call(inner, t)

        ops.call(p.ir.create_graph(call_inner, x), x)
    found = p.footprint()
    assert [t.where.split(" ")[0] for t in found.live] == ["RemoteLoad"] * 3 + ["Add"]
    assert found.peak_bytes == sum(t.bytes for t in found.live) == 4 * SIZE


def test_an_overwritten_variable_is_named_with_the_op_that_wrote_it(p):
    with p:
        x = p.variable()
        ops.add_(x, popxl.constant(1.0))
        p.store(0, p.load(0) + x)
    (live,) = [t for t in p.footprint().live if t.name == "x"]
    assert live.where.startswith("AddLhsInplace in the main graph")


def test_a_program_that_makes_nothing_peaks_at_the_start(p):
    with p:
        p.store(0, p.variable())
    found = p.footprint()
    assert (found.peak_bytes, found.step, [t.name for t in found.live]) == (SIZE, "", ["x"])


# Traffic


def test_traffic_counts_rows_and_bytes_of_each_buffer(p):
    with p:
        halves = popxl.remote_buffer((4,), popxl.float16, 2)
        p.store(0, p.load(0) + p.load(1))
        ops.remote_store(halves, 0, ops.remote_load(halves, 1))
    expected = {
        p.buffer.remote_buffer_id: BufferTraffic(2, 1, 2 * SIZE, SIZE),
        halves.remote_buffer_id: BufferTraffic(1, 1, 8, 8),
    }
    assert traffic(p.plan()) == expected


def test_traffic_of_a_loop_counts_every_iteration(p):
    with p:
        inner = p.ir.create_graph(lambda: p.store(0, p.load(1)))

        def body() -> None:
            ops.repeat(inner, 3)
            p.store(2, p.load(3))

        outer = p.ir.create_graph(body)
        ops.repeat(outer, 5)
    assert traffic(p.plan()) == {p.buffer.remote_buffer_id: BufferTraffic(20, 20, 20 * SIZE, 20 * SIZE)}


def test_traffic_of_a_branch_is_that_of_the_larger_side(p):
    with p:
        p.store(0, branch(p, 1, 3))
    assert traffic(p.plan()) == {p.buffer.remote_buffer_id: BufferTraffic(3, 1, 3 * SIZE, SIZE, is_bound=True)}


def test_traffic_of_a_branch_with_equal_sides_is_exact(p):
    with p:
        p.store(0, branch(p, 2, 2))
    assert traffic(p.plan()) == {p.buffer.remote_buffer_id: BufferTraffic(2, 1, 2 * SIZE, SIZE)}


def test_a_loop_that_never_runs_moves_nothing(p):
    with p:
        inner = p.ir.create_graph(lambda: p.store(0, p.load(1)))
        ops.repeat(inner, 0)
    assert traffic(p.plan()) == {}


# Budgets


def needs(*live: Live, temporary: int = 0) -> Footprint:
    total = sum(t.bytes for t in live) + temporary
    return Footprint(total, live, temporary, "%2 = compute(%1) [Mul]", "Mul in the main graph, made at m.py:3", False)


ROW = Live(3000, "row", "RemoteLoad in f, made at m.py:2", "%1 = load buffer 1[%0]")
WEIGHTS = Live(4096, "weights", "a variable, used by Mul in f, made at m.py:3", "", is_fixed=True)


@pytest.mark.parametrize("budget", [None, 3000, 3001])
def test_a_program_within_its_budget_passes(budget):
    check_fits(needs(ROW), budget)


def test_a_program_above_its_budget_is_refused_with_what_lives_and_where():
    with pytest.raises(OutOfMemoryError) as caught:
        check_fits(needs(ROW, temporary=500), 3499)
    assert str(caught.value) == (
        "At its peak, in `%2 = compute(%1) [Mul]`, the program needs 3.42 KiB (3500 B) of device memory; the budget is "
        "3.42 KiB (3499 B). The largest there:\n"
        "    2.93 KiB (3000 B): row, RemoteLoad in f, made at m.py:2\n"
        "    500 B: temporaries of the ops that run then\n"
        "  Where: Mul in the main graph, made at m.py:3\n"
        "  Hint: the largest is row, from RemoteLoad in f, made at m.py:2; store it in a remote buffer until it is "
        "used again, or run smaller micro-batches"
    )


def test_the_error_is_a_memory_error():
    with pytest.raises(MemoryError):
        check_fits(needs(ROW), 0)


def test_at_most_eight_tensors_are_named():
    with pytest.raises(OutOfMemoryError) as caught:
        check_fits(needs(*[ROW] * 10), 1)
    assert str(caught.value).count("RemoteLoad in f, made at m.py:2\n") == 8
    assert "    5.86 KiB (6000 B): 2 more\n" in str(caught.value)


@pytest.mark.parametrize(
    ("footprint", "advice"),
    [
        (needs(WEIGHTS, ROW), "the largest is weights, .* popxl.remote_variable"),
        (needs(ROW, temporary=3001), "run smaller micro-batches, so that"),
        (needs(temporary=10), "run smaller micro-batches, so that"),
    ],
)
def test_the_hint_fits_what_is_largest(footprint, advice):
    with pytest.raises(OutOfMemoryError, match=f"Hint: {advice}"):
        check_fits(footprint, 1)


# All figures


def test_figures_join_memory_traffic_and_buffers(p):
    with p:
        popxl.remote_buffer((4,), popxl.float16, 2)
        p.store(0, p.load(0) + p.load(1))
    found = figures(p.plan(), p.ir, lambda _segment: 0)
    assert found.device == p.footprint()
    assert found.traffic == traffic(p.plan())
    assert found.buffer_bytes == {1: 8 * SIZE, 2: 16}
    assert (found.streaming_bytes, found.load_bytes, found.store_bytes) == (8 * SIZE + 16, 2 * SIZE, SIZE)


def test_figures_print_as_tables():
    moved = {1: BufferTraffic(2, 1, 2048, 1024), 2: BufferTraffic(3, 0, 3 << 20, 0, is_bound=True)}
    found = Figures(needs(WEIGHTS, ROW, temporary=8), moved, {1: 8192, 2: 4 << 20})
    assert (
        str(found)
        == """\
device memory at the peak: 6.94 KiB
tensor      | size     | made by
----------------------------------------------------------------------
weights     | 4.00 KiB | a variable, used by Mul in f, made at m.py:3
row         | 2.93 KiB | RemoteLoad in f, made at m.py:2
temporaries | 8 B      | Mul in the main graph, made at m.py:3

Streaming Memory: 4.01 MiB
buffer | size     | loads | bytes       | stores | bytes
---------------------------------------------------------------
1      | 8.00 KiB | 2     | 2.00 KiB    | 1      | 1.00 KiB
2      | 4.00 MiB | <= 3  | <= 3.00 MiB | 0      | 0 B
total  | 4.01 MiB | <= 5  | <= 3.00 MiB | <= 1   | <= 1.00 KiB"""
    )
