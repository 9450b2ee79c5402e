"""`popxl.RemoteBuffer` (spec remote-memory.md §2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops


def test_constructor_takes_the_documented_keywords(main: popxl.Graph) -> None:
    buffer = popxl.RemoteBuffer(tensor_shape=(2, 3), tensor_dtype=popxl.float16, entries=4)
    assert (buffer.tensor_shape, buffer.tensor_dtype, buffer.entries) == ((2, 3), popxl.float16, 4)
    assert buffer.meta_shape == ()


def test_function_makes_one_row_by_default(main: popxl.Graph) -> None:
    buffer = popxl.remote_buffer((2,), popxl.float32)
    assert isinstance(buffer, popxl.RemoteBuffer)
    assert buffer.entries == 1


@pytest.mark.parametrize("make", [popxl.RemoteBuffer, popxl.remote_buffer])
def test_creation_needs_a_graph(make: Any) -> None:
    with pytest.raises(RuntimeError, match="no graph has been selected"):
        make((1,), popxl.float32, 1)


def test_any_graph_will_do_and_the_buffer_belongs_to_the_ir(ir: popxl.Ir) -> None:
    with ir.create_empty_graph():
        buffer = popxl.remote_buffer((1,), popxl.float32)
    with ir.main_graph:
        assert ops.remote_load(buffer, 0).shape == (1,)


def test_ids_count_from_1_in_each_ir() -> None:
    for _ in range(2):
        with popxl.Ir().main_graph:
            assert [popxl.remote_buffer((1,), popxl.float32).remote_buffer_id for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("shape", [(2, 3), [2, 3], np.array([2, 3])], ids=["tuple", "list", "array"])
def test_shape_reads_back_as_a_tuple(main: popxl.Graph, shape: Any) -> None:
    assert popxl.remote_buffer(shape, popxl.float32).tensor_shape == (2, 3)
    assert type(popxl.remote_buffer(shape, popxl.float32).tensor_shape) is tuple


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_scalar_and_empty_rows_are_allowed(main: popxl.Graph, shape: tuple[int, ...]) -> None:
    assert ops.remote_load(popxl.remote_buffer(shape, popxl.float32), 0).shape == shape


ENTRIES = r"^Entries must be a non-zero, positive integer"


@pytest.mark.parametrize("entries", [0, -1])
def test_constructor_needs_a_row(main: popxl.Graph, entries: int) -> None:
    with pytest.raises(ValueError, match=ENTRIES):
        popxl.remote_buffer((1,), popxl.float32, entries)


@pytest.mark.parametrize("entries", [0, -1])
def test_setter_needs_a_row(main: popxl.Graph, entries: int) -> None:
    buffer = popxl.remote_buffer((1,), popxl.float32, 3)
    with pytest.raises(ValueError, match=ENTRIES):
        buffer.entries = entries
    assert buffer.entries == 3


@pytest.mark.parametrize("entries", [1, 7])
def test_entries_grow_and_shrink(main: popxl.Graph, entries: int) -> None:
    buffer = popxl.remote_buffer((1,), popxl.float32, 3)
    buffer.entries = entries
    assert buffer.entries == entries


def test_entries_count_when_a_session_is_made(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((1,), popxl.float32, 1)
        ops.remote_load(buffer, 3)
    with pytest.raises(ValueError, match="Offset 3 is outside"):
        popxl.Session(ir)
    buffer.entries = 4
    popxl.Session(ir)


@pytest.mark.parametrize("name", ["tensor_shape", "tensor_dtype", "remote_buffer_id"])
def test_attribute_is_read_only(main: popxl.Graph, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(popxl.remote_buffer((1,), popxl.float32), name, None)


def test_set_remote_buffer_info_overwrites_without_a_check(main: popxl.Graph) -> None:
    buffer = popxl.remote_buffer((1,), popxl.float32)
    buffer.set_remote_buffer_info(popxl.int32, [2, 2], 0)
    assert (buffer.tensor_dtype, buffer.tensor_shape, buffer.entries) == (popxl.int32, (2, 2), 0)


def test_set_remote_buffer_info_keeps_the_meta_shape(main: popxl.Graph) -> None:
    buffer = popxl.remote_buffer((1,), popxl.float32)
    buffer.meta_shape = (2,)
    buffer.set_remote_buffer_info(popxl.int32, (2,), 1)
    assert buffer.meta_shape == (2,)


def test_load_made_before_set_remote_buffer_info_keeps_its_shape_and_no_session_takes_it(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((1,), popxl.float32)
        row = ops.remote_load(buffer, 0)
        buffer.set_remote_buffer_info(popxl.float32, (2,), 1)
    assert row.shape == (1,)
    with pytest.raises(ValueError, match="the buffer was changed after the op was made"):
        popxl.Session(ir)


def test_meta_shape_is_kept_as_given(main: popxl.Graph) -> None:
    buffer = popxl.remote_buffer((1,), popxl.float32)
    buffer.meta_shape = [3]  # type: ignore[assignment]
    assert buffer.meta_shape == [3]
    assert buffer.meta_shape != (3,)


# validate_tensor_matches_buffer


def test_tensor_that_matches(main: popxl.Graph) -> None:
    popxl.remote_buffer((2,), popxl.float32).validate_tensor_matches_buffer(popxl.constant([1.0, 2.0]))


@pytest.mark.parametrize("value", [[1.0], [[1.0, 2.0]], [1, 2]])
def test_tensor_that_does_not_match_raises(main: popxl.Graph, value: Any) -> None:
    t = popxl.constant(value, name="x")
    with pytest.raises(ValueError, match=r"^Tensor x does not match buffer\.") as caught:
        popxl.remote_buffer((2,), popxl.float32).validate_tensor_matches_buffer(t)
    for part in (t.shape, t.dtype, (2,), popxl.float32):
        assert str(part) in str(caught.value)


def test_with_several_shards_the_meta_shape_counts(main: popxl.Graph) -> None:
    buffer = popxl.remote_buffer((2,), popxl.float32)
    buffer.meta_shape = (3,)
    buffer.validate_tensor_matches_buffer(popxl.constant([1.0, 2.0, 3.0]), num_shards=2)
    with pytest.raises(ValueError, match="does not match buffer"):
        buffer.validate_tensor_matches_buffer(popxl.constant([1.0, 2.0]), num_shards=2)


def test_graph_ir_entries_and_meta_shape_of_the_tensor_do_not_count(ir: popxl.Ir) -> None:
    with popxl.Ir().create_empty_graph():
        t = popxl.graph_input((2,), popxl.float32, meta_shape=(9,))
    with ir.main_graph:
        popxl.remote_buffer((2,), popxl.float32).validate_tensor_matches_buffer(t)


# Identity


def test_hash_is_that_of_ir_and_id() -> None:
    hashes = set()
    for _ in range(2):
        with popxl.Ir().main_graph:
            hashes |= {hash(popxl.remote_buffer((1,), popxl.float32)) for _ in range(2)}
    assert len(hashes) == 4


def test_equality_is_identity(main: popxl.Graph) -> None:
    a, b = (popxl.remote_buffer((1,), popxl.float32) for _ in range(2))
    assert a == a
    assert a != b
    assert a != 1


def test_repr_is_readable(main: popxl.Graph) -> None:
    text = repr(popxl.remote_buffer((2, 3), popxl.float32, 4))
    assert text == "RemoteBuffer[id=1 popxl.dtypes.float32 (2, 3) entries=4]"


def test_unused_buffer_costs_nothing(main: popxl.Graph, evaluate: Any) -> None:
    popxl.remote_buffer((1 << 40,), popxl.float32)
    assert evaluate(popxl.constant(1.0) + 1.0) == [2.0]
