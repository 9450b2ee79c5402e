"""The host's arrays and the program's memory stay apart, at one copy and without compiling anything."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.runtime.streaming.ram import RamTier
from popxl.runtime.streaming.tier import BufferSpec

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
SHAPE = (4096,)


def at_offset(count: int, offset: int) -> np.ndarray:
    """Return an array that starts `offset` elements after a multiple of 64 bytes, where JAX would use it in place."""
    block = np.empty(count + 32, np.float32)
    start = -block.ctypes.data % 64 // 4 + offset
    return block[start : start + count]


def test_an_input_changed_after_the_run_leaves_the_row_that_was_stored(memory: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer(SHAPE, popxl.float32, entries=1)
        source, target = popxl.h2d_stream(SHAPE, popxl.float32), popxl.d2h_stream(SHAPE, popxl.float32)
        ops.host_store(target, ops.remote_load(buffer, 0))
        ops.remote_store(buffer, 0, ops.host_load(source))
    data = at_offset(SHAPE[0], 0)
    data[:] = 1.0
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run({source: data})
        data[:] = 7.0
        np.testing.assert_array_equal(session.run({source: data})[target], np.ones(SHAPE))


def test_an_input_changed_after_the_run_leaves_what_the_device_still_computes() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(np.zeros((), np.float32))
        source = popxl.h2d_stream((1 << 20,), popxl.float32)
        x = ops.host_load(source)
        for _ in range(20):
            x = ops.tanh(x)
        ops.var_updates.copy_var_update_(v, ops.sum(x))
    data = at_offset(1 << 20, 0)
    with popxl.Session(ir) as session:
        for _ in range(3):
            data[:] = 0.0
            session.run({source: data})
            data[:] = 1.0
            assert session.get_tensor_data(v) == 0.0


def test_a_variable_changed_on_the_host_leaves_the_value_on_the_device(tmp_path: Path) -> None:
    # A memory map starts at a page, where JAX uses it in place, so that a missing copy would show.
    data = np.memmap(tmp_path / "v", np.float32, "w+", shape=SHAPE)
    data[:] = 1.0
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(data)
        target = popxl.d2h_stream(SHAPE, popxl.float32)
        ops.host_store(target, v)
        ops.add_(v, v)
    with popxl.Session(ir) as session:
        data[:] = 5.0
        np.testing.assert_array_equal(session.run()[target], np.ones(SHAPE))
        np.testing.assert_array_equal(session.run()[target], np.full(SHAPE, 2.0))


def test_uploading_variables_compiles_nothing() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        total = popxl.variable(np.zeros((), np.float32))
        for n in range(3, 9):
            ops.add_(total, ops.sum(popxl.variable(np.ones((n, 17), np.float32))))
    session = popxl.Session(ir)
    events: list[str] = []

    def listen(event: str, _seconds: float, **_: object) -> None:
        events.append(event)

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with session:
            pass
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert COMPILE_EVENT not in events


@pytest.mark.parametrize("shift", [1, 4, 15])
def test_the_ram_tier_keeps_a_large_row_where_jax_uses_it_in_place(shift: int) -> None:
    row = at_offset(SHAPE[0], shift)
    row[:] = 3.0
    tier = RamTier()
    tier.open([BufferSpec(1, SHAPE, np.dtype(np.float32), entries=1)])
    tier.store(1, 0, row)
    loaded = np.asarray(tier.load(1, 0))
    tier.close()
    assert row.ctypes.data % 64 != 0
    assert loaded.ctypes.data % 64 == 0
    np.testing.assert_array_equal(loaded, row)
