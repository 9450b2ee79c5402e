"""`popxl.Graph`: contents, identity, hooks (spec core.md §3)."""

from __future__ import annotations

import pytest

import popxl
from popxl import ops
from popxl.context import get_current_context
from popxl.op import Op


def test_constructor_raises() -> None:
    with pytest.raises(TypeError, match="Cannot create a Graph directly"):
        popxl.Graph()


def test_name_and_id_of_the_main_graph_are_empty(ir: popxl.Ir) -> None:
    assert (ir.main_graph.name, ir.main_graph.id) == ("", "")


def test_name_and_id_of_a_subgraph_are_the_same(ir: popxl.Ir) -> None:
    graph = ir.create_empty_graph("f")
    assert graph.name == graph.id == "f_subgraph(0)"


def test_graph_knows_its_ir_and_main_graph(ir: popxl.Ir) -> None:
    graph = ir.create_empty_graph()
    assert graph.ir is ir
    assert graph.main_graph is ir.main_graph


@pytest.mark.parametrize("name", ["name", "id", "ir", "main_graph", "inputs", "outputs", "tensors", "variables"])
def test_properties_are_read_only(ir: popxl.Ir, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(ir.main_graph, name, None)


def test_repr(ir: popxl.Ir) -> None:
    assert repr(ir.main_graph) == "Graph[id= name=]"
    assert repr(ir.create_empty_graph("f")) == "Graph[id=f_subgraph(0) name=f_subgraph(0)]"


# Contents


def test_inputs_and_outputs_are_in_the_order_of_the_calls(ir: popxl.Ir) -> None:
    graph = ir.create_empty_graph()
    with graph:
        b = popxl.graph_input((1,), popxl.float32, "b")
        a = popxl.graph_input((2,), popxl.int32, "a")
        total = b + 1.0
        for t in (total, a, b, total):
            popxl.graph_output(t)
    assert graph.inputs == (b, a)
    assert graph.outputs == (total, a, b, total)


def test_inputs_by_name(ir: popxl.Ir) -> None:
    graph = ir.create_graph(lambda x, y: x + y, popxl.TensorSpec((), popxl.int32), popxl.TensorSpec((), popxl.int32))
    assert graph.inputs_by_name == {"x": graph.inputs[0], "y": graph.inputs[1]}


def test_tensors_are_inputs_intermediates_constants_variables_and_stream_handles(main: popxl.Graph) -> None:
    stream = popxl.h2d_stream((), popxl.float32, "x")
    v, c = popxl.variable(1.0, name="v"), popxl.constant(2.0, name="c")
    total = v + c
    assert set(main.tensors) == {main.get_tensor(stream.tensor_id), v, c, total}


def test_stream_handles_are_not_in_subgraphs(ir: popxl.Ir, main: popxl.Graph) -> None:
    graph = ir.create_graph(lambda: ops.host_load(popxl.h2d_stream((), popxl.float32, "x")))
    assert "x" in {t.id for t in main.tensors}
    assert {t.name for t in graph.tensors} == {"x_init", "x_hostload"}


def test_variables_and_constants_are_sorted_by_id(main: popxl.Graph) -> None:
    for name in ("b", "c", "a"):
        popxl.variable(0.0, name=f"v{name}")
        popxl.constant(0.0, name=f"c{name}")
    assert [t.id for t in main.variables] == ["va", "vb", "vc"]
    assert [t.id for t in main.constants] == ["ca", "cb", "cc"]


def test_called_graphs_of_call_repeat_and_conditional_are_listed_once(ir: popxl.Ir, main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    called, then, other = (ir.create_graph(lambda a: a + a, x) for _ in range(3))
    ops.call(called, x)
    ops.call(called, x)
    ops.conditional(popxl.constant(True), then, other, [x], [x])
    loop = ops.repeat_with_info(called, 2, x).called_graph
    assert len(main.called_graphs) == 4
    assert set(main.called_graphs) == {called, then, other, loop}


def test_called_graphs_are_the_direct_ones_only(ir: popxl.Ir, main: popxl.Graph) -> None:
    inner = ir.create_graph(lambda: popxl.constant(1.0) + 1.0)
    outer = ir.create_graph(lambda: ops.call(inner))
    ops.call(outer)
    assert main.called_graphs == (outer,)
    assert outer.called_graphs == (inner,)


def test_get_tensor_takes_the_full_id(ir: popxl.Ir) -> None:
    graph = ir.create_graph(lambda x: x, popxl.TensorSpec((), popxl.int32))
    assert graph.get_tensor(f"{graph.id}/x") is graph.inputs[0]


def test_get_tensor_of_an_unknown_id_raises(ir: popxl.Ir) -> None:
    graph = ir.create_graph(lambda x: x, popxl.TensorSpec((), popxl.int32))
    with pytest.raises(popxl.errors.CoreError, match="No tensor `x` in graph"):
        graph.get_tensor("x")


def test_by_ref_inputs_are_kept_as_a_set(ir: popxl.Ir) -> None:
    graph = ir.create_empty_graph()
    with graph:
        popxl.graph_input((), popxl.float32, "a")
        b = popxl.graph_input((), popxl.float32, "b", by_ref=True)
    assert graph._by_ref_inputs == {b}


# Membership and identity


def test_tensor_is_in_its_own_graph_only(ir: popxl.Ir, main: popxl.Graph) -> None:
    x = popxl.variable(1.0, name="x")
    graph = ir.create_graph(lambda x: x, x)
    assert x in main
    assert x not in graph
    assert graph.inputs[0] not in main


def test_tensor_of_another_ir_with_the_same_id_is_not_contained() -> None:
    ours, theirs = popxl.Ir(), popxl.Ir()
    with ours.main_graph:
        popxl.variable(1.0, name="x")
    with theirs.main_graph:
        x = popxl.variable(1.0, name="x")
    assert x.id in {t.id for t in ours.main_graph.tensors}
    assert x not in ours.main_graph


@pytest.mark.parametrize("value", ["x", None, 1.0])
def test_membership_of_another_type_raises(ir: popxl.Ir, value: object) -> None:
    with pytest.raises(TypeError, match="Only a Tensor can be in a graph"):
        value in ir.main_graph  # noqa: B015 - the comparison is the test


def test_graphs_are_equal_by_id_and_ir() -> None:
    a, b = popxl.Ir(), popxl.Ir()
    assert a.main_graph == a.main_graph
    assert a.main_graph != b.main_graph
    assert a.create_empty_graph() != a.create_empty_graph()


def test_equal_ids_of_different_irs_are_different_keys() -> None:
    assert len({popxl.Ir().main_graph, popxl.Ir().main_graph}) == 2


def test_comparison_with_another_type_raises(ir: popxl.Ir) -> None:
    with pytest.raises(TypeError, match="Cannot compare a Graph with ''"):
        ir.main_graph == ""  # noqa: B015 - the comparison is the test


# Entering


def test_with_makes_it_current_and_returns_it(ir: popxl.Ir) -> None:
    with ir.main_graph as graph:
        assert graph is ir.main_graph
        assert popxl.gcg() is graph


def test_with_nests_and_may_enter_again(ir: popxl.Ir) -> None:
    other = ir.create_empty_graph()
    with ir.main_graph, other, ir.main_graph, ir.main_graph:
        assert popxl.gcg() is ir.main_graph
    with ir.main_graph:
        with other:
            assert popxl.gcg() is other
        assert popxl.gcg() is ir.main_graph


def test_exception_leaves_the_graph_and_propagates(ir: popxl.Ir) -> None:
    with pytest.raises(KeyError, match="mine"), ir.main_graph:
        raise KeyError("mine")
    assert get_current_context().graphs == []


# Hooks


def test_hook_runs_once_after_each_op(main: popxl.Graph) -> None:
    seen: list[tuple[Op, popxl.Tensor]] = []
    main.register_op_created_hook(lambda op: seen.append((op, op.outputs[0])))
    x = popxl.variable(1.0)
    y = ops.relu(x)
    z = ops.exp(y)
    assert seen == [(y.producer, y), (z.producer, z)]


def test_hook_sees_hidden_ops(main: popxl.Graph) -> None:
    types: list[str] = []
    main.register_op_created_hook(lambda op: types.append(op.type))
    ops.host_load(popxl.h2d_stream((), popxl.float32))
    assert types == ["Init", "HostLoad"]


def test_constants_variables_and_streams_trigger_no_hook(main: popxl.Graph) -> None:
    seen: list[Op] = []
    main.register_op_created_hook(seen.append)
    popxl.constant(1.0)
    popxl.variable(1.0)
    popxl.h2d_stream((), popxl.float32)
    assert seen == []


def test_hook_sees_no_ops_of_subgraphs_made_meanwhile(ir: popxl.Ir, main: popxl.Graph) -> None:
    types: list[str] = []
    main.register_op_created_hook(lambda op: types.append(op.type))
    x = popxl.variable(1.0)
    ops.call(ir.create_graph(lambda a: ops.relu(a), x), x)
    assert types == ["Call"]


def test_hooks_run_in_the_order_of_registration(main: popxl.Graph) -> None:
    order: list[str] = []
    main.register_op_created_hook(lambda _: order.append("first"))
    main.register_op_created_hook(lambda _: order.append("second"))
    ops.init((), popxl.float32)
    assert order == ["first", "second"]


def test_handles_are_unique_and_increase_across_irs() -> None:
    handles = [popxl.Ir().main_graph.register_op_created_hook(lambda _: None) for _ in range(3)]
    assert handles[0] >= 1
    assert handles == sorted(set(handles))


def test_removed_hook_runs_no_more(main: popxl.Graph) -> None:
    seen: list[Op] = []
    handle = main.register_op_created_hook(seen.append)
    ops.init((), popxl.float32)
    main.remove_op_created_hook(handle)
    ops.init((), popxl.float32)
    assert len(seen) == 1


def test_hook_may_remove_itself(main: popxl.Graph) -> None:
    seen: list[Op] = []

    def once(op: Op) -> None:
        seen.append(op)
        main.remove_op_created_hook(handle)

    handle = main.register_op_created_hook(once)
    ops.init((), popxl.float32)
    ops.init((), popxl.float32)
    assert len(seen) == 1


def test_removing_an_unknown_hook_raises(ir: popxl.Ir) -> None:
    handle = ir.main_graph.register_op_created_hook(lambda _: None)
    ir.main_graph.remove_op_created_hook(handle)
    with pytest.raises(ValueError, match=f"handle {handle}"):
        ir.main_graph.remove_op_created_hook(handle)
