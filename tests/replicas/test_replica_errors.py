"""What cannot run on several replicas or devices is refused, with a hint."""

from __future__ import annotations

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import DeviceError, PopxlNotImplementedError, PopxlValueError
from popxl.ops.collectives import replicated_all_reduce


def program(replicas: int) -> popxl.Ir:
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph:
        v = popxl.variable(1.0)
        v += 1
    return ir


@pytest.mark.parametrize("devices", [0, -1, 3, 8])
def test_devices_that_do_not_divide_the_replicas(devices: int) -> None:
    with pytest.raises(PopxlValueError, match=f"4 replicas cannot be divided over {devices} devices") as caught:
        popxl.Session(program(4), devices=devices)
    assert "divides 4" in str(caught.value)


def test_more_devices_than_there_are() -> None:
    with pytest.raises(DeviceError, match=r"^Failed to acquire device with .*16 are wanted, and JAX finds 8") as caught:
        popxl.Session(program(16), devices=16)
    assert "xla_force_host_platform_device_count" in str(caught.value)


def test_as_many_devices_as_there_are_and_divide_the_replicas() -> None:
    assert [popxl.Session(program(r))._executor._placement.device_count for r in (1, 2, 3, 6, 8, 12, 16)] == [
        1, 2, 3, 6, 8, 6, 8
    ]  # fmt: skip


def branch(does: str, *, reduced: bool) -> popxl.Ir:
    ir = popxl.Ir(replication=2)
    with ir.main_graph, popxl.in_sequence():
        condition = ops.host_load(popxl.h2d_stream((), popxl.bool))
        if reduced:
            condition = ops.cast(replicated_all_reduce(ops.cast(condition, popxl.int32), "max"), popxl.bool)
        buffer = popxl.remote_buffer((), popxl.float32)
        x, y = popxl.h2d_stream((), popxl.float32), popxl.d2h_stream((), popxl.float32)

        def then_side(t: popxl.Tensor) -> popxl.Tensor:
            match does:
                case "host load":
                    return ops.host_load(x)
                case "host store":
                    ops.host_store(y, t)
                case "load":
                    return ops.remote_load(buffer, 0)
                case "store":
                    ops.remote_store(buffer, 0, t)
                case "print":
                    return ops.print_tensor(t)
                case "nested store":
                    graph = ir.create_graph(lambda t: ops.remote_store(buffer, 0, t), t)
                    ops.call(graph, t)
                case _:
                    raise AssertionError(does)
            return t + 1

        def else_side(t: popxl.Tensor) -> popxl.Tensor:
            return t - 1

        t = popxl.variable(1.0)
        graphs = (ir.create_graph(side, t) for side in (then_side, else_side))
        ops.host_store(popxl.d2h_stream((), popxl.float32), ops.conditional(condition, *graphs, [t], [t])[0])
    return ir


@pytest.mark.parametrize("does", ["host load", "host store", "load", "store", "print", "nested store"])
def test_a_branch_that_replicas_decide_differently_must_only_compute(does: str) -> None:
    with pytest.raises(PopxlNotImplementedError, match="may differ between replicas") as caught:
        popxl.Session(branch(does, reduced=False))
    assert "replicated_all_reduce" in str(caught.value)


@pytest.mark.parametrize("does", ["host load", "host store", "load", "store", "print", "nested store"])
def test_a_branch_that_replicas_decide_together_may_transfer(does: str) -> None:
    ir = branch(does, reduced=True)
    with popxl.Session(ir) as session:
        for flags in ([False, True], [False, False]):
            arrays = (np.array(flags), np.ones(2, np.float32))
            session.run({s: arrays[s.dtype != popxl.bool] for s in session.expected_inputs()})


def test_sharded_and_other_variables_in_one_buffer() -> None:
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        popxl.remote_replica_sharded_variable(np.zeros(4, np.float32), buffer, 0)
        popxl.remote_variable(np.zeros(2, np.float32), buffer, 1)
        ops.remote_load(buffer, 0)
    with pytest.raises(PopxlValueError, match="has variables that are sharded and variables that are not"):
        popxl.Session(ir)


def test_a_row_that_is_no_shard() -> None:
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        buffer = popxl.remote_buffer((5,), popxl.float32)
        popxl.remote_replica_sharded_variable(np.zeros(12, np.float32), buffer)
        ops.remote_load(buffer, 0)
    with pytest.raises(PopxlValueError, match="no shard of") as caught:
        popxl.Session(ir)
    assert "(3,), (6,), (12,)" in str(caught.value)


def test_a_buffer_with_the_axis_over_groups() -> None:
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        buffer = popxl.remote_buffer((2, 3), popxl.float32)
        grouping = ir.replica_grouping(group_size=2)
        popxl.remote_variable(np.zeros((2, 3), np.float32), buffer, replica_grouping=grouping)
        ops.remote_load(buffer, 0)
    with pytest.raises(PopxlValueError, match=r"has shape \(3,\), a row of remote buffer 1 has \(2, 3\)"):
        popxl.Session(ir)


def test_a_grouping_of_another_number_of_replicas() -> None:
    other = popxl.Ir(replication=2).replica_grouping(group_size=1)
    with popxl.Ir(replication=4).main_graph, pytest.raises(ValueError, match="replica"):
        popxl.variable(np.zeros((2, 3), np.float32), replica_grouping=other)


def test_an_input_without_the_axis_over_replicas() -> None:
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        x = popxl.h2d_stream((3,), popxl.float32)
        ops.host_store(popxl.d2h_stream((3,), popxl.float32), ops.host_load(x))
    with popxl.Session(ir) as session:
        with pytest.raises(ValueError, match="is the wrong size"):
            session.run({x: np.zeros(3, np.float32)})
        with pytest.raises(ValueError, match="is the wrong size"):
            session.run({x: np.zeros((2, 3), np.float32)})
        with pytest.raises(ValueError, match=r"^Shape mismatch for"):
            session.run({x: np.zeros((4, 2), np.float32)})
