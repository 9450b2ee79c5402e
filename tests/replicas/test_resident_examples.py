"""Variables and streams of several replicas: spec ``session.md`` §3, §5, ``tensors-dtypes.md`` §8.6."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replica_examples import Example, check, divisions, on_all, session_on

import popxl
from popxl import fp8_utils, ops


def replicated_variable() -> Example:
    ir = popxl.Ir(replication=8)
    grouping = ir.replica_grouping(group_size=2)
    with ir.main_graph:
        v = popxl.variable(np.arange(4)[:, None], replica_grouping=grouping)
        out = popxl.d2h_stream((1,), v.dtype)
        ops.host_store(out, v)
    assert grouping.assignment == [0, 0, 1, 1, 2, 2, 3, 3]
    return Example(ir, {}, {out: [[0], [0], [1], [1], [2], [2], [3], [3]]}, {v: [[0], [1], [2], [3]]})


@on_all(8)
def test_a_replicated_variable(tier: str, devices: int, tmp_path: Path) -> None:
    check(replicated_variable, tier, devices, tmp_path)


def four_groups(mode: Any) -> Callable[[], Example]:
    """Replica r adds r + 1 to its value, which starts as the number of its group."""

    def make() -> Example:
        ir = popxl.Ir(replication=8)
        grouping = ir.replica_grouping(stride=4)
        data = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 3, 3), np.float32)
        added = np.arange(1, 9, dtype=np.float32)
        with ir.main_graph, popxl.in_sequence():
            v = popxl.variable(data, replica_grouping=grouping, retrieval_mode=mode)
            assert (v.shape, v.shape_on_host) == ((3, 3), (4, 3, 3))
            numbers = popxl.h2d_stream((), popxl.float32)
            before, after = popxl.d2h_stream((3, 3), v.dtype), popxl.d2h_stream((3, 3), v.dtype)
            ops.host_store(before, v)
            v += ops.host_load(numbers)
            ops.host_store(after, v)
        start = data[[0, 1, 2, 3, 0, 1, 2, 3]]
        end = start + added[:, None, None]
        host = end if mode == "all_replicas" else end[:4]
        return Example(ir, {numbers: added}, {before: start, after: end}, {v: host})

    return make


@pytest.mark.parametrize("mode", ["one_per_group", "all_replicas"])
@on_all(8)
def test_members_of_a_group_diverge_and_the_host_reads_the_first_or_all(
    tier: str, devices: int, mode: str, tmp_path: Path
) -> None:
    check(four_groups(mode), tier, devices, tmp_path)


@pytest.mark.parametrize(
    ("replicas", "group_size", "expected"),
    [(4, 2, [[1, 2], [1, 2], [3, 4], [3, 4]]), (2, 1, [[1, 2], [3, 4]]), (1, 1, [1, 2])],
)
def test_what_the_host_reads_of_all_replicas_before_anything_ran(
    replicas: int, group_size: int, expected: Any, tmp_path: Path
) -> None:
    ir = popxl.Ir(replication=replicas)
    data = np.array([[1, 2], [3, 4]] if replicas > 1 else [1, 2], np.float32)
    grouping = ir.replica_grouping(group_size=group_size)
    with ir.main_graph:
        v = popxl.variable(data, replica_grouping=grouping, retrieval_mode="all_replicas")
        v += 1
    session = session_on(ir, "ram", 1, tmp_path)
    assert session.get_tensor_data(v).tolist() == expected
    with session:
        assert session.get_tensor_data(v).tolist() == expected
        session.run()
        assert session.get_tensor_data(v).tolist() == (np.array(expected) + 1).tolist()


def test_a_variable_of_all_replicas_cannot_be_written(tmp_path: Path) -> None:
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        v = popxl.variable(np.zeros(2, np.float32), retrieval_mode="all_replicas")
        v += 1
    with session_on(ir, "ram", 2, tmp_path) as session, pytest.raises(NotImplementedError, match="one value for each"):
        session.write_variable_data(v, np.zeros((4, 2), np.float32))


def assignments() -> Example:
    """Groups without a constant stride, of which the host has what their first replicas have."""
    ir = popxl.Ir(replication=8)
    grouping = ir.replica_grouping_from_assignments([0, 1, 1, 0, 0, 1, 1, 0])
    assert not grouping.is_const
    data = np.array([[0, 0], [50, 50]], np.float32)
    added = np.arange(8, dtype=np.float32)
    with ir.main_graph, popxl.in_sequence():
        numbers = popxl.h2d_stream((), popxl.float32)
        number = ops.host_load(numbers)
        v = popxl.variable(data, replica_grouping=grouping)
        v += number
        buffer = popxl.remote_buffer((2,), popxl.float32)
        w = popxl.remote_variable(data, buffer, replica_grouping=grouping)
        row = ops.remote_load(buffer, 0) + number
        ops.remote_store(buffer, 0, row)
        out = popxl.d2h_stream((2,), popxl.float32)
        ops.host_store(out, row)
    rows = [[0, 0], [51, 51], [52, 52], [3, 3], [4, 4], [55, 55], [56, 56], [7, 7]]
    host = [[0, 0], [51, 51]]
    return Example(ir, {numbers: added}, {out: rows}, {v: host, w: host})


@on_all(8)
def test_groups_without_a_constant_stride(tier: str, devices: int, tmp_path: Path) -> None:
    check(assignments, tier, devices, tmp_path)


def equal_variables() -> Example:
    ir = popxl.Ir(replication=4)
    with ir.main_graph, popxl.in_sequence():
        v = popxl.variable(np.array([1, 2], np.int32))
        out = popxl.d2h_stream((2,), popxl.int32)
        ops.host_store(out, v + 1)
        v += 3
    return Example(ir, {}, {out: [[2, 3]] * 4}, {v: [4, 5]})


@on_all(4)
def test_what_is_equal_everywhere_is_stored_for_every_replica(tier: str, devices: int, tmp_path: Path) -> None:
    check(equal_variables, tier, devices, tmp_path)


# Streams


@pytest.mark.parametrize(
    ("transfers", "replicas", "shape", "full"),
    [
        (1, 1, (2, 4), (2, 4)),
        (4, 1, (2, 4), (4, 2, 4)),
        (1, 16, (2, 4), (16, 2, 4)),
        (4, 16, (2, 4), (4, 16, 2, 4)),
        (7, 2, (5, 9, 9), (7, 2, 5, 9, 9)),
        (32, 4, (1,), (32, 4, 1)),
    ],
)
@pytest.mark.parametrize("divided", [False, True])
def test_item_i_k_is_the_ith_of_replica_k(
    transfers: int, replicas: int, shape: tuple[int, ...], full: tuple[int, ...], divided: bool, tmp_path: Path
) -> None:
    ir = popxl.Ir(replication=replicas)
    ir.num_host_transfers = transfers
    with ir.main_graph:
        x, y = popxl.h2d_stream(shape, popxl.float32), popxl.d2h_stream(shape, popxl.float32)

        def body() -> None:
            ops.host_store(y, ops.host_load(x) * 2)

        ops.repeat(ir.create_graph(body), transfers)
    items = np.arange(np.prod(full), dtype=np.float32).reshape(full)
    with session_on(ir, "ram", divisions(replicas)[-1 if divided else 0], tmp_path) as session:
        assert session.create_host_outputs()[y].shape == full
        np.testing.assert_array_equal(session.run({x: items})[y], items * 2, strict=True)
        with pytest.raises(ValueError, match=r"is the wrong size|not large enough|Shape mismatch"):
            session.run({x: items[1:]})


def test_items_of_two_loads_in_an_iteration(tmp_path: Path) -> None:
    ir = popxl.Ir(replication=2)
    ir.num_host_transfers = 6
    with ir.main_graph:
        a, e = popxl.h2d_stream((), popxl.int32), popxl.h2d_stream((), popxl.int32)
        y = popxl.d2h_stream((), popxl.int32)

        def body() -> None:
            first, second, third = ops.host_load(a), ops.host_load(e), ops.host_load(e)
            ops.host_store(y, first + second * third)

        ops.repeat(ir.create_graph(body), 3)
    items_a, items_e = np.arange(12, dtype=np.int32).reshape(6, 2), 100 + np.arange(12, dtype=np.int32).reshape(6, 2)
    with session_on(ir, "ram", 2, tmp_path) as session:
        found = session.run({a: items_a, e: items_e})[y]
    assert found[:3].tolist() == (items_a[:3] + items_e[0::2] * items_e[1::2]).tolist()


@pytest.mark.parametrize("devices", divisions(4))
def test_float8_is_handed_on_by_every_replica(devices: int, tmp_path: Path) -> None:
    codes = np.arange(4 * 2 * 3, dtype=np.float32).reshape(4, 2, 3) / 8
    values = fp8_utils.host_pow2scale_cast_to_fp8(codes, popxl.float8_143, 0, False)
    ir = popxl.Ir(replication=4)
    with ir.main_graph, popxl.in_sequence():
        x, y = popxl.h2d_stream((2, 3), popxl.float8_143), popxl.d2h_stream((3, 2), popxl.float8_143)
        buffer = popxl.remote_buffer((2, 3), popxl.float8_143)
        v = popxl.remote_variable(
            values, buffer, dtype=popxl.float8_143, replica_grouping=ir.replica_grouping(group_size=1)
        )
        ops.host_store(y, ops.transpose(ops.remote_load(buffer, 0)))
        ops.remote_store(buffer, 0, ops.host_load(x))
    with session_on(ir, "ram", devices, tmp_path) as session:
        found = session.run({x: values[::-1].copy()})[y]
        assert found.dtype == values.dtype
        assert found.tobytes() == np.ascontiguousarray(values.transpose(0, 2, 1)).tobytes()
        assert session.get_tensor_data(v).tobytes() == np.ascontiguousarray(values[::-1]).tobytes()
