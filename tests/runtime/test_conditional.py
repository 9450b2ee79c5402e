"""`conditional`: which branch runs, what it gives, errors, call site info (ops-control.md §5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from running import run

import popxl
from popxl import ops
from popxl.errors import PopxlIndexError, PopxlNotImplementedError, PopxlValueError
from popxl.ops.conditional import ConditionalSiteInfo
from popxl.plan.steps import Branch

both_ways = pytest.mark.usefixtures("way")
both_branches = pytest.mark.parametrize("taken", [True, False])


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


def flag(value: bool, shape: tuple[int, ...] = ()) -> popxl.Tensor:
    return popxl.variable(np.full(shape, value), popxl.bool)


# Values


def test_the_ways_to_run_differ(way: str, ir: popxl.Ir) -> None:
    with ir.main_graph:
        out = popxl.d2h_stream((), popxl.float32)
        x = popxl.variable(1.0)
        g = ir.create_graph(lambda x: x + x, x)
        ops.host_store(out, *ops.conditional(flag(True), g, g, [x], [x]))
    branches = [step for step in popxl.Session(ir).plan.steps if isinstance(step, Branch)]
    assert len(branches) == (0 if way == "compiled" else 1)


@both_ways
@both_branches
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_condition_chooses_the_branch(taken: bool, shape: tuple[int, ...]) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x, y = popxl.variable([1.0, 2.0]), popxl.variable([5.0, 6.0])
        then_branch = ir.create_graph(lambda x: (x + 1.0, x), x)
        else_branch = ir.create_graph(lambda a, b: (a * b, b), x, x)
        return *ops.conditional(flag(taken, shape), then_branch, else_branch, [x], [x, y]), x, y

    expected = [[2, 3], [1, 2]] if taken else [[5, 12], [5, 6]]
    assert run(build, runs=2) == [*expected, [1, 2], [5, 6]]


@both_ways
@both_branches
def test_one_graph_may_be_both_branches_with_different_inputs(taken: bool) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x, y = popxl.variable(1.0), popxl.variable(5.0)
        g = ir.create_graph(lambda a, b: a - b, x, x)
        a, b = g.inputs
        return ops.conditional(
            flag(taken), g, g, then_inputs_dict={b: x, a: y}, else_inputs=[x], else_inputs_dict={b: y}
        )

    assert run(build) == [4 if taken else -4]


@both_ways
def test_the_condition_is_read_when_the_program_runs() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable(0, popxl.int32)
        x += 1
        three = ops.greater(x, popxl.constant(2, popxl.int32))
        g = ir.create_graph(lambda v: v * 10, x)
        return ops.conditional(three, g, ir.create_graph(lambda v: v, x), [x], [x])

    assert run(build, runs=2) == [2]
    assert run(build, runs=3) == [30]


@both_ways
@both_branches
def test_a_condition_that_the_host_knows(taken: bool) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        i = popxl.constant(4, popxl.int32)
        condition = ops.greater(i + 1, popxl.constant(4 if taken else 5, popxl.int32))
        g = ir.create_graph(lambda v: v * 10, i)
        return ops.conditional(condition, g, ir.create_graph(lambda v: v, i), [i], [i])

    assert run(build) == [40 if taken else 4]


@both_ways
@both_branches
def test_only_the_chosen_branch_has_effects(taken: bool, memory: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        condition = popxl.h2d_stream((), popxl.bool)
        buffer = popxl.remote_buffer((), popxl.float32, 2)
        rows = [popxl.remote_variable(float(k), buffer, k) for k in range(2)]
        left, right = popxl.d2h_stream((), popxl.float32), popxl.d2h_stream((), popxl.float32)

        def branch(row: int, stream: popxl.DeviceToHostStream) -> None:
            x = ops.remote_load(buffer, row) + 10.0
            ops.remote_store(buffer, row, x)
            ops.host_store(stream, x)

        then_branch, else_branch = ir.create_graph(branch, 0, left), ir.create_graph(branch, 1, right)
        assert ops.conditional(ops.host_load(condition), then_branch, else_branch) == ()
    with popxl.Session(ir, streaming_memory=memory) as session:
        outputs = {left: np.array(-1.0, np.float32), right: np.array(-1.0, np.float32)}
        session.run_with_outputs({condition: np.array(taken)}, outputs)
        assert [float(outputs[s]) for s in (left, right)] == ([10, -1] if taken else [-1, 11])
        assert [float(session.get_tensor_data(r)) for r in rows] == ([10, 1] if taken else [0, 11])


@both_ways
@both_branches
def test_inputs_are_passed_by_value(taken: bool) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0])
        g = ir.create_graph(lambda x: ops.add_(x, x), x)
        (y,) = ops.conditional(flag(taken), g, g, [x], [x])
        return x, y

    assert run(build, runs=2) == [[1], [2]]


@both_ways
@both_branches
def test_an_output_that_aliases_an_input_is_a_separate_tensor_outside(taken: bool) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0])
        g = ir.create_graph(lambda x: x, x)
        (y,) = ops.conditional(flag(taken), g, ir.create_graph(lambda x: ops.detach_(x), x), [x], [x])
        x += 10.0
        y += 100.0
        return x, y

    assert run(build, runs=2) == [[21], [111]]


@both_ways
@both_branches
def test_conditionals_nest_and_run_in_loops(taken: bool) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.constant(1, popxl.int32)
        up, down = ir.create_graph(lambda x: x * 2, x), ir.create_graph(lambda x: x - 1, x)

        def small(x: popxl.Tensor) -> popxl.Tensor:
            return ops.conditional(ops.greater(popxl.constant(5, popxl.int32), x), up, down, [x], [x])[0]

        inner = ir.create_graph(small, x)

        def body(x: popxl.Tensor, condition: popxl.Tensor) -> popxl.Tensor:
            return ops.conditional(condition, inner, down, [x], [x])[0]

        return ops.repeat(ir.create_graph(body, x, flag(True)), 5, x, flag(taken))

    # 1 2 4 8 7 6, or 1 0 -1 -2 -3 -4
    assert run(build) == [6 if taken else -4]


@both_ways
@both_branches
def test_a_branch_may_get_an_output_later(taken: bool) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable(1.0)
        g, h = ir.create_graph(lambda x: x + 1.0, x), ir.create_graph(lambda x: x + 5.0, x)
        outputs = ops.conditional(flag(taken), g, h, [x], [x])
        with g:
            popxl.graph_output(g.inputs[0])
        return outputs

    assert run(build) == [2 if taken else 6]


# Structure


def test_a_conditional_adds_one_op_and_a_tensor_for_each_output(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x, condition = popxl.variable(1.0), flag(True)
        g = ir.create_graph(lambda x: (ops.rename(x + 1.0, "a"), ops.rename(x, "b")), x)
        h = ir.create_graph(lambda x: (ops.rename(x + 1.0, "c"), ops.rename(x, "d")), x)
        before = len(ir.main_graph.ops)
        outputs = ops.conditional(condition, g, h, [x], [x])
    assert [op.opType() for op in ir.main_graph.ops[before:]] == ["If"]
    assert [t.name for t in outputs] == ["a_or_c", "b_or_d"]


def test_outputs_are_like_those_of_the_then_branch(ir: popxl.Ir) -> None:
    with ir.main_graph:
        g = ir.create_graph(lambda: popxl.graph_input((2,), popxl.int8, meta_shape=(4, 2)) + 1)
        h = ir.create_graph(lambda: popxl.constant([1, 2], popxl.int8))
        (y,) = ops.conditional(flag(True), g, h, [np.zeros((1, 2), np.int8)])
    assert (y.shape, y.dtype, y.meta_shape) == ((2,), popxl.int8, (4, 2))


# Errors


class Program:
    """Two graphs ``a + b`` and ``x + 1``, and tensors to call them with."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.x = popxl.variable(1.0, name="x")
            self.flag = flag(True)
            self.add = self.ir.create_graph(lambda a, b: a + b, self.x, self.x)
            self.one = self.ir.create_graph(lambda x: x + 1.0, self.x)
            self.none = self.ir.create_graph(lambda: None)
            self.row = self.ir.create_graph(lambda x: ops.reshape(x, (1,)), self.x)
            self.int = self.ir.create_graph(lambda x: ops.cast(x, popxl.int32), self.x)

            def by_ref(x: popxl.TensorByRef) -> popxl.Tensor:
                return x + 1.0

            self.by_ref = self.ir.create_graph(by_ref, self.x)


@pytest.fixture
def program() -> Program:
    return Program()


@pytest.mark.parametrize(
    ("call", "error", "start"),
    [
        (
            lambda p: ops.conditional(p.flag, p.one, p.none, [p.x]),
            ValueError,
            "`then_branch` graph and `else_branch` graph must have the same number of outputs:",
        ),
        (lambda p: ops.conditional(p.flag, p.one, p.row, [p.x], [p.x]), ValueError, "Output 0 of the branches differs"),
        (lambda p: ops.conditional(p.flag, p.int, p.one, [p.x], [p.x]), ValueError, "Output 0 of the branches differs"),
        (
            lambda p: ops.conditional(p.flag, p.by_ref, p.one, [p.x], [p.x]),
            NotImplementedError,
            "TensorByRef is not implemented for the conditional op.",
        ),
        (
            lambda p: ops.conditional(p.flag, p.one, p.by_ref, [p.x], [p.x]),
            NotImplementedError,
            "TensorByRef is not implemented for the conditional op.",
        ),
        (lambda p: ops.conditional(p.x, p.one, p.one, [p.x], [p.x]), TypeError, "The condition `cond` must be a bool"),
        (
            lambda p: ops.conditional(flag(True, (2,)), p.one, p.one, [p.x], [p.x]),
            ValueError,
            "The condition `cond` must have one element",
        ),
        (lambda p: ops.conditional(True, p.one, p.one, [p.x], [p.x]), TypeError, "The input `cond` is not a Tensor."),
        (
            lambda p: ops.conditional(p.flag, p.one, p.one, [p.x, p.x], [p.x]),
            ValueError,
            "Too many inputs have been provided to the then_branch graph.",
        ),
        (
            lambda p: ops.conditional(p.flag, p.one, p.one, [p.x], [p.x, p.x]),
            ValueError,
            "Too many inputs have been provided to the else_branch graph.",
        ),
        (
            lambda p: ops.conditional(p.flag, p.add, p.one, [p.x], [p.x]),
            ValueError,
            "Not enough inputs have been provided for the then_branch graph (",
        ),
        (
            lambda p: ops.conditional(p.flag, p.one, p.add, [p.x]),
            ValueError,
            "Not enough inputs have been provided for the else_branch graph (",
        ),
        (
            lambda p: ops.conditional(p.flag, p.one, p.one, [p.x], [p.one.inputs[0]]),
            ValueError,
            'Parent input tensor "',
        ),
        (
            lambda p: ops.conditional(p.flag, p.one, p.one, else_inputs_dict={p.add.inputs[0]: p.x}, then_inputs=[1]),
            ValueError,
            'The graph input tensor "',
        ),
        (
            lambda p: ops.conditional(p.flag, p.one, p.one, [p.x], [p.x], {p.one.inputs[0]: p.x}),
            ValueError,
            "Graph input tensor is specified twice for the then_branch graph,",
        ),
        (lambda p: ops.conditional(p.flag, p.one, p.one, ["1"], [1]), TypeError, 'Input at position "0" could not be'),
        (
            lambda p: ops.conditional(p.flag, p.one, p.one, [p.flag], [1]),
            RuntimeError,
            "CallOp input (@0) does not match callee input tensor (@0)",
        ),
    ],
)
def test_errors_of_conditional(
    program: Program, call: Callable[[Program], Any], error: type[Exception], start: str
) -> None:
    with program.ir.main_graph, pytest.raises(error) as raised:
        call(program)
    assert str(raised.value).startswith(start)


def test_a_condition_of_another_graph_is_refused(program: Program) -> None:
    with program.add, pytest.raises(PopxlValueError, match="The input tensor `cond` is not in the current Graph"):
        ops.conditional(program.flag, program.none, program.none)


# Call site info: conditional(flag, a + b, x + 1, [x, y], [y])


class Site:
    """``info`` of a conditional between ``a + b`` of x and y, and ``x + 1`` of y."""

    def __init__(self) -> None:
        self.program = p = Program()
        with p.ir.main_graph:
            self.y = popxl.variable(2.0, name="y")
            self.info = ops.conditional_with_info(p.flag, p.add, p.one, [p.x, self.y], [self.y])


@pytest.fixture
def site() -> Site:
    return Site()


def test_info_has_both_graphs_and_all_inputs(site: Site) -> None:
    p, info = site.program, site.info
    assert isinstance(info, ConditionalSiteInfo)
    assert info.called_graph == (p.add, p.one)
    assert info.inputs == (p.flag, p.x, site.y, site.y)
    assert len(info.outputs) == 1


def test_inputs_of_the_op_are_the_condition_then_those_of_each_branch(site: Site) -> None:
    info = site.info
    assert [info.parent_input(i) for i in range(4)] == list(info.inputs)
    assert [info.graph_to_parent_input_index(i) for i in (0, 1)] == [1, 2]
    assert info.graph_to_parent_input_index(0, then_branch=False) == 3
    assert [info.parent_to_graph_input_index(i) for i in (1, 2, 3)] == [0, 1, 0]
    assert [info.is_parent_index_in_then_branch(i) for i in (1, 2, 3)] == [True, True, False]


def test_indices_that_are_not_there_are_refused(site: Site) -> None:
    info = site.info
    for call in (
        lambda: info.graph_to_parent_input_index(2),
        lambda: info.graph_to_parent_input_index(1, then_branch=False),
        lambda: info.graph_to_parent_input_index(-1),
        lambda: info.parent_to_graph_input_index(0),
        lambda: info.parent_to_graph_input_index(4),
        lambda: info.is_parent_index_in_then_branch(0),
        lambda: info.is_parent_index_in_then_branch(4),
        lambda: info.graph_to_parent_output_index(1),
        lambda: info.graph_to_parent_output_index(1, then_branch=False),
        lambda: info.parent_to_graph_output_index(1),
        lambda: info.parent_to_graph_output_index(-1, then_branch=False),
        lambda: info.parent_input(4),
        lambda: info.parent_output(1),
    ):
        with pytest.raises(PopxlIndexError):
            call()


def test_outputs_are_numbered_alike(site: Site) -> None:
    info = site.info
    for then_branch in (True, False):
        assert info.graph_to_parent_output_index(0, then_branch=then_branch) == 0
        assert info.parent_to_graph_output_index(0, then_branch=then_branch) == 0


def test_graph_to_parent_looks_in_both_branches(site: Site) -> None:
    p, info = site.program, site.info
    assert [info.graph_to_parent(t) for t in (*p.add.inputs, *p.one.inputs)] == [p.x, site.y, site.y]
    assert info.graph_to_parent(p.add.outputs[0]) == info.outputs[0]
    assert info.graph_to_parent(p.one.outputs[0]) == info.outputs[0]
    with pytest.raises(PopxlValueError, match=r"is not an input or output of the called graph\(s\)\."):
        info.graph_to_parent(p.int.inputs[0])


def test_parent_to_graph_gives_the_first_branch_that_takes_the_tensor(site: Site) -> None:
    p, info = site.program, site.info
    assert info.parent_to_graph(p.x) == p.add.inputs[0]
    assert info.parent_to_graph(site.y) == p.add.inputs[1]
    for other in (p.flag, info.outputs[0]):
        with pytest.raises(PopxlValueError, match="is not a parent graph input of the call site"):
            info.parent_to_graph(other)


def test_parent_to_graph_finds_a_condition_that_is_also_passed(ir: popxl.Ir) -> None:
    with ir.main_graph:
        condition = flag(True)
        g, h = ir.create_graph(lambda: None), ir.create_graph(lambda c: None, condition)
        info = ops.conditional_with_info(condition, g, h, else_inputs=[condition])
    assert info.parent_to_graph(condition) == h.inputs[0]


def test_a_conditional_cannot_modify_its_inputs(site: Site) -> None:
    with pytest.raises(PopxlNotImplementedError, match="cannot modify its inputs"):
        site.info.set_parent_input_modified(site.y)
