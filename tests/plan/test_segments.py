"""How a graph is cut: segments between transfers, shared executables, one plan for each called graph, effects in
program order, dead ops dropped (popxl.plan.planner, .structure, .liveness)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.plan import GraphPlan, plan_program
from popxl.plan import program as plan_program_module
from popxl.plan.steps import (
    Call,
    Compute,
    Free,
    HostLoad,
    HostStore,
    Loop,
    Print,
    RemoteLoad,
    RemoteStore,
    Step,
    called_plans,
)

accumulate_ = ops.var_updates.accumulate_


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


def large(x: popxl.Tensor, count: int = plan_program_module.SMALL_GRAPH_OPS + 1) -> popxl.Tensor:
    """Too many ops to be inlined."""
    for _ in range(count):
        x = x + x
    return x


def steps(plan: GraphPlan) -> Iterator[Step]:
    for step in plan.steps:
        yield step
        for body in called_plans(step):
            yield from steps(body)


def kinds(ir: popxl.Ir) -> list[type[Step]]:
    """The steps of the main graph, but for those that only free."""
    return [type(step) for step in plan_program(ir).steps if not isinstance(step, Free)]


def segments(ir: popxl.Ir) -> list[list[str]]:
    """The ops of each segment of the main graph."""
    return [
        [item.type for item in step.segment.items if not isinstance(item, str)]
        for step in plan_program(ir).steps
        if isinstance(step, Compute)
    ]


def keys(ir: popxl.Ir) -> set[object]:
    """The distinct executables of the whole program."""
    return {step.segment.key for step in steps(plan_program(ir)) if isinstance(step, Compute)}


def fetch(t: popxl.Tensor) -> None:
    ops.host_store(popxl.d2h_stream(t.shape, t.dtype), t)


def buffer(entries: int = 4) -> popxl.RemoteBuffer:
    return popxl.remote_buffer((2,), popxl.float32, entries)


# Segments


def test_pure_ops_are_one_segment(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        fetch(ops.negate(x * x + x))
    assert segments(ir) == [["Mul", "Add", "Neg"]]
    assert kinds(ir) == [Compute, HostStore]


def test_transfers_cut_segments(ir: popxl.Ir) -> None:
    with ir.main_graph:
        b = buffer()
        x = popxl.variable([1.0, 2.0])
        y = x + x
        z = ops.remote_load(b, 0) * y
        ops.remote_store(b, 1, ops.negate(z))
        fetch(z - y)
    assert kinds(ir) == [Compute, RemoteLoad, Compute, RemoteStore, Compute, HostStore]
    assert segments(ir) == [["Add"], ["Mul", "Neg"], ["Sub"]]


def test_views_belong_to_the_segment_that_reads_them(ir: popxl.Ir) -> None:
    with ir.main_graph:
        b = buffer()
        x = popxl.variable([[1.0, 2.0], [3.0, 4.0]])
        row = ops.reshape_(ops.slice_(x, 0, 1), (2,))
        ops.remote_store(b, 0, row)
        fetch(row + row)
    assert kinds(ir) == [Compute, RemoteStore, Compute, HostStore]
    assert segments(ir) == [[], ["Add"]]


def test_a_row_loaded_into_a_view_is_assigned_in_the_next_segment(ir: popxl.Ir) -> None:
    with ir.main_graph:
        b = buffer()
        x = popxl.variable([[1.0, 2.0], [3.0, 4.0]])
        ops.remote_load_(b, 0, ops.reshape_(ops.slice_(x, 0, 1), (2,)))
        fetch(x + x)
    assert kinds(ir) == [RemoteLoad, Compute, HostStore]


def test_small_pure_graphs_are_part_of_the_segment_around_them(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        small = ir.create_graph(lambda x: x + x, x)
        (y,) = ops.call(small, x * x)
        (y,) = ops.repeat(small, 1000, y)
        (y,) = ops.conditional(popxl.variable(True, popxl.bool), small, small, [y], [y])
        fetch(ops.negate(y))
    assert segments(ir) == [["Mul", "Call", "Loop", "If", "Neg"]]


@pytest.mark.parametrize("reason", ["size", "effect", "large constant"])
def test_other_graphs_are_plans_of_their_own(ir: popxl.Ir, reason: str) -> None:
    def body(x: popxl.Tensor) -> popxl.Tensor:
        match reason:
            case "size":
                return large(x)
            case "effect":
                return ops.print_tensor(x) + x
            case _:
                return x + popxl.constant(np.arange(2 * 20, dtype=np.float32).reshape(20, 2))

    with ir.main_graph:
        x = popxl.variable(np.ones((20, 2), np.float32))
        (y,) = ops.call(ir.create_graph(body, x), x)
        fetch(y)
    assert kinds(ir) == [Call, HostStore]


# Shared executables


def test_structurally_equal_segments_share_a_key(ir: popxl.Ir) -> None:
    with ir.main_graph:
        b = buffer()
        x = popxl.variable([1.0, 2.0])
        for k in range(4):
            w = ops.remote_load(b, k)
            x = x * w + popxl.constant(1.0)
        fetch(x)
    assert len([k for k in kinds(ir) if k is Compute]) == 4
    assert len(keys(ir)) == 1


def test_equal_layers_as_graphs_of_their_own_share_a_key(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        for _ in range(3):
            (x,) = ops.call(ir.create_graph(large, x), x)
        fetch(x)
    assert len({id(p) for s in plan_program(ir).steps for p in called_plans(s)}) == 3
    assert len(keys(ir)) == 1


def two_segments(first: Callable[[popxl.Tensor], popxl.Tensor], second: Callable[[popxl.Tensor], popxl.Tensor]) -> int:
    """The number of executables for two computations of one input, each a segment of its own."""
    ir = popxl.Ir()
    with ir.main_graph:
        stream = popxl.h2d_stream((2,), popxl.float32)
        ir.num_host_transfers = 2
        for compute in (first, second):
            fetch(compute(ops.host_load(stream)))
    return len(keys(ir))


def view_then_write(x: popxl.Tensor) -> popxl.Tensor:
    y = x + x
    part = ops.slice_(y, 0, 1)
    accumulate_(y, y)
    return part


def write_then_copy(x: popxl.Tensor) -> popxl.Tensor:
    y = x + x
    part = ops.slice(y, 0, 1)
    accumulate_(y, y)
    return part


def call_on_copy(x: popxl.Tensor, *, modified: bool) -> popxl.Tensor:
    y = ops.identity(x)
    info = ops.call_with_info(popxl.gcg().ir.create_graph(lambda y: accumulate_(y, y), y), y)
    if modified:
        info.set_parent_input_modified(y)
    return y + info.outputs[0]


def test_names_do_not_matter_for_a_key() -> None:
    assert two_segments(lambda x: x + x, lambda x: ops.rename(x, "y") + x) == 2  # an op more
    assert two_segments(lambda x: x + x, lambda x: ops.add(x, x)) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda x: x + x, lambda x: x - x),
        (lambda x: x + 1.0, lambda x: x + 2.0),
        (lambda x: x + 0.0, lambda x: x + -0.0),
        (lambda x: x + 1.0, lambda x: x + popxl.constant([1.0])),
        (lambda x: (x + x) * x, lambda x: (x + x) * (x + x)),
        (lambda x: x - (x + x), lambda x: (x + x) - x),
        (lambda x: ops.slice(x, 0, 1), lambda x: ops.slice(x, 1, 2)),
        (lambda x: ops.slice(x, 0, 1), lambda x: ops.slice_(x, 0, 1)),
        (lambda x: ops.increment_mod(x, 0.0, 2.0), lambda x: ops.increment_mod(x, -0.0, 2.0)),
        (lambda x: ops.increment_mod(x, 1, 2), lambda x: ops.increment_mod(x, 1.0, 2)),
        (lambda x: x + x, lambda x: ops.identity(x) + ops.add_(x, x)),
        (lambda x: ops.negate(ops.slice_(x, 0, 1)), lambda x: ops.negate(ops.slice_(x, 1, 2))),
        (view_then_write, write_then_copy),
        (lambda x: call_on_copy(x, modified=True), lambda x: call_on_copy(x, modified=False)),
    ],
)
def test_what_computes_something_else_has_another_key(
    first: Callable[[popxl.Tensor], popxl.Tensor], second: Callable[[popxl.Tensor], popxl.Tensor]
) -> None:
    assert two_segments(first, first) == 1
    assert two_segments(second, second) == 1
    assert two_segments(first, second) == 2


def test_an_inlined_graph_counts_by_what_it_computes(ir: popxl.Ir) -> None:
    def called(function: Callable[[popxl.Tensor], popxl.Tensor]) -> Callable[[popxl.Tensor], popxl.Tensor]:
        return lambda x: ops.call(popxl.gcg().ir.create_graph(function, x), x)[0]

    def double(x: popxl.Tensor) -> popxl.Tensor:
        return x + x

    assert two_segments(called(double), called(lambda x: x + x)) == 1
    assert two_segments(called(double), called(lambda x: x * x)) == 2


def test_ops_on_unread_constants_have_a_key(ir: popxl.Ir) -> None:
    with ir.main_graph:
        big = popxl.constant(np.ones(20, np.float32))
        both = ops.concat_([big, big])
        fetch(ops.var_updates.copy_var_update_(both, popxl.variable(np.zeros(40, np.float32))))
    assert segments(ir) == [["CopyVarUpdate"]]


# One plan for each called graph


def test_a_graph_called_many_times_has_one_plan(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        layer = ir.create_graph(large, x)
        for _ in range(5):
            (x,) = ops.call(layer, x)
        fetch(x)
    calls = [s for s in plan_program(ir).steps if isinstance(s, Call)]
    assert len(calls) == 5
    assert len({id(c.body) for c in calls}) == 1
    assert len(keys(ir)) == 1


def test_a_loop_holds_one_plan_whatever_its_count(ir: popxl.Ir) -> None:
    with ir.main_graph:
        b = buffer(1000)
        i = popxl.constant(0, popxl.uint32)

        def body(i: popxl.Tensor, x: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            return i + 1, x + ops.remote_load(b, i)

        x = popxl.variable([1.0, 2.0])
        _, y = ops.repeat(ir.create_graph(body, i, x), 1000, i, x)
        fetch(y)
    (loop,) = (s for s in plan_program(ir).steps if isinstance(s, Loop))
    assert loop.count == 1000
    assert len(list(steps(plan_program(ir)))) < 20


# Effects


def test_effects_stay_in_program_order_whatever_they_depend_on(ir: popxl.Ir) -> None:
    with ir.main_graph:
        b = buffer()
        items, results = popxl.h2d_stream((2,), popxl.float32), popxl.d2h_stream((2,), popxl.float32)
        unused = ops.host_load(items)
        x = popxl.variable([1.0, 2.0])
        ops.print_tensor(x)
        ops.remote_store(b, 0, x)
        loaded = ops.remote_load(b, 1)
        ops.host_store(results, x)
        ops.remote_store(b, 1, loaded)
        ops.remote_load(b, 2)
        ops.print_tensor(loaded)
    expected = [HostLoad, Print, RemoteStore, RemoteLoad, HostStore, RemoteStore, RemoteLoad, Print]
    assert kinds(ir) == expected
    assert not unused.consumers


def test_effects_in_called_graphs_are_kept_though_nobody_wants_the_outputs(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        inner = ir.create_graph(lambda x: ops.print_tensor(x), x)
        outer = ir.create_graph(lambda x: ops.call(inner, x + x), x)
        ops.call(outer, x)
        ops.repeat(outer, 2, x)
        ops.conditional(popxl.variable(True, popxl.bool), outer, outer, [x], [x])
    assert [k.__name__ for k in kinds(ir)] == ["Call", "Loop", "Branch"]
    assert Print in {type(s) for s in steps(plan_program(ir))}


# Dead ops


def test_ops_that_nobody_wants_are_dropped(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        y = x + x
        ops.negate(x * y)
        ops.call(ir.create_graph(large, x), x)
        fetch(y)
    assert segments(ir) == [["Add"]]
    assert kinds(ir) == [Compute, HostStore]


def test_a_write_that_is_overwritten_unread_may_stay_but_one_that_is_read_must(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        total = x + x
        accumulate_(ops.slice_(total, 0, 1), popxl.constant([1.0]))
        fetch(total)
    assert segments(ir) == [["Add", "Accumulate"]]


def test_updates_of_variables_are_wanted_and_of_other_tensors_are_not(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        accumulate_(x, x)
        accumulate_(x * x, x)
        fetch(x)
    assert segments(ir) == [["Accumulate"]]


def test_updates_of_inputs_are_wanted_only_by_callers_that_pass_them_by_reference(ir: popxl.Ir) -> None:
    def body(x: popxl.Tensor) -> popxl.Tensor:
        y = large(x)
        accumulate_(x, y)
        return y

    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        g = ir.create_graph(body, x)
        ops.call(g, x)
        (y,) = ops.call(g, x)
        ops.call_with_info(g, x).set_parent_input_modified(x)
        fetch(y)
    by_value, by_reference = (s for s in plan_program(ir).steps if isinstance(s, Call))
    assert [
        any(getattr(item, "type", "") == "Accumulate" for item in s.segment.items)
        for call in (by_value, by_reference)
        for s in call.body.steps
        if isinstance(s, Compute)
    ] == [False, True]


def test_outputs_of_a_call_that_nobody_wants_have_no_slot(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        _, y = ops.call(ir.create_graph(lambda x: (large(x), x + x), x), x)
        fetch(y)
    (call,) = (s for s in plan_program(ir).steps if isinstance(s, Call))
    assert call.outputs[0] == -1
    assert call.outputs[1] >= 0


# Liveness


def test_values_are_freed_after_their_last_use(ir: popxl.Ir) -> None:
    with ir.main_graph:
        b = buffer()
        x = ops.remote_load(b, 0)
        y = x + x
        ops.remote_store(b, 1, y)
        fetch(ops.remote_load(b, 2))
    plan = plan_program(ir)
    names = [type(s).__name__ for s in plan.steps]
    assert names == ["RemoteLoad", "Compute", "Free", "RemoteStore", "Free", "RemoteLoad", "HostStore", "Free"]


def test_arguments_are_let_go_when_the_callee_has_them(ir: popxl.Ir) -> None:
    with ir.main_graph:
        b = buffer()
        x = ops.remote_load(b, 0)
        g = ir.create_graph(large, x)
        (y,) = ops.call(g, x)
        (z,) = ops.call(g, y)
        fetch(y + z)
    first, second = (s for s in plan_program(ir).steps if isinstance(s, Call))
    assert first.released == first.inputs
    assert second.released == ()


def test_planning_is_deterministic() -> None:
    def text() -> str:
        ir = popxl.Ir()
        with ir.main_graph:
            b = buffer()
            x = popxl.variable([1.0, 2.0])
            parts = [ops.slice_(x, i, i + 1) for i in range(2)]
            accumulate_(parts[0], parts[1])
            ops.remote_store(b, 0, ops.concat_(parts))
            (y,) = ops.repeat(ir.create_graph(lambda x: ops.print_tensor(x) + x, x), 2, x)
            fetch(y)
        return str(plan_program(ir))

    assert text() == text()


def test_stores_to_the_host_do_not_cut_a_segment() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        first, second = (popxl.d2h_stream((2,), popxl.float32) for _ in range(2))
        y = x + x
        ops.host_store(first, y)
        ops.host_store(second, y * y)
    assert kinds(ir) == [Compute, HostStore, HostStore]


@pytest.mark.parametrize("write", [lambda x: ops.add_(x, x), lambda x: ops.relu_(ops.slice_(x, 0, 1))])
def test_what_waits_to_be_stored_is_stored_before_it_is_overwritten(write: Any) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = ops.negate(popxl.variable([1.0, 2.0]))
        whole, part = popxl.d2h_stream((2,), popxl.float32), popxl.d2h_stream((1,), popxl.float32)
        ops.host_store(whole, x)
        ops.host_store(part, ops.slice_(x, 0, 1))
        write(x)
    with popxl.Session(ir) as session:
        stored = session.run()
    np.testing.assert_array_equal(stored[whole], [-1, -2])
    np.testing.assert_array_equal(stored[part], [-1])


def test_a_write_through_a_view_needs_all_storages_of_the_view(ir: popxl.Ir) -> None:
    with ir.main_graph, popxl.in_sequence():
        unread = ops.init((1, 2), popxl.float32)
        v = popxl.variable([[1.0, 2.0]])
        both = ops.concat_([unread, v], axis=0)
        ops.var_updates.copy_var_update_(both, popxl.constant([[3.0, 4.0], [5.0, 6.0]]))
    with popxl.Session(ir) as session:
        session.run()
        assert session.get_tensor_data(v).tolist() == [[5.0, 6.0]]
