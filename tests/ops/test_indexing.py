"""Gathers, one-hot vectors and top-k by hand, and the gradients of what picks and joins elements."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from declared import store
from op_gradients import gradients, values

import popxl
from popxl import ops
from popxl.errors import CoreError
from popxl.ops._gradient import add_gradient_op, differentiable_inputs, needed_tensors
from popxl.tensor import Tensor

F, I = np.float32, np.int32  # noqa: E741


def floats(*numbers: Any) -> np.ndarray:
    return np.array(numbers, F)


def ints(*numbers: Any) -> np.ndarray:
    return np.array(numbers, I)


def zeros(*shape: int, dtype: Any = F) -> Tensor:
    return popxl.variable(np.zeros(shape, dtype), popxl.dtype.as_dtype(np.dtype(dtype)))


# Gathers


def test_groupedgather_has_the_shape_of_the_specification() -> None:
    with popxl.Ir().main_graph:
        assert ops.groupedgather(zeros(3, 5, 8), zeros(3, 7, dtype=I), axis=1, group_size=3).shape == (3, 7, 8)


def test_each_group_has_its_own_indices() -> None:
    tables = floats([[1, 2], [3, 4]], [[5, 6], [7, 8]])
    (out,) = values(lambda t, i: ops.groupedgather(t, i, axis=1, group_size=2), tables, ints([1, 1], [0, 1]))
    assert out.tolist() == [[[3, 4], [3, 4]], [[5, 6], [7, 8]]]


@pytest.mark.parametrize("group_size", [1, None])
def test_one_group_is_a_gather(group_size: int | None) -> None:
    with popxl.Ir().main_graph as graph:
        out = ops.groupedgather(zeros(3, 5), zeros(2, 2, dtype=I), 0, group_size)
        assert (out.shape, graph.ops[-1].type) == ((2, 2, 5), "Gather")


@pytest.mark.parametrize("gather", [ops.gather, ops.tied_gather])
def test_slices_that_are_taken_twice_have_the_sum_of_the_gradients(gather: Callable[..., Tensor]) -> None:
    (grad,) = gradients(gather, [np.ones((3, 2), F), ints(2, 0, 2)], floats([1, 2], [3, 4], [5, 6]), [0])
    assert grad.tolist() == [[3, 4], [0, 0], [6, 8]]


@pytest.mark.parametrize("outside", [-1, 3, 2**31 - 1])
def test_gradients_of_indices_outside_are_dropped(outside: int) -> None:
    (grad,) = gradients(ops.gather, [floats(1, 2, 3), ints(outside, 1)], floats(7, 8), [0])
    assert grad.tolist() == [0, 8, 0]


def test_gradients_of_float16_slices_are_added_in_float32() -> None:
    count = 4096
    table, indices = np.ones((2,), np.float16), np.zeros((count,), I)
    (grad,) = gradients(ops.gather, [table, indices], np.full((count,), 0.25, np.float16), [0])
    assert grad.tolist() == [1024, 0]


def test_the_gradient_of_a_gather_is_no_larger_than_its_table_or_its_slices() -> None:
    rows, columns, count = 1000, 3, 500
    with popxl.Ir().main_graph:
        op = ops.gather(zeros(rows, columns), zeros(count, dtype=I)).producer
        assert op is not None
        made = add_gradient_op(op, {0: zeros(count, columns)}, [0])[0].producer
    assert made is not None
    assert made.definition.lower is not None
    arguments = [jax.ShapeDtypeStruct(t.shape, t.dtype.storage) for t in made.inputs]
    program = jax.make_jaxpr(partial(made.definition.lower, **made.attributes))(*arguments)
    sizes = [v.aval.size for equation in program.eqns for v in equation.outvars]
    assert max(sizes) <= rows * columns


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_a_negative_axis_counts_from_the_end_at_any_rank(axis: int) -> None:
    t = np.arange(24, dtype=F).reshape(2, 3, 4)
    (out,) = values(lambda x, i: ops.gather(x, i, axis), t, ints(1, 0))
    assert out.tolist() == np.take(t, [1, 0], axis).tolist()


def test_gathers_are_named() -> None:
    with popxl.Ir().main_graph as graph:
        table, indices = zeros(2, 3), zeros(2, 1, dtype=I)
        names = [
            ops.gather(table, indices).name,
            ops.groupedgather(table, indices, 1, 2, 0.5).name,
            ops.tied_gather(table, indices, 0, 0.5, True).name,
        ]
        assert names == ["gather_out", "gather_out__t1", "tiedgather_out"]
        assert [op.type for op in graph.ops] == ["Gather", "GroupedGather", "TiedGather"]
        assert [op.attributes["available_memory_proportion"] for op in graph.ops] == [None, 0.5, 0.5]
        assert graph.ops[-1].attributes["zero_OOR"] is True


# onehot


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 4)), (1, (4, 3)), (-1, (4, 3))])
def test_classes_are_where_the_axis_says(axis: int, shape: tuple[int, ...]) -> None:
    with popxl.Ir().main_graph:
        assert ops.onehot(zeros(4, dtype=I), popxl.constant(3), zeros(2), axis).shape == shape


def test_onehot_puts_on_values_at_the_classes_and_nothing_outside() -> None:
    (out,) = values(lambda t, off_on: ops.onehot(t, popxl.constant(3), off_on, -1), ints(2, 0, -1, 3), floats(0.5, 4))
    assert out.tolist() == [[0.5, 0.5, 4], [4, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]


def test_off_values_that_are_not_finite_do_not_leak() -> None:
    (out,) = values(lambda t, off_on: ops.onehot(t, popxl.constant(2), off_on, -1), ints(1), floats(np.inf, 3))
    assert out.tolist() == [[np.inf, 3]]


def test_a_scalar_gives_one_vector() -> None:
    (out,) = values(lambda t, off_on: ops.onehot(t, popxl.constant(3), off_on, 0), I(1), ints(7, 8))
    assert out.tolist() == [7, 8, 7]


def test_the_number_of_classes_may_be_a_variable_and_is_read_at_once() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        count = popxl.variable(np.array([2], np.uint32))
        ops.var_updates.copy_var_update_(count, popxl.constant(np.array([7], np.uint32)))
        out = ops.onehot(popxl.constant(ints(1, 5)), count, popxl.constant(floats(0, 1)), -1)
        stream = store(out)
    assert (out.shape, out.name) == ((2, 2), "onehot_out")
    with popxl.Session(ir) as session:
        assert session.run()[stream].tolist() == [[0, 1], [0, 0]]


def test_the_values_of_onehot_have_the_sums_of_the_gradients() -> None:
    (grad,) = gradients(
        lambda t, off_on: ops.onehot(t, popxl.constant(2), off_on, -1),
        [ints(1, 0, 5), floats(0, 1)],
        floats([1, 2], [4, 8], [16, 32]),
        [2],
    )
    assert grad.tolist() == [1 + 8 + 16 + 32, 2 + 4]


# topk


@pytest.mark.parametrize(
    ("largest", "expected", "places"), [(True, [5, 4], [1, 3]), (False, [-2, 1], [2, 0])], ids=["largest", "smallest"]
)
def test_topk_is_sorted_from_the_extreme_on(largest: bool, expected: list[float], places: list[int]) -> None:
    taken, indices = values(lambda t: ops.topk(t, 2, 0, largest, True), floats(1, 5, -2, 4))
    assert (taken.tolist(), indices.tolist()) == (expected, places)
    assert indices.dtype == np.int32


@pytest.mark.parametrize(("largest", "places"), [(True, [1, 3, 4, 0]), (False, [0, 2, 5, 1])])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int32", "uint32", "int64"])
def test_of_equal_elements_the_first_come_first(dtype: str, largest: bool, places: list[int]) -> None:
    _, indices = values(lambda t: ops.topk(t, 4, 0, largest, True), np.array([1, 2, 1, 2, 2, 1], dtype))
    assert indices.tolist() == places


def test_of_very_many_equal_elements_the_first_come_first() -> None:
    _, indices = values(lambda t: ops.topk(t, 100, 1, False, True), np.ones((2, 50_000), F))
    np.testing.assert_array_equal(indices, np.tile(np.arange(100), (2, 1)))


def test_both_zeros_are_equal() -> None:
    taken, indices = values(lambda t: ops.topk(t, 3, 0, True, True), floats(-0.0, 0.0, -0.0))
    assert indices.tolist() == [0, 1, 2]
    assert np.signbit(taken).tolist() == [True, False, True]


def test_elements_taken_have_the_gradient_of_their_place_in_the_result() -> None:
    (grad,) = gradients(lambda t: ops.topk(t, 2, 0, True, True), [floats(1, 5, -2, 5)], {0: floats(3, 4)}, [0])
    assert grad.tolist() == [0, 3, 0, 4]


def test_the_gradient_of_topk_needs_its_indices_only() -> None:
    with popxl.Ir().main_graph:
        op = ops.topk(zeros(4), 2, 0, True, True)[0].producer
        assert op is not None
        assert needed_tensors(op, [0], differentiable_inputs(op)) == (op.outputs[1],)


def test_topk_names_its_outputs_and_keeps_its_hints() -> None:
    with popxl.Ir().main_graph as graph:
        taken, indices = ops.topk(zeros(4, 3), 2, 1, False, False, 0.75)
        assert (taken.name, indices.name) == ("topk_out_value", "topk_out_indices")
        (op,) = graph.ops
        assert (op.type, op.attributes["sorted"], op.attributes["available_memory_proportion"]) == ("TopK", False, 0.75)


# What gradients need


NEEDS: dict[str, tuple[Callable[[], Any], str]] = {
    "gather": (lambda: ops.gather(zeros(4, 2), zeros(3, dtype=I)), "1"),
    "groupedgather": (lambda: ops.groupedgather(zeros(2, 4), zeros(2, 3, dtype=I), 1, 2), "1"),
    "tied_gather": (lambda: ops.tied_gather(zeros(4, 2), zeros(3, dtype=I)), "1"),
    "onehot": (lambda: ops.onehot(zeros(3, dtype=I), popxl.constant(2), zeros(2), 0), "0"),
    "scatter": (lambda: ops.scatter(zeros(4), zeros(2, dtype=I), zeros(2)), "1"),
    "scatter_reduce sum": (lambda: ops.scatter_reduce(zeros(4), zeros(4, dtype=I), "sum", zeros(2)), "1"),
    "scatter_reduce none": (lambda: ops.scatter_reduce(zeros(4), zeros(4, dtype=I), "none", zeros(2)), "1"),
    "scatter_reduce max": (lambda: ops.scatter_reduce(zeros(4), zeros(4, dtype=I), "max", zeros(2)), "012y"),
    "dynamic_slice": (lambda: ops.dynamic_slice(zeros(4), zeros(1, dtype=I), [0], [2], True), "1"),
    "dynamic_update": (lambda: ops.dynamic_update(zeros(4), zeros(1, dtype=I), zeros(2), [0], [2], True), "1"),
    "subsample": (lambda: ops.subsample(zeros(4), 2), ""),
    "split": (lambda: ops.split(zeros(4), 2)[0], ""),
    "squeeze": (lambda: ops.squeeze(zeros(4, 1)), ""),
    "slice_": (lambda: ops.slice_(zeros(4), 1), ""),
    "concat_": (lambda: ops.concat_([zeros(4), zeros(2)]), ""),
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_gradient_needs_only_the_forward_tensors_that_it_uses(name: str) -> None:
    make, needs = NEEDS[name]
    with popxl.Ir().main_graph:
        op = make().producer
        found = needed_tensors(op, [0], differentiable_inputs(op))
    assert list(found) == [op.outputs[0] if letter == "y" else op.inputs[int(letter)] for letter in needs]


# Gradients of what picks and joins


def test_the_parts_of_a_split_join_their_gradients() -> None:
    (grad,) = gradients(
        lambda t: ops.split(t, [1, 2], 1), [np.ones((2, 3), F)], {0: [[1], [2]], 1: [[3, 4], [5, 6]]}, [0]
    )
    assert grad.tolist() == [[1, 3, 4], [2, 5, 6]]


def test_a_part_of_a_split_without_gradient_counts_as_zero() -> None:
    (grad,) = gradients(lambda t: ops.split(t, 3), [floats(1, 2, 3)], {1: [7]}, [0])
    assert grad.tolist() == [0, 7, 0]


@pytest.mark.parametrize("function", [ops.slice, ops.slice_])
def test_the_gradient_of_a_slice_backwards_is_turned_round(function: Callable[..., Tensor]) -> None:
    (grad,) = gradients(lambda t: function(t, 3, 0, -1), [floats(0, 1, 2, 3, 4)], floats(7, 8, 9), [0])
    assert grad.tolist() == [0, 9, 8, 7, 0]


def test_elements_that_subsample_leaves_out_have_no_gradient() -> None:
    (grad,) = gradients(lambda t: ops.subsample(t, 2), [floats(0, 1, 2, 3, 4)], floats(7, 8, 9), [0])
    assert grad.tolist() == [7, 0, 8, 0, 9]


def test_what_a_dynamic_update_overwrites_has_no_gradient() -> None:
    def update(t: Tensor, index: Tensor, new: Tensor) -> Tensor:
        return ops.dynamic_update(t, index, new, [0], [2], True)

    of_t, of_update = gradients(update, [floats(0, 1, 2, 3), ints(1), floats(5, 6)], floats(7, np.inf, 9, 8), [0, 2])
    assert (of_t.tolist(), of_update.tolist()) == ([7, 0, 0, 8], [np.inf, 9])


def test_the_gradient_of_a_dynamic_slice_is_where_it_was_taken() -> None:
    def end(t: Tensor, index: Tensor) -> Tensor:
        return ops.dynamic_slice(t, index, [0], [2], True)

    # The start is moved into the range, and so is the gradient.
    (grad,) = gradients(end, [floats(0, 1, 2, 3), ints(9)], floats(7, 8), [0])
    assert grad.tolist() == [0, 0, 7, 8]


@pytest.mark.parametrize("function", [ops.detach, ops.detach_])
def test_nothing_flows_through_detach(function: Callable[[Tensor], Tensor]) -> None:
    with popxl.Ir().main_graph:
        op = function(zeros(2)).producer
        assert op is not None
        assert differentiable_inputs(op) == ()
        with pytest.raises(CoreError, match="has no gradient"):
            needed_tensors(op, [0], [0])
