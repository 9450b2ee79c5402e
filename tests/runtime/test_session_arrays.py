"""Shapes of the host's arrays for streams, also for several replicas: arithmetic, nothing runs (session.md §3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import popxl
from popxl.host_arrays import as_items, check_array, check_dtype, check_streams, extra_dims, full_shape
from popxl.streams import Stream

# T, r, shape of the stream, shape of the array
TABLE = [
    (1, 1, (2, 4), (2, 4)),
    (4, 1, (2, 4), (4, 2, 4)),
    (1, 16, (2, 4), (16, 2, 4)),
    (4, 16, (2, 4), (4, 16, 2, 4)),
    (7, 2, (5, 9, 9), (7, 2, 5, 9, 9)),
    (32, 4, (1,), (32, 4, 1)),
    (1, 1, (), ()),
    (3, 1, (), (3,)),
    (1, 2, (), (2,)),
    (2, 2, (0, 3), (2, 2, 0, 3)),
]


def program(transfers: int, replicas: int, shape: tuple[int, ...], dtype: Any = popxl.float32) -> tuple[Any, Stream]:
    ir = popxl.Ir(replication=replicas)
    ir.num_host_transfers = transfers
    with ir.main_graph:
        return ir, popxl.h2d_stream(shape, dtype, "x")


@pytest.mark.parametrize(("transfers", "replicas", "shape", "expected"), TABLE)
def test_full_shape_is_transfers_then_replicas_then_the_streams(
    transfers: int, replicas: int, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    ir, stream = program(transfers, replicas, shape)
    assert full_shape(ir, shape) == expected
    assert extra_dims(ir) == expected[: len(expected) - len(shape)]
    check_array(ir, stream, np.zeros(expected))


@pytest.mark.parametrize(
    ("transfers", "replicas", "shape", "given", "message"),
    [
        (4, 1, (2, 4), (3, 2, 4), "is not large enough"),
        (4, 1, (2, 4), (), "is not large enough"),
        (4, 16, (2, 4), (3, 16, 2, 4), "is not large enough"),
        (4, 16, (2, 4), (3, 7, 2, 4), "is not large enough"),  # the transfers come first
        (1, 16, (2, 4), (8, 2, 4), "is the wrong size"),
        (1, 16, (2, 4), (), "is the wrong size"),
        (4, 16, (2, 4), (4, 8, 2, 4), "is the wrong size"),
        (4, 16, (2, 4), (64, 2, 4), "is the wrong size"),  # replicas are never squeezed into the transfers
        (4, 16, (2, 4), (4,), "is the wrong size"),
        (1, 1, (2, 4), (4, 2), "^Shape mismatch for"),
        (1, 1, (2, 4), (1, 2, 4), "^Shape mismatch for"),
        (1, 1, (2, 4), (), "^Shape mismatch for"),
        (1, 1, (2,), (1,), "^Shape mismatch for"),
        (4, 1, (2, 4), (4, 2), "^Shape mismatch for"),
        (4, 16, (2, 4), (4, 16, 2, 5), "^Shape mismatch for"),
        (1, 1, (0,), (), "^Shape mismatch for"),
    ],
)
def test_wrong_shape_is_a_value_error(
    transfers: int, replicas: int, shape: tuple[int, ...], given: tuple[int, ...], message: str
) -> None:
    ir, stream = program(transfers, replicas, shape)
    with pytest.raises(ValueError, match=message) as caught:
        check_array(ir, stream, np.zeros(given))
    assert str(given) in str(caught.value)
    assert str(full_shape(ir, shape)) in str(caught.value)


@pytest.mark.parametrize(
    ("transfers", "replicas", "shape", "given"),
    [
        (4, 1, (2, 4), (9, 2, 4)),
        (4, 2, (2,), (5, 2, 2)),
        (1, 1, (1,), ()),
        (1, 1, (), (1, 1)),
        (1, 1, (1, 1), (1,)),
        (3, 1, (1,), (3,)),
        (3, 2, (), (3, 2, 1)),
    ],
)
def test_more_transfers_and_other_dimensions_of_one_are_accepted(
    transfers: int, replicas: int, shape: tuple[int, ...], given: tuple[int, ...]
) -> None:
    ir, stream = program(transfers, replicas, shape)
    check_array(ir, stream, np.zeros(given))


def test_items_are_a_view_with_the_execution_in_front() -> None:
    ir, stream = program(3, 1, (2,))
    array = np.arange(8, dtype=np.float32).reshape(4, 2)
    items = as_items(ir, stream, array)
    assert items.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert np.shares_memory(items, array)


def test_items_of_a_single_transfer_have_one_in_front() -> None:
    ir, stream = program(1, 1, ())
    assert as_items(ir, stream, np.array(3.0, np.float32)).tolist() == [3.0]


def test_items_of_float8_are_codes() -> None:
    ir, stream = program(1, 1, (2,), popxl.float8_143)
    array = np.array([(1,), (255,)], popxl.float8_143.as_numpy())
    assert as_items(ir, stream, array).tolist() == [[1, 255]]


def test_int64_becomes_int32() -> None:
    _, stream = program(1, 1, (2,), popxl.int32)
    result = check_dtype(stream, np.array([1, -2], np.int64))
    assert result.dtype == np.int32
    assert result.tolist() == [1, -2]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("float64", "float32"), ("int32", "float32"), ("float32", "int32"), ("int64", "uint32"), ("int32", "int64")],
)
def test_any_other_dtype_is_a_type_error_that_names_both(given: str, wanted: str) -> None:
    _, stream = program(1, 1, (2,), popxl.dtypes.dtype.as_dtype(wanted))
    with pytest.raises(TypeError, match=f"^Type discrepancy for tensor x.*{given}.*{wanted}"):
        check_dtype(stream, np.zeros(2, given))


def test_streams_other_than_the_expected_are_all_named() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        a, b, c = (popxl.h2d_stream((), popxl.float32, name) for name in "abc")
    with pytest.raises(ValueError, match=r"^Unexpected/Missing input\.") as caught:
        check_streams({a: 0, b: 0}, {b, c}, "input")
    unexpected, missing = str(caught.value).split("Missing: ")
    assert str(a) in unexpected
    assert str(c) in missing
    assert str(b) not in str(caught.value)
