"""`popxl.Ir` (spec core.md §2)."""

from __future__ import annotations

import pytest

import popxl
from popxl import ops


def test_fresh_ir_holds_only_the_main_graph(ir: popxl.Ir) -> None:
    assert ir.graphs == (ir.main_graph,)
    assert ir.main_graph.tensors == ()


def test_defaults(ir: popxl.Ir) -> None:
    assert (ir.replication_factor, ir.instance_replication_factor, ir.num_host_transfers) == (1, 1, 1)


def test_replication_by_position() -> None:
    assert popxl.Ir(8).replication_factor == 8


def test_popdist_is_one_replica_in_a_single_process() -> None:
    assert popxl.Ir(replication="popdist").replication_factor == 1


def test_ids_increase() -> None:
    first, second = popxl.Ir(), popxl.Ir()
    assert first.id < second.id


def test_equality_and_hash_are_by_id() -> None:
    first, second = popxl.Ir(), popxl.Ir()
    assert first == first.main_graph.ir
    assert first != second
    assert hash(first) == hash(first.id)


def test_comparison_with_another_type_raises(ir: popxl.Ir) -> None:
    with pytest.raises(TypeError, match="Cannot compare an Ir with None"):
        ir == None  # noqa: B015, E711 - the comparison is the test


def test_repr(ir: popxl.Ir) -> None:
    assert repr(ir) == f"Ir[id={ir.id}]"


def test_main_graph_is_always_the_same_object(ir: popxl.Ir) -> None:
    assert ir.main_graph is ir.main_graph


def test_replication_factor_can_be_set(ir: popxl.Ir) -> None:
    ir.replication_factor = 4
    assert (ir.replication_factor, ir.instance_replication_factor) == (4, 4)


def test_replication_factor_is_fixed_by_a_session(ir: popxl.Ir) -> None:
    with ir.main_graph:
        ops.init((), popxl.float32)
    popxl.Session(ir)
    with pytest.raises(RuntimeError, match=rf"^The `Ir` {ir.id} is already prepared"):
        ir.replication_factor = 2


def test_grouping_keeps_the_replication_factor_it_was_made_with(ir: popxl.Ir) -> None:
    ir.replication_factor = 4
    grouping = ir.replica_grouping(group_size=2)
    ir.replication_factor = 8
    assert grouping.assignment == [0, 0, 1, 1]


def test_groupings_come_from_strides_and_from_assignments() -> None:
    ir = popxl.Ir(4)
    assert ir.replica_grouping(stride=2).assignment == [0, 1, 0, 1]
    assert ir.replica_grouping_from_assignments([0, 1, 1, 0]).assignment == [0, 1, 1, 0]


def test_num_host_transfers_is_kept_as_given(ir: popxl.Ir) -> None:
    ir.num_host_transfers = 7
    assert ir.num_host_transfers == 7


@pytest.mark.parametrize("name", ["name", "logIr"])
def test_names_of_the_layer_below_are_absent(ir: popxl.Ir, name: str) -> None:
    assert not hasattr(ir, name)


# Empty graphs


def test_empty_graphs_are_numbered(ir: popxl.Ir) -> None:
    assert ir.create_empty_graph().id == "graph_subgraph(0)"
    assert ir.create_empty_graph("body").id == "body_subgraph(1)"


def test_empty_graph_has_nothing_in_it(ir: popxl.Ir) -> None:
    graph = ir.create_empty_graph()
    assert (graph.inputs, graph.outputs, graph.tensors) == ((), (), ())


# Streams


def test_streams_without_an_op_are_not_listed(ir: popxl.Ir) -> None:
    with ir.main_graph:
        popxl.h2d_stream((), popxl.float32)
        popxl.d2h_stream((), popxl.float32)
    assert ir.get_all_h2d_streams() == set()
    assert ir.get_all_d2h_streams() == set()


def test_streams_equal_the_users_objects_and_are_sorted_by_direction(ir: popxl.Ir) -> None:
    with ir.main_graph:
        source, sink = popxl.h2d_stream((2,), popxl.float32), popxl.d2h_stream((2,), popxl.float32)
        ops.host_store(sink, ops.host_load(source))
    assert ir.get_all_h2d_streams() == {source}
    assert ir.get_all_d2h_streams() == {sink}


def test_streams_of_graphs_that_nobody_calls_are_listed_until_a_session_exists(ir: popxl.Ir) -> None:
    with ir.main_graph:
        ops.init((), popxl.float32)
        source = popxl.h2d_stream((), popxl.float32)
        ir.create_graph(lambda: ops.host_load(source))
    assert ir.get_all_h2d_streams() == {source}
    popxl.Session(ir)
    assert ir.get_all_h2d_streams() == set()


def test_streams_of_called_graphs_are_listed_once_a_session_exists(ir: popxl.Ir) -> None:
    with ir.main_graph:
        source = popxl.h2d_stream((), popxl.float32)
        inner = ir.create_graph(lambda: ops.host_load(source))
        outer = ir.create_graph(lambda: ops.call(inner))
        ops.call(outer)
    popxl.Session(ir)
    assert ir.get_all_h2d_streams() == {source}
