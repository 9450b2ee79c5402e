"""`call`: matching inputs, what a call computes, call site info (ops-control.md §1-§2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from running import run

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlIndexError, PopxlValueError
from popxl.plan.steps import Call
from popxl.tensor import Constant

accumulate_ = ops.var_updates.accumulate_
both_ways = pytest.mark.usefixtures("way")


def add(a: popxl.Tensor, b: popxl.Tensor) -> popxl.Tensor:
    return a + b


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


# The two ways


def test_the_ways_to_run_differ(way: str, ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable(1.0)
        out = popxl.d2h_stream((), popxl.float32)
        ops.host_store(out, *ops.call(ir.create_graph(add, x, x), x, 2.0))
    calls = [step for step in popxl.Session(ir).plan.steps if isinstance(step, Call)]
    assert len(calls) == (0 if way == "compiled" else 1)


# Matching inputs


@both_ways
def test_lists_and_arrays_are_flattened_one_level() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0, 2.0])
        g = ir.create_graph(lambda a, b, c: a + b * c, x, popxl.constant(0.0), popxl.constant(0.0))
        nested = ir.create_graph(add, x, x)
        return *ops.call(g, x, np.array([3.0, 4.0])), *ops.call(g, [x, 3.0, 4]), *ops.call(nested, [[5.0, 6.0], x])

    assert run(build) == [[13, 14], [13, 14], [6, 8]]


def test_an_array_without_axes_is_one_value(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable(1.0)
        (y,) = ops.call(ir.create_graph(add, x, x), np.array(2.0), x)
    assert y.shape == ()


@pytest.mark.parametrize("dtype", [popxl.float16, popxl.int8, popxl.uint32, popxl.float64])
def test_a_number_becomes_a_constant_of_the_inputs_dtype(ir: popxl.Ir, dtype: popxl.dtypes.dtype) -> None:
    with ir.main_graph:
        x = popxl.variable(1, dtype)
        info = ops.call_with_info(ir.create_graph(add, x, x), x, 3)
    assert isinstance(info.inputs[1], Constant)
    assert info.inputs[1].dtype == dtype


@both_ways
def test_inputs_dict_fills_the_rest_in_any_order() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x, y = popxl.variable(10.0), popxl.variable(4.0)
        g = ir.create_graph(lambda a, b, c: (a - b) * c, x, x, x)
        _, b, c = g.inputs
        info = ops.call_with_info(g, x, inputs_dict={c: 3, b: y})
        assert info.inputs[:2] == (x, y)
        return info.outputs

    assert run(build) == [18]


@both_ways
def test_one_tensor_may_go_to_several_inputs() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0, 2.0])
        return ops.call(ir.create_graph(add, x, x), x, x)

    assert run(build) == [[2, 4]]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_result_is_always_a_tuple(ir: popxl.Ir, count: int) -> None:
    with ir.main_graph:
        x = popxl.variable(1.0)
        outputs = ops.call(ir.create_graph(lambda x: [x + i for i in range(count)], x), x)
    assert isinstance(outputs, tuple)
    assert len(outputs) == count


class Caller:
    """A graph ``a + b``, and tensors that may or may not be passed to it."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.x = popxl.variable(1.0)
            self.ints = popxl.variable(1, popxl.int32)
            self.row = popxl.variable([1.0])
            self.graph = self.ir.create_graph(add, self.x, self.x)
            self.other = self.ir.create_graph(lambda x: x + 1.0, self.x)
        with popxl.Ir().main_graph:
            self.foreign = popxl.variable(1.0)


@pytest.fixture
def caller() -> Caller:
    return Caller()


Call_ = Callable[[Caller], Any]


@pytest.mark.parametrize(
    ("call", "error", "start"),
    [
        (lambda c: ops.call(c.graph, c.x, c.x, c.x), ValueError, "Too many inputs have been provided to the called"),
        (lambda c: ops.call(c.graph, [c.x, c.x], 3.0), ValueError, "Too many inputs have been provided to the called"),
        (lambda c: ops.call(c.graph, c.graph.inputs[0], c.x), ValueError, 'Parent input tensor "add_subgraph(0)/a" is'),
        (lambda c: ops.call(c.graph, c.foreign, c.x), ValueError, 'Parent input tensor "t" is not in parent graph'),
        (
            lambda c: ops.call(c.graph, c.x, inputs_dict={c.other.inputs[0]: c.x}),
            ValueError,
            'The graph input tensor "Caller.__init__.<lambda>_subgraph(1)/x" is not in the called graph',
        ),
        (
            lambda c: ops.call(c.graph, c.x, inputs_dict={c.graph.inputs[1]: c.foreign}),
            ValueError,
            'The parent input tensor "t" is not in the parent graph',
        ),
        (
            lambda c: ops.call(c.graph, c.x, c.x, inputs_dict={c.graph.inputs[1]: c.x}),
            ValueError,
            "Graph input tensor is specified twice for the called graph, ",
        ),
        (lambda c: ops.call(c.graph, c.x, inputs_dict={c.graph.outputs[0]: c.x}), RuntimeError, "Tensor "),
        (lambda c: ops.call(c.graph, "x", c.x), TypeError, 'Input at position "0" could not be coerced into a tensor'),
        (lambda c: ops.call(c.graph, c.x, None), TypeError, 'Input at position "1" could not be coerced into a tensor'),
        (lambda c: ops.call(c.graph, c.x, [[]]), TypeError, 'Input at position "1" could not be coerced into a tensor'),
        (
            lambda c: ops.call(c.graph, c.x, inputs_dict={c.graph.inputs[1]: "b"}),
            TypeError,
            'Input "b" could not be coerced',
        ),
        (lambda c: ops.call(c.graph, c.x), ValueError, "Not enough inputs have been provided for the called graph ("),
        (
            lambda c: ops.call(c.graph, c.x, c.ints),
            RuntimeError,
            "CallOp input (@1) does not match callee input tensor (@1)",
        ),
        (
            lambda c: ops.call(c.graph, c.row, c.x),
            RuntimeError,
            "CallOp input (@0) does not match callee input tensor (@0)",
        ),
    ],
)
def test_wrong_inputs_are_refused(caller: Caller, call: Call_, error: type[Exception], start: str) -> None:
    with caller.ir.main_graph, pytest.raises(error) as raised:
        call(caller)
    assert str(raised.value).startswith(start)


def test_missing_inputs_are_listed_beside_the_connected_ones(caller: Caller) -> None:
    with caller.ir.main_graph, pytest.raises(PopxlValueError, match="Not enough inputs") as raised:
        ops.call(caller.graph, caller.x)
    missing, connected = str(raised.value).split("Connected inputs:")
    assert "Missing inputs:" in missing
    assert " b " in missing
    assert " a " in connected


def test_a_graph_of_another_ir_is_refused(caller: Caller) -> None:
    other = popxl.Ir()
    with other.main_graph, pytest.raises(PopxlValueError, match="belongs to"):
        ops.call(caller.graph, 1.0, 2.0)


def test_check_inputs_leaves_only_completeness_unchecked(caller: Caller) -> None:
    with caller.ir.main_graph:
        assert len(ops.call_with_info(caller.graph, caller.x, check_inputs=False).inputs) == 1
        with pytest.raises(PopxlValueError, match="Too many inputs"):
            ops.call_with_info(caller.graph, 1.0, 2.0, 3.0, check_inputs=False)


def test_a_session_refuses_a_call_that_lacks_inputs(caller: Caller) -> None:
    with caller.ir.main_graph:
        ops.call_with_info(caller.graph, caller.x, check_inputs=False)
    with pytest.raises(CoreError, match=r"passes 1 inputs where 2 are wanted by add_subgraph\(0\)"):
        popxl.Session(caller.ir)


# Values


@both_ways
def test_what_a_graph_does_to_inputs_by_value_stays_inside() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0, 2.0])
        g = ir.create_graph(lambda x: accumulate_(x, x), x)
        return *ops.call(g, x), x

    assert run(build, runs=2) == [[2, 4], [1, 2]]


@both_ways
@pytest.mark.parametrize(
    "body", [lambda x: x, lambda x: ops.reshape_(x, (1, 2)), lambda x: ops.slice_(x, 0, 1), lambda x: ops.detach_(x)]
)
def test_an_output_that_aliases_an_input_is_a_separate_tensor_outside(body: Callable[..., popxl.Tensor]) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0, 2.0])
        (y,) = ops.call(ir.create_graph(body, x), x)
        y += 10.0
        x += 100.0
        return [x, ops.reshape(y, (-1,))]

    x, y = run(build)
    assert x == [101, 102]
    assert y == [11, 12][: len(y)]


@both_ways
def test_an_output_given_twice_is_two_tensors() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def twice(x: popxl.Tensor) -> list[popxl.Tensor]:
            y = x + 1.0
            return [y, y, x]

        x = popxl.variable([1.0])
        a, b, c = ops.call(ir.create_graph(twice, x), x)
        a += 10.0
        return a, b, c, x

    assert run(build) == [[12], [2], [1], [1]]


@both_ways
def test_an_output_that_is_a_constant_is_fresh_in_every_call() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        g = ir.create_graph(lambda: popxl.constant(np.full(40, 3.0, np.float32)))
        (a,), (b,) = ops.call(g), ops.call(g)
        a += 1.0
        return [ops.slice(a, 0, 1), ops.slice(b, 0, 1)]

    assert run(build, runs=2) == [[4], [3]]


@both_ways
def test_call_sites_share_the_definition_and_no_state() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def count(x: popxl.Tensor) -> popxl.Tensor:
            total = popxl.constant(np.zeros(2, np.float32)) + 0.0
            accumulate_(total, x)
            return total

        x = popxl.variable([1.0, 2.0])
        g = ir.create_graph(count, x)
        return *ops.call(g, x), *ops.call(g, x + 1.0), *ops.call(g, x)

    assert run(build) == [[1, 2], [2, 3], [1, 2]]


@both_ways
def test_calls_nest() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable(2.0)
        square = ir.create_graph(lambda x: x * x, x)
        fourth = ir.create_graph(lambda x: ops.call(square, *ops.call(square, x)), x)
        return ops.call(ir.create_graph(lambda x: ops.call(fourth, *ops.call(square, x)), x), x)

    assert run(build) == [256]


@both_ways
def test_constants_and_modules_are_used_inside() -> None:
    class Scale(popxl.Module):
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            self.factor = popxl.graph_input((), popxl.float32, "factor")
            return x * self.factor + popxl.constant(1.0)

    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0, 2.0])
        scale = Scale()
        g = ir.create_graph(scale, x)
        return ops.call(g, x, inputs_dict={scale.factor: 5.0})

    assert run(build) == [[6, 11]]


@both_ways
def test_effects_happen_at_each_execution(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    ir = popxl.Ir()
    ir.num_host_transfers = 2
    with ir.main_graph:
        x_in, x_out = popxl.h2d_stream((), popxl.float32), popxl.d2h_stream((), popxl.float32)
        buffer = popxl.remote_buffer((), popxl.float32)
        row = popxl.remote_variable(1.0, buffer)

        def body() -> None:
            x = ops.print_tensor(ops.host_load(x_in), "seen")
            total = ops.remote_load(buffer, 0) + x
            ops.remote_store(buffer, 0, total)
            ops.host_store(x_out, total)

        g = ir.create_graph(body)
        ops.call(g)
        ops.call(g)
    with popxl.Session(ir, streaming_memory=memory) as session:
        assert session.run({x_in: np.array([10, 200], np.float32)})[x_out].tolist() == [11, 211]
        assert session.get_tensor_data(row) == 211
    titles_and_values = capsys.readouterr().err.split()
    assert titles_and_values[::2] == ["seen", "seen"]
    assert [float(value) for value in titles_and_values[1::2]] == [10, 200]


def test_a_call_adds_one_op_and_a_tensor_for_each_output(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable(1.0, name="x")
        g = ir.create_graph(lambda x: (x + 1.0, x), x)
        ops_before, tensors_before = len(ir.main_graph.ops), set(ir.main_graph.tensors)
        outputs = ops.call(g, x)
    assert [op.opType() for op in ir.main_graph.ops[ops_before:]] == ["Call"]
    assert set(ir.main_graph.tensors) - tensors_before == set(outputs)
    assert outputs[0].name == g.outputs[0].name
    assert outputs[1].name.startswith("x__t")


def test_outputs_have_shape_dtype_and_meta_shape_of_the_graphs_outputs(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable(np.zeros((2, 3), np.float16))

        def body(x: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            return x + 1.0, popxl.graph_input((2,), popxl.int8, meta_shape=(4, 2))

        a, b = ops.call(ir.create_graph(body, x), x, np.zeros((1, 2), np.int8))
    assert (a.shape, a.dtype, a.meta_shape) == ((2, 3), popxl.float16, ())
    assert (b.shape, b.dtype, b.meta_shape) == ((2,), popxl.int8, (4, 2))


@both_ways
def test_an_output_marked_after_a_call_is_for_later_calls() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable(1.0)
        g = ir.create_graph(lambda x: x + 1.0, x)
        before = ops.call(g, x)
        with g:
            popxl.graph_output(g.inputs[0] * 5.0)
        return *before, *ops.call(g, x)

    assert run(build) == [2, 2, 5]


# Call site info


class Site:
    """``info`` of a call ``g(x, y, x)`` of a graph with the inputs a, b, c and the outputs a + b, c."""

    def __init__(self) -> None:
        ir = popxl.Ir()
        with ir.main_graph:
            self.x, self.y = popxl.variable(1.0, name="x"), popxl.variable(2.0, name="y")
            self.graph = ir.create_graph(lambda a, b, c: (a + b, c), self.x, self.x, self.x)
            self.info = ops.call_with_info(self.graph, self.x, self.y, self.x)
            self.outside = popxl.variable(3.0, name="outside")


@pytest.fixture
def call_site() -> Site:
    return Site()


def test_info_knows_graph_inputs_and_outputs(call_site: Site) -> None:
    info = call_site.info
    assert info.called_graph == call_site.graph
    assert info.inputs == (call_site.x, call_site.y, call_site.x)
    assert [t.shape for t in info.outputs] == [(), ()]
    assert info.outputs == info._op.outputs


def test_info_finds_the_callers_tensors_by_index(call_site: Site) -> None:
    info = call_site.info
    assert [info.parent_input(i) for i in range(3)] == list(info.inputs)
    assert [info.parent_output(i) for i in range(2)] == list(info.outputs)


@pytest.mark.parametrize("index", [-1, 3])
def test_info_refuses_an_index_that_is_not_there(call_site: Site, index: int) -> None:
    with pytest.raises(PopxlIndexError, match=f"no input {index}"):
        call_site.info.parent_input(index)
    with pytest.raises(PopxlIndexError, match=f"no output {index}"):
        call_site.info.parent_output(index)


def test_the_indices_of_a_call_are_those_of_the_graph(call_site: Site) -> None:
    info = call_site.info
    for convert in (
        info.graph_to_parent_input_index,
        info.parent_to_graph_input_index,
        info.graph_to_parent_output_index,
        info.parent_to_graph_output_index,
    ):
        assert [convert(i) for i in range(2)] == [0, 1]


def test_graph_to_parent_takes_inputs_then_outputs(call_site: Site) -> None:
    info, (a, b, c) = call_site.info, call_site.graph.inputs
    assert [info.graph_to_parent(t) for t in (a, b)] == [call_site.x, call_site.y]
    assert info.graph_to_parent(call_site.graph.outputs[0]) == info.outputs[0]
    assert info.graph_to_parent(c) == call_site.x  # an output as well


def test_graph_to_parent_refuses_other_tensors(call_site: Site) -> None:
    with pytest.raises(PopxlValueError, match=r"^Tensor outside is not an input or output of the called graph\(s\)\."):
        call_site.info.graph_to_parent(call_site.outside)


def test_parent_to_graph_gives_the_first_input(call_site: Site) -> None:
    a, b, _ = call_site.graph.inputs
    assert call_site.info.parent_to_graph(call_site.x) == a
    assert call_site.info.parent_to_graph(call_site.y) == b


def test_parent_to_graph_refuses_outputs_and_other_tensors(call_site: Site) -> None:
    for t in (call_site.outside, call_site.info.outputs[0]):
        with pytest.raises(PopxlValueError, match=f"^Tensor {t.name} is not a parent graph input of the call site\\."):
            call_site.info.parent_to_graph(t)


def test_the_op_of_a_call_tells_what_is_modified(call_site: Site) -> None:
    info = call_site.info
    assert info._op.opType() == "Call"
    assert [info._op.modifiesIndex(i) for i in range(3)] == [False, False, False]
    info.set_parent_input_modified(call_site.y)
    assert [info._op.modifiesIndex(i) for i in range(3)] == [False, True, False]
    assert info._op.inTensor(1) == call_site.y
    assert info._op.outTensor(1) == info.outputs[1]


def test_by_ref_inputs_are_modified_at_the_call(ir: popxl.Ir) -> None:
    def body(x: popxl.Tensor, y: popxl.TensorByRef) -> None:
        pass

    with ir.main_graph:
        x, y = popxl.variable(1.0), popxl.variable(1.0)
        info = ops.call_with_info(ir.create_graph(body, x, y), x, y)
    assert [info._op.modifiesIndex(i) for i in range(2)] == [False, True]


def test_info_is_made_from_its_op(call_site: Site) -> None:
    again = type(call_site.info)(call_site.info._op)
    assert again.outputs == call_site.info.outputs


def test_infos_follow_the_op(call_site: Site) -> None:
    with call_site.graph.main_graph:
        (extra,) = ops.call(call_site.graph, 1.0, 2.0, 3.0)[:1]
    call_site.info._op.outputs = (*call_site.info._op.outputs, extra)
    assert len(call_site.info.outputs) == 3


def test_a_tensor_marked_as_modified_must_be_passed_once(caller: Caller) -> None:
    with caller.ir.main_graph:
        twice = ops.call_with_info(caller.graph, caller.x, caller.x)
        other = ops.call_with_info(caller.graph, caller.x, 1.0)
        with pytest.raises(CoreError, match="it is passed to 2"):
            twice.set_parent_input_modified(caller.x)
        with pytest.raises(CoreError, match="it is passed to 0"):
            other.set_parent_input_modified(caller.ints)
