"""Limits of device and host memory: refused before anything runs, kept while it runs, the same bits in any case."""

from __future__ import annotations

import gc
from pathlib import Path

import jax
import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import OutOfMemoryError, PopxlValueError
from popxl.runtime.streaming import StreamingMemory

LAYERS, WIDTH = 6, 64
ROW_BYTES = 4 * WIDTH * WIDTH


class Stack:
    """x goes through layers of Streaming Memory; each layer is stored again, slightly changed."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        rng = np.random.default_rng(0)
        with self.ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((WIDTH, WIDTH), popxl.float32, LAYERS)
            for i in range(LAYERS):
                popxl.remote_variable(rng.standard_normal((WIDTH, WIDTH), np.float32) / 8, buffer, i)
            x = popxl.variable(rng.standard_normal((WIDTH, WIDTH), np.float32), name="x")
            i = popxl.constant(0, popxl.uint32)

            def layer(x: popxl.Tensor, i: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
                w = ops.remote_load(buffer, i)
                ops.remote_store(buffer, i, w * 0.5 + w @ w * 0.1)
                return ops.tanh(x @ w), i + 1

            y, _ = ops.repeat(self.ir.create_graph(layer, x, i), LAYERS, x, i)
            self.out = popxl.d2h_stream(y.shape, y.dtype)
            ops.host_store(self.out, y)

    def run(self, memory: StreamingMemory | str, device_memory: int | str | None = None) -> list[bytes]:
        session = popxl.Session(self.ir, streaming_memory=memory, device_memory=device_memory)
        with session:
            return [session.run()[self.out].tobytes() for _ in range(3)]

    @property
    def peak_bytes(self) -> int:
        return popxl.Session(self.ir).figures.device.peak_bytes


def test_a_program_that_needs_more_is_refused_with_the_tensors_and_the_lines() -> None:
    stack = Stack()
    peak = stack.peak_bytes
    with pytest.raises(OutOfMemoryError, match="remote_load") as caught:
        popxl.Session(stack.ir, device_memory=peak - 1)
    assert __file__ in str(caught.value)
    popxl.Session(stack.ir, device_memory=peak)


@pytest.mark.parametrize("size", ["two", "-1", "2 GiX"])
def test_a_size_that_is_none_is_refused(size: str, tmp_path: Path) -> None:
    with pytest.raises(PopxlValueError):
        popxl.Session(Stack().ir, device_memory=size)
    with pytest.raises(PopxlValueError):
        StreamingMemory(f"file:{tmp_path}", host_memory=size)


def test_host_memory_for_less_than_a_row_is_refused(tmp_path: Path) -> None:
    memory = StreamingMemory(f"file:{tmp_path}/rows", host_memory=ROW_BYTES - 1)
    with pytest.raises(OutOfMemoryError, match="largest row"):
        popxl.Session(Stack().ir, streaming_memory=memory)


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
@pytest.mark.parametrize("slack", [0, 2 * ROW_BYTES, None])
def test_limits_do_not_change_a_bit(tmp_path: Path, rows: int, slack: int | None) -> None:
    stack = Stack()
    memory = StreamingMemory(f"file:{tmp_path}/rows", host_memory=rows * ROW_BYTES)
    device_memory = None if slack is None else stack.peak_bytes + slack
    assert stack.run(memory, device_memory) == Stack().run("ram")


def test_a_cache_of_all_rows_reads_each_once(tmp_path: Path) -> None:
    stack = Stack()
    memory = StreamingMemory(f"file:{tmp_path}/rows", host_memory="1GiB")
    stack.run(memory)
    assert memory.counters.loads == 0  # what was uploaded is kept


def test_a_tight_budget_is_kept(tmp_path: Path) -> None:
    stack = Stack()
    memory = StreamingMemory(f"file:{tmp_path}/rows", host_memory=2 * ROW_BYTES)
    session = popxl.Session(stack.ir, streaming_memory=memory, device_memory=stack.peak_bytes)
    most = 0
    with session:
        completion = session._executor._completion
        admit = completion.admit

        def sampled(new_bytes: int) -> None:
            nonlocal most
            admit(new_bytes)
            gc.collect(0)
            most = max(most, sum(a.nbytes for a in jax.live_arrays()) + new_bytes)

        before = sum(a.nbytes for a in jax.live_arrays())
        completion.admit = sampled  # type: ignore[method-assign]
        for _ in range(3):
            session.run()
    # Rows are NumPy arrays here, so what JAX has is less than the peak; the variable was there before.
    assert 0 < most - before <= session.figures.device.peak_bytes
