"""Offsets that differ between replicas, in every kind of Streaming Memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replica_examples import on_all, session_on

import popxl
from popxl import ops
from popxl.errors import RemoteOffsetError
from popxl.plan import program as plan_program

R, ENTRIES = 4, 3


@pytest.fixture(params=["compiled", "driven by the host"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "compiled":
        monkeypatch.setattr(plan_program, "SMALL_GRAPH_OPS", -1)
        monkeypatch.setattr(plan_program, "SMALL_LOOP_OPS", -1)


class Rows:
    """Variables in the rows of a buffer, with a value for each replica: 100 times the row, plus the replica."""

    def __init__(self, *, same: bool = False) -> None:
        self.ir = popxl.Ir(replication=R)
        with self.ir.main_graph:
            self.buffer = popxl.remote_buffer((2,), popxl.float32, ENTRIES)
            self.rows = [
                popxl.remote_variable(
                    np.full(2, 100 * i) if same else [[100 * i + r] * 2 for r in range(R)],
                    self.buffer,
                    i,
                    popxl.float32,
                    replica_grouping=None if same else self.ir.replica_grouping(group_size=1),
                    retrieval_mode="all_replicas",
                )
                for i in range(ENTRIES)
            ]
            self.offsets = popxl.h2d_stream((), popxl.uint32)

    def values(self, session: popxl.Session) -> list[Any]:
        """Row, replica."""
        return [session.get_tensor_data(v)[:, 0].tolist() for v in self.rows]


def out(t: popxl.Tensor) -> popxl.DeviceToHostStream:
    stream = popxl.d2h_stream(t.shape, t.dtype)
    ops.host_store(stream, t)
    return stream


@on_all(R)
def test_each_replica_loads_its_own_row(tier: str, devices: int, tmp_path: Path) -> None:
    program = Rows()
    with program.ir.main_graph:
        loaded = out(ops.remote_load(program.buffer, ops.host_load(program.offsets)))
    with session_on(program.ir, tier, devices, tmp_path) as session:
        for offsets in ([2, 0, 1, 2], [1, 1, 1, 1], [0, 1, 2, 0]):
            found = session.run({program.offsets: np.array(offsets, np.uint32)})[loaded]
            assert found[:, 0].tolist() == [100 * o + r for r, o in enumerate(offsets)]


@pytest.mark.parametrize("same", [False, True])
@on_all(R)
def test_each_replica_stores_to_its_own_row(tier: str, devices: int, same: bool, tmp_path: Path) -> None:
    program = Rows(same=same)
    with program.ir.main_graph, popxl.in_sequence():
        ops.remote_store(program.buffer, ops.host_load(program.offsets), popxl.constant(np.full(2, -1, np.float32)))
        loaded = out(ops.remote_load(program.buffer, 1))
    with session_on(program.ir, tier, devices, tmp_path) as session:
        found = session.run({program.offsets: np.array([2, 0, 1, 2], np.uint32)})[loaded]
        expected = [[100 * i + (0 if same else r) for r in range(R)] for i in range(ENTRIES)]
        for r, o in enumerate((2, 0, 1, 2)):
            expected[o][r] = -1
        assert found[:, 0].tolist() == expected[1]
        assert program.values(session) == expected
    assert program.values(session) == expected


@on_all(R)
@pytest.mark.usefixtures("way")
def test_offsets_that_differ_in_a_loop(tier: str, devices: int, tmp_path: Path) -> None:
    # Replica r walks the rows from r on, adds 1 to each that it meets and sums what it found.
    program = Rows()
    with program.ir.main_graph, popxl.in_sequence():

        def body(i: popxl.Tensor, total: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            row = ops.remote_load(program.buffer, i)
            total = total + row
            ops.remote_store(program.buffer, i, row + 1)
            return ops.increment_mod(i, 1, ENTRIES), total

        i, zero = ops.host_load(program.offsets), popxl.constant(np.zeros(2, np.float32))
        _, total = ops.repeat(program.ir.create_graph(body, i, zero), 4, i, zero)
        summed = out(total)
    with session_on(program.ir, tier, devices, tmp_path) as session:
        start = [r % ENTRIES for r in range(R)]
        found = session.run({program.offsets: np.array(start, np.uint32)})[summed]
        rows = np.array([[100 * i + r for r in range(R)] for i in range(ENTRIES)])
        totals = [0] * R
        for r in range(R):
            for step in range(4):
                o = (start[r] + step) % ENTRIES
                totals[r] += rows[o, r]
                rows[o, r] += 1
        assert found[:, 0].tolist() == totals
        assert program.values(session) == rows.tolist()


@pytest.mark.parametrize("does", ["load", "store"])
@on_all(R)
def test_an_offset_out_of_range_on_one_replica_touches_no_row(
    tier: str, devices: int, does: str, tmp_path: Path
) -> None:
    program = Rows()
    with program.ir.main_graph, popxl.in_sequence():
        t = popxl.constant(np.full(2, -1, np.float32))
        offset = ops.host_load(program.offsets)
        if does == "load":
            t = ops.remote_load(program.buffer, offset)
            ops.remote_store(program.buffer, 0, t)
        else:
            ops.remote_store(program.buffer, offset, t)
    with session_on(program.ir, tier, devices, tmp_path) as session:
        before = program.values(session)
        with pytest.raises(RemoteOffsetError, match=f"Offset {ENTRIES} is outside"):
            session.run({program.offsets: np.array([0, 1, ENTRIES, 2], np.uint32)})
        assert program.values(session) == before
        session.run({program.offsets: np.zeros(R, np.uint32)})
        expected = before if does == "load" else [[-1] * R, *before[1:]]
        assert program.values(session) == expected


@on_all(R)
def test_rows_are_read_ahead_where_offsets_of_replicas_are_not_known(tier: str, devices: int, tmp_path: Path) -> None:
    # Loads with offsets that the host knows stand between those that differ; a store between changes what is to come.
    program = Rows()
    with program.ir.main_graph, popxl.in_sequence():
        offset = ops.host_load(program.offsets)
        other = ops.increment_mod(offset, 1, ENTRIES)
        first = ops.remote_load(program.buffer, 0)
        mine = ops.remote_load(program.buffer, offset)
        ops.remote_store(program.buffer, other, mine + first)
        seen = [out(ops.remote_load(program.buffer, i)) for i in range(ENTRIES)]
        seen += [out(ops.remote_load(program.buffer, other))]
    offsets = [0, 1, 2, 0]
    rows = np.array([[100 * i + r for r in range(R)] for i in range(ENTRIES)], np.float32)
    with session_on(program.ir, tier, devices, tmp_path) as session:
        for _ in range(3):
            for r, o in enumerate(offsets):
                rows[(o + 1) % ENTRIES, r] = rows[o, r] + rows[0, r]
            found = session.run({program.offsets: np.array(offsets, np.uint32)})
            assert [found[s][:, 0].tolist() for s in seen[:ENTRIES]] == rows.tolist()
            assert found[seen[-1]][:, 0].tolist() == [rows[(o + 1) % ENTRIES, r] for r, o in enumerate(offsets)]
        assert program.values(session) == rows.tolist()
