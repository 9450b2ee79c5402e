"""`repeat`: what a loop computes, inputs by reference, the wrapper graph, call site info (ops-control.md §3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from running import run

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlIndexError, PopxlValueError
from popxl.plan.steps import Loop

accumulate_ = ops.var_updates.accumulate_
both_ways = pytest.mark.usefixtures("way")


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


def scalar(value: int) -> popxl.Tensor:
    return popxl.variable(value, popxl.int32)


# Values


def test_the_ways_to_run_differ(way: str, ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = scalar(1)
        out = popxl.d2h_stream((), popxl.int32)
        ops.host_store(out, *ops.repeat(ir.create_graph(lambda x: x + x, x), 2, x))
    loops = [step for step in popxl.Session(ir).plan.steps if isinstance(step, Loop)]
    assert len(loops) == (0 if way == "compiled" else 1)


@both_ways
@pytest.mark.parametrize(
    ("body", "count", "values", "expected"),
    [
        (lambda x, v: x + v, 2, (1, 1), [3]),
        (lambda x, v: x + v, 0, (1, 1), [1]),
        (lambda a, b: (b, a + b), 5, (0, 1), [5, 8]),
        (lambda a, b: (b, a), 3, (1, 2), [2, 1]),
        (lambda a, b: (b, a), 2, (1, 2), [1, 2]),
        (lambda a, b: (b, a), 0, (1, 2), [1, 2]),
        (lambda a, b, c: (b, c, a), 4, (1, 2, 3), [2, 3, 1]),
        (lambda a, b: (a, a + b), 3, (1, 2), [1, 5]),
        (lambda a: popxl.constant(7, popxl.int32), 1, (1,), [7]),
        (lambda a, b: b, 2, (1, 2), [2]),
    ],
)
def test_output_k_of_an_iteration_is_input_k_of_the_next(
    body: Callable[..., Any], count: int, values: tuple[int, ...], expected: list[int]
) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        tensors = [scalar(v) for v in values]
        outputs = ops.repeat(ir.create_graph(body, *tensors), count, *tensors)
        return [*outputs, *tensors]

    assert run(build, runs=2) == [*expected, *values]


@both_ways
def test_a_linear_layer_with_inputs_by_name() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        ones = popxl.variable(np.ones((2, 2), np.float32))
        g = ir.create_graph(lambda x, w, b: x @ w + b, ones, ones, ones)
        _, weight, bias = g.inputs
        return ops.repeat(g, 2, ones, inputs_dict={bias: ones, weight: ones})

    assert run(build) == [[[7, 7], [7, 7]]]


@both_ways
def test_carried_inputs_are_numbered_as_in_the_graph_not_as_in_the_call() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        g = ir.create_graph(lambda a, b: a * b, scalar(0), scalar(0))
        a, b = g.inputs
        return ops.repeat(g, 3, inputs_dict={b: scalar(2), a: scalar(5)})

    assert run(build) == [40]


@both_ways
def test_numbers_are_coerced_and_one_tensor_may_be_passed_twice() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = scalar(3)
        g = ir.create_graph(lambda a, b, c: a + b * c, x, x, x)
        return *ops.repeat(g, 2, x, x, 10), *ops.repeat(g, 2, [1, 2, 3])

    assert run(build) == [63, 13]


@both_ways
def test_loops_nest() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = scalar(0)
        inner = ir.create_graph(lambda x, step: x + step, x, x)

        def outer(x: popxl.Tensor, step: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            (x,) = ops.repeat(inner, 3, x, step)
            return x, step * 10

        return ops.repeat(ir.create_graph(outer, x, x), 4, x, 1)

    assert run(build) == [3333, 10000]


@both_ways
def test_in_place_changes_of_inputs_by_value_are_dropped_after_each_iteration() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(x: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
            y = x + w
            w += 100
            x += 1000
            return y

        x, w = scalar(1), scalar(2)
        return *ops.repeat(ir.create_graph(body, x, w), 3, x, w), x, w

    assert run(build, runs=2) == [7, 1, 2]


@both_ways
def test_a_body_without_inputs_and_outputs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    ir = popxl.Ir()
    with ir.main_graph:

        def body() -> None:
            ops.print_tensor(popxl.constant(1.0), "seen")

        g = ir.create_graph(body)
        assert ops.repeat(g, 3) == ()
        assert ops.repeat(g, 0) == ()
    with popxl.Session(ir) as session:
        session.run()
    assert capsys.readouterr().err.count("seen") == 3


@both_ways
def test_effects_happen_in_each_iteration_in_order(memory: str) -> None:
    ir = popxl.Ir()
    ir.num_host_transfers = 4
    with ir.main_graph:
        items, results = popxl.h2d_stream((), popxl.int32), popxl.d2h_stream((), popxl.int32)
        buffer = popxl.remote_buffer((), popxl.int32, 5)
        rows = [popxl.remote_variable(10**k, buffer, k) for k in range(5)]

        def body(i: popxl.Tensor) -> popxl.Tensor:
            total = ops.remote_load(buffer, i) + ops.host_load(items)
            ops.host_store(results, total)
            i = i + 1
            ops.remote_store(buffer, i, total)
            return i

        ops.repeat(ir.create_graph(body, popxl.constant(0, popxl.uint32)), 4, 0)
    with popxl.Session(ir, streaming_memory=memory) as session:
        found = session.run({items: np.array([1, 2, 3, 4], np.int32)})[results]
        assert found.tolist() == [2, 4, 7, 11]
        assert [int(session.get_tensor_data(row)) for row in rows] == [1, 2, 4, 7, 11]


@both_ways
def test_the_output_of_a_loop_that_never_runs_is_a_separate_tensor() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(x: popxl.TensorByRef) -> popxl.Tensor:
            return accumulate_(x, ops.print_tensor(x, print_self=False))

        x = popxl.variable([1.0])
        (y,) = ops.repeat(ir.create_graph(body, x), 0, x)
        x += 10.0
        return x, y

    assert run(build, runs=2) == [[21], [11]]


# By reference


@both_ways
def test_a_loop_invariant_input_by_reference_accumulates() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(x: popxl.Tensor, total: popxl.TensorByRef) -> popxl.Tensor:
            accumulate_(total, x)
            return x + total

        x, total = popxl.variable(1.0), popxl.variable(0.0)
        return *ops.repeat(ir.create_graph(body, x, total), 3, x, total), x, total

    # total: 1, 3, 8; x: 2, 5, 13
    assert run(build) == [13, 1, 8]


@both_ways
@pytest.mark.parametrize(("count", "output", "final"), [(10, 21, 19), (1, 3, 1), (0, 1, 1)])
def test_a_carried_input_by_reference_holds_what_entered_the_last_iteration(
    count: int, output: float, final: float
) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(x: popxl.TensorByRef, y: popxl.Tensor) -> popxl.Tensor:
            return x + y

        x, y = popxl.variable(1.0), popxl.variable(2.0)
        return *ops.repeat(ir.create_graph(body, x, y), count, x, y), x

    assert run(build) == [output, final]


@both_ways
def test_a_carried_input_by_reference_also_takes_the_last_iterations_changes() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(x: popxl.TensorByRef) -> popxl.Tensor:
            y = x * 2.0
            accumulate_(x, popxl.constant(100.0))
            return y

        x = popxl.variable(1.0)
        return *ops.repeat(ir.create_graph(body, x), 3, x), x

    assert run(build) == [8, 104]


@both_ways
def test_a_carried_input_by_reference_that_is_returned_coincides() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(x: popxl.TensorByRef, y: popxl.Tensor) -> popxl.Tensor:
            return accumulate_(x, y)

        x, y = popxl.variable(1.0), popxl.variable(2.0)
        (z,) = ops.repeat(ir.create_graph(body, x, y), 10, x, y)
        before = ops.identity(z)
        x += 1.0
        return before, z, x

    assert run(build, runs=2) == [42, 42, 43]


@both_ways
def test_a_variable_is_updated_through_nested_loops_and_calls() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def add_one(t: popxl.TensorByRef) -> None:
            accumulate_(t, popxl.constant([1.0, 10.0]))

        x = popxl.variable([0.0, 0.0])
        innermost = ir.create_graph(add_one, x)

        def twice(t: popxl.TensorByRef) -> None:
            ops.repeat(innermost, 2, t)
            ops.call(innermost, t)

        ops.repeat(ir.create_graph(twice, x), 3, x)
        return [x]

    assert run(build, runs=2) == [[18, 180]]


@both_ways
@pytest.mark.parametrize(("count", "column"), [(3, [128, 256]), (0, [2, 4])])
def test_a_part_of_a_variable_is_updated_in_a_loop(count: int, column: list[float]) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def double(t: popxl.TensorByRef) -> None:
            accumulate_(t, t)

        x = popxl.variable([[1.0, 2.0], [3.0, 4.0]])
        part = ops.slice_(x, 1, 2, axis=1)
        ops.repeat(ir.create_graph(double, part), count, part)
        return [x]

    assert run(build, runs=2) == [[[1, column[0]], [3, column[1]]]]


@both_ways
def test_two_carried_inputs_by_reference_that_swap() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(a: popxl.TensorByRef, b: popxl.TensorByRef) -> tuple[popxl.Tensor, popxl.Tensor]:
            accumulate_(a, popxl.constant(10.0))
            return b, a

        a, b = popxl.variable(1.0), popxl.variable(2.0)
        return *ops.repeat(ir.create_graph(body, a, b), 3, a, b), a, b

    # enters (1, 2) -> a 11 -> (2, 11) -> a 12 -> (11, 12) -> a 21 -> (12, 21)
    assert run(build) == [12, 21, 21, 12]


@both_ways
def test_a_constant_by_reference_stays() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(x: popxl.Tensor, t: popxl.TensorByRef) -> popxl.Tensor:
            return x + accumulate_(t, popxl.constant(1.0))

        x, c = popxl.variable(0.0), popxl.constant(5.0)
        return *ops.repeat(ir.create_graph(body, x, c), 1, x, c), c

    assert run(build, runs=2) == [6, 5]


def test_loops_modify_their_carried_inputs_by_reference_and_others_only_if_the_body_does(ir: popxl.Ir) -> None:
    def body(
        a: popxl.TensorByRef, b: popxl.Tensor, c: popxl.TensorByRef, d: popxl.TensorByRef, e: popxl.TensorByRef
    ) -> popxl.Tensor:
        accumulate_(b, c)
        accumulate_(ops.reshape_(d, (1,)), popxl.constant([1.0]))
        ops.call(inner, e)
        return a + c

    def change(t: popxl.TensorByRef) -> None:
        accumulate_(t, t)

    with ir.main_graph:
        ts = [popxl.variable(0.0) for _ in range(5)]
        inner = ir.create_graph(change, ts[0])
        info = ops.repeat_with_info(ir.create_graph(body, *ts), 2, *ts)
    assert [info._op.modifiesIndex(i + 2) for i in range(5)] == [True, False, False, True, True]


# Errors


class Body:
    """A body ``x + v``, and tensors to repeat it with."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.x = popxl.variable(1.0)
            self.graph = self.ir.create_graph(lambda x, v: x + v, self.x, self.x)

    def make(self, fn: Callable[..., Any]) -> popxl.Graph:
        return self.ir.create_graph(fn, self.x)


@pytest.fixture
def body() -> Body:
    return Body()


@pytest.mark.parametrize(
    ("call", "error", "start"),
    [
        (lambda b: ops.repeat(b.graph, -1, b.x, b.x), ValueError, "Repeat count must be >= 0."),
        (lambda b: ops.repeat(b.graph, 2.0, b.x, b.x), TypeError, "The repeat count must be an int, not 2.0"),
        (lambda b: ops.repeat(b.graph, b.x, b.x, b.x), TypeError, "The repeat count must be an int, not Variable"),
        (
            lambda b: ops.repeat(b.make(lambda x: (x, x)), 2, b.x),
            ValueError,
            "To repeat the subgraph (<lambda>.<lambda>_subgraph(1)) the number of inputs must be greater than or equal",
        ),
        (
            lambda b: ops.repeat(b.make(lambda x: ops.reshape(x, (1,))), 2, b.x),
            ValueError,
            "Output 0 of graph ",
        ),
        (
            lambda b: ops.repeat(b.make(lambda x: ops.cast(x, popxl.int32)), 2, b.x),
            ValueError,
            "Output 0 of graph ",
        ),
        (
            lambda b: ops.repeat(b.graph, 2, 1, 2, 3),
            ValueError,
            "Too many inputs have been provided to the called graph",
        ),
        (
            lambda b: ops.repeat(b.graph, 2, 1),
            ValueError,
            "Not enough inputs have been provided for the called graph (",
        ),
        (lambda b: ops.repeat(b.graph, 2, "1", 1), TypeError, 'Input at position "0" could not be coerced'),
        (
            lambda b: ops.repeat(b.graph, 2, 1, inputs_dict={b.x: b.x}),
            ValueError,
            'The graph input tensor "t" is not in the called graph',
        ),
        (lambda b: ops.repeat(b.graph, 2, [[1.0]], 1), RuntimeError, "CallOp input (@0) does not match"),
    ],
)
def test_errors_of_repeat(body: Body, call: Callable[[Body], Any], error: type[Exception], start: str) -> None:
    before = len(body.ir.main_graph.ops)
    with body.ir.main_graph, pytest.raises(error) as raised:
        call(body)
    assert str(raised.value).startswith(start)
    assert len(body.ir.main_graph.ops) == before


def test_appended_outputs_count_and_are_carried(body: Body) -> None:
    with body.ir.main_graph:
        g = body.graph
        with g:
            popxl.graph_output(g.inputs[1] * 2.0)
        assert len(ops.repeat(g, 2, 1, 1)) == 2
        with g:
            popxl.graph_output(g.inputs[1] * 3.0)
        with pytest.raises(PopxlValueError, match="greater than or equal to the number of outputs"):
            ops.repeat(g, 2, 1, 1)


@both_ways
def test_an_output_appended_after_the_loop_was_made_does_not_change_it() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = scalar(1)
        g = ir.create_graph(lambda x, v: x + v, x, x)
        outputs = ops.repeat(g, 3, x, x)
        with g:
            popxl.graph_output(g.inputs[0] * 100)
        return outputs

    assert run(build) == [4]


def test_a_tensor_by_reference_must_be_passed_once(body: Body) -> None:
    def change(x: popxl.Tensor, t: popxl.TensorByRef) -> popxl.Tensor:
        return accumulate_(t, x)

    with body.ir.main_graph:
        g = body.ir.create_graph(change, body.x, body.x)
        with pytest.raises(CoreError, match="is passed by reference to `t`"):
            ops.repeat(g, 2, body.x, body.x)


# Structure and info


class Looped:
    """``info`` of a loop over ``(x, v) -> (x + v,)``, called with x and y."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.x, self.y = popxl.variable(1.0, name="x"), popxl.variable(2.0, name="y")

            def body(x: popxl.Tensor, v: popxl.TensorByRef) -> popxl.Tensor:
                return x + v

            self.graph = self.ir.create_graph(body, self.x, self.x)
            self.ops_before = len(self.ir.main_graph.ops)
            self.info = ops.repeat_with_info(self.graph, 5, self.x, self.y)


@pytest.fixture
def looped() -> Looped:
    return Looped()


def test_a_loop_adds_one_op_and_a_tensor_for_each_output(looped: Looped) -> None:
    (op,) = looped.ir.main_graph.ops[looped.ops_before :]
    assert op.opType() == "Loop"
    assert looped.info.outputs == op.outputs
    assert len(op.outputs) == 1


def test_the_called_graph_of_a_loop_is_a_wrapper(looped: Looped) -> None:
    wrapper = looped.info.called_graph
    assert wrapper.id == f"{looped.graph.id}__loop_wrapper_subgraph(1)"
    assert [t.name for t in wrapper.inputs] == ["Iterator___", "LoopCond___", "x", "v"]
    assert [(t.shape, t.dtype) for t in wrapper.inputs[:2]] == [((), popxl.int32), ((), popxl.bool)]
    assert wrapper.outputs[0].name == "LoopCond___"
    assert [op.opType() for op in wrapper.ops] == ["Call"]
    assert wrapper.called_graphs == (looped.graph,)


def test_the_wrapper_takes_the_same_inputs_by_reference(looped: Looped) -> None:
    wrapper = looped.info.called_graph
    assert wrapper._by_ref_inputs == {wrapper.inputs[3]}


def test_the_wrapper_leaves_the_users_graph_as_it_is(looped: Looped) -> None:
    assert [t.name for t in looped.graph.inputs] == ["x", "v"]
    assert len(looped.graph.outputs) == 1
    assert len(looped.graph.ops) == 1


def test_info_of_a_loop_has_the_users_inputs_and_outputs(looped: Looped) -> None:
    assert looped.info.inputs == (looped.x, looped.y)
    assert len(looped.info.outputs) == 1


def test_the_op_inputs_of_a_loop_start_at_2(looped: Looped) -> None:
    info = looped.info
    assert [info.parent_input(i) for i in (2, 3)] == [looped.x, looped.y]
    for missing in (0, 1, 4):
        with pytest.raises(PopxlIndexError, match=f"no input {missing}"):
            info.parent_input(missing)
    assert [info.graph_to_parent_input_index(i) for i in (2, 3)] == [2, 3]
    assert [info.parent_to_graph_input_index(i) for i in (2, 3)] == [2, 3]


def test_the_outputs_of_a_loop_are_one_behind_the_wrappers(looped: Looped) -> None:
    info = looped.info
    assert info.graph_to_parent_output_index(1) == 0
    assert info.parent_to_graph_output_index(0) == 1
    assert info.parent_output(0) == info.outputs[0]


def test_graph_to_parent_of_a_loop_takes_tensors_of_the_wrapper(looped: Looped) -> None:
    info, wrapper = looped.info, looped.info.called_graph
    assert [info.graph_to_parent(t) for t in wrapper.inputs[2:]] == [looped.x, looped.y]
    assert info.graph_to_parent(wrapper.outputs[1]) == info.outputs[0]
    for other in (looped.graph.inputs[0], looped.graph.outputs[0], wrapper.inputs[0], wrapper.inputs[1]):
        with pytest.raises(PopxlValueError, match="is not an input or output of the called graph"):
            info.graph_to_parent(other)


def test_parent_to_graph_of_a_loop_gives_tensors_of_the_wrapper(looped: Looped) -> None:
    assert looped.info.parent_to_graph(looped.y) == looped.info.called_graph.inputs[3]
    with pytest.raises(PopxlValueError, match="is not a parent graph input of the call site"):
        looped.info.parent_to_graph(looped.info.outputs[0])


def test_outputs_of_a_loop_have_the_meta_shape_of_the_graphs_outputs(ir: popxl.Ir) -> None:
    with ir.main_graph:
        g = ir.create_graph(lambda: popxl.graph_input((2,), popxl.float32, meta_shape=(4, 2)) + 1.0)
        (y,) = ops.repeat(g, 2, np.zeros((1, 2), np.float32))
    assert y.meta_shape == (4, 2)
