"""What ``t[key]`` means (spec tensors-dtypes.md §5.4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import popxl

GRID = np.arange(100, dtype=np.float32).reshape(10, 10)


@pytest.mark.parametrize(
    "key",
    [
        np.s_[1:5:2],
        np.s_[9:4:-2],
        np.s_[::5, ::2],
        np.s_[1:3, 2],
        np.s_[3],
        np.s_[3, 4],
        np.s_[-1],
        np.s_[2:, -3:],
        np.s_[::-1],
        np.s_[:100],
        np.s_[-200:3],
        np.s_[8:1:-3, 7],
        np.s_[5:5],
        np.s_[:],
        (),
    ],
    ids=str,
)
def test_ints_and_slices_mean_what_they_do_in_numpy(main: popxl.Graph, evaluate: Any, key: Any) -> None:
    result = popxl.constant(GRID)[key]
    assert result.shape == GRID[key].shape
    np.testing.assert_array_equal(evaluate(result)[0], GRID[key])


def test_element_of_a_vector_is_a_scalar(main: popxl.Graph, evaluate: Any) -> None:
    result = popxl.constant(np.arange(10))[1]
    assert result.shape == ()
    assert evaluate(result) == [1]


@pytest.mark.parametrize(
    "key", [[[0, 1], [1, 1]], np.array([[0, 1], [1, 1]]), ((0, 1), (1, 1))], ids=["list", "array", "tuples"]
)
def test_integers_gather_on_axis_0(main: popxl.Graph, evaluate: Any, key: Any) -> None:
    result = popxl.constant(GRID)[key]
    assert result.shape == (2, 2, 10)
    np.testing.assert_array_equal(evaluate(result)[0], GRID[np.array(key)])


def test_integer_tensor_gathers(main: popxl.Graph, evaluate: Any) -> None:
    result = popxl.constant(GRID)[popxl.variable([3, 0])]
    np.testing.assert_array_equal(evaluate(result)[0], GRID[[3, 0]])


def test_bools_zero_what_is_not_selected(main: popxl.Graph, evaluate: Any) -> None:
    value = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    mask = np.array([[True], [False], [False], [True]])
    result = popxl.constant(value)[mask]
    assert result.shape == (4, 2)
    np.testing.assert_array_equal(evaluate(result)[0], [[1, 2], [0, 0], [0, 0], [7, 8]])


@pytest.mark.parametrize("key", [True, "a", None, 1.0, ..., np.int32(1), b"a"], ids=repr)
def test_other_keys_raise(main: popxl.Graph, key: Any) -> None:
    with pytest.raises(TypeError, match="Only integers, slices"):
        popxl.constant(GRID)[key]


@pytest.mark.parametrize("key", [(0, None), (..., 0), [0.5, 1.0], (slice(None), [0])], ids=repr)
def test_other_tuples_and_lists_raise(main: popxl.Graph, key: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        popxl.constant(GRID)[key]


@pytest.mark.parametrize("key", [10, -11, (0, 10)], ids=repr)
def test_index_out_of_range_raises(main: popxl.Graph, key: Any) -> None:
    with pytest.raises(ValueError, match="is outside axis"):
        popxl.constant(GRID)[key]


def test_too_many_indices_raise(main: popxl.Graph) -> None:
    with pytest.raises(RuntimeError, match="3 indices"):
        popxl.constant(GRID)[0, 0, 0]


def test_indexing_copies(main: popxl.Graph, evaluate: Any) -> None:
    x = popxl.variable(GRID)
    row = x[0]
    row += 1.0
    np.testing.assert_array_equal(evaluate(x)[0], GRID)
