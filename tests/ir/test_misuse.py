"""Mistakes across graphs, IRs, IPUs and sessions (spec core.md §9), and that every message says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import PopxlError
from popxl.ops.call import CallSiteInfo
from popxl.ops.utils import cast_if_needed, check_in_graph, check_tensor_ipu_and_tile_set, handle_negative_axis

Misuse = Callable[[popxl.Ir], object]

# Graphs and IRs


def test_tensor_of_the_parent_graph_is_refused(ir: popxl.Ir, main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    with (
        ir.create_empty_graph("f"),
        pytest.raises(ValueError, match=r"in the current Graph f_subgraph\(0\)\.") as caught,
    ):
        ops.relu(x)
    assert str(caught.value).startswith("The input tensor `t` is not in the current Graph f_subgraph(0).")


def test_tensor_of_a_subgraph_is_refused_in_the_main_graph(ir: popxl.Ir, main: popxl.Graph) -> None:
    graph = ir.create_graph(lambda x: x, popxl.TensorSpec((), popxl.float32))
    with pytest.raises(ValueError, match=r"^The input tensor `rhs` is not in the current Graph"):
        ops.add(popxl.constant(1.0), graph.inputs[0])


def test_tensor_of_another_ir_with_the_same_id_is_refused(ir: popxl.Ir) -> None:
    with popxl.Ir().main_graph:
        foreign = popxl.variable(1.0, name="x")
    with ir.main_graph:
        popxl.variable(1.0, name="x")
        with pytest.raises(ValueError, match=r"^The input tensor `t` is not in the current Graph"):
            ops.relu(foreign)


@pytest.mark.parametrize("value", [1.0, None, "x", np.ones(2)])
def test_value_that_is_no_tensor_is_refused(main: popxl.Graph, value: Any) -> None:
    with pytest.raises(TypeError, match=r"^The input `t` is not a Tensor\."):
        ops.relu(value)


def test_graph_of_another_ir_is_refused_by_call(ir: popxl.Ir, main: popxl.Graph) -> None:
    graph = popxl.Ir().create_empty_graph()
    with pytest.raises(ValueError, match="belongs to"):
        ops.call(graph)


# Placement


def placed(ipu: int, *, io: bool = False) -> popxl.Tensor:
    with popxl.ipu(ipu):
        if io:
            with popxl.io_tiles():
                return ops.init((), popxl.float32)
        return ops.init((), popxl.float32)


def test_tensors_on_different_ipus_are_refused(main: popxl.Graph) -> None:
    a, b = placed(0), placed(1)
    with pytest.raises(ValueError, match="`lhs` and `rhs` are located on different IPUs: 0 != 1"):
        a + b


def test_tensors_on_different_tile_sets_are_refused(main: popxl.Graph) -> None:
    a, b = placed(0), placed(0, io=True)
    with pytest.raises(ValueError, match="`lhs` and `rhs` are located on different tile sets: compute != io"):
        a + b


def test_tensor_that_is_placed_nowhere_goes_with_all(main: popxl.Graph) -> None:
    assert (placed(1) + popxl.variable(1.0)).shape == ()


def test_first_placed_tensor_and_first_that_differs_are_named(main: popxl.Graph) -> None:
    tensors = {"a": popxl.variable(1.0), "b": placed(1), "c": placed(1), "d": placed(2), "e": placed(3)}
    with pytest.raises(ValueError, match="`b` and `d` are located on different IPUs"):
        check_tensor_ipu_and_tile_set(**tensors)


# Helpers that ops of other people use


def test_checks_take_named_tensors_only(main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    with pytest.raises(Exception, match="Pass the tensors by name"):
        check_in_graph(main, x)
    with pytest.raises(Exception, match="Pass the tensors by name"):
        check_tensor_ipu_and_tile_set(x)


def test_cast_if_needed_casts_only_if_needed(main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    assert cast_if_needed(x, popxl.float32) is x
    assert cast_if_needed(x, popxl.float16).dtype == popxl.float16


@pytest.mark.parametrize(("axis", "expected"), [(0, 0), (1, 1), (-1, 1), (-2, 0)])
def test_handle_negative_axis(main: popxl.Graph, axis: int, expected: int) -> None:
    assert handle_negative_axis(popxl.variable(np.zeros((2, 3), np.float32)), axis) == expected


# After a session took the program


CHANGES: dict[str, Misuse] = {
    "an op": lambda ir: ops.init((), popxl.float32),
    "an op on a tensor": lambda ir: ops.relu(ir.main_graph.get_tensor("x")),
    "an operator": lambda ir: ir.main_graph.get_tensor("x") + ir.main_graph.get_tensor("x"),
    "a constant": lambda ir: popxl.constant(1.0),
    "a variable": lambda ir: popxl.variable(1.0),
    "a remote variable": lambda ir: popxl.remote_variable([1.0], _buffer(ir)),
    "a stream in": lambda ir: popxl.h2d_stream((), popxl.float32),
    "a stream out": lambda ir: popxl.d2h_stream((), popxl.float32),
    "a buffer": lambda ir: popxl.remote_buffer((1,), popxl.float32),
    "the size of a buffer": lambda ir: setattr(_buffer(ir), "entries", 9),
    "the rows of a buffer": lambda ir: _buffer(ir).set_remote_buffer_info(popxl.int32, (3,), 1),
    "a graph input": lambda ir: popxl.graph_input((), popxl.float32),
    "a graph output": lambda ir: popxl.graph_output(ir.main_graph.get_tensor("x")),
    "a graph": lambda ir: ir.create_graph(lambda: None),
    "an empty graph": lambda ir: ir.create_empty_graph(),
    "the effect of a call": lambda ir: CallSiteInfo(ir.main_graph.ops[-1]).set_parent_input_modified(
        ir.main_graph.get_tensor("x")
    ),
    "the replication factor": lambda ir: setattr(ir, "replication_factor", 2),
}


def _buffer(ir: popxl.Ir) -> popxl.RemoteBuffer:
    return next(op.attributes["buffer"] for op in ir.main_graph.ops if "buffer" in op.attributes)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_program_cannot_change_once_a_session_has_it(ir: popxl.Ir, change: Misuse) -> None:
    with ir.main_graph:
        x = popxl.variable([1.0], name="x")
        ops.remote_load(popxl.remote_buffer((1,), popxl.float32), 0)
        ops.call(ir.create_graph(lambda x: x + 1.0, x), x)
    popxl.Session(ir)
    before = str(ir)
    with ir.main_graph, pytest.raises(RuntimeError, match=f"^The `Ir` {ir.id} is already prepared"):
        change(ir)
    assert str(ir) == before


def test_program_that_a_session_refused_may_change(ir: popxl.Ir) -> None:
    with pytest.raises(RuntimeError, match="no graphs with ops"):
        popxl.Session(ir)
    with ir.main_graph:
        ops.init((), popxl.float32)
    popxl.Session(ir)


# Every message tells what to do


def _foreign() -> popxl.Tensor:
    graph = popxl.gcg().ir.create_empty_graph()
    with graph:
        return popxl.graph_input((2,), popxl.float32)


MISUSES: dict[str, Misuse] = {
    "Graph()": lambda ir: popxl.Graph(),
    "Tensor()": lambda ir: popxl.Tensor(),
    "Stream()": lambda ir: popxl.HostToDeviceStream(),
    "Module without build": lambda ir: popxl.Module()(),
    "Ir compared": lambda ir: ir == 1,
    "Graph compared": lambda ir: ir.main_graph == 1,
    "no tensor in a graph": lambda ir: 1 in ir.main_graph,
    "unknown tensor id": lambda ir: ir.main_graph.get_tensor("nothing"),
    "unknown hook": lambda ir: ir.main_graph.remove_op_created_hook(-1),
    "graph of another Ir": lambda ir: popxl.Ir().main_graph.__enter__(),
    "in_sequence(None)": lambda ir: popxl.in_sequence(None).__enter__(),
    "graph of no function": lambda ir: ir.create_graph(1),
    "missing argument": lambda ir: ir.create_graph(lambda x: x),
    "output that is no tensor": lambda ir: ir.create_graph(lambda: 1),
    "mixed sequence": lambda ir: ir.create_graph(lambda x: None, [_foreign(), 1]),
    "foreign output": lambda ir: popxl.graph_output(_foreign()),
    "output of no tensor": lambda ir: popxl.graph_output(1),
    "float8 constant without dtype": lambda ir: popxl.constant(np.zeros(1, popxl.dtypes.np_dtype_float8_143)),
    "variable in a graph": lambda ir: ir.create_graph(lambda: popxl.variable(1.0)),
    "retrieval mode": lambda ir: popxl.variable(1.0, retrieval_mode="x"),
    "grouping of another Ir": lambda ir: popxl.variable(1.0, replica_grouping=popxl.Ir().replica_grouping()),
    "negative offset": lambda ir: popxl.remote_variable(1.0, popxl.remote_buffer((), popxl.float32), -1),
    "shards of one replica": lambda ir: popxl.replica_sharded_variable([1.0]),
    "shards that do not divide": lambda ir: popxl.replica_sharded_buffer((1,), popxl.float32, shard_over=2),
    "buffer without rows": lambda ir: popxl.remote_buffer((), popxl.float32, 0),
    "row of another shape": lambda ir: popxl.remote_buffer((), popxl.float32).validate_tensor_matches_buffer(
        popxl.constant([1.0])
    ),
    "unplaced tensor": lambda ir: popxl.constant(1.0).ipu,
    "no host data": lambda ir: ops.relu(popxl.constant(1.0)).in_sync_with_ipu,
    "diag of a scalar": lambda ir: popxl.constant(1.0).diag(),
    "empty operand": lambda ir: popxl.constant(1.0) + np.zeros(0),
    "in a tensor": lambda ir: 1 in popxl.constant([1.0]),
    "length of a scalar": lambda ir: len(popxl.constant(1.0)),
    "odd index": lambda ir: popxl.constant([1.0])[None],
    "different IPUs": lambda ir: placed(0) + placed(1),
    "unnamed tensor": lambda ir: check_in_graph(ir.main_graph, popxl.constant(1.0)),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_message_has_a_hint(ir: popxl.Ir, main: popxl.Graph, misuse: Misuse) -> None:
    with pytest.raises(PopxlError) as caught:
        misuse(ir)
    assert "\n  Hint: " in str(caught.value)
