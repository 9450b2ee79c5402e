"""What cannot be differentiated, and what only looks as if it could not (spec ``transforms.md`` §1.3)."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from graph_gradients import new_graph

import popxl
from popxl import ops, transforms
from popxl.errors import CoreError
from popxl.tensor import Tensor

FLOAT = popxl.TensorSpec((2,), popxl.float32)
INT = popxl.TensorSpec((2,), popxl.int32)
BOOL = popxl.TensorSpec((), popxl.bool)
SEED = popxl.TensorSpec((2,), popxl.uint32)
IMAGE = popxl.TensorSpec((1, 1, 4, 4), popxl.float32)


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


def refused(graph: popxl.Graph, match: str, **options: Any) -> CoreError:
    """The error of differentiating a graph. It leaves the program as it was."""
    before = repr_of(graph.ir)
    with pytest.raises(CoreError, match=match) as caught:
        transforms.autodiff(graph, **options)
    assert repr_of(graph.ir) == before
    return caught.value


def repr_of(ir: popxl.Ir) -> str:
    return "\n".join(str(g) for g in ir.graphs)


def here(error: CoreError, function: Callable[..., Any]) -> bool:
    """Whether an error says that it happened in a line of `function`."""
    lines, first = inspect.getsourcelines(function)
    spots = [f"{__file__.rsplit('/', 1)[-1]}:{n}" for n in range(first, first + len(lines))]
    assert error.where is not None
    return any(spot in error.where for spot in spots)


class TestRequired:
    def test_nothing_required(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * 2.0, FLOAT)
        error = refused(graph, "Calling Autodiff on Graph .* with defined but empty vector", grads_required=[])
        assert str(error).startswith("[Autodiff] Calling Autodiff on Graph")

    def test_a_graph_without_inputs(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda: ops.init((2,), popxl.float32))
        refused(graph, "defined but empty vector")

    def test_a_required_tensor_of_another_graph(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * 2.0, FLOAT)
        other = ir.create_graph(lambda x: x * 2.0, FLOAT)
        error = refused(graph, "`grads_required`", grads_required=other.inputs)
        assert str(error).startswith("[Autodiff] In call to Autodiff on forward graph `")
        assert "you have passed a tensor" in str(error)
        assert other.inputs[0].id in str(error)

    def test_a_provided_tensor_of_another_graph(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * 2.0, FLOAT)
        other = ir.create_graph(lambda x: x * 2.0, FLOAT)
        refused(graph, "you have passed a tensor in `grads_provided`", grads_provided=other.outputs)

    def test_a_tensor_of_a_program_with_the_same_names(self, ir: popxl.Ir) -> None:
        def double(x: Tensor) -> Tensor:
            return x * 2.0

        twin = popxl.Ir().create_graph(double, FLOAT)
        refused(ir.create_graph(double, FLOAT), "you have passed a tensor", grads_required=twin.inputs)

    def test_a_value_that_is_no_tensor(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * 2.0, FLOAT)
        with pytest.raises(TypeError, match="Only a Tensor can be in a graph"):
            transforms.autodiff(graph, grads_required=["x"])  # type: ignore[list-item]

    def test_a_sealed_program(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: x * 2.0, FLOAT)
        with ir.main_graph:
            ops.init((), popxl.float32)
        popxl.Session(ir)
        with pytest.raises(RuntimeError, match="already prepared"):
            transforms.autodiff(graph)

    def test_a_provided_tensor_that_is_no_output_is_a_warning(
        self, ir: popxl.Ir, caplog: pytest.LogCaptureFixture
    ) -> None:
        graph = ir.create_graph(lambda x: (x * 2.0) * 3.0, FLOAT)
        middle = graph.ops[0].outputs[0]
        with caplog.at_level(logging.WARNING):
            info = transforms.autodiff(graph, [middle])
        assert info.inputs == (middle,)
        assert middle.id in caplog.text

    def test_provided_outputs_are_no_warning(self, ir: popxl.Ir, caplog: pytest.LogCaptureFixture) -> None:
        transforms.autodiff(ir.create_graph(lambda x: x * 2.0, FLOAT))
        assert not caplog.records


def detached(x: Tensor) -> Tensor:
    return ops.detach(x) * 2.0


def compared(x: Tensor) -> Tensor:
    return ops.where(ops.greater(x, popxl.constant(0.0)), popxl.constant(1.0), popxl.constant(2.0))


def rounded(x: Tensor) -> Tensor:
    return ops.cast(ops.cast(x, popxl.int32), popxl.float32)


def counted(x: Tensor) -> Tensor:
    return ops.cast(ops.argmax(x, 0), popxl.float32)


class TestNoPath:
    @pytest.mark.parametrize("function", [detached, compared, rounded, counted])
    def test_a_path_that_ends_names_its_end(self, ir: popxl.Ir, function: Callable[..., Any]) -> None:
        graph = ir.create_graph(function, FLOAT)
        error = refused(graph, "Unable to provide required gradient output for fwd id")
        assert str(error).startswith(
            f"[Autodiff] Unable to provide required gradient output for fwd id '{graph.inputs[0].id}' in bwd graph "
        )
        assert here(error, function)

    def test_the_op_at_the_end_is_named(self, ir: popxl.Ir) -> None:
        error = refused(ir.create_graph(lambda x: ops.detach(x * 3.0) * 2.0, FLOAT), "Unable to provide")
        assert error.where is not None
        assert "Detach" in error.where

    def test_an_integer_input(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, i: ops.gather(x, i), FLOAT, INT)
        assert graph.inputs[1].id in refused(graph, "Unable to provide").fact

    def test_an_integer_input_that_is_an_output(self, ir: popxl.Ir) -> None:
        refused(ir.create_graph(lambda x, i: (x * 2.0, i), FLOAT, INT), "Unable to provide")

    def test_an_input_that_is_not_used(self, ir: popxl.Ir) -> None:
        refused(ir.create_graph(lambda x, y: x * 2.0, FLOAT, FLOAT), "Unable to provide")

    def test_the_seed_of_a_dropout(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, s: ops.dropout(x, s, 0.5), FLOAT, SEED)
        refused(graph, "Unable to provide")
        assert transforms.autodiff(graph, grads_required=graph.inputs[:1]).outputs == graph.inputs[:1]

    def test_a_path_to_an_output_that_is_not_provided(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x, y: (x * 2.0, y * 2.0), FLOAT, FLOAT)
        refused(graph, "Unable to provide", grads_provided=graph.outputs[:1])

    def test_nothing_provided(self, ir: popxl.Ir) -> None:
        refused(ir.create_graph(lambda x: x * 2.0, FLOAT), "Unable to provide", grads_provided=[])

    def test_a_tensor_behind_the_provided_one(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: (x * 2.0) * 3.0, FLOAT)
        middle = graph.ops[0].outputs[0]
        refused(graph, "Unable to provide", grads_provided=[middle], grads_required=graph.outputs)

    def test_a_path_through_an_inner_output_that_is_not_used(self, ir: popxl.Ir) -> None:
        def function(x: Tensor, y: Tensor) -> Tensor:
            return ops.call(new_graph(lambda a, b: (a * 2.0, b * 2.0), x, y), x, y)[0]

        with ir.main_graph:
            graph = ir.create_graph(function, FLOAT, FLOAT)
        refused(graph, "Unable to provide")

    def test_the_condition_of_a_conditional(self, ir: popxl.Ir) -> None:
        def function(c: Tensor, x: Tensor) -> Tensor:
            double = new_graph(lambda a: a * 2.0, x)
            return ops.conditional(c, double, double, [x], [x])[0]

        refused(ir.create_graph(function, BOOL, FLOAT), "Unable to provide")

    def test_where_all_inputs_are_wanted_the_hint_says_how_to_choose(self, ir: popxl.Ir) -> None:
        error = refused(ir.create_graph(lambda x, i: ops.gather(x, i), FLOAT, INT), "Unable to provide")
        assert error.hint is not None
        assert "grads_required" in error.hint


def add_in_place(x: Tensor) -> Tensor:
    x += 1.0
    return x


def gelu_in_place(x: Tensor) -> Tensor:
    return ops.gelu_(x * 1.0)


def accumulated(x: Tensor) -> Tensor:
    return ops.var_updates.accumulate_(x, x * 2.0)


def written_over_a_constant(x: Tensor) -> Tensor:
    return ops.add_(popxl.constant(np.ones(2, np.float32)), x)


def by_reference(x: Tensor) -> Tensor:
    def inner(a: popxl.TensorByRef) -> Tensor:
        return a * 2.0

    return ops.call(new_graph(inner, x), x)[0]


def marked(x: Tensor) -> Tensor:
    info = ops.call_with_info(new_graph(lambda a: a * 2.0, x), x)
    info.set_parent_input_modified(x)
    return info.outputs[0]


def inner_update(x: Tensor) -> Tensor:
    return ops.call(new_graph(add_in_place, x), x)[0]


def update_in_a_branch(x: Tensor) -> Tensor:
    graph = new_graph(add_in_place, x)
    return ops.conditional(popxl.constant(True), graph, graph, [x], [x])[0]


def update_in_a_loop(x: Tensor) -> Tensor:
    return ops.repeat(new_graph(add_in_place, x), 2, x)[0]


class TestModifying:
    @pytest.mark.parametrize(
        "function", [add_in_place, gelu_in_place, accumulated, written_over_a_constant, by_reference, marked]
    )
    def test_a_graph_that_overwrites(self, ir: popxl.Ir, function: Callable[..., Any]) -> None:
        graph = ir.create_graph(function, FLOAT)
        error = refused(graph, "contains a modifying op")
        assert str(error).startswith(f"The graph {graph.id} contains a modifying op: ")
        assert here(error, function)

    @pytest.mark.parametrize("function", [inner_update, update_in_a_branch, update_in_a_loop])
    def test_a_called_graph_that_overwrites(self, ir: popxl.Ir, function: Callable[..., Any]) -> None:
        error = refused(ir.create_graph(function, FLOAT), "contains a modifying op: AddLhsInplace")
        assert here(error, add_in_place)

    def test_the_op_is_named(self, ir: popxl.Ir) -> None:
        assert "GeluInplace" in str(refused(ir.create_graph(gelu_in_place, FLOAT), "modifying op"))

    def test_views_are_no_modification(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.reshape_(ops.concat_([x, x]), (2, 2)) * 2.0

        assert len(transforms.autodiff(ir.create_graph(function, FLOAT)).outputs) == 1

    def test_a_covered_graph_may_modify(self, ir: popxl.Ir) -> None:
        def inner(a: Tensor) -> Tensor:
            return ops.gelu_(a * 1.0)

        def outer(x: Tensor) -> Tensor:
            return ops.call(covered, x)[0] * 3.0

        covered = ir.create_graph(inner, FLOAT)
        clean = ir.create_graph(lambda a: ops.gelu(a * 1.0), FLOAT)
        info = custom_info(covered, transforms.autodiff(clean).graph)
        graph = ir.create_graph(outer, FLOAT)
        refused(graph, "modifying op")
        found = transforms.autodiff(graph, called_graphs_grad_info={covered: info})
        assert info.graph in found.graph.called_graphs

    def test_a_call_of_a_covered_graph_must_not_modify(self, ir: popxl.Ir) -> None:
        def inner(a: popxl.TensorByRef) -> Tensor:
            return a * 2.0

        covered = ir.create_graph(inner, FLOAT)
        info = custom_info(covered, transforms.autodiff(ir.create_graph(lambda a: a * 2.0, FLOAT)).graph)
        graph = ir.create_graph(lambda x: ops.call(covered, x)[0], FLOAT)
        refused(graph, "modifying op: Call", called_graphs_grad_info={covered: info})


def custom_info(forward: popxl.Graph, gradient: popxl.Graph) -> transforms.GradGraphInfo:
    """What connects a gradient graph made by hand, of the gradients of all outputs by all inputs, to its graph."""
    grad = transforms.ExpectedConnectionType.FwdGrad
    value = transforms.ExpectedConnectionType.Fwd
    connect = transforms.ExpectedConnection._create
    names = {t.name: t for t in forward.inputs}
    count = len(forward.outputs)
    inputs = [connect(t, grad) for t in forward.outputs]
    inputs += [connect(names.get(t.name, forward.outputs[-1]), value) for t in gradient.inputs[count:]]
    return transforms.GradGraphInfo._create(gradient, forward, inputs, [connect(t, grad) for t in forward.inputs])


def masked_by_greater(x: Tensor) -> Tensor:
    return x * ops.cast(ops.greater(x, popxl.constant(0.0)), popxl.float32)


def masked_by_equal(x: Tensor) -> Tensor:
    return x * ops.cast(ops.equal(x, popxl.constant(0.0)), popxl.float32)


def masked_by_not(x: Tensor) -> Tensor:
    return x * ops.cast(ops.logical_not(x), popxl.float32)


def masked_by_and(x: Tensor) -> Tensor:
    return x * ops.cast(ops.logical_and(x, x), popxl.float32)


def masked_by_or(x: Tensor) -> Tensor:
    return x * ops.cast(ops.logical_or(x, x), popxl.float32)


def masked_by_integers(x: Tensor) -> Tensor:
    hits = ops.cast(ops.greater(x, popxl.constant(0.0)), popxl.int32)
    return x * ops.cast(hits * 3 + 1, popxl.float32)


class TestRefusals:
    @pytest.mark.parametrize(
        ("function", "type"),
        [
            (masked_by_greater, "Greater"),
            (masked_by_equal, "Equal"),
            (masked_by_not, "Not"),
            (masked_by_and, "And"),
            (masked_by_or, "Or"),
            (masked_by_integers, "Greater"),
        ],
    )
    def test_a_comparison_used_in_a_formula(self, ir: popxl.Ir, function: Callable[..., Any], type: str) -> None:
        error = refused(ir.create_graph(function, FLOAT), "does not have a valid grad op")
        assert str(error).startswith(f"PopART does not have a valid grad op corresponding to {type}")
        assert here(error, function)

    def test_a_comparison_of_integers(self, ir: popxl.Ir) -> None:
        def function(x: Tensor, labels: Tensor) -> Tensor:
            return x * ops.cast(ops.equal(labels, popxl.constant(0, popxl.int32)), popxl.float32)

        graph = ir.create_graph(function, FLOAT, INT)
        error = refused(graph, "valid grad op corresponding to Equal", grads_required=graph.inputs[:1])
        assert error.hint == "detach its result with popxl.ops.detach"

    def test_a_comparison_in_a_called_graph(self, ir: popxl.Ir) -> None:
        error = refused(
            ir.create_graph(lambda x: ops.call(new_graph(masked_by_greater, x), x)[0], FLOAT), "valid grad op"
        )
        assert here(error, masked_by_greater)

    def test_a_comparison_returned_by_a_called_graph_and_used(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> Tensor:
            (hits,) = ops.call(new_graph(lambda a: ops.greater(a, popxl.constant(0.0)), x), x)
            return x * ops.cast(hits, popxl.float32)

        refused(ir.create_graph(function, FLOAT), "valid grad op corresponding to Greater")

    @pytest.mark.parametrize("place", [0, 1])
    def test_a_comparison_in_a_branch(self, ir: popxl.Ir, place: int) -> None:
        def function(x: Tensor) -> Tensor:
            graphs = [new_graph(lambda a: a * 2.0, x), new_graph(lambda a: a * 3.0, x)]
            graphs[place] = new_graph(masked_by_greater, x)
            return ops.conditional(popxl.constant(True), *graphs, [x], [x])[0]

        refused(ir.create_graph(function, FLOAT), "valid grad op corresponding to Greater")

    def test_a_comparison_whose_gradient_arrives_after_an_iteration(self, ir: popxl.Ir) -> None:
        def body(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return b * 2.0, ops.cast(ops.greater(a, popxl.constant(0.0)), popxl.float32)

        graph = ir.create_graph(lambda x, y: ops.repeat(new_graph(body, x, y), 2, x, y)[0], FLOAT, FLOAT)
        refused(graph, "valid grad op corresponding to Greater")

    def test_a_comparison_off_the_path(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2.0, masked_by_greater(x)

        graph = ir.create_graph(function, FLOAT)
        assert transforms.autodiff(graph, graph.outputs[:1]).outputs == graph.inputs
        refused(graph, "valid grad op")

    def test_a_comparison_that_is_an_output_itself(self, ir: popxl.Ir) -> None:
        graph = ir.create_graph(lambda x: (x * 2.0, ops.greater(x, popxl.constant(0.0))), FLOAT)
        info = transforms.autodiff(graph)
        assert info.inputs == graph.outputs
        assert info.graph.inputs[1].dtype == popxl.bool

    def test_the_indices_of_a_topk_of_a_mask(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> Tensor:
            mask = ops.cast(ops.greater(x, popxl.constant(0.0)), popxl.float32)
            return ops.gather(x, ops.topk(mask, 1, 0, True, True)[1])

        assert transforms.autodiff(ir.create_graph(function, FLOAT)).outputs

    def test_a_covered_graph_may_compare(self, ir: popxl.Ir) -> None:
        covered = ir.create_graph(masked_by_greater, FLOAT)
        info = custom_info(covered, transforms.autodiff(ir.create_graph(ops.relu, FLOAT)).graph)
        graph = ir.create_graph(lambda x: ops.call(covered, x)[0], FLOAT)
        assert transforms.autodiff(graph, called_graphs_grad_info={covered: info}).outputs == graph.inputs

    def test_batch_norm_in_inference(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> Tensor:
            ones = popxl.constant(np.ones(1, np.float32))
            return ops.batch_norm_inference(x, ones, ones, ones, ones)

        error = refused(ir.create_graph(function, IMAGE), "inference mode")
        assert str(error).startswith("BatchNorm Op")
        assert here(error, function)

    def test_batch_norm_of_what_is_detached(self, ir: popxl.Ir) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            ones = popxl.constant(np.ones(1, np.float32))
            return ops.detach(ops.batch_norm_inference(x, ones, ones, ones, ones)) * w

        graph = ir.create_graph(function, IMAGE, IMAGE)
        assert transforms.autodiff(graph, grads_required=graph.inputs[1:]).outputs == graph.inputs[1:]

    def test_a_scaled_convolution(self, ir: popxl.Ir) -> None:
        float8 = popxl.TensorSpec((1, 1, 4, 4), popxl.float8_143)

        def function(x: Tensor, w: Tensor) -> Tensor:
            return ops.conv_pow2scaled(x, w, popxl.constant(0, popxl.int32))

        refused(ir.create_graph(function, float8, float8), "Using a scaled convolution in a backwards pass")

    def test_a_scaled_matmul(self, ir: popxl.Ir) -> None:
        float8 = popxl.TensorSpec((4, 4), popxl.float8_143)

        def function(x: Tensor, w: Tensor) -> Tensor:
            return ops.matmul_pow2scaled(x, w, popxl.constant(0, popxl.int32))

        refused(ir.create_graph(function, float8, float8), "Using a scaled matmul in a backwards pass")


class TestRecomputation:
    def test_a_value_from_the_host_in_a_branch(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> Tensor:
            stream = popxl.h2d_stream((2,), popxl.float32, "scale")

            def branch(a: Tensor) -> Tensor:
                return a * ops.host_load(stream)

            return ops.conditional(popxl.constant(True), new_graph(branch, x), new_graph(branch, x), [x], [x])[0]

        with ir.main_graph, pytest.raises(CoreError, match="HostLoad cannot be recomputed for a gradient") as caught:
            transforms.autodiff(ir.create_graph(function, FLOAT))
        assert here(caught.value, function)

    def test_a_value_from_the_host_in_a_graph_called_by_the_body_of_a_loop(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> Tensor:
            stream = popxl.h2d_stream((2,), popxl.float32, "scale")
            inner = new_graph(lambda a: a * ops.host_load(stream), x)
            return ops.repeat(new_graph(lambda a: ops.call(inner, a)[0] * a, x), 2, x)[0]

        with ir.main_graph, pytest.raises(CoreError, match="HostLoad cannot be recomputed"):
            transforms.autodiff(ir.create_graph(function, FLOAT))

    def test_a_host_store_in_a_branch_is_no_obstacle(self, ir: popxl.Ir) -> None:
        def function(x: Tensor) -> Tensor:
            stream = popxl.d2h_stream((2,), popxl.float32, "seen")

            def branch(a: Tensor) -> Tensor:
                y = ops.exp(a)
                ops.host_store(stream, y)
                return y * 1.0

            graph = new_graph(branch, x)
            return ops.conditional(popxl.constant(True), graph, graph, [x], [x])[0]

        info = transforms.autodiff(ir.create_graph(function, FLOAT))
        called = {op.type for g in (info.graph, *info.graph.called_graphs) for op in g.ops}
        assert "HostStore" not in called

    def test_a_given_gradient_graph_that_takes_values_from_inside_a_branch(self, ir: popxl.Ir) -> None:
        branch = ir.create_graph(lambda a: ops.exp(a) * 2.0, FLOAT)
        info = transforms.autodiff(branch)
        graph = ir.create_graph(
            lambda x: ops.conditional(popxl.constant(True), branch, branch, [x], [x])[0] * 2.0, FLOAT
        )
        with pytest.raises(CoreError, match="a conditional cannot keep values"):
            transforms.autodiff(graph, graph.outputs[:1], called_graphs_grad_info={branch: info})
