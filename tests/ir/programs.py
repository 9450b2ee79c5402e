"""Small programs, one per feature of the textual form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import popxl
from popxl import ops

programs: dict[str, Callable[[], popxl.Ir]] = {}
"""Builders by the name of their golden file."""


def program(build: Callable[[], popxl.Ir]) -> Callable[[], popxl.Ir]:
    programs[build.__name__] = build
    return build


@program
def streams_and_constants() -> popxl.Ir:
    ir = popxl.Ir()
    ir.num_host_transfers = 2
    with ir.main_graph:
        x = ops.host_load(popxl.h2d_stream((2, 3), popxl.float32, "x"))
        w = popxl.variable(np.zeros((3, 4), np.float16), name="w")
        with popxl.name_scope("layer"):
            y = ops.cast(x, popxl.float16) @ w + 1.5
            table = popxl.constant(np.arange(12), name="table")
            picked = ops.gather(table, popxl.constant([1, 2], name="rows"))
        with popxl.ipu(1), popxl.io_tiles():
            ops.host_store(popxl.d2h_stream(y.shape, y.dtype, "y"), y)
        ops.print_tensor(picked, title="picked rows")
        popxl.constant(np.float32([0.75, 240]), popxl.float8_143, name="codes")
    return ir


@program
def remote_buffers() -> popxl.Ir:
    ir = popxl.Ir()
    with ir.main_graph:
        weights = popxl.remote_buffer((2, 3), popxl.float32, entries=4)
        popxl.remote_buffer((5,), popxl.int32)
        popxl.remote_variable(np.ones((2, 3), np.float32), weights, 3, name="w")
        row = ops.remote_load(weights, 3, name="row")
        row += 1.0
        ops.remote_store(weights, 0, row)
        landing = popxl.variable(np.zeros((2, 3), np.float32), name="landing")
        ops.remote_load_(weights, popxl.constant(0, popxl.uint32, name="first"), landing)
    return ir


@program
def repeat_over_rows() -> popxl.Ir:
    """The loop of spec ``remote-memory.md`` §9."""
    ir = popxl.Ir()

    def step(i: popxl.Tensor, x: popxl.Tensor, b: popxl.RemoteBuffer) -> tuple[popxl.Tensor, popxl.Tensor]:
        w = ops.remote_load(b, i)
        x = x + w
        ops.remote_store(b, i, w * 2)
        return i + 1, x

    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, entries=4)
        for i in range(4):
            popxl.remote_variable(np.full(2, i + 1, np.float32), buffer, i, name="w")
        first, zeros = popxl.constant(0, popxl.uint32, name="i"), popxl.constant(np.zeros(2, np.float32), name="x")
        graph = ir.create_graph(step, first, zeros, buffer)
        _, total = ops.repeat(graph, 4, first, zeros)
        ops.host_store(popxl.d2h_stream((2,), popxl.float32), total)
    return ir


@program
def conditional() -> popxl.Ir:
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable([1.0, -2.0], name="x")
        flag = ops.host_load(popxl.h2d_stream((), popxl.bool, "flag"))
        double = ir.create_graph(lambda a: a + a, x)
        negate = ir.create_graph(lambda a: -a, x)
        (y,) = ops.conditional(flag, double, negate, then_inputs=[x], else_inputs=[x])
        ops.host_store(popxl.d2h_stream(y.shape, y.dtype, "y"), y)
    return ir


@program
def by_reference() -> popxl.Ir:
    ir = popxl.Ir()

    def bump(total: popxl.TensorByRef, step: popxl.Tensor) -> None:
        total += step

    with ir.main_graph:
        total = popxl.variable([0.0, 0.0], name="total")
        graph = ir.create_graph(bump, total, popxl.TensorSpec((2,), popxl.float32))
        ops.call(graph, total, [[1.0, 2.0]])
    return ir


@program
def views_and_in_place() -> popxl.Ir:
    ir = popxl.Ir()
    with ir.main_graph:
        w = popxl.variable(np.zeros((2, 3), np.float32), name="w")
        flat = w.reshape_((6,))
        head = ops.slice_(flat, 0, 2)
        head += 1.0
        relued = ops.relu_(head)
        both = ops.concat_([relued, ops.slice_(flat, 4, 6)])
        ops.var_updates.copy_var_update_(both, both.T_)
        popxl.constant([1.0]).flatten_()
    return ir


@program
def sharded_variable() -> popxl.Ir:
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        pairs = ir.replica_grouping(stride=2)
        popxl.variable(np.zeros((2, 3), np.float32), name="grouped", replica_grouping=pairs)
        _, shard = popxl.replica_sharded_variable(np.zeros(5, np.float32), name="w")
        shard += 1.0
    return ir
