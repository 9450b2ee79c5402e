"""Remote and sharded variables and their buffers, as far as the IR shows them (spec remote-memory.md §5-§6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops


def in_main(ir: popxl.Ir, build: Any) -> Any:
    with ir.main_graph:
        return build()


# Remote variables


def test_remote_variable_says_where_it_is(main: popxl.Graph) -> None:
    popxl.remote_buffer((1,), popxl.int32)
    buffer = popxl.remote_buffer((2,), popxl.float32, entries=4)
    info = popxl.remote_variable([1.0, 2.0], buffer, 3).location_info
    assert (info.isRemote(), info.isSharded(), info.getRemoteBufferInfo()) == (True, False, (2, 3))


def test_remote_variable_is_a_variable(main: popxl.Graph) -> None:
    v = popxl.remote_variable([1.0], popxl.remote_buffer((1,), popxl.float32), name="w")
    assert repr(v) == "Variable[w popxl.dtypes.float32 (1,)]"
    assert v.location_info.getRemoteBufferInfo() == (1, 0)
    assert v.retrieval_mode == "one_per_group"


@pytest.mark.parametrize(
    "create", [popxl.remote_variable, popxl.remote_replica_sharded_variable], ids=["remote", "sharded"]
)
def test_remote_variable_outside_the_main_graph_raises(create: Any) -> None:
    ir = popxl.Ir(2)
    with ir.create_empty_graph():
        buffer = popxl.remote_buffer((1,), popxl.float32)
        with pytest.raises(ValueError, match=r"^You cannot initialise a variable tensor within a graph\."):
            create([1.0, 2.0], buffer)


@pytest.mark.parametrize(
    "create", [popxl.remote_variable, popxl.remote_replica_sharded_variable], ids=["remote", "sharded"]
)
def test_unknown_retrieval_mode_raises(create: Any) -> None:
    ir = popxl.Ir(2)
    with ir.main_graph, pytest.raises(ValueError, match=r"^Invalid retrieval_mode"):
        create([1.0, 2.0], popxl.remote_buffer((1,), popxl.float32), retrieval_mode="all")


def test_mismatch_with_the_buffer_is_accepted_until_a_session_is_made(main: popxl.Graph) -> None:
    buffer = popxl.remote_buffer((2,), popxl.float32, entries=1)
    popxl.remote_variable(np.zeros((3, 4), np.int32), buffer, 7)


@pytest.mark.parametrize(
    ("data", "offset", "message"),
    [
        (np.zeros(2, np.int32), 0, "has dtype popxl.dtypes.int32, remote buffer 1 has popxl.dtypes.float32"),
        (np.zeros(3, np.float32), 0, r"has shape \(3,\), a row of remote buffer 1 has \(2,\)"),
        (np.zeros(2, np.float32), 1, "Offset 1 is outside remote buffer 1, which has 1 entries"),
    ],
)
def test_session_refuses_a_remote_variable_that_does_not_fit(
    ir: popxl.Ir, data: Any, offset: int, message: str
) -> None:
    with ir.main_graph:
        popxl.remote_variable(data, popxl.remote_buffer((2,), popxl.float32), offset)
        ops.init((), popxl.float32)
    with pytest.raises(ValueError, match=message):
        popxl.Session(ir)


@pytest.mark.parametrize(("place", "message"), [((1, -1), "Offset -1 is outside"), ((9, 0), "no remote buffer 9")])
def test_session_refuses_a_place_that_does_not_exist(ir: popxl.Ir, place: tuple[int, int], message: str) -> None:
    with ir.main_graph:
        v = popxl.remote_variable([1.0], popxl.remote_buffer((1,), popxl.float32))
        v.location_info.setRemoteBufferInfo(*place)
        ops.init((), popxl.float32)
    with pytest.raises(ValueError, match=message):
        popxl.Session(ir)


def test_buffer_may_grow_after_the_variable_was_made(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((1,), popxl.float32)
        popxl.remote_variable([1.0], buffer, 3)
        buffer.entries = max(buffer.entries, 4)
        ops.init((), popxl.float32)
    popxl.Session(ir)


def test_negative_offset_raises(main: popxl.Graph) -> None:
    with pytest.raises(ValueError, match="The offset -1"):
        popxl.remote_variable([1.0], popxl.remote_buffer((1,), popxl.float32), -1)


def test_buffer_of_another_ir_raises(ir: popxl.Ir) -> None:
    with popxl.Ir().main_graph:
        foreign = popxl.remote_buffer((1,), popxl.float32)
    with ir.main_graph, pytest.raises(ValueError, match="belongs to"):
        popxl.remote_variable([1.0], foreign)


def test_groups_add_an_axis_to_the_data_and_none_to_the_row() -> None:
    ir = popxl.Ir(4)
    with ir.main_graph:
        buffer = popxl.remote_buffer((3,), popxl.float32)
        v = popxl.remote_variable(np.zeros((2, 3), np.float32), buffer, replica_grouping=ir.replica_grouping(stride=2))
    assert (v.shape, v.shape_on_host, buffer.tensor_shape) == ((3,), (2, 3), (3,))


# Buffers for shards (the table of §6.2)


@pytest.mark.parametrize(
    ("replicas", "shape", "grouping", "shard_over", "row", "meta_shape"),
    [
        (8, (4, 4), None, None, (2,), (4, 4)),
        (8, (4, 4), None, 4, (4,), (4, 4)),
        (8, (2, 4, 4), {"group_size": 4}, None, (4,), (4, 4)),
        (8, (2, 8), [0, 0, 1, 1, 0, 0, 1, 1], None, (4,), (8,)),
        (2, (5,), None, None, (3,), (5,)),
        (4, (), None, None, (1,), ()),
        (1, (5,), None, None, (5,), (5,)),
    ],
)
def test_sharded_buffer(
    replicas: int, shape: Any, grouping: Any, shard_over: int | None, row: Any, meta_shape: Any
) -> None:
    ir = popxl.Ir(replicas)
    if isinstance(grouping, dict):
        grouping = ir.replica_grouping(**grouping)
    elif isinstance(grouping, list):
        grouping = ir.replica_grouping_from_assignments(grouping)
    buffer = in_main(ir, lambda: popxl.replica_sharded_buffer(shape, popxl.float16, grouping, shard_over, entries=3))
    assert (buffer.tensor_shape, buffer.meta_shape) == (row, meta_shape)
    assert (buffer.tensor_dtype, buffer.entries) == (popxl.float16, 3)


@pytest.mark.parametrize(("group_size", "shard_over"), [(8, 16), (4, 8), (4, 3), (8, 0), (8, -1)])
def test_shards_must_divide_the_group(group_size: int, shard_over: int) -> None:
    ir = popxl.Ir(8)
    grouping = ir.replica_grouping(group_size=group_size)
    with pytest.raises(ValueError, match=f"Cannot shard over {shard_over} replicas"):
        in_main(ir, lambda: popxl.replica_sharded_buffer((2, 8), popxl.float32, grouping, shard_over))


# Sharded remote variables


def test_sharded_remote_variable_has_the_full_shape() -> None:
    ir = popxl.Ir(2)
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32)
        v = popxl.remote_replica_sharded_variable(np.zeros((2, 2), np.float32), buffer)
    info = v.location_info
    assert (info.isRemote(), info.isSharded(), info.getRemoteBufferInfo()) == (True, True, (1, 0))
    assert (v.shape, v.meta_shape, v.shape_on_host) == ((2, 2), (), (2, 2))
    assert buffer.meta_shape == (2, 2)


def test_loads_of_a_sharded_row_are_shards() -> None:
    ir = popxl.Ir(2)
    with ir.main_graph:
        buffer = popxl.remote_buffer((1,), popxl.int32)
        popxl.remote_replica_sharded_variable([1, 2], buffer)
        shard = ops.remote_load(buffer, 0)
    assert (shard.shape, shard.meta_shape) == ((1,), (2,))


def test_meta_shape_leaves_the_group_axis_out() -> None:
    ir = popxl.Ir(4)
    with ir.main_graph:
        buffer = popxl.remote_buffer((3,), popxl.float32)
        popxl.remote_replica_sharded_variable(
            np.zeros((2, 5), np.float32), buffer, replica_grouping=ir.replica_grouping(stride=2)
        )
    assert buffer.meta_shape == (5,)


def test_two_variables_of_one_shape_share_a_buffer_and_a_third_does_not() -> None:
    ir = popxl.Ir(2)
    with ir.main_graph:
        buffer = popxl.remote_buffer((1,), popxl.int32, 2)
        popxl.remote_replica_sharded_variable([1, 2], buffer, 0)
        popxl.remote_replica_sharded_variable([3, 4], buffer, 1)
        with pytest.raises(ValueError, match=r"^Cannot use RemoteBuffer\[id=1"):
            popxl.remote_replica_sharded_variable([1, 2, 3, 4], buffer, 1)
    assert buffer.meta_shape == (2,)


def test_sharded_remote_variable_needs_replicas(main: popxl.Graph) -> None:
    buffer = popxl.remote_buffer((1,), popxl.int32)
    with pytest.raises(ValueError, match=r"greater than 1\. It is 1"):
        popxl.remote_replica_sharded_variable([1, 2], buffer)


def test_sharded_variable_needs_replicas(main: popxl.Graph) -> None:
    with pytest.raises(ValueError, match=r"greater than 1\. It is 1"):
        popxl.replica_sharded_variable([1, 2])


def test_meta_shape_stays_set_after_a_later_failure() -> None:
    ir = popxl.Ir(2)
    with ir.main_graph:
        buffer = popxl.remote_buffer((1,), popxl.int32)
        with pytest.raises(ValueError, match="Invalid retrieval_mode"):
            popxl.remote_replica_sharded_variable([1, 2], buffer, retrieval_mode="x")
    assert buffer.meta_shape == (2,)


# Variables sharded on the device


def test_sharded_variable_and_its_shard() -> None:
    ir = popxl.Ir(2)
    v, shard = in_main(ir, lambda: popxl.replica_sharded_variable(np.zeros(5, np.float32), name="w"))
    assert (v.shape, v.dtype, v.name) == ((5,), popxl.float32, "w")
    assert (v.location_info.isSharded(), v.location_info.getRemoteBufferInfo()) == (True, (1, 0))
    assert (shard.shape, shard.meta_shape, shard.name) == ((3,), (5,), "w_rts_remote_loaded")


def test_shard_in_a_scope_has_the_scope_once() -> None:
    ir = popxl.Ir(2)
    with ir.main_graph, popxl.name_scope("layer"):
        v, shard = popxl.replica_sharded_variable([1, 2], name="w")
    assert (v.name, shard.name) == ("layer/w", "layer/w_rts_remote_loaded")


def test_shard_is_loaded_and_stored_with_the_weights() -> None:
    ir = popxl.Ir(2)
    in_main(ir, lambda: popxl.replica_sharded_variable([1, 2]))
    found = [(op.type, op.execution_context.name) for op in ir.main_graph.ops]
    assert found == [
        ("Init", "WeightsFromHostFragment"),
        ("RemoteLoad", "WeightsFromHostFragment"),
        ("RemoteStore", "WeightsToHostFragment"),
    ]


def test_shard_over_decides_the_size_of_a_shard() -> None:
    ir = popxl.Ir(8)
    v, shard = in_main(ir, lambda: popxl.replica_sharded_variable(np.zeros((4, 4), np.float32), shard_over=4))
    assert (v.shape, shard.shape, shard.meta_shape) == ((4, 4), (4,), (4, 4))


def test_float8_data_are_scaled_once() -> None:
    ir = popxl.Ir(2)
    v, shard = in_main(
        ir, lambda: popxl.replica_sharded_variable(np.float32([0.75, 0.75]), popxl.float8_143, log2_scale=-2)
    )
    assert v.host_value.view(np.uint8).tolist() == [0b00101100] * 2
    assert shard.dtype == popxl.float8_143


def test_id_of_the_hidden_buffer_is_consumed_by_a_failure() -> None:
    ir = popxl.Ir(2)
    with ir.main_graph:
        with pytest.raises(ValueError, match="Invalid retrieval_mode"):
            popxl.replica_sharded_variable([1, 2], retrieval_mode="x")
        assert popxl.remote_buffer((1,), popxl.int32).remote_buffer_id == 2


def test_memmap_stays_the_hosts_storage(tmp_path: Path) -> None:
    data = np.memmap(tmp_path / "w", np.float32, "w+", shape=(4,))
    ir = popxl.Ir(2)
    with ir.main_graph:
        sharded, _ = popxl.replica_sharded_variable(data)
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        remote = popxl.remote_replica_sharded_variable(data, buffer)
        plain = popxl.remote_variable(data, buffer, 1)
    assert all(v.host_value is data for v in (sharded, remote, plain))
