"""Devices with memory of their own, as GPUs have: rows are copied to them and back, and live in the host's.

A CPU plays such a device: JAX gives it a memory for arrays and one of the kind ``pinned_host``, and refuses a
computation that is given an array of the wrong one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import popxl
from popxl import StreamingMemory, ops
from popxl.ops._jax import jax
from popxl.runtime import placement
from popxl.runtime.streaming import RamTier

COUNT, LENGTH = 4, 1024


@pytest.fixture(autouse=True)
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "has_own_memory", lambda device: True)


class Doubling:
    """Adds up all rows and doubles each."""

    def __init__(self, replicas: int = 1) -> None:
        self.ir = popxl.Ir(replication=replicas)
        with self.ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((LENGTH,), popxl.float32, COUNT)
            self.rows = [popxl.remote_variable(np.full(LENGTH, k + 1, np.float32), buffer, k) for k in range(COUNT)]

            def visit(k: popxl.Tensor, total: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
                row = ops.remote_load(buffer, k)
                ops.remote_store(buffer, k, row * 2)
                return k + 1, total + row

            first = popxl.constant(0, popxl.uint32), popxl.constant(np.zeros(LENGTH), popxl.float32)
            _, total = ops.repeat(self.ir.create_graph(visit, *first), COUNT, *first)
            self.out = popxl.d2h_stream((LENGTH,), popxl.float32)
            ops.host_store(self.out, total)


@pytest.mark.parametrize("devices", [1, 2])
def test_rows_in_ram_lie_in_page_locked_memory_and_not_on_the_device(devices: int) -> None:
    program = Doubling(replicas=devices)
    memory = StreamingMemory("ram")
    with popxl.Session(program.ir, streaming_memory=memory, devices=devices) as session:
        for times in (1, 2, 4):
            np.testing.assert_array_equal(np.unique(session.run()[program.out]), [10 * times])
        assert isinstance(memory.tier, RamTier)
        for k in range(COUNT):
            row = memory.tier.load(1, k)
            assert isinstance(row, jax.Array)
            assert row.sharding.memory_kind == "pinned_host"
        np.testing.assert_array_equal(session.get_tensor_data(program.rows[3])[..., 0], 32)
    np.testing.assert_array_equal(program.rows[0].host_value[..., 0], 8)


def test_rows_in_files_are_stored_and_loaded_and_outlive_the_session(tmp_path: Path) -> None:
    program = Doubling()
    with popxl.Session(program.ir, streaming_memory=f"file:{tmp_path / 'rows'}") as session:
        for times in (1, 2):
            np.testing.assert_array_equal(np.unique(session.run()[program.out]), [10 * times])
    again = StreamingMemory(f"file:{tmp_path / 'rows'}", reopen=True)
    with popxl.Session(program.ir, streaming_memory=again) as session:
        np.testing.assert_array_equal(np.unique(session.run()[program.out]), [40])


def test_an_offset_from_the_host_stays_there() -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2,), popxl.float32, COUNT)
        for k in range(COUNT):
            popxl.remote_variable(np.full(2, k + 1, np.float32), buffer, k)
        which = popxl.h2d_stream((), popxl.uint32)
        out = popxl.d2h_stream((2,), popxl.float32)
        offset = ops.host_load(which)
        row = ops.remote_load(buffer, offset)
        ops.remote_store(buffer, (offset + 1) % COUNT, row)
        ops.host_store(out, ops.remote_load(buffer, (offset + 1) % COUNT))
    with popxl.Session(ir) as session:
        for offset in range(COUNT):
            assert session.run({which: np.uint32(offset)})[out].tolist() == [1.0, 1.0]
