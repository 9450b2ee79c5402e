"""Inputs by reference: what a graph does to them in place, it does to the caller's tensors (ops-control.md §4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from running import run

import popxl
from popxl import ops
from popxl.errors import CoreError

accumulate_ = ops.var_updates.accumulate_
both_ways = pytest.mark.usefixtures("way")


def add_one_in_place(x: popxl.Tensor) -> None:
    accumulate_(x, popxl.constant(1.0))


def add_one_by_ref(x: popxl.TensorByRef) -> None:
    accumulate_(x, popxl.constant(1.0))


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


@both_ways
@pytest.mark.parametrize(("way_to_mark", "expected"), [("not", 1), ("marked", 2), ("inferred", 2), ("by ref", 2)])
def test_worked_example_of_modified_inputs(way_to_mark: str, expected: float) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable(1.0)
        g = ir.create_graph(add_one_by_ref if way_to_mark == "by ref" else add_one_in_place, x)
        info = ops.call_with_info(g, x)
        if way_to_mark in ("marked", "inferred"):
            info.set_parent_input_modified(x, infer_modified_regions=way_to_mark == "inferred")
        return [x]

    assert run(build) == [expected]


@both_ways
def test_a_variable_passed_by_reference_persists() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable(1.0)
        ops.call(ir.create_graph(add_one_by_ref, x), x)
        return [x]

    assert run(build, runs=3) == [4]


def by_annotated_list(ts: list[popxl.TensorByRef]) -> None:
    accumulate_(ts[0], ts[1])


def by_annotated_args(*ts: popxl.TensorByRef) -> None:
    accumulate_(ts[0], ts[1])


def by_annotated_kwargs(**ts: popxl.TensorByRef) -> None:
    accumulate_(ts["a"], ts["b"])


@both_ways
@pytest.mark.parametrize(
    "create",
    [
        lambda ir, a, b: ir.create_graph(by_annotated_list, [a, b]),
        lambda ir, a, b: ir.create_graph(by_annotated_args, a, b),
        lambda ir, a, b: ir.create_graph(by_annotated_kwargs, a=a, b=b),
    ],
)
def test_annotations_that_make_inputs_by_reference(create: Callable[..., popxl.Graph]) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        a, b = popxl.variable(1.0), popxl.variable(5.0)
        g = create(ir, a, b)
        assert g._by_ref_inputs == set(g.inputs)
        ops.call(g, a, b)
        return [a, b]

    assert run(build) == [6, 5]


@both_ways
def test_graph_input_makes_an_input_by_reference() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable(1.0)
        g = ir.create_graph(lambda: add_one_in_place(popxl.graph_input((), popxl.float32, by_ref=True)))
        ops.call(g, x)
        return [x]

    assert run(build) == [2]


@both_ways
def test_later_additions_to_the_by_ref_inputs_are_for_later_calls() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x, y = popxl.variable(1.0), popxl.variable(1.0)
        g = ir.create_graph(add_one_in_place, x)
        ops.call(g, x)
        g._by_ref_inputs.add(g.inputs[0])
        ops.call(g, y)
        return [x, y]

    assert run(build) == [1, 2]


@both_ways
def test_marking_an_input_that_the_graph_does_not_modify_changes_nothing() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0, 2.0])
        info = ops.call_with_info(ir.create_graph(lambda x: x + 1.0, x), x)
        info.set_parent_input_modified(x)
        return [x, *info.outputs]

    assert run(build, runs=2) == [[1, 2], [2, 3]]


@both_ways
def test_a_constant_passed_by_reference_stays() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        c, d = popxl.constant(1.0), popxl.constant(1.0)
        ops.call(ir.create_graph(add_one_by_ref, c), c)
        ops.call_with_info(ir.create_graph(add_one_in_place, d), d).set_parent_input_modified(d)
        return [c, d]

    assert run(build, runs=2) == [1, 1]


@both_ways
@pytest.mark.parametrize(("outer_is_by_ref", "expected"), [(False, 1), (True, 2)])
def test_a_write_reaches_only_the_immediate_caller(outer_is_by_ref: bool, expected: float) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable(1.0)
        inner = ir.create_graph(add_one_by_ref, x)

        def outer(x: popxl.Tensor) -> popxl.Tensor:
            ops.call(inner, x)
            return x * 10.0

        g = ir.create_graph(outer, x)
        if outer_is_by_ref:
            g._by_ref_inputs.add(g.inputs[0])
        return *ops.call(g, x), x

    assert run(build) == [20, expected]


@both_ways
def test_a_write_through_a_view_reaches_its_part_of_the_tensor() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([[1.0, 2.0], [3.0, 4.0]])
        column = ops.slice_(ops.transpose_(x), 1, 2)

        def body(t: popxl.TensorByRef) -> None:
            accumulate_(t, t)

        ops.call(ir.create_graph(body, column), column)
        return [x, column]

    assert run(build, runs=2) == [[[1, 8], [3, 16]], [[8, 16]]]


@both_ways
def test_two_parts_of_one_tensor_go_by_reference() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0, 2.0, 3.0])
        low, high = ops.slice_(x, 0, 1), ops.slice_(x, 1, 3)

        def body(a: popxl.TensorByRef, b: popxl.TensorByRef) -> None:
            accumulate_(a, popxl.constant([10.0]))
            accumulate_(b, popxl.constant([100.0, 100.0]))

        ops.call(ir.create_graph(body, low, high), low, high)
        return [x]

    assert run(build) == [[11, 102, 103]]


@both_ways
def test_a_tensor_by_reference_and_its_successor_by_value() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x = popxl.variable([1.0, 2.0])
        successor = accumulate_(x, popxl.constant([1.0, 1.0]))

        def body(x: popxl.TensorByRef, y: popxl.Tensor) -> popxl.Tensor:
            accumulate_(x, y)
            return x + y

        return *ops.call(ir.create_graph(body, x, x), x, successor), x

    assert run(build) == [[6, 9], [4, 6]]


@both_ways
def test_an_input_by_reference_that_is_also_an_output_is_two_tensors_outside() -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(x: popxl.TensorByRef) -> popxl.Tensor:
            return accumulate_(x, x)

        x = popxl.variable([1.0])
        (y,) = ops.call(ir.create_graph(body, x), x)
        x += 10.0
        return x, y

    assert run(build) == [[12], [2]]


@pytest.mark.parametrize("count", [None, 3])
def test_a_run_that_fails_in_a_graph_keeps_what_was_done_by_reference(ir: popxl.Ir, count: int | None) -> None:
    def body(x: popxl.TensorByRef, i: popxl.TensorByRef) -> None:
        accumulate_(x, ops.remote_load(buffer, i))
        i += 1

    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        for k in range(2):
            popxl.remote_variable([10.0**k, 0.0], buffer, k)
        x, i = popxl.variable([0.0, 0.0]), popxl.variable(0 if count else 2, popxl.uint32)
        g = ir.create_graph(body, x, i)
        if count is None:
            accumulate_(x, popxl.constant([5.0, 5.0]))
            ops.call(g, x, i)
        else:
            ops.repeat(g, count, x, i)
    with popxl.Session(ir) as session:
        for _ in range(2):
            with pytest.raises(ValueError, match="Offset 2 is outside"):
                session.run()
        assert session.get_tensor_data(x).tolist() == ([10, 10] if count is None else [11, 0])
        assert session.get_tensor_data(i) == 2


INPLACE = {
    "add_": lambda x: ops.add_(x, popxl.constant([1.0, 1.0])),
    "relu_": lambda x: ops.relu_(x),
    "exp_": lambda x: ops.exp_(x),
    "gelu_": lambda x: ops.gelu_(x),
    "increment_mod_": lambda x: ops.increment_mod_(x, 1.0, 1.5),
    "accumulate_": lambda x: accumulate_(x, popxl.constant([1.0, 1.0])),
    "copy_var_update_": lambda x: ops.var_updates.copy_var_update_(x, popxl.constant([7.0, 8.0])),
    "dynamic_update_": lambda x: ops.dynamic_update_(
        x, popxl.constant(1, popxl.uint32), popxl.constant([9.0]), axes=[0], sizes=[1], no_overlap=True
    ),
    "through a view": lambda x: ops.add_(ops.slice_(x, 1, 2), popxl.constant([1.0])),
    "+=": lambda x: x.__iadd__(popxl.constant([1.0, 1.0])),
}


@both_ways
@pytest.mark.parametrize("name", INPLACE)
def test_in_place_ops_modify_an_input_by_reference(name: str) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        x, same = popxl.variable([-1.0, 2.0]), popxl.variable([-1.0, 2.0])

        def body(x: popxl.TensorByRef) -> None:
            INPLACE[name](x)

        ops.call(ir.create_graph(body, x), x)
        INPLACE[name](same)
        return [x, same]

    inside, outside = run(build)
    assert inside == outside != [-1, 2]


@both_ways
def test_remote_load_in_place_modifies_an_input_by_reference(memory: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        popxl.remote_variable([5.0, 6.0], buffer, 1)
        x = popxl.variable([1.0, 2.0])

        def body(x: popxl.TensorByRef) -> None:
            ops.remote_load_(buffer, 1, x)

        ops.call(ir.create_graph(body, x), x)
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
        assert session.get_tensor_data(x).tolist() == [5, 6]


VIEWS = {
    "reshape_": lambda x: ops.reshape_(x, (2, 1)),
    "slice_": lambda x: ops.slice_(x, 0, 1),
    "transpose_": lambda x: ops.transpose_(x),
    "concat_": lambda x: ops.concat_([x, x]),
    "detach_": lambda x: ops.detach_(x),
}


@both_ways
@pytest.mark.parametrize("name", VIEWS)
def test_view_ops_modify_nothing(name: str) -> None:
    def build(ir: popxl.Ir) -> Sequence[popxl.Tensor]:
        def body(x: popxl.TensorByRef) -> popxl.Tensor:
            return VIEWS[name](x)

        x = popxl.variable([1.0, 2.0])
        ops.call(ir.create_graph(body, x), x)
        return [x]

    assert run(build, runs=2) == [[1, 2]]


def test_a_tensor_by_reference_must_be_passed_once(ir: popxl.Ir) -> None:
    def body(x: popxl.TensorByRef, y: popxl.Tensor) -> None:
        accumulate_(x, y)

    with ir.main_graph:
        x = popxl.variable(1.0)
        g = ir.create_graph(body, x, x)
        with pytest.raises(CoreError, match="is passed by reference to `x`"):
            ops.call(g, x, x)


def test_tensors_that_share_elements_cannot_both_go_by_reference(ir: popxl.Ir) -> None:
    def body(x: popxl.TensorByRef, part: popxl.TensorByRef) -> None:
        accumulate_(x, x)
        accumulate_(part, part)

    with ir.main_graph:
        x = popxl.variable([1.0, 2.0])
        part = ops.slice_(x, 0, 1)
        g = ir.create_graph(body, x, part)
        with pytest.raises(CoreError, match="share storage, and both are passed by reference"):
            ops.call(g, x, part)
        g._by_ref_inputs.clear()
        info = ops.call_with_info(g, x, part)
        info.set_parent_input_modified(part)
        with pytest.raises(CoreError, match="share storage, and both are passed by reference"):
            info.set_parent_input_modified(x)
