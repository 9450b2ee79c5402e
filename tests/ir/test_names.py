"""Names and ids of tensors and graphs (spec core.md §7)."""

from __future__ import annotations

import pytest

import popxl
from popxl import ops


class Outer:
    def method(self, ir: popxl.Ir) -> popxl.Graph:
        def inner(a: popxl.Tensor) -> popxl.Tensor:
            return a

        return ir.create_graph(inner, popxl.TensorSpec((1,), popxl.int32))


def test_taken_names_get_a_counter(main: popxl.Graph) -> None:
    ids = [popxl.constant(0.0, name="tensor").id for _ in range(3)]
    assert ids == ["tensor", "tensor__t0", "tensor__t1"]


def test_one_counter_serves_all_names_and_graphs_of_an_ir(ir: popxl.Ir, main: popxl.Graph) -> None:
    for name in ("a", "b"):
        popxl.constant(0.0, name=name)
    assert popxl.constant(0.0, name="a").id == "a__t0"
    assert popxl.constant(0.0, name="b").id == "b__t1"
    graph = ir.create_empty_graph()
    with graph:
        assert popxl.constant(0.0, name="a").name == "a"
        assert popxl.constant(0.0, name="a").name == "a__t2"


def test_counters_restart_with_each_ir() -> None:
    for _ in range(2):
        ir = popxl.Ir()
        with ir.main_graph:
            assert [popxl.constant(0.0).id for _ in range(2)] == ["t", "t__t0"]
        assert ir.create_empty_graph().id == "graph_subgraph(0)"


def test_suffixed_name_that_is_taken_is_skipped(main: popxl.Graph) -> None:
    popxl.constant(0.0, name="a__t0")
    assert [popxl.constant(0.0, name="a").id for _ in range(2)] == ["a", "a__t1"]


def test_equal_ids_of_two_irs_are_different_tensors() -> None:
    tensors = []
    for _ in range(2):
        with popxl.Ir().main_graph:
            tensors.append(popxl.constant(0.0, name="a"))
    assert tensors[0].id == tensors[1].id
    assert tensors[0] != tensors[1]
    assert len(set(tensors)) == 2


def test_scopes_are_joined_in_front_of_the_name(main: popxl.Graph) -> None:
    with popxl.name_scope("foo"):
        assert popxl.constant(0.0, name="bar").name == "foo/bar"
        with popxl.name_scope("deep"):
            assert popxl.constant(0.0).name == "foo/deep/t"
    assert popxl.constant(0.0, name="bar").name == "bar"


def test_same_name_in_two_scopes_needs_no_suffix(main: popxl.Graph) -> None:
    for scope in ("a", "b"):
        with popxl.name_scope(scope):
            assert popxl.constant(0.0).name == f"{scope}/t"


def test_id_name_and_scope_in_the_main_graph(main: popxl.Graph) -> None:
    t = popxl.constant(0.0, name="a")
    assert (t.id, t.name, t.scope) == ("a", "a", "")


def test_id_name_and_scope_in_a_subgraph(ir: popxl.Ir) -> None:
    graph = ir.create_graph(lambda x: x, popxl.TensorSpec((), popxl.int32))
    t = graph.inputs[0]
    assert (t.id, t.name, t.scope) == (f"{graph.id}/x", "x", graph.id)


def test_default_base_names(main: popxl.Graph) -> None:
    assert popxl.variable(0.0).name == "t"
    assert popxl.constant(0.0).name == "t__t0"
    assert popxl.h2d_stream((), popxl.float32).tensor_id == "h2d_stream"
    assert popxl.d2h_stream((), popxl.float32).tensor_id == "d2h_stream"
    assert ops.relu(popxl.constant(0.0)).name == "relu_out"


def test_default_name_of_a_graph_input(ir: popxl.Ir) -> None:
    with ir.create_empty_graph():
        assert popxl.graph_input((), popxl.float32).name == "t"


# Graphs


def test_graph_of_a_nested_function_has_its_qualified_name(ir: popxl.Ir) -> None:
    graph = Outer().method(ir)
    assert graph.id == "Outer.method.inner_subgraph(0)"
    assert repr(graph.inputs[0]) == "Tensor[Outer.method.inner_subgraph(0)/a popxl.dtypes.int32 (1,)]"


def test_graph_of_a_bound_method_has_its_qualified_name(ir: popxl.Ir) -> None:
    class Layer:
        def build(self) -> None: ...

    graph = ir.create_graph(Layer().build)
    assert graph.id == f"{Layer.build.__qualname__.replace('.<locals>', '')}_subgraph(0)"


def test_graph_of_a_lambda(ir: popxl.Ir) -> None:
    assert ir.create_graph(lambda: None).id == "test_graph_of_a_lambda.<lambda>_subgraph(0)"


def test_hidden_graphs_of_repeat_are_counted(ir: popxl.Ir, main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    ops.repeat(ir.create_graph(lambda a: a + a, x), 2, x)
    assert ir.create_empty_graph().id == "graph_subgraph(2)"


@pytest.mark.parametrize("name", ["a b", "a/b", "ü", "0", "__t0"])
def test_any_text_is_a_name(main: popxl.Graph, name: str) -> None:
    t = popxl.constant(0.0, name=name)
    assert main.get_tensor(name) is t
    assert popxl.constant(0.0, name=name).name == f"{name}__t0"
