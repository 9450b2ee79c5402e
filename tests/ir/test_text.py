"""The textual form of programs, against the files in golden/.

POPXL_UPDATE_GOLDEN=1 writes the files anew; read the difference before you keep it.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import popxl
from popxl import ops, text

GOLDEN = Path(__file__).parent / "golden"


def streams_and_constants(ir: popxl.Ir) -> None:
    ir.num_host_transfers = 2
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


def remote_buffers(_: popxl.Ir) -> None:
    weights = popxl.remote_buffer((2, 3), popxl.float32, entries=4)
    popxl.remote_buffer((5,), popxl.int32)
    popxl.remote_variable(np.ones((2, 3), np.float32), weights, 3, name="w")
    row = ops.remote_load(weights, 3, name="row")
    row += 1.0
    ops.remote_store(weights, 0, row)
    landing = popxl.variable(np.zeros((2, 3), np.float32), name="landing")
    ops.remote_load_(weights, popxl.constant(0, popxl.uint32, name="first"), landing)


def repeat_over_rows(ir: popxl.Ir) -> None:
    """The loop of spec remote-memory.md §9."""

    def step(i: popxl.Tensor, x: popxl.Tensor, b: popxl.RemoteBuffer) -> tuple[popxl.Tensor, popxl.Tensor]:
        w = ops.remote_load(b, i)
        x = x + w
        ops.remote_store(b, i, w * 2)
        return i + 1, x

    buffer = popxl.remote_buffer((2,), popxl.float32, entries=4)
    for i in range(4):
        popxl.remote_variable(np.full(2, i + 1, np.float32), buffer, i, name="w")
    first, zeros = popxl.constant(0, popxl.uint32, name="i"), popxl.constant(np.zeros(2, np.float32), name="x")
    graph = ir.create_graph(step, first, zeros, buffer)
    _, total = ops.repeat(graph, 4, first, zeros)
    ops.host_store(popxl.d2h_stream((2,), popxl.float32), total)


def conditional(ir: popxl.Ir) -> None:
    x = popxl.variable([1.0, -2.0], name="x")
    flag = ops.host_load(popxl.h2d_stream((), popxl.bool, "flag"))
    double = ir.create_graph(lambda a: a + a, x)
    negate = ir.create_graph(lambda a: -a, x)
    (y,) = ops.conditional(flag, double, negate, then_inputs=[x], else_inputs=[x])
    ops.host_store(popxl.d2h_stream(y.shape, y.dtype, "y"), y)


def by_reference(ir: popxl.Ir) -> None:
    def bump(total: popxl.TensorByRef, step: popxl.Tensor) -> None:
        total += step

    total = popxl.variable([0.0, 0.0], name="total")
    graph = ir.create_graph(bump, total, popxl.TensorSpec((2,), popxl.float32))
    ops.call(graph, total, [[1.0, 2.0]])


def views_and_in_place(_: popxl.Ir) -> None:
    w = popxl.variable(np.zeros((2, 3), np.float32), name="w")
    flat = w.reshape_((6,))
    head = ops.slice_(flat, 0, 2)
    head += 1.0
    both = ops.concat_([ops.relu_(head), ops.slice_(flat, 4, 6)])
    ops.var_updates.copy_var_update_(both, popxl.constant([1.0, 2.0, 3.0, 4.0]))
    # A constant cannot be overwritten: nothing is marked with &.
    ops.relu_(popxl.constant([1.0], name="fixed").flatten_())


def sharded_variables(ir: popxl.Ir) -> None:
    ir.replication_factor = 4
    popxl.variable(np.zeros((2, 3), np.float32), name="grouped", replica_grouping=ir.replica_grouping(stride=2))
    _, shard = popxl.replica_sharded_variable(np.zeros(5, np.float32), name="w")
    shard += 1.0


PROGRAMS = [
    streams_and_constants,
    remote_buffers,
    repeat_over_rows,
    conditional,
    by_reference,
    views_and_in_place,
    sharded_variables,
]


@pytest.mark.parametrize("build", PROGRAMS, ids=lambda build: build.__name__)
def test_text_is_that_of_the_golden_file(ir: popxl.Ir, build: Callable[[popxl.Ir], None]) -> None:
    with ir.main_graph:
        build(ir)
    found = f"{ir}\n"
    golden = GOLDEN / f"{build.__name__}.txt"
    if os.environ.get("POPXL_UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(found, encoding="utf-8")
    assert found == golden.read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_program() -> None:
    assert {p.stem for p in GOLDEN.glob("*")} == {build.__name__ for build in PROGRAMS}


def test_text_of_a_graph_is_its_part_of_the_program(ir: popxl.Ir) -> None:
    with ir.main_graph:
        conditional(ir)
    for graph in ir.graphs:
        assert str(graph) in str(ir)


def test_text_is_the_same_for_the_same_program() -> None:
    texts = []
    for _ in range(2):
        ir = popxl.Ir()
        with ir.main_graph:
            repeat_over_rows(ir)
        texts.append(str(ir))
    assert texts[0] == texts[1]


def test_long_constants_are_left_out(ir: popxl.Ir) -> None:
    with ir.main_graph:
        popxl.constant(np.zeros(9, np.float32), name="long")
        popxl.constant(np.zeros(8, np.float32), name="short")
    lines = str(ir).splitlines()
    assert "  constant long : float32[9] = ..." in lines
    assert f"  constant short : float32[8] = {[0.0] * 8}" in lines


def test_example_in_the_documentation_is_true(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, entries=4)
        popxl.remote_variable([1.0, 2.0], buffer, 3, name="w")
        w = ops.remote_load(buffer, 3, "w")
        w += 1.0
        ops.host_store(popxl.d2h_stream((2,), popxl.float32, "y"), w)
    _, _, example = text.__doc__.partition("::\n\n")
    assert str(ir) == textwrap.dedent(example).strip()
