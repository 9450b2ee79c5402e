"""Calls, loops and branches of several replicas, of which some arguments differ and some do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from replica_examples import divisions, session_on

import popxl
from popxl import ops
from popxl.plan import program as plan_program
from popxl.tensor import Tensor

R = 4
FLAGS = np.array([True, False, False, True])
NUMBERS = np.array([1, 2, 3, 4], np.float32)
each = pytest.mark.parametrize("devices", divisions(R))


@pytest.fixture(params=["compiled", "driven by the host"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "compiled":
        monkeypatch.setattr(plan_program, "SMALL_GRAPH_OPS", -1)
        monkeypatch.setattr(plan_program, "SMALL_LOOP_OPS", -1)


class Program:
    def __init__(self) -> None:
        self.ir = popxl.Ir(replication=R)
        self.inputs: dict[Any, np.ndarray] = {}

    def own(self, values: np.ndarray) -> Tensor:
        """A value of each replica."""
        stream = popxl.h2d_stream(values.shape[1:], popxl.dtypes.dtype.as_dtype(values.dtype))
        self.inputs[stream] = values
        return ops.host_load(stream)

    def run(self, devices: int, directory: Path, *tensors: Tensor) -> list[list[Any]]:
        with self.ir.main_graph:
            streams = [popxl.d2h_stream(t.shape, t.dtype) for t in tensors]
            for stream, t in zip(streams, tensors, strict=True):
                ops.host_store(stream, t)
        with session_on(self.ir, "ram", devices, directory) as session:
            found = session.run(self.inputs)
        return [found[s].tolist() for s in streams]


@each
def test_a_branch_that_each_replica_decides(devices: int, tmp_path: Path) -> None:
    p = Program()
    with p.ir.main_graph:
        condition, mine, same = p.own(FLAGS), p.own(NUMBERS), popxl.constant(np.float32(10))
        then_graph = p.ir.create_graph(lambda a, b: (a + b, b), mine, same)
        else_graph = p.ir.create_graph(lambda a, b: (a - b, a), mine, same)
        outs = ops.conditional(condition, then_graph, else_graph, [mine, same], [mine, same])
    assert p.run(devices, tmp_path, *outs) == [[11, -8, -7, 14], [10, 2, 3, 10]]


@each
def test_a_branch_of_equal_values_differs_by_its_condition(devices: int, tmp_path: Path) -> None:
    p = Program()
    with p.ir.main_graph:
        condition = p.own(FLAGS)
        a, b = (ops.identity(popxl.constant(np.full(2, n, np.float32))) for n in (5, 7))
        graph = p.ir.create_graph(lambda a: a * 2, a)
        (out,) = ops.conditional(condition, graph, graph, [a], [b])
    assert p.run(devices, tmp_path, out) == [[[10, 10], [14, 14], [14, 14], [10, 10]]]


@each
def test_a_branch_in_a_loop_that_each_replica_decides_anew(devices: int, tmp_path: Path) -> None:
    p = Program()
    with p.ir.main_graph:
        start, limit = p.own(NUMBERS), popxl.constant(np.float32(10))
        (end,) = ops.repeat(p.ir.create_graph(doubled_below, start, limit), 5, start, limit)
    assert p.run(devices, tmp_path, end) == [[16, 16, 12, 16]]


def doubled_below(t: Tensor, limit: Tensor) -> Tensor:
    ir = popxl.gcg().ir
    grow, keep = ir.create_graph(lambda t: t + t, t), ir.create_graph(ops.identity, t)
    return ops.conditional(ops.greater(limit, t), grow, keep, [t], [t])[0]


@each
def test_a_loop_whose_carried_value_becomes_different(devices: int, tmp_path: Path) -> None:
    p = Program()
    with p.ir.main_graph:
        mine, zero = p.own(NUMBERS), popxl.constant(np.float32(0))
        graph = p.ir.create_graph(lambda total, mine: total + mine, zero, mine)
        (total,) = ops.repeat(graph, 3, zero, mine)
    assert p.run(devices, tmp_path, total) == [[3, 6, 9, 12]]


@each
def test_a_loop_that_never_runs_hands_on_what_entered(devices: int, tmp_path: Path) -> None:
    p = Program()
    with p.ir.main_graph:
        mine, zero = p.own(NUMBERS), popxl.constant(np.float32(0))
        graph = p.ir.create_graph(lambda total, mine: total + mine, zero, mine)
        (total,) = ops.repeat(graph, 0, zero, mine)
    assert p.run(devices, tmp_path, total) == [[0, 0, 0, 0]]


@each
def test_a_graph_called_with_equal_and_with_different_values(devices: int, tmp_path: Path) -> None:
    p = Program()
    with p.ir.main_graph:
        mine, same = p.own(NUMBERS), popxl.constant(np.float32(10))
        graph = p.ir.create_graph(lambda a: a * a, same)
        outs = [ops.call(graph, t)[0] for t in (same, mine)]
    assert p.run(devices, tmp_path, *outs) == [[100] * 4, [1, 4, 9, 16]]


@each
def test_a_view_by_reference_is_overwritten_with_what_differs(devices: int, tmp_path: Path) -> None:
    p = Program()
    with p.ir.main_graph, popxl.in_sequence():
        v = popxl.variable(np.zeros((2, 2), np.float32))
        mine = p.own(NUMBERS)
        row = ops.slice_(v, 1, 2)

        def body(t: popxl.TensorByRef, mine: Tensor) -> None:
            t += mine

        ops.call(p.ir.create_graph(body, row, mine), row, mine)
    found = p.run(devices, tmp_path, v)
    assert found == [[[[0, 0], [n, n]] for n in (1, 2, 3, 4)]]


@each
def test_writing_through_a_transposed_view_of_what_differs(devices: int, tmp_path: Path) -> None:
    p = Program()
    data = np.arange(16, dtype=np.float32).reshape(4, 2, 2)
    with p.ir.main_graph, popxl.in_sequence():
        v = popxl.variable(data, replica_grouping=p.ir.replica_grouping(group_size=1))
        column = ops.slice_(ops.transpose_(v), 0, 1)
        column += popxl.constant(np.float32(100))
    data[:, :, 0] += 100
    assert p.run(devices, tmp_path, v) == [data.tolist()]
