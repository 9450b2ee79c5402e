"""The optional check for in-place ops that nothing orders (spec core.md §6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.context import _execution_context
from popxl.errors import CoreError

AMBIGUOUS = r"^Inplacing ambiguity detected\."

Program = Callable[[popxl.Ir], None]


def two() -> tuple[popxl.Tensor, popxl.Tensor]:
    return popxl.variable(np.ones((2, 2), np.float32), name="w0"), popxl.variable(
        np.ones((2, 2), np.float32), name="w1"
    )


# The programs of the table, each without `in_sequence`.


def relu_then_add(_: popxl.Ir) -> None:
    w0, w1 = two()
    ops.relu_(w0)
    w0 += w1


def relu_then_add_in_a_called_graph(ir: popxl.Ir) -> None:
    def f(w0: popxl.Tensor, w1: popxl.Tensor) -> None:
        ops.relu_(w0)
        w0 += w1

    w0, w1 = two()
    ops.call(ir.create_graph(f, w0, w1), w0, w1)


def relu_then_add_of_a_graph_input(ir: popxl.Ir) -> None:
    def f(w0: popxl.TensorByRef) -> None:
        w1 = popxl.graph_input((2, 2), popxl.float32, "w1")
        ops.relu_(w0)
        w0 += w1

    w0, w1 = two()
    ops.call(ir.create_graph(f, w0), w0, w1)


def relu_then_add_to_an_item_of_a_stream(_: popxl.Ir) -> None:
    w0 = ops.host_load(popxl.h2d_stream((2, 2), popxl.float32))
    ops.relu_(w0)
    w0 += popxl.variable(np.ones((2, 2), np.float32))


def add_copy_and_add(_: popxl.Ir) -> None:
    a, b = two()
    d = a + 5
    d = ops.var_updates.copy_var_update_(a, b)
    d + 5


def relu_twice(_: popxl.Ir) -> None:
    a, _w = two()
    ops.relu_(a)
    ops.relu_(a)


def gelu_twice(_: popxl.Ir) -> None:
    a, _w = two()
    ops.gelu_(a)
    ops.gelu_(a)


def relu_and_relu_in_place(_: popxl.Ir) -> None:
    a, _w = two()
    b = ops.relu(a)
    c = ops.relu_(a)
    ops.add_(b, c)


TABLE = [
    relu_then_add,
    relu_then_add_in_a_called_graph,
    relu_then_add_of_a_graph_input,
    relu_then_add_to_an_item_of_a_stream,
    add_copy_and_add,
    relu_twice,
    gelu_twice,
    relu_and_relu_in_place,
]


@pytest.mark.parametrize("program", TABLE)
def test_unordered_program_is_refused_when_asked_to_check(ir: popxl.Ir, program: Program) -> None:
    with ir.main_graph:
        program(ir)
    with pytest.raises(CoreError, match=AMBIGUOUS):
        popxl.Session(ir, check_ambiguity=True)


@pytest.mark.parametrize("program", TABLE)
def test_same_program_in_sequence_is_fine(ir: popxl.Ir, program: Program) -> None:
    with ir.main_graph, popxl.in_sequence():
        program(ir)
    popxl.Session(ir, check_ambiguity=True)


def test_without_the_check_an_unordered_program_is_taken(ir: popxl.Ir) -> None:
    with ir.main_graph:
        relu_then_add(ir)
    popxl.Session(ir)


def test_refused_program_may_still_be_taken_without_the_check(ir: popxl.Ir) -> None:
    with ir.main_graph:
        relu_then_add(ir)
    with pytest.raises(CoreError):
        popxl.Session(ir, check_ambiguity=True)
    popxl.Session(ir)


def test_copies_leave_no_ambiguity(ir: popxl.Ir) -> None:
    with ir.main_graph:
        a, _ = two()
        b, c = ops.relu(a), ops.relu(a)
        ops.add_(b, c)
    popxl.Session(ir, check_ambiguity=True)


def test_chain_through_the_results_is_an_order(ir: popxl.Ir) -> None:
    with ir.main_graph:
        a, _ = two()
        ops.gelu_(ops.relu_(a)) + 1.0
    popxl.Session(ir, check_ambiguity=True)


# What else counts


def check(ir: popxl.Ir) -> None:
    popxl.Session(ir, check_ambiguity=True)


def test_read_of_an_alias_counts(ir: popxl.Ir) -> None:
    with ir.main_graph:
        a, _ = two()
        view = a.reshape_((4,))
        ops.relu_(a)
        view + 1.0
    with pytest.raises(CoreError, match=AMBIGUOUS):
        check(ir)


def test_view_alone_is_no_read(ir: popxl.Ir) -> None:
    with ir.main_graph:
        a, _ = two()
        a.reshape_((4,))
        ops.relu_(a)
    check(ir)


def test_regions_that_do_not_overlap_are_independent(ir: popxl.Ir) -> None:
    with ir.main_graph:
        a, _ = two()
        top, bottom = ops.slice_(a, 0, 1), ops.slice_(a, 1, 2)
        ops.relu_(top)
        bottom + 1.0
    check(ir)


def test_regions_that_overlap_in_one_element_are_not(ir: popxl.Ir) -> None:
    with ir.main_graph:
        a, _ = two()
        row, column = ops.slice_(a, 0, 1), ops.slice_(a.T_, 0, 1)
        ops.relu_(row)
        column + 1.0
    with pytest.raises(CoreError, match=AMBIGUOUS):
        check(ir)


def test_call_by_reference_is_a_write(ir: popxl.Ir) -> None:
    def bump(x: popxl.TensorByRef) -> None:
        x += 1.0

    with ir.main_graph:
        a, _ = two()
        ops.call(ir.create_graph(bump, a), a)
        a + 1.0
    with pytest.raises(CoreError, match=AMBIGUOUS):
        check(ir)


def test_call_by_value_is_a_read_only(ir: popxl.Ir) -> None:
    with ir.main_graph:
        a, _ = two()
        ops.call(ir.create_graph(lambda x: x + 1.0, a), a)
        a + 1.0
    check(ir)


def test_execution_contexts_are_an_order(ir: popxl.Ir) -> None:
    with ir.main_graph:
        a, _ = two()
        with _execution_context(popxl.ExecutionContext.WeightsFromHostFragment):
            ops.relu_(a)
        a + 1.0
    from popxl.plan.validate import check_inplacing

    check_inplacing(ir)


def test_graph_that_nobody_calls_is_not_checked(ir: popxl.Ir) -> None:
    def f(a: popxl.Tensor) -> None:
        ops.relu_(a)
        ops.relu_(a)

    with ir.main_graph:
        a, _ = two()
        ir.create_graph(f, a)
        a + 1.0
    check(ir)


def test_order_may_go_through_other_ops(ir: popxl.Ir) -> None:
    with ir.main_graph, popxl.in_sequence():
        a, b = two()
        ops.relu_(a)
        ops.exp(b)
        ops.exp(b)
        a + 1.0
    check(ir)


def test_message_names_both_ops_and_the_users_line(ir: popxl.Ir) -> None:
    with ir.main_graph:
        relu_then_add(ir)
    with pytest.raises(CoreError) as caught:
        check(ir)
    for part in ("Op[ReluInplace (w0)", "Op[AddLhsInplace (w0, w1)", "in relu_then_add", "in_sequence"):
        assert part in str(caught.value)


def test_write_to_disjoint_parts_joined_again_reaches_the_variable(ir: popxl.Ir) -> None:
    with ir.main_graph:
        w = popxl.variable(np.arange(6, dtype=np.float32))
        ends = ops.concat_([ops.slice_(w, 0, 2), ops.slice_(w, 4, 6)])
        ends += 10.0
    with popxl.Session(ir) as session:
        session.run()
    np.testing.assert_array_equal(session.get_tensor_data(w), [10, 11, 2, 3, 14, 15])


def test_write_to_the_same_part_joined_twice_is_out_of_place(ir: popxl.Ir) -> None:
    with ir.main_graph:
        w = popxl.variable(np.arange(3, dtype=np.float32))
        twice = ops.concat_([w, ops.slice_(w, 1, 2)])
        out = popxl.d2h_stream((4,), popxl.float32)
        ops.host_store(out, ops.add_(twice, popxl.constant(10.0)))
    with popxl.Session(ir) as session:
        values = session.run()
    np.testing.assert_array_equal(values[out], [10, 11, 12, 11])
    np.testing.assert_array_equal(session.get_tensor_data(w), [0, 1, 2])
