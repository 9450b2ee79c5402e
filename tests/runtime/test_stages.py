"""A program placed on several IPUs: each is a device of its own where there are so many, and a hint where not."""

from __future__ import annotations

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.plan.steps import Compute

X = np.arange(12, dtype=np.float32).reshape(4, 3)


class TwoStages:
    """Two micro-batches through two stages; the second stage also updates its weight."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        self.ir.num_host_transfers = 4
        with self.ir.main_graph:
            self.x = popxl.h2d_stream((3,), popxl.float32)
            self.y = popxl.d2h_stream((3,), popxl.float32)
            self.first = popxl.variable(np.full(3, 2, np.float32))
            self.second = popxl.variable(np.full(3, 10, np.float32))
            for _ in range(4):
                with popxl.ipu(0):
                    t = ops.host_load(self.x) * self.first
                t = ops.ipu_copy(t, 1)
                with popxl.ipu(1):
                    ops.host_store(self.y, t + self.second)
                    self.second += 1

    def run(self, devices: int | None) -> tuple[popxl.Session, np.ndarray]:
        session = popxl.Session(self.ir, devices=devices)
        with session:
            first = session.run({self.x: X})[self.y]
            second = session.run({self.x: X})[self.y]
        return session, np.stack([first, second])


EXPECTED = np.stack([2 * X + (10 + 4 * run + np.arange(4))[:, None] for run in range(2)])


@pytest.mark.parametrize("devices", [None, 1, 2])
def test_values_do_not_depend_on_the_number_of_devices(devices: int | None) -> None:
    program = TwoStages()
    session, found = program.run(devices)
    np.testing.assert_array_equal(found, EXPECTED)
    np.testing.assert_array_equal(session.get_tensor_data(program.second), np.full(3, 18, np.float32))


def test_each_stage_is_computed_on_its_own_device() -> None:
    program = TwoStages()
    with popxl.Session(program.ir) as session:
        assert {step.segment.ipu for step in session.plan.steps if isinstance(step, Compute)} == {0, 1}
        session.run({program.x: X})
        values = session._weights.values
        assert len({values[program.first].device, values[program.second].device}) == 2


def test_on_one_device_the_stages_share_segments() -> None:
    program = TwoStages()
    counts = [popxl.Session(program.ir, devices=n).executable_count for n in (1, 2)]
    assert counts[0] < counts[1]
    assert {s.segment.ipu for s in popxl.Session(program.ir, devices=1).plan.steps if isinstance(s, Compute)} == {0}


def test_a_called_graph_may_span_stages() -> None:
    ir = popxl.Ir()

    def both(x: popxl.Tensor) -> popxl.Tensor:
        with popxl.ipu(0):
            x = x + 1
        x = ops.ipu_copy(x, 1)
        with popxl.ipu(1):
            return x * 3

    with ir.main_graph:
        x = popxl.variable(np.arange(3, dtype=np.float32))
        graph = ir.create_graph(both, x)
        y = popxl.d2h_stream((3,), popxl.float32)
        (once,) = ops.call(graph, x)
        (twice,) = ops.repeat(graph, 2, x)
        ops.host_store(y, once + twice)
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[y], np.array([3 + 12, 6 + 21, 9 + 30], np.float32))


def test_more_devices_than_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="1 replicas cannot be divided over 3 devices"):
        popxl.Session(TwoStages().ir, devices=3)
