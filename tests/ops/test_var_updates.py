"""`accumulate_` and `copy_var_update_`, run by sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.ops.var_updates import accumulate_, copy_var_update_
from popxl.tensor import Tensor


def after(ir: popxl.Ir, variable: popxl.Variable, runs: int = 1) -> np.ndarray:
    """The value of a variable after some runs of a program."""
    with popxl.Session(ir) as session:
        for _ in range(runs):
            session.run()
        return session.get_tensor_data(variable)


def accumulated(t: Any, x: Any, f: Any = None) -> np.ndarray:
    ir = popxl.Ir()
    with ir.main_graph:
        total = popxl.variable(t)
        accumulate_(total, popxl.variable(x), popxl.variable(f) if isinstance(f, np.generic) else f)
    return after(ir, total)


def test_a_sum_grows_with_every_run() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        total = popxl.variable([1.0, 2.0])
        accumulate_(total, popxl.constant([0.5, -1.0]), 2.0)
    np.testing.assert_array_equal(after(ir, total, runs=3), [4, -4])


def test_a_float16_sum_is_rounded_once() -> None:
    # 2049 lies half way between 2048 and 2050. f * X is a little more than 1, which float16 would round to 1.
    f, x = np.float32(1.0004), np.float16([1.0])
    assert np.float16(f) * x[0] == 1
    assert accumulated(np.float16([2048.0]), x, f) == np.float16([2050.0])
    assert accumulated(np.float16([2048.0]), x, 1.0004) == np.float16([2050.0])


def test_a_float32_sum_takes_float16_summands_exactly() -> None:
    got = accumulated(np.float32([1.0]), np.float16([0.1]))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.float32([1.0]) + np.float32(np.float16(0.1)))


def test_a_summand_that_float16_cannot_hold_is_not_rounded_first() -> None:
    np.testing.assert_array_equal(accumulated(np.float16([1.0]), np.float32([1e6]), 1e-6), np.float16([2.0]))


@pytest.mark.parametrize("summand", [np.inf, np.nan])
def test_factor_0_leaves_the_sum_whatever_is_added(summand: float) -> None:
    np.testing.assert_array_equal(accumulated(np.float32([3.0]), np.float32([summand]), 0.0), [3])


def test_a_factor_that_is_a_tensor_is_read_at_run_time() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        total, factor = popxl.variable([1.0]), popxl.variable(2.0)
        accumulate_(total, popxl.constant([10.0]), factor)
    with popxl.Session(ir) as session:
        session.run()
        session.write_variable_data(factor, np.float32(3.0))
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(total), [51])


def test_a_variable_may_be_added_to_itself() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        t = popxl.variable([1.0, 2.0])
        accumulate_(t, t, 3.0)
    np.testing.assert_array_equal(after(ir, t), [4, 8])


def test_a_sum_of_a_called_graph_reaches_the_caller_by_reference() -> None:
    def add(total: popxl.TensorByRef, x: Tensor) -> None:
        accumulate_(total, x)

    ir = popxl.Ir()
    with ir.main_graph:
        total, x = popxl.variable([1.0]), popxl.constant([5.0])
        graph = ir.create_graph(add, total, x)
        ops.call(graph, total, x)
        ops.call(graph, total, x)
    np.testing.assert_array_equal(after(ir, total), [11])


def test_a_copy_overwrites_the_variable() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        t, x = popxl.variable([1.0, 2.0]), popxl.variable([np.nan, 4.0])
        copy_var_update_(t, x)
    np.testing.assert_array_equal(after(ir, t), [np.nan, 4])


def test_a_copy_through_a_view_overwrites_its_part() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        t = popxl.variable(np.arange(4, dtype=np.int32))
        copy_var_update_(ops.slice_(t, 1, 3), popxl.constant([-1, -2]))
    np.testing.assert_array_equal(after(ir, t), [0, -1, -2, 3])


def test_two_variables_are_swapped_by_way_of_a_third_tensor() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        a, b = popxl.variable([1.0]), popxl.variable([2.0])
        old = ops.identity(a)
        copy_var_update_(a, b)
        copy_var_update_(b, old)
    with popxl.Session(ir) as session:
        session.run()
        values = session.get_tensors_data([a, b])
    assert (values[a], values[b]) == ([2], [1])


def test_copies_to_two_variables_that_are_read_before_do_not_mix() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        pairs = []
        for target in (0, 1):
            ab = [popxl.variable([1.0]), popxl.variable([2.0])]
            total = ops.add(*ab)
            copy_var_update_(ab[target], total)
            ops.host_store(popxl.d2h_stream((1,), popxl.float32), total)
            pairs.append(ab)
    with popxl.Session(ir) as session:
        session.run()
        got = [[float(session.get_tensor_data(t)[0]) for t in ab] for ab in pairs]
    assert got == [[3, 2], [1, 3]]


def test_the_old_value_of_what_is_copied_to_is_not_read() -> None:
    with popxl.Ir().main_graph as graph:
        t, x = popxl.variable([1.0]), popxl.variable([2.0])
        copy_var_update_(t, x)
    assert graph.ops[0].read_inputs() == (x,)


@pytest.mark.parametrize("update", [accumulate_, copy_var_update_])
def test_an_update_returns_an_alias_and_is_an_optimizer_op(update: Any) -> None:
    with popxl.Ir().main_graph as graph:
        t, x = popxl.variable([1.0]), popxl.variable([2.0])
        updated = update(t, x)
    (op,) = graph.ops
    assert updated is not t
    assert updated.storage is t
    assert op.mutates == (0,)
    assert op.isOptimizerOp()


@pytest.mark.parametrize("update", [accumulate_, copy_var_update_])
def test_a_constant_is_not_updated_and_the_result_is_right(update: Any) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        c = popxl.constant([1.0])
        result, kept = update(c, popxl.constant([2.0])), ops.identity(c)
        streams = [popxl.d2h_stream((1,), popxl.float32) for _ in range(2)]
        ops.host_store(streams[0], result)
        ops.host_store(streams[1], kept)
    with popxl.Session(ir) as session:
        outputs = session.run()
    assert outputs[streams[0]] == [3 if update is accumulate_ else 2]
    assert outputs[streams[1]] == [1]
