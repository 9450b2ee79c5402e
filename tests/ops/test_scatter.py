"""Scatters by hand: the forms of indices, who wins a place, what falls outside, and gradients where elements meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from op_gradients import gradients, values

import popxl
from popxl import ops
from popxl.ops.scatter_reductions import grouped_scatter_reduce
from popxl.tensor import Tensor

F, I = np.float32, np.int32  # noqa: E741


def floats(*numbers: Any) -> np.ndarray:
    return np.array(numbers, F)


def ints(*numbers: Any) -> np.ndarray:
    return np.array(numbers, I)


# scatter


def test_scatter_moves_each_element_along_the_axis() -> None:
    t, indices, new = np.zeros((3, 3), F), ints([1, 0, 2], [0, 2, 1]), floats([1, 2, 3], [4, 5, 6])
    (by_row,) = values(ops.scatter, t, indices, new)
    assert by_row.tolist() == [[4, 2, 0], [1, 0, 6], [0, 5, 3]]
    (by_column,) = values(lambda *a: ops.scatter(*a, axis=1), t, indices, new)
    assert by_column.tolist() == [[2, 1, 3], [4, 6, 5], [0, 0, 0]]


def test_scatter_does_not_use_values_beyond_the_indices() -> None:
    (out,) = values(ops.scatter, floats(1, 2, 3), ints(2), floats(9, np.nan, np.nan))
    assert out.tolist() == [1, 2, 9]


def test_of_elements_for_one_place_the_last_one_wins() -> None:
    (out,) = values(ops.scatter, floats(0, 0), ints(1, 0, 1, 1, 0), floats(1, 2, 3, 4, 5))
    assert out.tolist() == [5, 4]


def test_the_last_of_very_many_elements_wins() -> None:
    count = 100_000
    new = np.arange(count, dtype=F)
    (out,) = values(ops.scatter, floats(-1, -1, -1), np.arange(count, dtype=I) % 2, new)
    assert out.tolist() == [count - 2, count - 1, -1]


@pytest.mark.parametrize("outside", [-1, -3, 3, 2**31 - 1, -(2**31)])
def test_scatter_drops_what_is_outside(outside: int) -> None:
    (out,) = values(ops.scatter, floats(1, 2, 3), ints(outside, 1), floats(8, 9))
    assert out.tolist() == [1, 9, 3]


def test_scatter_leaves_its_argument_as_it_was() -> None:
    def both(t: Tensor, indices: Tensor, new: Tensor) -> list[Tensor]:
        return [ops.scatter(t, indices, new), t]

    assert [a.tolist() for a in values(both, floats(1, 2), ints(0), floats(7))] == [[7, 2], [1, 2]]


def test_the_gradient_of_scatter_goes_to_what_was_written_and_what_was_not() -> None:
    of_t, of_values = gradients(ops.scatter, [floats(1, 2, 3), ints(2, 0), floats(8, 9, 7)], floats(5, 6, 7), [0, 2])
    assert of_t.tolist() == [0, 6, 0]
    assert of_values.tolist() == [7, 5, 0]


def test_each_element_for_a_place_has_its_gradient() -> None:
    arguments = [floats(1, 2), ints(1, 1, -1), floats(7, 8, 9)]
    of_t, of_values = gradients(ops.scatter, arguments, floats(5, 6), [0, 2])
    assert of_t.tolist() == [5, 0]
    assert of_values.tolist() == [6, 6, 0]


def test_infinite_gradients_do_not_leak_through_scatter() -> None:
    of_t, of_values = gradients(ops.scatter, [floats(1, 2), ints(1), floats(7)], floats(5, np.inf), [0, 2])
    assert (of_t.tolist(), of_values.tolist()) == ([5, 0], [np.inf])


# scatter_reduce: the example of the specification


@pytest.mark.parametrize(
    ("reduction", "expected"), [("sum", [-2, 0, -4, 0]), ("max", [-2, 0, -1, 0]), ("min", [-2, 0, -3, 0])]
)
def test_places_that_receive_nothing_are_zero(reduction: Any, expected: list[float]) -> None:
    (out,) = values(lambda d, i: ops.scatter_reduce(d, i, reduction, axis_size=4), floats(-1, -2, -3), ints(2, 0, 2))
    assert out.tolist() == expected


def test_what_has_the_lowest_value_was_received_all_the_same() -> None:
    lowest = -(2**31)
    (out,) = values(lambda d, i: ops.scatter_reduce(d, i, "max", axis_size=2), ints(lowest), ints(1))
    assert out.tolist() == [0, lowest]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("sum", [8, 10, 6]), ("max", [10, 10, 10]), ("min", [-2, 10, -3]), ("none", [-2, 10, -3])],
)
def test_initial_values_take_part(reduction: Any, expected: list[float]) -> None:
    (out,) = values(
        lambda d, i, initial: ops.scatter_reduce(d, i, reduction, initial),
        floats(-1, -2, -3),
        ints(2, 0, 2),
        floats(10, 10, 10),
    )
    assert out.tolist() == expected


def test_initial_values_decide_the_shape_and_not_axis_size() -> None:
    with popxl.Ir().main_graph:
        data, initial = popxl.variable(floats(1, 2)), popxl.variable(floats(0, 0, 0))
        assert ops.scatter_reduce(data, popxl.variable(ints(0, 1)), "sum", initial, axis_size=7).shape == (3,)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 3, 1)])
def test_a_vector_of_indices_moves_whole_slices(shape: tuple[int, ...]) -> None:
    data = np.arange(12, dtype=F).reshape(2, 3, 2)
    (out,) = values(
        lambda d, i: ops.scatter_reduce(d, i, "sum", axis=1, axis_size=2), data, ints(1, 1, 0).reshape(shape)
    )
    assert out.tolist() == [[[4, 5], [2, 4]], [[10, 11], [14, 16]]]


def test_a_vector_may_have_one_index() -> None:
    (out,) = values(lambda d, i: ops.scatter_reduce(d, i, "sum", axis_size=3), floats([1, 2]), ints(2))
    assert out.tolist() == [[0, 0], [0, 0], [1, 2]]


def test_without_broadcasting_only_the_first_elements_are_used() -> None:
    data = np.arange(6, dtype=F).reshape(2, 3)
    (out,) = values(
        lambda d, i: ops.scatter_reduce(d, i, "sum", axis_size=2, enable_index_broadcast=False), data, ints([1, 0])
    )
    assert out.tolist() == [[0, 1], [0, 0]]


def test_sums_of_float16_are_rounded_once() -> None:
    (out,) = values(
        lambda d, i: ops.scatter_reduce(d, i, "sum", axis_size=1), np.full(4096, 0.25, np.float16), np.zeros(4096, I)
    )
    assert out.tolist() == [1024]


@pytest.mark.parametrize("outside", [-1, 2])
def test_scatter_reduce_drops_what_is_outside(outside: int) -> None:
    (out,) = values(lambda d, i: ops.scatter_reduce(d, i, "max", axis_size=2), floats(3, 4), ints(outside, 1))
    assert out.tolist() == [0, 4]


def test_groups_are_reduced_apart() -> None:
    data, indices = floats([1, 2, 4], [8, 16, 32]), ints([0, 0, 1], [1, 0, 1])
    (out,) = values(lambda d, i: grouped_scatter_reduce(d, i, "sum", axis=1, axis_size=2, group_size=2), data, indices)
    assert out.tolist() == [[3, 4], [16, 40]]


def test_groups_of_slices_are_reduced_apart() -> None:
    data, indices = np.arange(8, dtype=F).reshape(2, 2, 2), ints([0, 0], [1, 0])
    (out,) = values(lambda d, i: grouped_scatter_reduce(d, i, "sum", axis=1, axis_size=2, group_size=2), data, indices)
    assert out.tolist() == [[[2, 4], [0, 0]], [[6, 7], [4, 5]]]


# scatter_reduce: gradients


def reduce_gradients(reduction: Any, initial: np.ndarray) -> list[list[float]]:
    found = gradients(
        lambda d, i, start: ops.scatter_reduce(d, i, reduction, start),
        [floats(3, 3, 1), ints(1, 1, 0), initial],
        floats(5, 7, 9),
        [0, 2],
    )
    return [g.tolist() for g in found]


def test_all_that_tie_for_an_extreme_have_the_whole_gradient() -> None:
    assert reduce_gradients("max", floats(1, 3, 0)) == [[7, 7, 5], [5, 7, 9]]


def test_what_is_not_the_extreme_has_no_gradient() -> None:
    assert reduce_gradients("min", floats(0, 9, 0)) == [[7, 7, 0], [5, 0, 9]]


def test_with_none_all_elements_and_no_overwritten_ones_have_the_gradient() -> None:
    assert reduce_gradients("none", floats(0, 0, 0)) == [[7, 7, 5], [0, 0, 9]]


def test_sums_pass_their_gradient_on() -> None:
    assert reduce_gradients("sum", floats(0, 0, 0)) == [[7, 7, 5], [5, 7, 9]]


def test_elements_outside_or_not_used_have_no_gradient() -> None:
    (of_data,) = gradients(
        lambda d, i: ops.scatter_reduce(d, i, "sum", axis_size=2, enable_index_broadcast=False),
        [floats(1, 2, 3), ints(1, 2)],
        floats(5, 6),
        [0],
    )
    assert of_data.tolist() == [6, 0, 0]


# What is made


def test_each_call_makes_one_op_and_one_tensor() -> None:
    with popxl.Ir().main_graph as graph:
        data, indices = popxl.variable(floats(1, 2)), popxl.variable(ints(0, 1))
        before = len(graph.tensors)
        made = [
            ops.scatter(data, indices, data),
            ops.scatter_reduce(data, indices, "sum", axis_size=2),
            ops.scatter_reduce(data, indices, "sum", data),
            grouped_scatter_reduce(data, indices, "max", axis_size=2, group_size=1),
        ]
        assert [op.type for op in graph.ops] == ["Scatter", "ScatterReduce", "ScatterReduce", "ScatterReduce"]
        assert len(graph.tensors) - before == len(made)
    assert [t.name for t in made[:2]] == ["scatter_out", "scatterreduce_out"]


def test_the_hint_is_kept() -> None:
    with popxl.Ir().main_graph as graph:
        data, indices = popxl.variable(floats(1, 2)), popxl.variable(ints(0, 1))
        ops.scatter(data, indices, data, available_memory_proportion=0.25)
        ops.scatter_reduce(data, indices, "sum", axis_size=2, available_memory_proportion=1)
        assert [op.attributes["available_memory_proportion"] for op in graph.ops] == [0.25, 1.0]
