"""The order that `in_sequence` records on ops (spec core.md §6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.context import _execution_context
from popxl.op import Op


def new(name: str = "t") -> Op:
    """An op that depends on nothing."""
    ops.init((), popxl.float32, name)
    return popxl.gcg().ops[-1]


def add_two() -> None:
    new()
    new()


def test_without_a_mode_nothing_is_ordered(main: popxl.Graph) -> None:
    assert [new().after for _ in range(3)] == [(), (), ()]


def test_true_orders_strictly(main: popxl.Graph) -> None:
    with popxl.in_sequence():
        a, b, c = new(), new(), new()
    assert (a.after, b.after, c.after) == ((), (a,), (b,))


def test_false_alone_orders_nothing(main: popxl.Graph) -> None:
    with popxl.in_sequence(False):
        assert [new().after for _ in range(3)] == [(), (), ()]


def test_pass_alone_orders_nothing(main: popxl.Graph) -> None:
    with popxl.in_sequence("pass"):
        assert [new().after for _ in range(3)] == [(), (), ()]


def test_nested_false_block_is_one_unordered_unit(main: popxl.Graph) -> None:
    with popxl.in_sequence(True):
        a = new()
        with popxl.in_sequence(False):
            b, c = new(), new()
        d = new()
    assert b.after == c.after == (a,)
    assert set(d.after) == {a, b, c}


def test_nested_false_block_at_the_start_is_before_what_follows(main: popxl.Graph) -> None:
    with popxl.in_sequence(True):
        with popxl.in_sequence(False):
            a, b = new(), new()
        c = new()
    assert (a.after, b.after, set(c.after)) == ((), (), {a, b})


def test_two_false_blocks_in_a_row_are_unordered(main: popxl.Graph) -> None:
    with popxl.in_sequence(True):
        a = new()
        with popxl.in_sequence(False):
            b = new()
        with popxl.in_sequence(False):
            c = new()
        d = new()
    assert b.after == c.after == (a,)
    assert set(d.after) == {a, b, c}


def test_ops_in_a_pass_block_are_free_and_leave_no_trace(main: popxl.Graph) -> None:
    with popxl.in_sequence(True):
        a = new()
        with popxl.in_sequence("pass"):
            b = new()
        c = new()
    assert (b.after, c.after) == ((), (a,))


def test_nested_true_continues(main: popxl.Graph) -> None:
    with popxl.in_sequence(True):
        a = new()
        with popxl.in_sequence(True):
            b = new()
        c = new()
    assert (b.after, c.after) == ((a,), (b,))


def test_true_inside_false_starts_after_the_block_so_far(main: popxl.Graph) -> None:
    with popxl.in_sequence(False):
        a, b = new(), new()
        with popxl.in_sequence(True):
            c, d = new(), new()
    assert set(c.after) == {a, b}
    assert d.after == (c,)


def test_leaving_the_outermost_block_forgets_the_order(main: popxl.Graph) -> None:
    with popxl.in_sequence():
        new()
    with popxl.in_sequence():
        assert new().after == ()


def test_exception_forgets_the_order_too(main: popxl.Graph) -> None:
    def failing() -> None:
        with popxl.in_sequence():
            new()
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    with popxl.in_sequence():
        assert new().after == ()


def test_unknown_mode_is_refused_by_the_first_op(main: popxl.Graph) -> None:
    with popxl.in_sequence("strict"), pytest.raises(ValueError, match="Unknown mode 'strict'"):  # type: ignore[arg-type]
        new()
    assert main.ops == ()


def test_ops_of_different_graphs_do_not_constrain_each_other(ir: popxl.Ir, main: popxl.Graph) -> None:
    with popxl.in_sequence():
        a = new()
        graph = ir.create_graph(add_two)
        b = new()
    first, second = graph.ops
    assert (first.after, second.after, b.after) == ((), (first,), (a,))


def test_ops_of_different_execution_contexts_do_not_constrain_each_other(main: popxl.Graph) -> None:
    with popxl.in_sequence():
        a = new()
        with _execution_context(popxl.ExecutionContext.WeightsFromHostFragment):
            b = new()
        c = new()
    assert (b.after, c.after) == ((), (a,))


def test_hidden_ops_are_ordered_like_others(main: popxl.Graph) -> None:
    with popxl.in_sequence():
        ops.host_load(popxl.h2d_stream((), popxl.float32))
    init, load = main.ops
    assert load.after == (init,)


def test_call_is_one_op_of_its_graph(ir: popxl.Ir, main: popxl.Graph) -> None:
    graph = ir.create_graph(add_two)
    with popxl.in_sequence():
        a = new()
        ops.call(graph)
        b = new()
    call = main.ops[1]
    assert (call.after, b.after) == ((a,), (call,))


def test_op_that_failed_is_not_part_of_the_order(ir: popxl.Ir, main: popxl.Graph) -> None:
    with ir.create_empty_graph() as graph, popxl.in_sequence():
        x = popxl.graph_input((2,), popxl.float32, "x", meta_shape=(4,))
        y = popxl.graph_input((2,), popxl.float32, "y", meta_shape=(3,))
        a = new()
        with pytest.raises(RuntimeError, match="Incompatible meta shapes"):
            x + y
        b = new()
    assert b.after == (a,)
    assert graph.ops == (a, b)


def test_decorator_orders_each_call_anew(main: popxl.Graph) -> None:
    @popxl.in_sequence()
    def two() -> tuple[Op, Op]:
        return new(), new()

    (a, b), (c, d) = two(), two()
    assert (a.after, b.after, c.after, d.after) == ((), (a,), (), (c,))


@pytest.mark.parametrize("mode", [None, True, False, "pass"])
def test_ops_run_in_the_order_of_their_creation_in_every_mode(ir: popxl.Ir, mode: Any) -> None:
    def build() -> list[popxl.Tensor]:
        x = popxl.variable([1.0, -2.0])
        before = x * 1.0
        x += 1.0
        between = x * 1.0
        ops.relu_(x)
        return [before, between, x * 1.0]

    with ir.main_graph:
        results = build() if mode is None else popxl.in_sequence(mode)(build)()
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in results]
        for stream, t in zip(streams, results, strict=True):
            ops.host_store(stream, t)
    with popxl.Session(ir) as session:
        values = session.run()
    for stream, expected in zip(streams, ([1, -2], [2, -1], [2, 0]), strict=True):
        np.testing.assert_array_equal(values[stream], expected)
