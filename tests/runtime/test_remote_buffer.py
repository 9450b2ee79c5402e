"""Remote buffers as objects (remote-memory.md §2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import popxl
from popxl import ops


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


@pytest.mark.parametrize("make", [popxl.remote_buffer, popxl.RemoteBuffer])
def test_buffer_has_what_it_was_made_with(ir: popxl.Ir, make: Callable[..., popxl.RemoteBuffer]) -> None:
    with ir.main_graph:
        buffer = make(tensor_shape=[2, 3], tensor_dtype=popxl.float16, entries=4)
    assert buffer.tensor_shape == (2, 3)
    assert buffer.tensor_dtype == popxl.float16
    assert buffer.entries == 4
    assert buffer.meta_shape == ()


def test_one_entry_is_the_default(ir: popxl.Ir) -> None:
    with ir.main_graph:
        assert popxl.remote_buffer((), popxl.int32).entries == 1


def test_buffer_needs_an_active_graph() -> None:
    with pytest.raises(RuntimeError, match="no graph has been selected"):
        popxl.remote_buffer((), popxl.int32)


def test_buffer_may_be_made_in_any_graph(ir: popxl.Ir) -> None:
    with ir.create_empty_graph():
        assert popxl.remote_buffer((), popxl.int32).ir == ir


def test_ids_count_from_one_in_each_ir(ir: popxl.Ir) -> None:
    with ir.main_graph:
        assert [popxl.remote_buffer((), popxl.int32).remote_buffer_id for _ in range(3)] == [1, 2, 3]
    with popxl.Ir().main_graph:
        assert popxl.remote_buffer((), popxl.int32).remote_buffer_id == 1


@pytest.mark.parametrize("entries", [0, -1])
def test_entries_must_be_positive(ir: popxl.Ir, entries: int) -> None:
    message = r"^Entries must be a non-zero, positive integer"
    with ir.main_graph:
        with pytest.raises(ValueError, match=message):
            popxl.remote_buffer((), popxl.int32, entries)
        buffer = popxl.remote_buffer((), popxl.int32, 2)
    with pytest.raises(ValueError, match=message):
        buffer.entries = entries
    assert buffer.entries == 2


@pytest.mark.parametrize("name", ["tensor_shape", "tensor_dtype", "remote_buffer_id"])
def test_shape_dtype_and_id_are_read_only(ir: popxl.Ir, name: str) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((), popxl.int32)
    with pytest.raises(AttributeError):
        setattr(buffer, name, getattr(buffer, name))


def test_info_can_be_overwritten(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.int32, 3)
    buffer.set_remote_buffer_info(popxl.float32, (4, 5), 6)
    assert (buffer.tensor_dtype, buffer.tensor_shape, buffer.entries) == (popxl.float32, (4, 5), 6)


def test_meta_shape_is_free(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.int32)
    buffer.meta_shape = (3, 1)
    assert buffer.meta_shape == (3, 1)


def test_buffers_equal_only_themselves(ir: popxl.Ir) -> None:
    with ir.main_graph:
        first, second = popxl.remote_buffer((), popxl.int32), popxl.remote_buffer((), popxl.int32)
    assert first == first
    assert first != second
    assert len({first, second, first}) == 2


def test_tensor_is_compared_with_the_row(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2, 3), popxl.float32)
        buffer.meta_shape = (5,)
        buffer.validate_tensor_matches_buffer(popxl.constant([[0.0] * 3] * 2))
        buffer.validate_tensor_matches_buffer(popxl.constant([0.0] * 5), num_shards=2)
        for t, shards in ((popxl.constant([0.0] * 5), 1), (popxl.constant([[0.0] * 3] * 2), 2)):
            with pytest.raises(ValueError, match=rf"^Tensor {t.id} does not match buffer\."):
                buffer.validate_tensor_matches_buffer(t, shards)


def test_mismatch_tells_both_shapes_and_dtypes(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer, t = popxl.remote_buffer((2, 3), popxl.float16), popxl.constant([0.0] * 5)
    with pytest.raises(ValueError, match="does not match buffer") as caught:
        buffer.validate_tensor_matches_buffer(t)
    for part in ("(5,)", "(2, 3)", "float32", "float16"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: setattr(b, "entries", 5),
        lambda b: b.set_remote_buffer_info(popxl.int32, (), 5),
        lambda b: popxl.remote_buffer((), popxl.int32),
    ],
)
def test_no_buffer_changes_once_a_session_has_the_program(ir: popxl.Ir, change: Callable[[Any], Any]) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((), popxl.int32)
        ops.remote_load(buffer, 0)
        popxl.Session(ir)
        with pytest.raises(RuntimeError, match="already prepared"):
            change(buffer)
    assert buffer.entries == 1


def test_buffer_that_nothing_uses_costs_no_row(ir: popxl.Ir, memory: str) -> None:
    with ir.main_graph:
        popxl.remote_buffer((10**6,), popxl.float32, 2)
        popxl.constant(1.0) + 1
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
    counters = session.streaming_memory.counters
    assert (counters.loads, counters.stores) == (0, 0)
