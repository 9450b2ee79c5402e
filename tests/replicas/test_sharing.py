"""What is equal on all replicas is held once, and what is sharded once over all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replica_examples import session_on

import popxl
from popxl import ops, transforms
from popxl.ops.collectives import replicated_all_gather, replicated_all_reduce

WIDTH, BATCH = 64, 4


class DataParallel:
    """One linear layer; each replica has its own examples, and gradients are averaged."""

    def __init__(self, replicas: int) -> None:
        self.ir = popxl.Ir(replication=replicas)
        rng = np.random.default_rng(0)
        self.start = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 8
        with self.ir.main_graph, popxl.in_sequence():
            self.x = popxl.h2d_stream((BATCH, WIDTH), popxl.float32)
            self.w = popxl.variable(self.start, name="w")

            def loss(x: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
                return ops.mean(ops.matmul(x, w) * ops.matmul(x, w))

            x = ops.host_load(self.x)
            forward = self.ir.create_graph(loss, x, self.w)
            backward = transforms.autodiff(forward, grads_required=[forward.inputs[1]])
            call = ops.call_with_info(forward, x, self.w)
            seed = popxl.constant(np.float32(1))
            gradients = ops.call(backward.graph, seed, inputs_dict=backward.inputs_dict(call))
            (of_w,) = gradients
            if replicas > 1:
                of_w = replicated_all_reduce(of_w, "mean")
            ops.var_updates.accumulate_(self.w, of_w, -0.1)

    def items(self, replicas: int) -> np.ndarray:
        items = np.random.default_rng(1).normal(size=(replicas, BATCH, WIDTH)).astype(np.float32)
        return items if replicas > 1 else items[0]


def expected_weights(program: DataParallel, items: np.ndarray) -> np.ndarray:
    w = program.start.astype(np.float64)
    gradients = [2 * x.T.astype(np.float64) @ (x @ w) / (BATCH * WIDTH) for x in items]
    return w - 0.1 * np.mean(gradients, 0)


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_weights_of_a_data_parallel_program_are_held_once_on_a_device(devices: int, tmp_path: Path) -> None:
    program = DataParallel(8)
    items = program.items(8)
    with session_on(program.ir, "ram", devices, tmp_path) as session:
        for _ in range(2):
            value: Any = session._weights.values[program.w]
            assert value.shape == (WIDTH, WIDTH)
            if devices > 1:
                assert [shard.data.shape for shard in value.addressable_shards] == [(WIDTH, WIDTH)] * devices
            session.run({program.x: items})
            session.write_variable_data(program.w, program.start)
        session.run({program.x: items})
        found = session.get_tensor_data(program.w)
    np.testing.assert_allclose(found, expected_weights(program, items), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("replicas", [1, 8])
def test_the_footprint_counts_equal_weights_once(replicas: int) -> None:
    session = popxl.Session(DataParallel(replicas).ir, devices=1)
    fixed = {entry.name: entry.bytes for entry in session.figures.device.live if entry.is_fixed}
    assert fixed["w"] == 4 * WIDTH * WIDTH


@pytest.mark.parametrize("equal", [False, True])
def test_equal_weights_take_less_at_the_peak_than_those_of_each_replica(equal: bool) -> None:
    ir = popxl.Ir(replication=8)
    grouping = None if equal else ir.replica_grouping(group_size=1)
    data = np.zeros((WIDTH, WIDTH) if equal else (8, WIDTH, WIDTH), np.float32)
    with ir.main_graph, popxl.in_sequence():
        w = popxl.variable(data, replica_grouping=grouping)
        x, y = popxl.h2d_stream((1, WIDTH), popxl.float32), popxl.d2h_stream((1, WIDTH), popxl.float32)
        ops.host_store(y, ops.matmul(ops.host_load(x), w))
        w += 1
    peak = popxl.Session(ir, devices=1).figures.device.peak_bytes
    assert (peak < 3 * 4 * WIDTH * WIDTH) == equal
    assert (peak >= 8 * 4 * WIDTH * WIDTH) == (not equal)


class Sharded:
    """Eight replicas with one value, sharded, in Streaming Memory."""

    def __init__(self, resident: bool) -> None:
        self.ir = popxl.Ir(replication=8)
        self.data = np.arange(1024, dtype=np.float32)
        with self.ir.main_graph, popxl.in_sequence():
            self.out = popxl.d2h_stream((1024,), popxl.float32)
            if resident:
                self.v, shard = popxl.replica_sharded_variable(self.data)
                self.shard = shard
            else:
                buffer = popxl.replica_sharded_buffer((1024,), popxl.float32)
                self.v = popxl.remote_replica_sharded_variable(self.data, buffer)
                shard = ops.remote_load(buffer, 0)
            ops.host_store(self.out, replicated_all_gather(shard))
            shard += 1
            if not resident:
                ops.remote_store(buffer, 0, shard)


@pytest.mark.parametrize("resident", [False, True])
def test_shards_of_eight_replicas_take_the_memory_of_one_value(resident: bool, tmp_path: Path) -> None:
    program = Sharded(resident)
    with session_on(program.ir, "ram", 1, tmp_path) as session:
        assert session.figures.streaming_bytes == program.data.nbytes
        assert sum(spec.entries * spec.entry_bytes for spec in session._weights._buffers) == program.data.nbytes
        if resident:
            assert session._weights.values[program.shard].nbytes == program.data.nbytes
        assert session.run()[program.out].tolist() == [program.data.tolist()] * 8
        assert session.get_tensor_data(program.v).tolist() == (program.data + 1).tolist()


def test_shards_in_files_take_the_room_of_one_value(tmp_path: Path) -> None:
    program = Sharded(resident=False)
    one = popxl.Ir()
    with one.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((1024,), popxl.float32)
        popxl.remote_variable(program.data, buffer, 0)
        ops.remote_store(buffer, 0, ops.remote_load(buffer, 0) + 1)
    rooms: list[int] = []
    for i, ir in enumerate((one, program.ir)):
        (tmp_path / str(i)).mkdir()
        with session_on(ir, "file", 1, tmp_path / str(i)) as session:
            session.run()
        rooms.append(sum(f.stat().st_size for f in (tmp_path / str(i)).rglob("*") if f.suffix != ".json"))
    assert rooms[0] == rooms[1] >= program.data.nbytes


@pytest.mark.parametrize("devices", [1, 8])
def test_what_differs_is_held_for_every_replica(devices: int, tmp_path: Path) -> None:
    ir = popxl.Ir(replication=8)
    with ir.main_graph:
        each = popxl.variable(np.zeros((8, 5), np.float32), replica_grouping=ir.replica_grouping(group_size=1))
        same = popxl.variable(np.zeros(5, np.float32))
        each += same
        same += 1
    with session_on(ir, "ram", devices, tmp_path) as session:
        session.run()
        values: Any = session._weights.values
        assert (values[each].shape, values[same].shape) == ((8, 5), (5,))
        assert {shard.data.shape for shard in values[each].addressable_shards} == {(8 // devices, 5)}
        assert {shard.data.shape for shard in values[same].addressable_shards} == {(5,)}
