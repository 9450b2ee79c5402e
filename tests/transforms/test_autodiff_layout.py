"""Gradient graphs, and what connects them to forward graphs (spec ``transforms.md`` §1.1-§1.2, §2, §3, §5)."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from declared import store
from graph_gradients import new_graph
from op_gradients import variable

import popxl
from popxl import ops, transforms
from popxl.op import Effect
from popxl.tensor import Tensor
from popxl.transforms import ExpectedConnection, ExpectedConnectionType, GradGraphInfo

FLOAT = popxl.TensorSpec((2,), popxl.float32)
MATRIX = popxl.TensorSpec((2, 2), popxl.float32)
VALUE, GRADIENT = ExpectedConnectionType.Fwd, ExpectedConnectionType.FwdGrad


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


def names(tensors: Any) -> list[str]:
    return [t.name for t in tensors]


def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return ops.tanh(x @ w) + b


class TestModule:
    def test_the_transform_is_a_function_and_a_module(self) -> None:
        module = importlib.import_module("popxl.transforms.autodiff")
        assert module.autodiff is transforms.autodiff
        assert callable(transforms.autodiff)

    @pytest.mark.parametrize("name", ["ExpectedConnection", "ExpectedConnectionType", "GradGraphInfo", "autodiff"])
    def test_the_module_has_the_public_names(self, name: str) -> None:
        module = importlib.import_module("popxl.transforms.autodiff")
        assert getattr(module, name) is getattr(transforms, name)


class TestIds:
    def test_a_gradient_graph_is_called_after_its_graph(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        assert transforms.autodiff(graph).graph.id == f"{graph.id}_bwd"

    def test_a_second_one_has_a_number(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * 2.0, FLOAT)
        ids = [transforms.autodiff(graph).graph.id for _ in range(3)]
        assert ids == [f"{graph.id}_bwd", f"{graph.id}_bwd_1", f"{graph.id}_bwd_2"]

    def test_the_current_graph_gets_no_op(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
            transforms.autodiff(graph)
        assert ir.main_graph.ops == ()

    def test_no_graph_need_be_current(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        assert len(transforms.autodiff(graph).outputs) == 3

    def test_name_scopes_around_do_not_show(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * x, FLOAT)
        with ir.main_graph, popxl.name_scope("outside"):
            info = transforms.autodiff(graph)
        assert names(info.graph.inputs) == ["Gradient___mul_out", "x"]


class TestInputs:
    def test_gradients_come_first_and_then_values_by_id(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        info = transforms.autodiff(graph)
        assert names(info.graph.inputs) == ["Gradient___add_out", "tanh_out", "w", "x"]
        assert info.inputs == tuple(graph.get_tensor(f"{graph.id}/{n}") for n in ("add_out", "tanh_out", "w", "x"))

    def test_gradients_are_in_the_order_of_the_provided(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: (x * 2.0, x + 1.0), FLOAT)
        info = transforms.autodiff(graph, graph.outputs[::-1])
        assert names(info.graph.inputs) == ["Gradient___add_out", "Gradient___mul_out"]

    def test_a_provided_gradient_that_is_not_used_is_an_input(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, y: (x * 2.0, y + 1.0), FLOAT, FLOAT)
        info = transforms.autodiff(graph, grads_required=graph.inputs[:1])
        assert names(info.graph.inputs) == ["Gradient___mul_out", "Gradient___add_out"]

    def test_values_that_are_not_needed_are_absent(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, w, b: x * w + b, FLOAT, FLOAT, FLOAT)
        info = transforms.autodiff(graph, grads_required=[graph.inputs[0]])
        assert info.inputs == (graph.outputs[0], graph.inputs[1])

    def test_constants_are_made_again(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * popxl.constant([3.0, 4.0], popxl.float32, "factor"), FLOAT)
        info = transforms.autodiff(graph)
        assert info.inputs == graph.outputs
        assert names(info.graph.constants) == ["factor"]

    def test_gradients_and_values_look_like_their_tensors(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(
            lambda x, h: x @ ops.cast(h, popxl.float32), MATRIX, popxl.TensorSpec((2, 3), popxl.float16)
        )
        info = transforms.autodiff(graph)
        for t, forward in zip(info.graph.inputs, info.inputs, strict=True):
            assert (t.shape, t.dtype) == (forward.shape, forward.dtype)
        for t, forward in zip(info.graph.outputs, info.outputs, strict=True):
            assert (t.shape, t.dtype) == (forward.shape, forward.dtype)


class TestOutputs:
    def test_outputs_are_the_required_in_their_order(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        x, _, b = graph.inputs
        info = transforms.autodiff(graph, grads_required=[b, x])
        assert info.outputs == (b, x)
        assert names(info.graph.outputs) == ["Gradient___b", "Gradient___x"]

    def test_names_hold_the_graph_and_the_tensor(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * 2.0, FLOAT)
        info = transforms.autodiff(graph)
        assert info.graph.outputs[0].id == f"{graph.id}_bwd/Gradient___x"

    def test_names_hold_the_scopes_of_the_tensor(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> Tensor:
            with popxl.name_scope("layer"):
                return x * 2.0

        info = transforms.autodiff(ir.create_graph(function, FLOAT))
        assert names(info.graph.inputs) == ["Gradient___layer/mul_out"]

    def test_results_of_calls_are_named_after_the_forward_tensor(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(lambda x: x * 2.0, FLOAT)
            info = transforms.autodiff(graph)
            seed = popxl.constant(np.ones(2, np.float32))
            first, second = (ops.call(info.graph, seed)[0] for _ in range(2))
        assert first.name == "Gradient___x"
        assert second.name.startswith("Gradient___x__t")


class TestOps:
    def test_each_differentiated_tensor_has_one_sum(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, w: ops.tanh(x * w) * x, FLOAT, FLOAT)
        sums = [op for op in transforms.autodiff(graph).graph.ops if op.type == "Sum"]
        # Two products, tanh, x (used twice) and w.
        assert sorted(len(op.inputs) for op in sums) == [1, 1, 1, 1, 2]

    def test_an_op_has_one_gradient_op(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        found = Counter(op.type for op in transforms.autodiff(graph).graph.ops)
        assert found == {"Sum": 6, "AddGrad": 1, "TanhGrad": 1, "MatMulGrad": 1}

    def test_ops_that_lead_to_nothing_required_have_none(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        found = Counter(op.type for op in transforms.autodiff(graph, grads_required=graph.inputs[2:]).graph.ops)
        assert found == {"Sum": 2, "AddGrad": 1}

    def test_a_provided_output_that_is_used_inside_is_summed(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            y = x * 2.0
            return y, y * 3.0

        graph = ir.create_graph(function, FLOAT)
        info = transforms.autodiff(graph)
        (total,) = [op for op in info.graph.ops if op.type == "Sum" and len(op.inputs) == 2]
        assert total.inputs[0] == info.graph.inputs[0]

    def test_printing_the_gradient_happens_in_the_gradient_graph(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: ops.print_tensor(x, title="x", print_gradient=True) * 2.0, FLOAT)
        printed = [op for op in transforms.autodiff(graph).graph.ops if op.definition.effect is Effect.PRINT]
        assert [op.attributes["title"] for op in printed] == ["x_gradient"]


class TestForwardGraph:
    def test_a_value_that_is_needed_is_appended_to_the_outputs(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        transforms.autodiff(graph)
        assert names(graph.outputs) == ["add_out", "tanh_out"]

    def test_the_product_of_the_first_example_is_not_needed(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, w, b: x * w + b, FLOAT, FLOAT, FLOAT)
        x, w, b = graph.inputs
        info = transforms.autodiff(graph, grads_required=[w, b])
        assert names(graph.outputs) == ["add_out"]
        assert info.inputs == (graph.outputs[0], x)

    def test_the_second_example(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, w, b: x @ w + b, MATRIX, MATRIX, FLOAT)
        x, w, _ = graph.inputs
        info = transforms.autodiff(graph)
        assert names(graph.outputs) == ["add_out"]
        assert info.inputs == (graph.outputs[0], w, x)

    def test_outputs_are_not_appended_twice(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        for _ in range(2):
            transforms.autodiff(graph, grads_provided=graph.outputs[:1])
        assert names(graph.outputs) == ["add_out", "tanh_out"]

    def test_a_second_default_asks_for_the_gradients_of_the_appended(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        transforms.autodiff(graph)
        second = transforms.autodiff(graph)
        assert second.inputs[:2] == graph.outputs
        assert [c.connection_type for c in second.expected_inputs[:2]] == [GRADIENT, GRADIENT]

    def test_a_second_with_the_first_outputs_is_like_the_first(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        first = transforms.autodiff(graph)
        second = transforms.autodiff(graph, grads_provided=graph.outputs[:1])
        assert first.inputs == second.inputs

    def test_calls_made_before_get_the_new_outputs(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
            x, b = variable(np.ones((2, 2), np.float32)), variable(np.ones(2, np.float32))
            calls = [ops.call_with_info(graph, x, x, b) for _ in range(2)]
            transforms.autodiff(graph)
        for call in calls:
            assert len(call.outputs) == 2
            assert call.outputs[1].name.startswith("autodiff_output__t")
            assert (call.outputs[1].shape, call.outputs[1].dtype) == ((2, 2), popxl.float32)
            assert call.graph_to_parent(graph.outputs[1]) == call.outputs[1]

    def test_calls_made_after_return_the_new_outputs(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
            transforms.autodiff(graph)
            x, b = variable(np.ones((2, 2), np.float32)), variable(np.ones(2, np.float32))
            y, *rest = ops.call(graph, x, x, b)
        assert y.name == "add_out"
        assert names(rest) == ["tanh_out"]

    def test_values_bubble_up_through_calls(self, ir: popxl.Ir) -> None:
        def middle(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return ops.call(lowest, x, w, b)[0] * 2.0

        def upper(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return ops.call(middle_graph, x, w, b)[0] * 3.0

        lowest = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        middle_graph = ir.create_graph(middle, MATRIX, MATRIX, FLOAT)
        upper_graph = ir.create_graph(upper, MATRIX, MATRIX, FLOAT)
        info = transforms.autodiff(upper_graph)
        for graph in (lowest, middle_graph, upper_graph):
            assert len(graph.outputs) == 2
        assert info.inputs[1].name.startswith("autodiff_output__t")
        assert [g.id for g in info.graph.called_graphs] == [f"{middle_graph.id}_bwd"]

    def test_a_branch_gets_no_outputs(self, ir: popxl.Ir) -> None:
        branch = ir.create_graph(lambda a: ops.tanh(a * 2.0) * 3.0, FLOAT)

        def function(c: Tensor, x: Tensor) -> Tensor:
            return ops.conditional(c, branch, branch, [x], [x])[0]

        graph = ir.create_graph(function, popxl.TensorSpec((), popxl.bool), FLOAT)
        info = transforms.autodiff(graph, grads_required=graph.inputs[1:])
        assert len(branch.outputs) == 1
        assert info.inputs == (graph.outputs[0], *graph.inputs)

    def test_a_graph_called_by_a_branch_gets_outputs_though_it_is_computed_again(self, ir: popxl.Ir) -> None:
        inner = ir.create_graph(lambda a: ops.tanh(a * 2.0) * 3.0, FLOAT)
        branch = ir.create_graph(lambda a: ops.call(inner, a)[0], FLOAT)

        def function(c: Tensor, x: Tensor) -> Tensor:
            return ops.conditional(c, branch, branch, [x], [x])[0]

        graph = ir.create_graph(function, popxl.TensorSpec((), popxl.bool), FLOAT)
        found = transforms.autodiff(graph, grads_required=graph.inputs[1:], return_all_grad_graphs=True)
        assert (len(inner.outputs), len(branch.outputs)) == (2, 1)
        assert [op.type for op in found[branch].graph.ops if op.called_graphs] == ["Call", "Call"]
        assert found[branch].inputs == (branch.outputs[0], branch.inputs[0])

    def test_the_body_of_a_loop_keeps_its_outputs_in_the_loop(self, ir: popxl.Ir) -> None:
        body = ir.create_graph(lambda a: ops.tanh(a * 2.0) * 3.0, FLOAT)
        graph = ir.create_graph(lambda x: ops.repeat(body, 3, x)[0], FLOAT)
        transforms.autodiff(graph)
        assert len(graph.outputs) == 1
        assert len(graph.ops[0].outputs) == 1


class TestCalledGraphs:
    def test_a_graph_called_twice_is_differentiated_once(self, ir: popxl.Ir) -> None:
        inner = ir.create_graph(lambda a: a * a, FLOAT)
        graph = ir.create_graph(lambda x: ops.call(inner, ops.call(inner, x)[0])[0], FLOAT)
        info = transforms.autodiff(graph)
        assert [op.called_graphs[0].id for op in info.graph.ops if op.called_graphs] == [f"{inner.id}_bwd"] * 2

    def test_all_gradient_graphs_are_returned_if_asked_for(self, ir: popxl.Ir) -> None:
        inner = ir.create_graph(lambda a: a * a, FLOAT)
        graph = ir.create_graph(lambda x: ops.call(inner, x)[0], FLOAT)
        found = transforms.autodiff(graph, return_all_grad_graphs=True)
        assert set(found) == {inner, graph}
        assert found[inner].forward_graph == inner
        assert found[graph].forward_graph == graph

    def test_given_gradient_graphs_are_used_and_returned(self, ir: popxl.Ir) -> None:
        inner = ir.create_graph(lambda a: a * a, FLOAT)
        other = ir.create_graph(lambda a: a * a, FLOAT)
        graph = ir.create_graph(lambda x: ops.call(inner, x)[0], FLOAT)
        given = {g: transforms.autodiff(g) for g in (inner, other)}
        found = transforms.autodiff(graph, called_graphs_grad_info=given, return_all_grad_graphs=True)
        assert {g: found[g] for g in given} == given
        assert found[graph].graph.called_graphs == (given[inner].graph,)
        assert [g.id for g in ir.graphs].count(f"{inner.id}_bwd_1") == 0

    def test_an_entry_for_the_graph_itself_is_returned(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * x, FLOAT)
        info = transforms.autodiff(graph)
        assert transforms.autodiff(graph, called_graphs_grad_info={graph: info}) is info

    def test_a_given_gradient_graph_may_take_fewer_gradients(self, ir: popxl.Ir) -> None:
        inner = ir.create_graph(lambda a, b: (a * b, a + b), FLOAT, FLOAT)
        info = transforms.autodiff(inner, inner.outputs[:1], inner.inputs[:1])
        graph = ir.create_graph(lambda x, y: ops.call(inner, x, y), FLOAT, FLOAT)
        found = transforms.autodiff(graph, grads_required=graph.inputs[:1], called_graphs_grad_info={inner: info})
        (call,) = [op for op in found.graph.ops if op.called_graphs]
        assert len(call.inputs) == 2

    def test_a_given_gradient_graph_may_take_the_gradient_of_a_value_inside(self, ir: popxl.Ir) -> None:
        inner = ir.create_graph(lambda a: (a * 2.0) * 3.0, FLOAT)
        middle = inner.ops[0].outputs[0]
        info = transforms.autodiff(inner, [inner.outputs[0], middle])
        graph = ir.create_graph(lambda x: ops.call(inner, x)[0], FLOAT)
        found = transforms.autodiff(graph, called_graphs_grad_info={inner: info})
        assert [op.type for op in found.graph.ops] == ["Sum", "Init", "Call", "Sum"]


class TestConnections:
    def test_they_cannot_be_made_directly(self) -> None:
        with pytest.raises(TypeError, match="ExpectedConnection should not be constructed directly"):
            ExpectedConnection()
        with pytest.raises(TypeError, match="GradGraphInfo should not be constructed directly"):
            GradGraphInfo()

    def test_types_are_called_by_their_names(self) -> None:
        assert [t.value for t in ExpectedConnectionType] == ["Fwd", "FwdGrad"]

    def test_a_connection_is_read_only(self, ir: popxl.Ir) -> None:
        connection = transforms.autodiff(ir.create_graph(lambda x: x * x, FLOAT)).expected_inputs[0]
        for name in ("fwd_tensor", "connection_type"):
            with pytest.raises(AttributeError):
                setattr(connection, name, None)

    def test_repr_of_a_connection(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * x, FLOAT)
        connection = transforms.autodiff(graph).expected_inputs[1]
        assert repr(connection) == f"(ExpectedConnectionType.Fwd, {graph.inputs[0]})"

    def test_the_same_connections_every_time(self, ir: popxl.Ir) -> None:
        info = transforms.autodiff(ir.create_graph(layer, MATRIX, MATRIX, FLOAT))
        for get in (lambda: info.expected_inputs, lambda: info.expected_outputs):
            assert all(a is b for a, b in zip(get(), get(), strict=True))
            assert [get().index(c) for c in get()] == list(range(len(get())))

    def test_connections_of_two_graphs_differ(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * x, FLOAT)
        first, second = (transforms.autodiff(graph) for _ in range(2))
        assert first.expected_inputs[0] != second.expected_inputs[0]


class TestInfo:
    def test_graphs(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * x, FLOAT)
        info = transforms.autodiff(graph)
        assert info.forward_graph == graph
        assert info.graph in ir.graphs

    def test_expected_inputs_are_gradients_then_values(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, w: x * w, FLOAT, FLOAT)
        info = transforms.autodiff(graph)
        expected = [(graph.outputs[0], GRADIENT), (graph.inputs[1], VALUE), (graph.inputs[0], VALUE)]
        assert [(c.fwd_tensor, c.connection_type) for c in info.expected_inputs] == expected
        assert info.inputs == tuple(t for t, _ in expected)

    def test_expected_outputs_are_gradients(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, w: x * w, FLOAT, FLOAT)
        info = transforms.autodiff(graph)
        assert [(c.fwd_tensor, c.connection_type) for c in info.expected_outputs] == [
            (t, GRADIENT) for t in graph.inputs
        ]
        assert info.outputs == graph.inputs

    def test_values_are_inputs_or_outputs_of_the_forward_graph(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
        info = transforms.autodiff(graph)
        values = [c.fwd_tensor for c in info.expected_inputs if c.connection_type is VALUE]
        assert set(values) <= {*graph.inputs, *graph.outputs}

    def test_later_inputs_of_the_gradient_graph_are_not_expected(self, ir: popxl.Ir) -> None:
        info = transforms.autodiff(ir.create_graph(lambda x: x * x, FLOAT))
        before = info.expected_inputs
        with info.graph:
            popxl.graph_input((), popxl.float32, "more")
        assert info.expected_inputs == before

    def test_repr(self, ir: popxl.Ir) -> None:
        info = transforms.autodiff(ir.create_graph(lambda x: x * x, FLOAT))
        assert repr(info).splitlines() == [
            "GradGraphInfo[",
            f"  graph={info.graph.id}",
            "  expected_inputs=[",
            *(f"    {c!r}," for c in info.expected_inputs),
            "  ]",
            "  expected_outputs=[",
            f"    {info.expected_outputs[0]!r},",
            "  ]",
            "]",
        ]


class TestMappings:
    @pytest.mark.parametrize("before", [True, False])
    def test_inputs_dict_names_the_callers_values(self, ir: popxl.Ir, before: bool) -> None:
        with ir.main_graph:
            graph = ir.create_graph(layer, MATRIX, MATRIX, FLOAT)
            x, w = variable(np.ones((2, 2), np.float32)), variable(np.ones((2, 2), np.float32))
            b = variable(np.ones(2, np.float32))
            call = ops.call_with_info(graph, x, w, b) if before else None
            info = transforms.autodiff(graph)
            call = call or ops.call_with_info(graph, x, w, b)
        found = info.inputs_dict(call)
        assert {t.name: value for t, value in found.items()} == {"x": x, "w": w, "tanh_out": call.outputs[1]}
        assert set(found) == set(info.graph.inputs[1:])

    def test_inputs_dict_prefers_inputs_to_outputs(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(lambda x: (x * x, x), FLOAT)
            info = transforms.autodiff(graph)
            x = variable(np.ones(2, np.float32))
            call = ops.call_with_info(graph, x)
        assert list(info.inputs_dict(call).values()) == [x]

    def test_inputs_dict_of_another_graph(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph, other = (ir.create_graph(lambda x: x * x, FLOAT) for _ in range(2))
            info = transforms.autodiff(graph)
            call = ops.call_with_info(other, variable(np.ones(2, np.float32)))
            with pytest.raises(TypeError, match="The called graph does not match the graph that was differentiated"):
                info.inputs_dict(call)

    def test_inputs_dict_of_a_loop(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(lambda x: x * x, FLOAT)
            info = transforms.autodiff(graph)
            call = ops.repeat_with_info(graph, 2, variable(np.ones(2, np.float32)))
            with pytest.raises(TypeError, match="does not match the graph that was differentiated"):
                info.inputs_dict(call)

    def test_inputs_dict_of_a_conditional(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(lambda x: x * x, FLOAT)
            info = transforms.autodiff(graph)
            x = variable(np.ones(2, np.float32))
            call = ops.conditional_with_info(popxl.constant(True), graph, graph, [x], [x])
            with pytest.raises(TypeError, match="does not match the graph that was differentiated"):
                info.inputs_dict(call)

    def test_gradients_by_tensor_of_the_forward_graph(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(lambda x, w: x * w, FLOAT, FLOAT)
            info = transforms.autodiff(graph, grads_required=graph.inputs[::-1])
            x, w, g = (variable(np.ones(2, np.float32)) for _ in range(3))
            call = ops.call_with_info(graph, x, w)
            gradient = ops.call_with_info(info.graph, g, inputs_dict=info.inputs_dict(call))
        dw, dx = gradient.outputs
        assert info.fwd_graph_ins_to_grad_parent_outs(gradient) == dict(zip(graph.inputs, (dx, dw), strict=True))
        assert info.fwd_parent_ins_to_grad_parent_outs(call, gradient) == {x: dx, w: dw}

    def test_a_tensor_passed_twice_has_the_gradient_of_the_later_input(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(lambda x, w: x * w, FLOAT, FLOAT)
            info = transforms.autodiff(graph)
            x, g = (variable(np.ones(2, np.float32)) for _ in range(2))
            call = ops.call_with_info(graph, x, x)
            gradient = ops.call_with_info(info.graph, g, inputs_dict=info.inputs_dict(call))
        assert info.fwd_parent_ins_to_grad_parent_outs(call, gradient) == {x: gradient.outputs[1]}

    def test_gradients_that_were_removed_are_left_out(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(lambda x, w: x * w, FLOAT, FLOAT)
            info = transforms.autodiff(graph)
            info.graph.remove_output(0)
            x, w, g = (variable(np.ones(2, np.float32)) for _ in range(3))
            call = ops.call_with_info(graph, x, w)
            gradient = ops.call_with_info(info.graph, g, inputs_dict=info.inputs_dict(call))
        assert info.fwd_parent_ins_to_grad_parent_outs(call, gradient) == {w: gradient.outputs[0]}


class TestEditing:
    def test_remove_output(self, ir: popxl.Ir) -> None:
        graph = transforms.autodiff(ir.create_graph(lambda x, w: x * w, FLOAT, FLOAT)).graph
        first, second = graph.outputs
        graph.remove_output(0)
        assert graph.outputs == (second,)
        assert first in graph

    @pytest.mark.parametrize("index", [-1, 1, 5])
    def test_remove_an_output_that_is_not_there(self, ir: popxl.Ir, index: int) -> None:
        graph = ir.create_graph(lambda x: x * x, FLOAT)
        with pytest.raises(IndexError, match=f"has no output {index}, it has 1"):
            graph.remove_output(index)

    def test_remove_an_output_of_a_graph_that_is_called(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            graph = ir.create_graph(lambda x: x * x, FLOAT)
            ops.call(graph, variable(np.ones(2, np.float32)))
            with pytest.raises(popxl.errors.CoreError, match="the graph is called already"):
                graph.remove_output(0)

    def test_remove_an_output_of_a_sealed_program(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * x, FLOAT)
        with ir.main_graph:
            store(popxl.constant(1.0))
        popxl.Session(ir)
        with pytest.raises(RuntimeError, match="already prepared"):
            graph.remove_output(0)

    def test_a_graph_built_inside_a_graph_is_a_plain_one(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            x = variable(np.ones(2, np.float32))
            info = transforms.autodiff(new_graph(lambda a: a * a, x))
            assert popxl.gcg() == ir.main_graph
        assert str(info.graph).startswith(f"graph {info.graph.id} (Gradient___mul_out : float32[2], a : float32[2])")
