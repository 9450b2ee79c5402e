"""`decompose_sum` writes sums as chains of additions, in place (spec ``transforms.md`` §7)."""

from __future__ import annotations

import numpy as np
import pytest
from declared import store
from op_gradients import variable

import popxl
from popxl import ops, transforms
from popxl.ops.addition import add_up
from popxl.tensor import Tensor

FLOAT = popxl.TensorSpec((2,), popxl.float32)


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


def sum_of(ir: popxl.Ir, count: int) -> popxl.Graph:
    return ir.create_graph(lambda *ts: add_up(ts) * 2.0, *[FLOAT] * count)


def types(graph: popxl.Graph) -> list[str]:
    return [op.type for op in graph.ops]


class TestOps:
    @pytest.mark.parametrize("count", [1, 2])
    def test_sums_of_up_to_two_stay(self, ir: popxl.Ir, count: int) -> None:
        graph = sum_of(ir, count)
        transforms.decompose_sum(graph)
        assert types(graph) == ["Sum", "Mul"]

    @pytest.mark.parametrize("count", [3, 4, 9])
    def test_more_become_zeros_and_one_addition_each(self, ir: popxl.Ir, count: int) -> None:
        graph = sum_of(ir, count)
        transforms.decompose_sum(graph)
        assert types(graph) == ["Init", *["Add"] * count, "Mul"]

    def test_the_inputs_are_added_in_their_order(self, ir: popxl.Ir) -> None:
        graph = transforms.decompose_sum(sum_of(ir, 3))
        assert graph.ops[0].attributes["init_type"] == "zero"
        assert [op.inputs[1] for op in graph.ops[1:4]] == list(graph.inputs)
        assert [op.inputs[0] for op in graph.ops[1:4]] == [op.outputs[0] for op in graph.ops[:3]]

    def test_the_same_graph_is_returned(self, ir: popxl.Ir) -> None:
        graph = sum_of(ir, 3)
        assert transforms.decompose_sum(graph) is graph

    def test_the_sum_is_the_same_tensor(self, ir: popxl.Ir) -> None:
        graph = sum_of(ir, 3)
        total = graph.ops[0].outputs[0]
        name = total.id
        transforms.decompose_sum(graph)
        assert total.id == name
        assert total.producer is graph.ops[3]
        assert total.consumers == [graph.ops[4]]
        assert graph.ops[4].inputs[0] is total

    def test_the_inputs_know_their_new_consumers(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda a, b: add_up([a, b, a]), FLOAT, FLOAT)
        transforms.decompose_sum(graph)
        a, b = graph.inputs
        assert set(a.consumers) == {graph.ops[1], graph.ops[3]}
        assert b.consumers == [graph.ops[2]]

    def test_all_sums_of_a_graph(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda *ts: add_up([add_up(ts), *ts]), FLOAT, FLOAT, FLOAT)
        transforms.decompose_sum(graph)
        assert types(graph) == ["Init", *["Add"] * 3, "Init", *["Add"] * 4]

    def test_a_second_time_changes_nothing(self, ir: popxl.Ir) -> None:
        graph = transforms.decompose_sum(sum_of(ir, 3))
        before = str(graph)
        assert str(transforms.decompose_sum(graph)) == before

    def test_called_graphs_stay(self, ir: popxl.Ir) -> None:
        inner = sum_of(ir, 3)
        graph = ir.create_graph(lambda *ts: ops.call(inner, *ts)[0], FLOAT, FLOAT, FLOAT)
        transforms.decompose_sum(graph)
        assert types(inner) == ["Sum", "Mul"]

    def test_the_ops_keep_the_place_and_the_line_of_the_sum(self, ir: popxl.Ir) -> None:
        def function(*ts: Tensor) -> Tensor:
            with popxl.ipu(1), popxl.io_tiles():
                return add_up(ts)

        graph = ir.create_graph(function, FLOAT, FLOAT, FLOAT)
        location = graph.ops[0].location
        transforms.decompose_sum(graph)
        assert {(op.ipu, op.tile_set, op.location) for op in graph.ops} == {(1, "io", location)}

    def test_hooks_see_the_new_ops(self, ir: popxl.Ir) -> None:
        graph = sum_of(ir, 3)
        seen: list[str] = []
        graph.register_op_created_hook(lambda op: seen.append(op.type))
        transforms.decompose_sum(graph)
        assert seen == ["Init", "Add", "Add"]

    def test_a_sealed_program_stays(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            x = variable(np.ones(2, np.float32))
            store(add_up([x, x, x]))
        popxl.Session(ir)
        with pytest.raises(RuntimeError, match="already prepared"):
            transforms.decompose_sum(ir.main_graph)


class TestValues:
    def run(self, *, decompose: bool) -> np.ndarray:
        """The gradient of x * 2 + x * 3 + x * x + x at 5."""
        ir = popxl.Ir()
        with ir.main_graph:
            x = variable(np.float32(5.0))
            graph = ir.create_graph(lambda x: x * 2.0 + x * 3.0 + x * x + x, x)
            info = transforms.autodiff(graph)
            if decompose:
                transforms.decompose_sum(info.graph)
            call = ops.call_with_info(graph, x)
            (gradient,) = ops.call(info.graph, popxl.constant(1.0), inputs_dict=info.inputs_dict(call))
            stream = store(gradient)
        with popxl.Session(ir) as session:
            return np.asarray(session.run()[stream])

    def test_gradients_are_the_same(self) -> None:
        assert self.run(decompose=True) == self.run(decompose=False) == 16.0

    def test_shapes_that_broadcast(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            a, b = variable(np.ones((2, 1), np.float32)), variable(np.array([1.0, 2.0], np.float32))
            graph = ir.create_graph(lambda a, b: add_up([a, b, b]), a, b)
            stream = store(ops.call(transforms.decompose_sum(graph), a, b)[0])
        with popxl.Session(ir) as session:
            np.testing.assert_array_equal(session.run()[stream], [[3.0, 5.0], [3.0, 5.0]])

    @pytest.mark.parametrize("mode", [True, False])
    def test_a_sum_among_ordered_ops(self, ir: popxl.Ir, mode: bool) -> None:
        with ir.main_graph, popxl.in_sequence(mode):
            x = variable(np.float32(3.0))
            total = add_up([x, x, x])
            stream = store(total)
            transforms.decompose_sum(ir.main_graph)
            second = store(total * 2.0)
        with popxl.Session(ir, check_ambiguity=True) as session:
            stored = session.run()
        assert (stored[stream], stored[second]) == (9.0, 18.0)

    def test_a_program_without_it_keeps_its_sums(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            x = variable(np.float32(3.0))
            store(add_up([x, x, x]))
        with popxl.Session(ir) as session:
            session.run()
        assert types(ir.main_graph) == ["Sum", "HostStore"]
