"""Sums over replicas are rounded alike wherever the replicas are: within one unit in the last place for each member."""

from __future__ import annotations

import numpy as np
import pytest

import popxl
from popxl import ops

REPLICAS = 8
VALUES = np.random.default_rng(0).uniform(0.5, 2, size=(REPLICAS, 1000)).astype(np.float32)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_float_sum_is_within_one_unit_for_each_member(devices: int) -> None:
    ir = popxl.Ir(replication=REPLICAS)
    with ir.main_graph:
        x = popxl.h2d_stream((1000,), popxl.float32)
        y = popxl.d2h_stream((1000,), popxl.float32)
        ops.host_store(y, ops.collectives.replicated_all_reduce(ops.host_load(x)))
    with popxl.Session(ir, devices=devices) as session:
        found = session.run({x: VALUES})[y]
    exact = VALUES.astype(np.float64).sum(0)
    assert np.all(np.abs(found - exact) <= REPLICAS * np.spacing(exact.astype(np.float32)))
    assert np.array_equal(found, np.broadcast_to(found[0], found.shape))
