"""Remote variables: created, checked by a session, uploaded, read back (remote-memory.md §5, §8, §10, §11)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import RemoteOffsetError


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


# Creation


def test_remote_variable_tells_its_row(ir: popxl.Ir) -> None:
    with ir.main_graph:
        popxl.remote_buffer((), popxl.int32)
        buffer = popxl.remote_buffer((2,), popxl.float32, 4)
        v = popxl.remote_variable([1.0, 2.0], buffer, 3, name="v")
    assert (v.name, v.shape, v.dtype, v.shape_on_host) == ("v", (2,), popxl.float32, (2,))
    assert v.location_info.isRemote()
    assert not v.location_info.isSharded()
    assert v.location_info.getRemoteBufferInfo() == (2, 3)
    assert v.retrieval_mode == "one_per_group"


def test_remote_variable_is_in_row_0_unless_told_otherwise(ir: popxl.Ir) -> None:
    with ir.main_graph:
        v = popxl.remote_variable(1.0, popxl.remote_buffer((), popxl.float32, 4))
    assert v.location_info.getRemoteBufferInfo() == (1, 0)


def test_remote_variable_belongs_in_the_main_graph(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((), popxl.float32)
    with ir.create_empty_graph(), pytest.raises(ValueError, match="within a graph"):
        popxl.remote_variable(1.0, buffer)


def test_buffer_of_another_ir_is_refused(ir: popxl.Ir) -> None:
    with popxl.Ir().main_graph:
        buffer = popxl.remote_buffer((), popxl.float32)
    with ir.main_graph, pytest.raises(ValueError, match="belongs to"):
        popxl.remote_variable(1.0, buffer)


def test_negative_row_is_refused(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((), popxl.float32)
        with pytest.raises(ValueError, match="offset -1"):
            popxl.remote_variable(1.0, buffer, -1)


def test_variable_that_does_not_fit_can_be_made(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32)
        v = popxl.remote_variable(np.zeros((3, 4), np.int32), buffer, 9)
    assert v.shape == (3, 4)


def test_sharding_needs_several_replicas(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((1,), popxl.float32)
        with pytest.raises(ValueError, match=r"greater than 1\. It is 1"):
            popxl.remote_replica_sharded_variable([1.0], buffer)
        with pytest.raises(ValueError, match=r"greater than 1\. It is 1"):
            popxl.replica_sharded_variable([1.0])


def test_sharded_buffer_of_one_replica_is_whole(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.replica_sharded_buffer((2, 3), popxl.float32)
    assert (buffer.tensor_shape, buffer.meta_shape, buffer.entries) == ((6,), (2, 3), 1)


# What a session checks


@pytest.mark.parametrize(
    ("data", "offset", "error", "message"),
    [
        (np.zeros(2, np.float32), 4, RemoteOffsetError, "Offset 4 is outside.*4 entries"),
        (np.zeros(2, np.int32), 0, ValueError, "int32.*float32"),
        (np.zeros(2, np.float16), 0, ValueError, "float16.*float32"),
        (np.zeros(3, np.float32), 0, ValueError, r"\(3,\).*\(2,\)"),
        (np.zeros((1, 2), np.float32), 0, ValueError, r"\(1, 2\).*\(2,\)"),
        (np.zeros((), np.float32), 0, ValueError, r"\(\).*\(2,\)"),
    ],
)
def test_variable_that_does_not_fit_is_refused_by_the_session(
    ir: popxl.Ir, data: np.ndarray, offset: int, error: type[Exception], message: str
) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, 4)
        popxl.remote_variable(data, buffer, offset, name="v")
        ops.remote_load(buffer, 0)
    with pytest.raises(error, match=message) as caught:
        popxl.Session(ir)
    assert "[v " in str(caught.value)


def test_remote_variable_used_by_an_op_is_refused_with_the_line(ir: popxl.Ir) -> None:
    with ir.main_graph:
        v = popxl.remote_variable(1.0, popxl.remote_buffer((), popxl.float32), name="v")
        v + 1
    with pytest.raises(ValueError, match="Remote variable v is used by an op") as caught:
        popxl.Session(ir)
    assert __file__ in str(caught.value)
    assert "remote_load" in str(caught.value)


# Values


def scalar_program() -> tuple[popxl.Ir, Any, Any]:
    """Worked example 1: x = 1 in row 0; load, add 2, store, stream."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((), popxl.float32, 1)
        x = popxl.remote_variable(1.0, buffer, 0)
        out = popxl.d2h_stream((), popxl.float32)
        loaded = ops.remote_load(buffer, 0)
        ops.var_updates.accumulate_(loaded, popxl.constant(2.0))
        ops.remote_store(buffer, 0, loaded)
        ops.host_store(out, loaded)
    return ir, x, out


def test_worked_example_of_a_scalar(memory: str) -> None:
    ir, x, out = scalar_program()
    with popxl.Session(ir, streaming_memory=memory) as session:
        assert session.run()[out] == 3
        value = session.get_tensor_data(x)
        assert (value, value.shape) == (3, ())
        assert session.run()[out] == 5
    assert session.get_tensor_data(x) == 5


def test_written_value_is_in_the_row_at_once(memory: str) -> None:
    ir, x, out = scalar_program()
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
        session.write_variable_data(x, np.array(10, np.float32))
        assert session.get_tensor_data(x) == 10
        assert session.run()[out] == 12


def test_value_written_while_detached_is_uploaded_on_entry(memory: str) -> None:
    ir, x, out = scalar_program()
    session = popxl.Session(ir, streaming_memory=memory)
    session.write_variable_data(x, np.array(10, np.float32))
    with session:
        assert session.run()[out] == 12


def test_row_persists_between_runs_and_is_uploaded_anew_after_an_exception(memory: str) -> None:
    ir, _, out = scalar_program()
    session = popxl.Session(ir, streaming_memory=memory)

    def run_twice_and_fail() -> None:
        assert [session.run()[out] for _ in range(2)] == [3, 5]
        raise KeyError

    with pytest.raises(KeyError), session:
        run_twice_and_fail()
    with session:
        assert session.run()[out] == 3


def test_variables_share_a_buffer_at_different_rows(ir: popxl.Ir, memory: str) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.int32, 3)
        first = popxl.remote_variable([1, 2], buffer, 2)
        second = popxl.remote_variable([3, 4], buffer, 0)
        ops.remote_store(buffer, 1, ops.remote_load(buffer, 2) + ops.remote_load(buffer, 0))
        ops.remote_store(buffer, 0, ops.remote_load(buffer, 1))
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
        values = session.get_tensors_data([first, second])
    assert values[first].tolist() == [1, 2]
    assert values[second].tolist() == [4, 6]


def test_later_of_two_variables_in_one_row_wins(ir: popxl.Ir, memory: str) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((), popxl.int32)
        first, second = (popxl.remote_variable(i, buffer, 0) for i in (1, 2))
        ops.remote_load(buffer, 0)
    session = popxl.Session(ir, streaming_memory=memory)
    assert [int(session.get_tensor_data(v)) for v in (first, second)] == [1, 2]
    with session:
        session.run()
        assert [int(session.get_tensor_data(v)) for v in (first, second)] == [2, 2]


def test_variable_whose_row_is_never_used_goes_up_and_comes_back(ir: popxl.Ir, memory: str) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        v = popxl.remote_variable([1.0, 2.0], buffer, 1)
        popxl.constant(1.0) + 1
    with popxl.Session(ir, streaming_memory=memory) as session:
        counters = session.streaming_memory.counters
        assert (counters.stores, counters.bytes_stored) == (1, 8)
        session.run()
        assert session.get_tensor_data(v).tolist() == [1, 2]
        assert (counters.loads, counters.bytes_loaded) == (1, 8)


def test_host_reads_what_anyone_stored_in_the_row(ir: popxl.Ir, memory: str) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        v = popxl.remote_variable([1.0, 2.0], buffer, 1)
        ops.remote_store(buffer, popxl.variable(1, popxl.uint32), popxl.constant([8.0, 9.0]))
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
        assert session.get_tensor_data(v).tolist() == [8, 9]


def test_row_without_a_variable_starts_as_zeros_and_is_kept_until_detached(ir: popxl.Ir, memory: str) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        out = popxl.d2h_stream((2,), popxl.float32)
        row = ops.remote_load(buffer, 1)
        ops.host_store(out, row)
        ops.remote_store(buffer, 1, row + 1)
    with popxl.Session(ir, streaming_memory=memory) as session:
        assert session.run()[out].tolist() == [0, 0]
        session.weights_to_host()
        session.weights_from_host()
        assert session.run()[out].tolist() == [1, 1]


def test_host_array_changed_by_the_user_does_not_reach_the_row(ir: popxl.Ir, memory: str) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((16,), popxl.float32)
        v = popxl.remote_variable(np.zeros(16, np.float32), buffer)
        out = popxl.d2h_stream((16,), popxl.float32)
        ops.host_store(out, ops.remote_load(buffer, 0))
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.get_tensor_data(v)[...] = 5
        assert not session.run()[out].any()


def test_fetched_array_is_not_the_row(ir: popxl.Ir, memory: str) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((16,), popxl.float32)
        v = popxl.remote_variable(np.zeros(16, np.float32), buffer)
        ops.remote_store(buffer, 0, ops.remote_load(buffer, 0) + 1)
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
        fetched = session.get_tensor_data(v)
        session.run()
        assert (fetched == 1).all()
        fetched[...] = -7
        assert (session.get_tensor_data(v) == 2).all()


def test_all_replicas_of_one_is_the_value_itself(ir: popxl.Ir, memory: str) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32)
        v = popxl.remote_variable([1.0, 2.0], buffer, retrieval_mode="all_replicas")
        ops.remote_store(buffer, 0, ops.remote_load(buffer, 0) * 3)
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
        assert session.get_tensor_data(v).tolist() == [3, 6]
