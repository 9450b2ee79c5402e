"""``t[key]`` against NumPy, and where it differs from NumPy on purpose."""

from __future__ import annotations

import operator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlError
from popxl.tensor import Tensor

SQUARE = np.arange(100, dtype=np.float32).reshape(10, 10)


def values(graph: popxl.Graph, wanted: Tensor) -> np.ndarray:
    """The value of `wanted`, by running the graph's ops in NumPy; every op of an index has such a form but `where`."""
    known = {t: t.host_value for t in (*graph.variables, *graph.constants)}
    for op in graph.ops:
        assert op.definition.host is not None, op
        result = op.definition.host(*(known[t] for t in op.inputs), **op.attributes)
        (output,) = op.outputs
        known[output] = np.asarray(result)
        assert known[output].shape == output.shape, op
    return known[wanted]


def run(*tensors: Tensor) -> list[np.ndarray]:
    """Run the program that the tensors, of the main graph, are part of."""
    ir = tensors[0].ir
    with ir.main_graph:
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in tensors]
        for stream, t in zip(streams, tensors, strict=True):
            ops.host_store(stream, t)
    with popxl.Session(ir) as session:
        outputs = session.run()
    return [outputs[stream] for stream in streams]


BASIC: list[Any] = [
    np.s_[1:5:2],
    np.s_[9:4:-2],
    np.s_[::5, ::2],
    np.s_[1:3, 2],
    np.s_[7:2:-3],
    np.s_[:],
    np.s_[3],
    np.s_[-1],
    np.s_[-10],
    np.s_[-1, -2],
    np.s_[3, 4],
    np.s_[:, 0],
    np.s_[:, -1:],
    np.s_[5:5],
    np.s_[7:3],
    np.s_[-100:100],
    np.s_[100:],
    np.s_[::-1, ::-1],
    np.s_[:-3:-1],
    np.s_[20::-4, 1::9],
    (),
]


@pytest.fixture(scope="module")
def basic() -> dict[str, np.ndarray]:
    """All basic indices of one program, by their text."""
    with popxl.Ir().main_graph:
        x = popxl.variable(SQUARE)
        tensors = {str(key): x[key] for key in BASIC}
    return dict(zip(tensors, run(*tensors.values()), strict=True))


@pytest.mark.parametrize("key", BASIC, ids=str)
def test_ints_and_slices_mean_what_they_mean_in_numpy(key: Any, basic: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(basic[str(key)], SQUARE[key])


def keys(length: int) -> st.SearchStrategy[Any]:
    bounds = st.none() | st.integers(-2 * length - 2, 2 * length + 2)
    steps = st.none() | st.integers(-4, 4).filter(bool)
    return st.integers(-length, length - 1) | st.builds(slice, bounds, bounds, steps)


@given(st.data())
def test_any_tuple_of_ints_and_slices_means_what_it_means_in_numpy(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    key = tuple(data.draw(keys(n)) for n in shape[: data.draw(st.integers(0, len(shape)))])
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    with popxl.Ir().main_graph as graph:
        item = popxl.variable(array)[key]
    np.testing.assert_array_equal(values(graph, item), array[key])


def test_an_int_drops_its_axis() -> None:
    with popxl.Ir().main_graph:
        assert popxl.variable(np.arange(10))[1].shape == ()


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (1, 4)], ids=str)
def test_diag_of_a_matrix_that_is_not_tall_is_its_diagonal(shape: tuple[int, int]) -> None:
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    with popxl.Ir().main_graph as graph:
        diagonal = popxl.variable(array).diag()
    np.testing.assert_array_equal(values(graph, diagonal), np.diag(array))


@pytest.mark.parametrize(
    ("key", "types"),
    [
        (np.s_[:], ["Slice"]),
        (np.s_[1:3, ::-1], ["Slice"]),
        (np.s_[::2], ["Slice", "Subsample"]),
        (np.s_[1], ["Slice", "Reshape"]),
        (np.s_[::2, 1], ["Slice", "Subsample", "Reshape"]),
        ([1, 2], ["Gather"]),
    ],
    ids=str,
)
def test_an_index_is_made_of_these_ops(key: Any, types: list[str]) -> None:
    with popxl.Ir().main_graph as graph:
        popxl.variable(SQUARE)[key]
    assert [op.type for op in graph.ops] == types


INTEGER_KEYS: list[Any] = [
    [3, 0, 3],
    [[0, 1], [1, 1]],
    ([0, 1], [1, 1]),
    np.array([9, 2], np.int64),
    np.array(4, np.uint32),
    range(2, 5),
]


@pytest.mark.parametrize("key", INTEGER_KEYS, ids=str)
def test_integers_gather_rows(key: Any) -> None:
    with popxl.Ir().main_graph as graph:
        item = popxl.variable(SQUARE)[key]
    np.testing.assert_array_equal(values(graph, item), SQUARE[np.array(key)])


def test_an_integer_tensor_gathers_rows() -> None:
    with popxl.Ir().main_graph:
        key = popxl.variable(np.array([[8], [0]], np.int32))
        (got,) = run(popxl.variable(SQUARE)[key])
    np.testing.assert_array_equal(got, SQUARE[[[8], [0]]])


def test_booleans_put_zeros_where_they_are_false_and_keep_the_shape() -> None:
    array = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    rows = np.array([[True], [False], [True], [False]])
    with popxl.Ir().main_graph:
        x = popxl.variable(array)
        by_row, by_column, by_tensor = x[rows], x[[False, True]], x[popxl.variable(rows)]
        number = popxl.variable(np.array([5, 6, 7], np.int32))[[True, False, True]]
        flag = popxl.variable(np.array([True, True]))[[True, False]]
    got = run(by_row, by_column, by_tensor, number, flag)
    np.testing.assert_array_equal(got[0], array * rows)
    np.testing.assert_array_equal(got[1], array * [[0, 1]])
    np.testing.assert_array_equal(got[2], array * rows)
    np.testing.assert_array_equal(got[3], [5, 0, 7])
    np.testing.assert_array_equal(got[4], [True, False])


def test_booleans_that_do_not_broadcast_are_refused() -> None:
    with popxl.Ir().main_graph:
        x = popxl.variable(np.zeros((4, 2), np.float32))
        with pytest.raises(CoreError, match="np broadcasting failed"):
            x[[True, False, True, False]]


def test_an_item_is_a_copy() -> None:
    with popxl.Ir().main_graph, popxl.in_sequence():
        x = popxl.variable(np.array([1.0, 2.0], np.float32))
        item = x[:]
        x += 1.0
    np.testing.assert_array_equal(run(item)[0], [1, 2])


VALID = "Only integers, slices"


@pytest.mark.parametrize(
    "key",
    [
        True,
        "a",
        b"a",
        1.5,
        None,
        Ellipsis,
        np.int32(1),
        np.bool_(True),
        (True, 0),
        (None, 0),
        (Ellipsis, 0),
        (0, "a"),
        ([0], slice(None)),
        (0, [1]),
        slice(0.5),
        slice("a"),
        [0.5],
        len,
    ],
    ids=str,
)
def test_another_key_is_a_type_error(key: Any) -> None:
    with popxl.Ir().main_graph:
        x = popxl.variable(SQUARE)
        with pytest.raises(TypeError, match=VALID) as caught:
            x[key]
    assert isinstance(caught.value, PopxlError)
    assert caught.value.hint


def test_a_tensor_in_a_tuple_or_slice_is_a_type_error() -> None:
    with popxl.Ir().main_graph:
        x = popxl.variable(SQUARE)
        i = popxl.constant([1])
        for key in ((i, 0), (0, i), slice(i)):
            with pytest.raises(TypeError, match=VALID):
                x[key]


def test_a_float_tensor_is_a_type_error() -> None:
    with popxl.Ir().main_graph:
        x = popxl.variable(SQUARE)
        with pytest.raises(TypeError, match=VALID):
            x[x]


@pytest.mark.parametrize("key", [10, -11, (0, 10), (slice(None), -11)], ids=str)
def test_an_int_outside_its_axis_is_a_value_error(key: Any) -> None:
    with popxl.Ir().main_graph:
        x = popxl.variable(SQUARE)
        with pytest.raises(ValueError, match=r"Index -?1[01] is outside axis [01]"):
            x[key]


def test_step_0_is_a_value_error() -> None:
    with popxl.Ir().main_graph:
        x = popxl.variable(SQUARE)
        with pytest.raises(ValueError, match="is 0"):
            x[::0]


@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_more_entries_than_axes_are_a_core_error(shape: tuple[int, ...]) -> None:
    with popxl.Ir().main_graph:
        x = popxl.variable(np.zeros(shape, np.float32))
        with pytest.raises(CoreError, match="Invalid input shape in BaseSliceOp::getSlices"):
            operator.getitem(x, (0,) * (len(shape) + 1))
