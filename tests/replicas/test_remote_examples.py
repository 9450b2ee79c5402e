"""The worked examples of spec ``remote-memory.md`` §7, §10, §11, on one device and on several, in RAM and in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replica_examples import Example, check, divisions, on_all, places, session_on

import popxl
from popxl import ops
from popxl.ops.collectives import replica_sharded_slice, replicated_all_gather
from popxl.tensor import Tensor

TWO = [[1, 2, 3, 4], [5, 6, 7, 8]]


def stored(t: Tensor) -> popxl.DeviceToHostStream:
    stream = popxl.d2h_stream(t.shape, t.dtype)
    ops.host_store(stream, t)
    return stream


def own_number(scale: float = 1) -> tuple[popxl.HostToDeviceStream, np.ndarray, Tensor]:
    """A stream of the number of each replica, times a scale; what it holds; and the value."""
    count = popxl.gcg().ir.replication_factor
    stream = popxl.h2d_stream((), popxl.float32)
    return stream, np.arange(count, dtype=np.float32) * scale, ops.host_load(stream)


# §7: who reads what


def table(
    replicas: int, stride: int, group_size: int, shards: int | None, data: Any, rows: Any, after: Any
) -> Callable[[], Example]:
    """Each replica streams its row and the whole value, then adds 100 times its number to its row."""

    def make() -> Example:
        ir = popxl.Ir(replication=replicas)
        grouping = ir.replica_grouping(stride, group_size)
        host = np.array(data, np.float32)
        with ir.main_graph, popxl.in_sequence():
            if shards is None:
                buffer = popxl.remote_buffer(host.shape[1:], popxl.float32)
                v = popxl.remote_variable(host, buffer, 0, replica_grouping=grouping)
            else:
                buffer = popxl.replica_sharded_buffer(host.shape, popxl.float32, grouping, shards)
                v = popxl.remote_replica_sharded_variable(host, buffer, 0, replica_grouping=grouping)
            row = ops.remote_load(buffer, 0)
            whole = row if shards is None else replicated_all_gather(row, group=ir.replica_grouping(stride, shards))
            seen = stored(ops.reshape(row, row.shape)), stored(whole)
            numbers, items, number = own_number(100)
            ops.remote_store(buffer, 0, row + number)
        wholes = host[grouping.assignment]
        return Example(ir, {numbers: items}, {seen[0]: rows, seen[1]: wholes}, {v: after})

    return make


A, B = TWO
S12, S34, S56, S78 = [1, 2], [3, 4], [5, 6], [7, 8]
TABLES = {
    "4-1-2": (4, 1, 2, None, TWO, [A, A, B, B], [A, [205, 206, 207, 208]]),
    "4-2-2": (4, 2, 2, None, TWO, [A, B, A, B], [A, [105, 106, 107, 108]]),
    "4-1-2 over 2": (4, 1, 2, 2, TWO, [S12, S34, S56, S78], [[1, 2, 103, 104], [205, 206, 307, 308]]),
    "4-2-2 over 2": (4, 2, 2, 2, TWO, [S12, S56, S34, S78], [[1, 2, 203, 204], [105, 106, 307, 308]]),
    "8-2-4 over 2": (8, 2, 4, 2, TWO, [S12, S56, S34, S78] * 2, [[1, 2, 203, 204], [105, 106, 307, 308]]),
    "8-2-4 over 4": (
        8,
        2,
        4,
        4,
        TWO,
        [[1], [5], [2], [6], [3], [7], [4], [8]],
        [[1, 202, 403, 604], [105, 306, 507, 708]],
    ),
    "16-4-4 over 2": (
        16,
        4,
        4,
        2,
        [[0, 1], [2, 3], [4, 5], [6, 7]],
        [[0], [2], [4], [6], [1], [3], [5], [7]] * 2,
        [[0, 401], [102, 503], [204, 605], [306, 707]],
    ),
}


@pytest.mark.parametrize(
    ("name", "tier", "devices"),
    [pytest.param(name, *p.values, id=f"{name}-{p.id}") for name, row in TABLES.items() for p in places(row[0])],
)
def test_who_reads_what(name: str, tier: str, devices: int, tmp_path: Path) -> None:
    check(table(*TABLES[name]), tier, devices, tmp_path)


# §10


def scalar(runs: int, expected: int) -> Callable[[], Example]:
    def make() -> Example:
        ir = popxl.Ir()
        with ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((), popxl.float32, 1)
            x = popxl.remote_variable(1.0, buffer, 0)
            t = ops.remote_load(buffer, 0)
            ops.var_updates.accumulate_(t, popxl.constant(2.0))
            ops.remote_store(buffer, 0, t)
            out = stored(t)
        return Example(ir, {}, {out: expected}, {x: expected}, runs)

    return make


@pytest.mark.parametrize(("runs", "expected"), [(1, 3), (2, 5)])
@pytest.mark.parametrize("tier", ["ram", "file"])
def test_1_a_scalar_of_one_replica(tier: str, runs: int, expected: int, tmp_path: Path) -> None:
    check(scalar(runs, expected), tier, 1, tmp_path)


def no_grouping() -> Example:
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((), popxl.int32, 1)
        x = popxl.remote_variable(1, buffer, 0)
        u = ops.remote_load(buffer, 0) + 2
        ops.remote_store(buffer, 0, u)
        outs = stored(u), stored(ops.remote_load(buffer, 0))
    return Example(ir, {}, {out: [3, 3] for out in outs}, {x: 3})


@on_all(2)
def test_2_two_replicas_without_a_grouping(tier: str, devices: int, tmp_path: Path) -> None:
    check(no_grouping, tier, devices, tmp_path)


def value_each() -> Example:
    ir = popxl.Ir(replication=2)
    data = np.arange(64, dtype=np.float32).reshape(2, 32)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((32,), popxl.float32, 1)
        x = popxl.remote_variable(data, buffer, 0, replica_grouping=ir.replica_grouping(group_size=1))
        v = ops.remote_load(buffer, 0)
        v += 1
        ops.remote_store(buffer, 0, v)
    return Example(ir, {}, {}, {x: data + 1})


@on_all(2)
def test_3_a_value_for_each_of_two_replicas(tier: str, devices: int, tmp_path: Path) -> None:
    check(value_each, tier, devices, tmp_path)


def shards_by_hand() -> Example:
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((1,), popxl.int32, 1)
        x = popxl.remote_replica_sharded_variable(np.array([1, 2], np.int32), buffer, 0)
        shard = ops.remote_load(buffer, 0)
        assert (shard.shape, shard.meta_shape) == ((1,), (2,))
        u = replicated_all_gather(shard) + popxl.constant([3, 4], popxl.int32)
        ops.remote_store(buffer, 0, replica_sharded_slice(u))
        out = stored(u)
    return Example(ir, {}, {out: [[4, 6], [4, 6]]}, {x: [4, 6]})


@on_all(2)
def test_4_shards_by_hand(tier: str, devices: int, tmp_path: Path) -> None:
    check(shards_by_hand, tier, devices, tmp_path)


def automatic(way: str) -> Callable[[], Example]:
    def make() -> Example:
        ir = popxl.Ir(replication=2)
        with ir.main_graph, popxl.in_sequence():
            v, shard = popxl.replica_sharded_variable([1.0, 2.0])
            y = popxl.constant([3.0, 4.0])
            if way == "in place":
                ops.var_updates.accumulate_(shard, replica_sharded_slice(y))
            else:
                new = replica_sharded_slice(replicated_all_gather(shard) + y)
                if way == "copied back":
                    ops.var_updates.copy_var_update_(shard, new)
                else:
                    stored(ops.reshape(new, new.shape))
        return Example(ir, {}, {}, {v: [1, 2] if way == "not copied back" else [4, 6]})

    return make


@pytest.mark.parametrize("way", ["in place", "copied back", "not copied back"])
@on_all(2)
def test_5_automatic_shards(tier: str, devices: int, way: str, tmp_path: Path) -> None:
    check(automatic(way), tier, devices, tmp_path)


@on_all(2)
def test_5_automatic_shards_stay_between_runs_and_sessions(tier: str, devices: int, tmp_path: Path) -> None:
    example = automatic("in place")()
    (v,) = example.variables
    session = session_on(example.ir, tier, devices, tmp_path)
    with session:
        session.run()
        session.run()
    with session:
        session.run()
        session.write_variable_data(v, np.array([10, 20], np.float32))
        assert session.get_tensor_data(v).tolist() == [10, 20]
        session.run()
        assert session.get_tensor_data(v).tolist() == [13, 24]
        session.weights_from_host()
        session.run()
    assert session.get_tensor_data(v).tolist() == [16, 28]


def padded(resident: bool) -> Callable[[], Example]:
    def make() -> Example:
        ir = popxl.Ir(replication=2)
        data = np.array([1, 2, 3, 4, 5], np.float32)
        with ir.main_graph, popxl.in_sequence():
            if resident:
                v, row = popxl.replica_sharded_variable(data)
            else:
                buffer = popxl.replica_sharded_buffer((5,), popxl.float32)
                v = popxl.remote_replica_sharded_variable(data, buffer)
                row = ops.remote_load(buffer, 0)
            before = stored(ops.reshape(row, row.shape)), stored(replicated_all_gather(row))
            row += 1
            after = stored(ops.reshape(row, row.shape)), stored(replicated_all_gather(row))
            if not resident:
                ops.remote_store(buffer, 0, row)
        outputs = {
            before[0]: [[1, 2, 3], [4, 5, 0]],
            before[1]: [data, data],
            after[0]: [[2, 3, 4], [5, 6, 1]],
            after[1]: [data + 1, data + 1],
        }
        return Example(ir, {}, outputs, {v: data + 1})

    return make


@pytest.mark.parametrize("resident", [False, True])
@on_all(2)
def test_6_padding(tier: str, devices: int, resident: bool, tmp_path: Path) -> None:
    check(padded(resident), tier, devices, tmp_path)


def two_in_a_buffer() -> Example:
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((1,), popxl.int32, 2)
        x = popxl.remote_replica_sharded_variable(np.array([1, 2], np.int32), buffer, 0)
        y = popxl.remote_replica_sharded_variable(np.array([3, 4], np.int32), buffer, 1)
        assert buffer.meta_shape == (2,)
        with pytest.raises(ValueError, match=r"^Cannot use RemoteBuffer\[id="):
            popxl.remote_replica_sharded_variable(np.zeros(4, np.int32), buffer, 1)
        loads = [ops.remote_load(buffer, i) for i in range(2)]
        outs = [stored(ops.reshape(t, (1,))) for t in loads]
        ops.remote_store(buffer, 1, loads[0] + loads[1])
    return Example(ir, {}, {outs[0]: [[1], [2]], outs[1]: [[3], [4]]}, {x: [1, 2], y: [4, 6]})


@on_all(2)
def test_7_two_sharded_variables_in_one_buffer(tier: str, devices: int, tmp_path: Path) -> None:
    check(two_in_a_buffer, tier, devices, tmp_path)


def shard_over_some() -> Example:
    ir = popxl.Ir(replication=8)
    w, m = np.arange(16, dtype=np.float32).reshape(4, 4), 100 - np.arange(16, dtype=np.float32).reshape(4, 4)
    with ir.main_graph, popxl.in_sequence():
        w_var, w_shard = popxl.replica_sharded_variable(w, shard_over=4)
        m_var, m_shard = popxl.replica_sharded_variable(m, shard_over=2)
        assert (w_shard.shape, m_shard.shape) == ((4,), (8,))
        whole = [
            stored(replicated_all_gather(w_shard, group=ir.replica_grouping(group_size=4))),
            stored(replicated_all_gather(m_shard, group=ir.replica_grouping(group_size=2))),
        ]
        w_shard += 1
    return Example(ir, {}, {whole[0]: [w] * 8, whole[1]: [m] * 8}, {w_var: w + 1, m_var: m})


@on_all(8)
def test_8_sharded_over_some_replicas(tier: str, devices: int, tmp_path: Path) -> None:
    check(shard_over_some, tier, devices, tmp_path)


def load_in_place(in_place: bool) -> Callable[[], Example]:
    def make() -> Example:
        ir = popxl.Ir(replication=2)
        each = ir.replica_grouping(group_size=1)
        rows = np.arange(30, dtype=np.float32).reshape(2, 1, 3, 5)
        other = np.arange(2 * 7 * 11, dtype=np.float16).reshape(2, 7, 11)
        with ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((1, 3, 5), popxl.float32)
            x = popxl.remote_variable(rows, buffer, 0, replica_grouping=each)
            z = popxl.variable(np.zeros((1, 3, 5), np.float32))
            result = ops.remote_load_(buffer, 0, z) if in_place else ops.remote_load(buffer, 0)
            outs = stored(result), stored(z)
            halves = popxl.remote_buffer((7, 11), popxl.float16, 2)
            a = popxl.remote_variable(other, halves, 0, replica_grouping=each)
            b = popxl.remote_variable(-other[0], halves, 1)
            ops.remote_store(halves, 1, ops.remote_load(halves, 1) * 2)
        z_after = rows if in_place else np.zeros_like(rows)
        variables = {x: rows, z: z_after[0], a: other, b: -2 * other[0]}
        return Example(ir, {}, {outs[0]: rows, outs[1]: z_after}, variables)

    return make


@pytest.mark.parametrize("in_place", [False, True])
@on_all(2)
def test_9_store_load_and_load_in_place(tier: str, devices: int, in_place: bool, tmp_path: Path) -> None:
    check(load_in_place(in_place), tier, devices, tmp_path)


def each_replica(mode: Any, sharded: bool) -> Callable[[], Example]:
    def make() -> Example:
        ir = popxl.Ir(replication=4)
        with ir.main_graph, popxl.in_sequence():
            numbers, items, number = own_number()
            if sharded:
                buffer = popxl.replica_sharded_buffer((2, 3), popxl.float32)
                v = popxl.remote_replica_sharded_variable(np.zeros((2, 3), np.float32), buffer, retrieval_mode=mode)
                t = ops.remote_load(buffer, 0) + number
            else:
                buffer = popxl.remote_buffer((2,), popxl.float32)
                v = popxl.remote_variable(np.zeros(2, np.float32), buffer, retrieval_mode=mode)
                t = ops.remote_load(buffer, 0) + number
            ops.remote_store(buffer, 0, t)
        one: Any = [[0, 0, 1], [1, 2, 2]] if sharded else [0, 0]
        every: Any = [one] * 4 if sharded else [[0, 0], [1, 1], [2, 2], [3, 3]]
        return Example(ir, {numbers: items}, {}, {v: every if mode == "all_replicas" else one})

    return make


@pytest.mark.parametrize("mode", ["all_replicas", "one_per_group"])
@pytest.mark.parametrize("sharded", [False, True])
@on_all(4)
def test_10_the_value_of_every_replica(tier: str, devices: int, sharded: bool, mode: str, tmp_path: Path) -> None:
    check(each_replica(mode, sharded), tier, devices, tmp_path)


# §11


def groups_of_one() -> Example:
    ir = popxl.Ir(replication=2)
    data = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    each = ir.replica_grouping(group_size=1)
    with ir.main_graph, popxl.in_sequence():
        v, shard = popxl.replica_sharded_variable(data, replica_grouping=each)
        assert (shard.shape, shard.meta_shape) == ((4,), (2, 2))
        out = stored(ops.reshape(shard, (4,)))
        shard += 100
    return Example(ir, {}, {out: data.reshape(2, 4)}, {v: data + 100})


@on_all(2)
def test_shards_of_groups_of_one_are_whole_values(tier: str, devices: int, tmp_path: Path) -> None:
    check(groups_of_one, tier, devices, tmp_path)


def never_gathered() -> Example:
    ir = popxl.Ir(replication=4)
    data = np.arange(6, dtype=np.int32)
    with ir.main_graph, popxl.in_sequence():
        v, _ = popxl.replica_sharded_variable(data)
        stored(popxl.constant(1) + 1)
    return Example(ir, {}, {}, {v: data})


@on_all(4)
def test_a_sharded_variable_that_nothing_gathers_keeps_its_value(tier: str, devices: int, tmp_path: Path) -> None:
    check(never_gathered, tier, devices, tmp_path)


def never_written() -> Example:
    ir = popxl.Ir(replication=4)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        numbers, items, number = own_number()
        before = stored(ops.remote_load(buffer, 0))
        ops.remote_store(buffer, 1, ops.remote_load(buffer, 1) + number)
        after = stored(ops.remote_load(buffer, 1))
    return Example(ir, {numbers: items}, {before: np.zeros((4, 2)), after: [[2 * r] * 2 for r in range(4)]}, runs=2)


@on_all(4)
def test_rows_without_a_variable_start_as_zeros_and_last_over_runs(tier: str, devices: int, tmp_path: Path) -> None:
    check(never_written, tier, devices, tmp_path)


def whole_row() -> Example:
    ir = popxl.Ir(replication=4)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((4,), popxl.float32)
        v = popxl.remote_replica_sharded_variable(np.arange(4, dtype=np.float32), buffer)
        shard = ops.remote_load(buffer, 0)
        out = stored(ops.reshape(shard, (4,)))
        ops.remote_store(buffer, 0, shard + 1)
    return Example(ir, {}, {out: [[0, 1, 2, 3]] * 4}, {v: [1, 2, 3, 4]})


@on_all(4)
def test_a_row_of_the_full_size_is_sharded_over_one_replica(tier: str, devices: int, tmp_path: Path) -> None:
    check(whole_row, tier, devices, tmp_path)


# §8


@pytest.mark.parametrize("devices", divisions(4))
@pytest.mark.parametrize("kind", ["resident", "remote", "sharded", "resident shard"])
def test_memory_maps_hold_what_replicas_computed(kind: str, devices: int, tmp_path: Path) -> None:
    data = np.memmap(tmp_path / "data", np.float32, "w+", shape=(2, 5))
    data[...] = np.arange(10).reshape(2, 5)
    ir = popxl.Ir(replication=4)
    grouping = ir.replica_grouping(stride=2)
    with ir.main_graph, popxl.in_sequence():
        if kind == "resident":
            v = t = popxl.variable(data, replica_grouping=grouping)
        elif kind == "resident shard":
            v, t = popxl.replica_sharded_variable(data, replica_grouping=grouping)
        elif kind == "remote":
            buffer = popxl.remote_buffer((5,), popxl.float32)
            v = popxl.remote_variable(data, buffer, replica_grouping=grouping)
            t = ops.remote_load(buffer, 0)
        else:
            buffer = popxl.replica_sharded_buffer((2, 5), popxl.float32, grouping)
            v = popxl.remote_replica_sharded_variable(data, buffer, replica_grouping=grouping)
            t = ops.remote_load(buffer, 0)
        t += 1
        if not kind.startswith("resident"):
            ops.remote_store(buffer, 0, t)
    with session_on(ir, "ram", devices, tmp_path) as session:
        session.run()
        assert session.get_tensor_data(v) is data
        session.run()
    expected = np.arange(10).reshape(2, 5) + 2
    assert np.fromfile(tmp_path / "data", np.float32).reshape(2, 5).tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["resident", "remote", "sharded", "resident shard"])
@on_all(4)
def test_a_written_value_reaches_every_replica(tier: str, devices: int, kind: str, tmp_path: Path) -> None:
    ir = popxl.Ir(replication=4)
    grouping = ir.replica_grouping_from_assignments([0, 1, 1, 0])
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    with ir.main_graph, popxl.in_sequence():
        if kind == "resident":
            v = t = popxl.variable(data, replica_grouping=grouping)
        elif kind == "resident shard":
            v, t = popxl.replica_sharded_variable(data, replica_grouping=grouping)
        elif kind == "remote":
            buffer = popxl.remote_buffer((3,), popxl.float32)
            v = popxl.remote_variable(data, buffer, replica_grouping=grouping)
            t = ops.remote_load(buffer, 0)
        else:
            buffer = popxl.replica_sharded_buffer((2, 3), popxl.float32, grouping)
            v = popxl.remote_replica_sharded_variable(data, buffer, replica_grouping=grouping)
            t = ops.remote_load(buffer, 0)
        out = stored(ops.reshape(t, t.shape))
    session = session_on(ir, tier, devices, tmp_path)
    with session:
        first = session.run()[out]
        session.write_variable_data(v, data + 10)
        second = session.run()[out]
        assert session.get_tensor_data(v).tolist() == (data + 10).tolist()
    session.write_variable_data(v, data + 20)
    with session:
        third = session.run()[out]
    # The finer grouping of constant stride has groups of one: every replica holds the whole value of its group.
    for found, added in ((first, 0), (second, 10), (third, 20)):
        assert found.tolist() == (data[[0, 1, 1, 0]] + added).tolist()
