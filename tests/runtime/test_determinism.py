"""The same program gives the same bits: in every session, in every run, and on every tier of Streaming Memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import popxl
from popxl import ops

LAYERS, WIDTH, BATCH, STEPS = 4, 33, 17, 3


class Model:
    """Layers whose weights are streamed, run and updated in a loop; its floats are rounded at every op."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.ir = popxl.Ir()
        self.ir.num_host_transfers = STEPS
        with self.ir.main_graph:
            self.inputs = popxl.h2d_stream((BATCH, WIDTH), popxl.float32)
            self.outputs = popxl.d2h_stream((BATCH, WIDTH), popxl.float32)
            buffer = popxl.remote_buffer((WIDTH, WIDTH), popxl.float32, LAYERS)
            self.rows = [
                popxl.remote_variable(rng.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32), buffer, k)
                for k in range(LAYERS)
            ]
            self.scale = popxl.variable(rng.normal(1, 0.1, WIDTH).astype(np.float32))

            def layer(k: popxl.Tensor, x: popxl.Tensor, scale: popxl.TensorByRef) -> tuple[popxl.Tensor, popxl.Tensor]:
                w = ops.remote_load(buffer, k)
                y = ops.gelu(ops.softmax(x @ w, -1) * scale + ops.tanh(x))
                ops.var_updates.accumulate_(scale, ops.mean(y, 0), -0.01)
                ops.remote_store(buffer, k, w - ops.transpose(x) @ y * 0.01)
                return k + 1, y

            k, x = popxl.constant(0, popxl.uint32), popxl.constant(np.zeros((BATCH, WIDTH), np.float32))
            layer_graph = self.ir.create_graph(layer, k, x, self.scale)

            def step(scale: popxl.TensorByRef) -> None:
                _, y = ops.repeat(layer_graph, LAYERS, 0, ops.host_load(self.inputs), scale)
                ops.host_store(self.outputs, y)

            ops.repeat(self.ir.create_graph(step, self.scale), STEPS, self.scale)

    def bits(self, streaming_memory: str, runs: int = 2) -> bytes:
        """Everything that a session gives, as bytes."""
        x = np.random.default_rng(8).normal(size=(STEPS, BATCH, WIDTH)).astype(np.float32)
        found: list[np.ndarray] = []
        with popxl.Session(self.ir, streaming_memory=streaming_memory) as session:
            for _ in range(runs):
                found.append(session.run({self.inputs: x})[self.outputs])
            found += [session.get_tensor_data(t).copy() for t in (self.scale, *self.rows)]
        assert all(np.isfinite(a).all() for a in found)
        return b"".join(a.tobytes() for a in found)


@pytest.mark.usefixtures("way")
def test_sessions_and_tiers_give_the_same_bits(tmp_path: Path) -> None:
    first = Model().bits("ram")
    assert Model().bits("ram") == first
    assert Model().bits(f"file:{tmp_path / 'rows'}") == first


def test_runs_from_the_same_variables_give_the_same_bits() -> None:
    model = Model()
    x = np.random.default_rng(9).normal(size=(STEPS, BATCH, WIDTH)).astype(np.float32)
    start = {v: v.host_value.copy() for v in (model.scale, *model.rows)}
    with popxl.Session(model.ir) as session:
        first = session.run({model.inputs: x})[model.outputs]
        second = session.run({model.inputs: x})[model.outputs]
        session.write_variables_data(start)
        again = session.run({model.inputs: x})[model.outputs]
    assert first.tobytes() == again.tobytes() != second.tobytes()
