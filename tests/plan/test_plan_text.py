"""Plans of small programs, written out by hand: what becomes a segment, what the host computes, what is freed."""

from __future__ import annotations

import textwrap

import numpy as np

import popxl
from popxl import ops
from popxl.plan import plan_program


def plan_of(ir: popxl.Ir) -> str:
    return str(plan_program(ir))


def expect(ir: popxl.Ir, text: str) -> None:
    assert plan_of(ir) == textwrap.dedent(text).strip()


def test_a_run_of_pure_ops_between_transfers_is_one_segment() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        source, sink = popxl.h2d_stream((2,), popxl.float32), popxl.d2h_stream((2,), popxl.float32)
        x = ops.host_load(source)
        ops.host_store(sink, ops.relu(x + x) * 2.0)
    expect(
        ir,
        """
        plan main() -> () {
          %0 = host load h2d_stream
          %1 = compute(%0) [Add, Relu, Mul]
          free %0
          host store d2h_stream, %1
          free %1
        }
        """,
    )


def test_a_transfer_ends_a_segment() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, entries=2)
        x = ops.remote_load(buffer, 0)
        y = x + x
        ops.remote_store(buffer, 1, y)
        ops.remote_store(buffer, 0, y * y)
    expect(
        ir,
        """
        plan main() -> () {
          %1 = load buffer 1[%0]
          %2 = compute(%1) [Add]
          free %1
          store buffer 1[%3], %2
          %4 = compute(%2) [Mul]
          free %2
          store buffer 1[%5], %4
          free %4
        }
        """,
    )


def test_an_op_that_nothing_depends_on_is_dropped() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        sink = popxl.d2h_stream((2,), popxl.float32)
        x = popxl.variable(np.ones(2, np.float32))
        ops.exp(x)
        ops.host_store(sink, ops.relu(x))
    expect(
        ir,
        """
        plan main() -> () {
          %1 = compute(%0) [Relu]
          host store d2h_stream, %1
          free %1
        }
        """,
    )


def test_an_update_of_a_variable_overwrites_its_memory() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable(np.ones(2, np.float32))
        x += 1.0
    expect(
        ir,
        """
        plan main() -> () {
          %0 = compute(%0) [AddLhsInplace] overwrites %0
        }
        """,
    )


def test_what_was_loaded_is_never_overwritten() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, entries=2)
        x = ops.remote_load(buffer, 0)
        x += 1.0
        ops.remote_store(buffer, 1, x)
    expect(
        ir,
        """
        plan main() -> () {
          %1 = load buffer 1[%0]
          %1 = compute(%1) [AddLhsInplace]
          store buffer 1[%2], %1
          free %1
        }
        """,
    )


def test_a_variable_that_a_row_shares_is_not_overwritten_by_the_next_run() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32)
        x = popxl.variable(np.ones(2, np.float32))
        x += 1.0
        ops.remote_store(buffer, 0, x)
    expect(
        ir,
        """
        plan main() -> () {
          %0 = compute(%0) [AddLhsInplace]
          store buffer 1[%1], %0
        }
        """,
    )


def test_a_loop_counter_is_computed_on_the_host() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, entries=4)

        def visit(i: popxl.Tensor) -> popxl.Tensor:
            ops.remote_store(buffer, i, ops.remote_load(buffer, i) * 2.0)
            return i + 1

        first = popxl.constant(0, popxl.uint32)
        ops.repeat(ir.create_graph(visit, first), 4, first)
    expect(
        ir,
        """
        plan main() -> () {
          _ = repeat 4 x test_a_loop_counter_is_computed_on_the_host.visit_subgraph(0)__loop_wrapper_subgraph(1)(%0)
        }
        plan test_a_loop_counter_is_computed_on_the_host.visit_subgraph(0)__loop_wrapper_subgraph(1)(%0, %1, %2) -> (%1, %3) {
          %3 = call test_a_loop_counter_is_computed_on_the_host.visit_subgraph(0)(%2)
          free %2
        }
        plan test_a_loop_counter_is_computed_on_the_host.visit_subgraph(0)(%0) -> (%4) {
          %1 = load buffer 1[%0]
          %2 = compute(%1) [Mul]
          free %1
          store buffer 1[%0], %2
          free %2
          %4 = on host Add(%0, %3)
          free %0
        }
        """,  # noqa: E501
    )


def test_an_offset_from_the_device_is_waited_for() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, entries=4)
        sink = popxl.d2h_stream((2,), popxl.float32)
        row = popxl.variable(2, popxl.uint32)
        ops.host_store(sink, ops.remote_load(buffer, row + 1))
    expect(
        ir,
        """
        plan main() -> () {
          %1 = compute(%0) [Add]
          %2 = load buffer 1[%1] (waits for the device)
          free %1
          host store d2h_stream, %2
          free %2
        }
        """,
    )


def test_a_small_graph_joins_the_segment_that_calls_it() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        sink = popxl.d2h_stream((2,), popxl.float32)
        x = popxl.variable(np.ones(2, np.float32))
        (y,) = ops.call(ir.create_graph(lambda x: ops.relu(x), x), x)
        ops.host_store(sink, y + y)
    expect(
        ir,
        """
        plan main() -> () {
          %1 = compute(%0) [Call, Add]
          host store d2h_stream, %1
          free %1
        }
        """,
    )


def test_a_large_graph_has_one_plan_however_often_it_is_called() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        sink = popxl.d2h_stream((2,), popxl.float32)

        def layer(x: popxl.Tensor) -> popxl.Tensor:
            for _ in range(20):
                x = ops.relu(x)
            return x

        x = popxl.variable(np.ones(2, np.float32))
        graph = ir.create_graph(layer, x)
        y: popxl.Tensor = x
        for _ in range(3):
            (y,) = ops.call(graph, y)
        ops.host_store(sink, y)
    text = plan_of(ir)
    assert text.count("= call ") == 3
    assert text.count("compute") == 1
