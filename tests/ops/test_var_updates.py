"""Updates of variables, run by sessions: sums, means, averages, scaling, sparse sums, copies (ops-updates.md §1-§2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError
from popxl.ops.var_updates import (
    accumulate_,
    accumulate_mean_,
    accumulate_moving_average_,
    accumulate_moving_average_square_,
    accumulate_square_,
    accumulator_scale_,
    accumulator_zero_,
    adam_var_update,
    copy_var_update_,
    sparse_accumulate_,
)
from popxl.tensor import Tensor

UPDATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accumulate_": accumulate_,
    "accumulate_square_": accumulate_square_,
    "accumulate_mean_": lambda t, x: accumulate_mean_(t, x, 1.0),
    "accumulate_moving_average_": lambda t, x: accumulate_moving_average_(t, x, 0.5),
    "accumulate_moving_average_square_": lambda t, x: accumulate_moving_average_square_(t, x, 0.5),
    "accumulator_scale_": lambda t, x: accumulator_scale_(t, 3.0),
    "accumulator_zero_": lambda t, x: accumulator_zero_(t),
    "sparse_accumulate_": lambda t, x: sparse_accumulate_(t, x, popxl.constant([0])),
    "copy_var_update_": copy_var_update_,
    "adam_var_update": lambda t, x: adam_var_update(t, x, popxl.constant(0.0), popxl.constant(0.0), 0.5),
}
RESULTS = {
    "accumulate_": 3,
    "accumulate_square_": 5,
    "accumulate_mean_": 1.5,
    "accumulate_moving_average_": 1.5,
    "accumulate_moving_average_square_": 2.5,
    "accumulator_scale_": 3,
    "accumulator_zero_": 0,
    "sparse_accumulate_": 3,
    "copy_var_update_": 2,
    "adam_var_update": 0,
}
"""What each makes of 1, given 2."""
each_update = pytest.mark.parametrize("name", UPDATES)


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


# All of them


@each_update
def test_an_update_returns_an_alias_and_is_an_optimizer_op(name: str) -> None:
    with popxl.Ir().main_graph as graph:
        t, x = popxl.variable([1.0]), popxl.variable([2.0])
        updated = UPDATES[name](t, x)
    (op,) = graph.ops
    assert updated is not t
    assert updated.storage is t
    assert op.mutates == (0,)
    assert op.isOptimizerOp()


@each_update
def test_a_variable_and_its_alias_have_the_new_value(name: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        t = popxl.variable([1.0])
        updated = UPDATES[name](t, popxl.variable([2.0]))
        streams = [popxl.d2h_stream((1,), popxl.float32) for _ in range(2)]
        for stream, value in zip(streams, (t, updated), strict=True):
            ops.host_store(stream, value)
    with popxl.Session(ir) as session:
        outputs = session.run()
        values = [outputs[stream] for stream in streams]
        assert values == [RESULTS[name]] * 2
        assert session.get_tensor_data(t) == RESULTS[name]


@each_update
def test_a_constant_is_not_updated_and_the_result_is_right(name: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        c = popxl.constant([1.0])
        result, kept = UPDATES[name](c, popxl.constant([2.0])), ops.identity(c)
        streams = [popxl.d2h_stream((1,), popxl.float32) for _ in range(2)]
        ops.host_store(streams[0], result)
        ops.host_store(streams[1], kept)
    with popxl.Session(ir) as session:
        outputs = session.run()
    assert outputs[streams[0]] == RESULTS[name]
    assert outputs[streams[1]] == 1


@each_update
def test_an_update_of_an_argument_by_reference_reaches_the_caller(name: str) -> None:
    def body(t: popxl.TensorByRef, x: Tensor) -> None:
        UPDATES[name](ops.identity(t), x)
        UPDATES[name](t, x)

    ir = popxl.Ir()
    with ir.main_graph:
        t, x = popxl.variable([1.0]), popxl.constant([2.0])
        ops.call(ir.create_graph(body, t, x), t, x)
    assert after(ir, t) == RESULTS[name]


@each_update
def test_an_updated_shard_is_a_shard(name: str) -> None:
    ir = popxl.Ir()
    with ir.create_empty_graph():
        t, x = (popxl.graph_input((1,), popxl.float32, name, meta_shape=(4,)) for name in "tx")
        updated = UPDATES[name](t, x)
    assert updated.meta_shape == (4,)


@pytest.mark.parametrize("update", [accumulate_, copy_var_update_])
def test_shards_of_tensors_of_other_shapes_do_not_mix(update: Any) -> None:
    with popxl.Ir().create_empty_graph():
        t, x = (popxl.graph_input((1,), popxl.float32, "t", meta_shape=shape) for shape in ((4,), (2, 2)))
        with pytest.raises(CoreError, match="meta shapes"):
            update(t, x)


@pytest.mark.parametrize(
    ("name", "op_type", "output"),
    [
        ("accumulate_", "Accumulate", "accumulate__t"),
        ("accumulate_square_", "Accumulate", "accumulate_square__t"),
        ("accumulate_moving_average_", "Accumulate", "accumulate_moving_average__t"),
        ("accumulate_moving_average_square_", "Accumulate", "accumulate_moving_average_square__t"),
        ("accumulator_scale_", "AccumulatorScale", "accumulator_scale__t"),
        ("accumulator_zero_", "AccumulatorScale", "accumulator_zero__t"),
        ("copy_var_update_", "CopyVarUpdate", "updated__t"),
    ],
)
def test_an_update_adds_one_op_and_one_tensor(name: str, op_type: str, output: str) -> None:
    with popxl.Ir().main_graph as graph:
        t, x = popxl.variable([1.0], name="t"), popxl.variable([2.0])
        before = len(graph.tensors)
        updated = UPDATES[name](t, x)
    assert [op.type for op in graph.ops] == [op_type]
    assert len(graph.tensors) == before + 1
    assert updated.name == output


def test_a_mean_after_a_number_of_steps_adds_a_constant() -> None:
    with popxl.Ir().main_graph as graph:
        t, x = popxl.variable([1.0], name="t"), popxl.variable([2.0])
        updated = accumulate_mean_(t, x, 3)
    (op,) = graph.ops
    (step,) = graph.constants
    assert (op.type, updated.name) == ("Accumulate", "accumulate_mean__t")
    assert op.inputs == (t, x, step)
    assert (step.dtype, step.shape, float(step.host_value)) == (popxl.float32, (), 3)


# Examples of the specification


def updated(t: Any, update: Callable[[Tensor], Any]) -> np.ndarray:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        variable = popxl.variable(t)
        update(variable)
    return after(ir, variable)


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (lambda t: accumulate_moving_average_(t, popxl.constant(3.0), 0.9), 1.2),
        (lambda t: accumulate_square_(t, popxl.constant(3.0), 0.5), 5.5),
        (lambda t: accumulate_square_(t, popxl.constant(3.0)), 10),
        (lambda t: accumulate_moving_average_square_(t, popxl.constant(3.0), 0.75), 3),
        (lambda t: accumulator_scale_(t, 0.9), 0.9),
    ],
)
def test_updates_of_1(update: Callable[[Tensor], Any], expected: float) -> None:
    np.testing.assert_allclose(updated(np.float32(1.0), update), expected, rtol=1e-7)


def test_the_mean_of_values_that_are_counted() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((), popxl.float32)
        mean, count = popxl.variable(0.0), popxl.variable(0.0)
        accumulate_mean_(mean, ops.host_load(stream), count)
        accumulate_(count, popxl.constant(1.0))
    means = []
    with popxl.Session(ir) as session:
        for value in (1.0, 2.0, 6.0):
            session.run({stream: np.float32(value)})
            means.append(float(session.get_tensor_data(mean)))
    np.testing.assert_allclose(means, [1, 1.5, 3], rtol=1e-6)


def test_slices_go_to_their_places_and_add_up() -> None:
    rows = np.array([[1, 1], [2, 2], [3, 3]], np.float32)
    got = updated(
        np.zeros((4, 2), np.float32),
        lambda t: sparse_accumulate_(t, popxl.constant(rows), popxl.constant([1, 3, 1]), f=2.0),
    )
    np.testing.assert_array_equal(got, [[0, 0], [8, 8], [0, 0], [4, 4]])


def test_a_sparse_sum_undoes_a_gather() -> None:
    def update(t: Tensor) -> None:
        places = popxl.constant(np.array([[2, 0], [1, 3]], np.int32))
        sparse_accumulate_(t, ops.gather(t, places, 1), places, 1, -1.0)

    np.testing.assert_array_equal(updated(np.arange(12, dtype=np.float32).reshape(3, 4), update), np.zeros((3, 4)))


def test_the_layout_hint_of_a_sparse_sum_is_no_input() -> None:
    with popxl.Ir().main_graph as graph:
        t, x, places = popxl.variable([0.0, 0.0]), popxl.variable([1.0]), popxl.constant([1])
        sparse_accumulate_(t, x, places, f=0.5, W=popxl.variable([7.0]))
    (op,) = graph.ops
    assert op.inputs == (t, x, places)
    assert (op.attributes["axis"], op.attributes["factor"]) == (0, 0.5)


# Rounding and special values


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        # 300 squared is beyond float16.
        (lambda t, x: accumulate_square_(t, x, 0.01), 901),
        (lambda t, x: accumulate_moving_average_square_(t, x, 0.99), 900.99),
    ],
)
def test_squares_are_not_rounded_to_float16(update: Callable[[Tensor, Tensor], Any], expected: float) -> None:
    got = updated(np.float16([1.0]), lambda t: update(t, popxl.constant(np.float16([300.0]))))
    assert got == np.float16(expected)


def test_an_average_near_1_takes_the_rest_from_the_exact_number() -> None:
    # float32(1) - float32(0.99999) is 1.0014e-05.
    got = updated(np.float32([0.0]), lambda t: accumulate_moving_average_(t, popxl.constant([1.0]), 0.99999))
    np.testing.assert_allclose(got, [1e-5], rtol=1e-6)


@pytest.mark.parametrize("clear", [accumulator_zero_, lambda t: accumulator_scale_(t, 0.0)])
def test_zeros_are_written_whatever_was_there(clear: Callable[[Tensor], Any]) -> None:
    got = updated(np.float32([np.nan, np.inf, -1.0]), clear)
    np.testing.assert_array_equal(got, [0, 0, 0])
    assert not np.signbit(got).any()


def test_a_factor_0_that_is_read_at_run_time_keeps_nan() -> None:
    got = updated(np.float32([np.nan, 2.0]), lambda t: accumulator_scale_(t, popxl.variable(0.0)))
    np.testing.assert_array_equal(got, [np.nan, 0])


def test_nan_survives_a_mean_that_starts_anew() -> None:
    got = updated(np.float32([np.nan, 5.0]), lambda t: accumulate_mean_(t, popxl.constant([1.0, 1.0]), 0.0))
    np.testing.assert_array_equal(got, [np.nan, 1])


def test_a_factor_for_each_element_is_read_at_run_time() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        t, factor = popxl.variable([1.0, 2.0]), popxl.variable([2.0, 3.0])
        accumulator_scale_(t, factor)
    with popxl.Session(ir) as session:
        session.run()
        session.write_variable_data(factor, np.float32([10.0, 0.5]))
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(t), [20, 3])
