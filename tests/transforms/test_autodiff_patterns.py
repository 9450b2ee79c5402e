"""Ways to use gradient graphs: training steps, accumulation, recomputation (spec ``transforms.md`` §4, §5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from declared import store
from op_gradients import variable

import popxl
from popxl import ops, transforms
from popxl.ops import var_updates
from popxl.tensor import Tensor

RNG = np.random.default_rng(2)
X = RNG.normal(size=(4, 2, 3)).astype(np.float32)
"""Four micro-batches of two rows."""
G = RNG.normal(size=(4, 2, 3)).astype(np.float32)
"""The gradients of what the layer makes of them."""
W = RNG.normal(size=(3, 3)).astype(np.float32) / 2


class Layer(popxl.Module):
    """tanh(x @ W)."""

    def __init__(self) -> None:
        self.W: Tensor

    def build(self, x: Tensor) -> Tensor:
        self.W = popxl.graph_input((3, 3), popxl.float32, "W")
        return ops.tanh(x @ self.W)


def weight_gradient(x: Any, g: Any, w: Any = W) -> np.ndarray:
    """The gradient of W, by hand, in float64."""
    x, g, w = (np.asarray(a, np.float64) for a in (x, g, w))
    return x.T @ (g * (1 - np.tanh(x @ w) ** 2))


def run(ir: popxl.Ir, *wanted: Tensor, runs: int = 1, **streams: Any) -> list[np.ndarray]:
    """The values of variables of the main graph after some runs."""
    with popxl.Session(ir) as session:
        for _ in range(runs):
            session.run()
    return [np.asarray(session.get_tensor_data(t)) for t in wanted]


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


class TestTraining:
    def test_a_step(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            x, g, w = variable(X[0]), variable(G[0]), variable(W)
            layer = Layer()
            forward = ir.create_graph(layer, x)
            call = ops.call_with_info(forward, x, inputs_dict={layer.W: w})
            info = transforms.autodiff(forward)
            gradient = ops.call_with_info(info.graph, g, inputs_dict=info.inputs_dict(call))
            found = info.fwd_parent_ins_to_grad_parent_outs(call, gradient)
            assert list(found) == [x, w]
            ops.scaled_add_(w, found[w], b=-0.5)
        (after,) = run(ir, w)
        assert_close(after, W - 0.5 * weight_gradient(X[0], G[0]))

    def test_a_loss_in_the_graph_starts_from_one(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            x, w = variable(X[0]), variable(W)
            labels = variable(np.array([2, 0], np.int32))
            forward = ir.create_graph(lambda x, w, labels: ops.nll_loss(ops.softmax(x @ w, -1), labels), x, w, labels)
            info = transforms.autodiff(forward, grads_required=[forward.inputs[1]])
            call = ops.call_with_info(forward, x, w, labels)
            (dw,) = ops.call(info.graph, popxl.constant(1.0), inputs_dict=info.inputs_dict(call))
            stream = store(dw)
        with popxl.Session(ir) as session:
            found = session.run()[stream]
        logits = X[0].astype(np.float64) @ W
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert_close(found, X[0].T @ (p - np.eye(3)[[2, 0]]) / 2)

    def test_a_chain_of_layers_shares_one_gradient_graph(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            x, g = variable(X[0]), variable(G[0])
            weights = [variable(W), variable(W * 0.5), variable(-W)]
            layer = Layer()
            forward = ir.create_graph(layer, x)
            info = transforms.autodiff(forward)
            calls, y = [], x
            for w in weights:
                calls.append(ops.call_with_info(forward, y, inputs_dict={layer.W: w}))
                y = calls[-1].outputs[0]
            streams = []
            for call in reversed(calls):
                g, dw = ops.call(info.graph, g, inputs_dict=info.inputs_dict(call))
                streams.append(store(dw))
        with popxl.Session(ir) as session:
            stored = session.run()
        inputs = [X[0].astype(np.float64)]
        hosts = [W, W * 0.5, -W]
        for w in hosts:
            inputs.append(np.tanh(inputs[-1] @ w))
        outer: Any = G[0]
        for stream, w, a in zip(streams, reversed(hosts), reversed(inputs[:-1]), strict=True):
            assert_close(stored[stream], weight_gradient(a, outer, w))
            outer = (outer * (1 - np.tanh(a @ w) ** 2)) @ w.T

    def test_the_first_layer_needs_no_gradient_of_its_input(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            x, g, w = variable(X[0]), variable(G[0]), variable(W)
            layer = Layer()
            forward = ir.create_graph(layer, x)
            info = transforms.autodiff(forward, grads_required=[layer.W])
            call = ops.call_with_info(forward, x, inputs_dict={layer.W: w})
            found = ops.call(info.graph, g, inputs_dict=info.inputs_dict(call))
            assert len(found) == 1
            stream = store(found[0])
        with popxl.Session(ir) as session:
            assert_close(session.run()[stream], weight_gradient(X[0], G[0]))


class TestAccumulation:
    def test_a_loop_around_forward_and_backward(self, ir: popxl.Ir) -> None:
        layer = Layer()
        with ir.main_graph:
            w, accumulator = variable(W), variable(np.zeros((3, 3), np.float32))
            batches, seeds = (popxl.h2d_stream((2, 3), popxl.float32) for _ in range(2))
            forward = ir.create_graph(layer, popxl.TensorSpec((2, 3), popxl.float32))
            info = transforms.autodiff(forward, grads_required=[layer.W])

            def step(w: Tensor, accumulator: popxl.TensorByRef) -> None:
                call = ops.call_with_info(forward, ops.host_load(batches), inputs_dict={layer.W: w})
                (dw,) = ops.call(info.graph, ops.host_load(seeds), inputs_dict=info.inputs_dict(call))
                var_updates.accumulate_(accumulator, dw)

            with popxl.in_sequence():
                ops.repeat(ir.create_graph(step, w, accumulator), 4, w, accumulator)
                ops.scaled_add_(w, accumulator, b=-0.25)
                var_updates.accumulator_zero_(accumulator)
        ir.num_host_transfers = 4
        with popxl.Session(ir) as session:
            session.run({batches: X, seeds: G})
        mean = np.mean([weight_gradient(x, g) for x, g in zip(X, G, strict=True)], axis=0)
        assert_close(session.get_tensor_data(w), W - mean)
        assert_close(session.get_tensor_data(accumulator), np.zeros((3, 3)))

    def test_accumulators_inside_the_gradient_graph(self, ir: popxl.Ir) -> None:
        layer = Layer()
        with ir.main_graph:
            w, mean = variable(W), variable(np.full((3, 3), 100.0, np.float32))
            counter = variable(np.float32(0.0))
            forward = ir.create_graph(layer, popxl.TensorSpec((2, 3), popxl.float32))
            info = transforms.autodiff(forward)
            expected_inputs = info.expected_inputs
            with info.graph, popxl.in_sequence():
                total = popxl.graph_input((3, 3), popxl.float32, "mean", by_ref=True)
                steps = popxl.graph_input((), popxl.float32, "steps", by_ref=True)
                var_updates.accumulate_mean_(total, info.graph.outputs[1], steps)
                ops.add_(steps, popxl.constant(1.0))
            info.graph.remove_output(1)
            assert info.expected_inputs == expected_inputs
            assert [t.name for t in info.graph.inputs[-2:]] == ["mean", "steps"]

            for x, g in zip(X, G, strict=True):
                call = ops.call_with_info(forward, variable(x), inputs_dict={layer.W: w})
                bound = {**info.inputs_dict(call), total: mean, steps: counter}
                gradient = ops.call_with_info(info.graph, variable(g), inputs_dict=bound)
                assert list(info.fwd_graph_ins_to_grad_parent_outs(gradient)) == [forward.inputs[0]]
        found = run(ir, mean, counter)
        assert_close(found[0], np.mean([weight_gradient(x, g) for x, g in zip(X, G, strict=True)], axis=0))
        assert found[1] == 4.0

    def test_an_edited_gradient_graph_cannot_be_differentiated(self, ir: popxl.Ir) -> None:
        forward = ir.create_graph(lambda x: x * x, popxl.TensorSpec((), popxl.float32))
        info = transforms.autodiff(forward)
        with info.graph:
            total = popxl.graph_input((), popxl.float32, "total", by_ref=True)
            var_updates.accumulate_(total, info.graph.outputs[0])
        with pytest.raises(RuntimeError, match="contains a modifying op"):
            transforms.autodiff(info.graph)

    def test_a_mean_with_a_counter(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            x, mean, counter = variable(np.float32(3.0)), variable(np.float32(0.0)), variable(np.float32(0.0))
            forward = ir.create_graph(lambda x: x * x, x)
            info = transforms.autodiff(forward)
            with popxl.in_sequence():
                for outer in (1.0, 2.0, 6.0):
                    call = ops.call_with_info(forward, x)
                    (dx,) = ops.call(info.graph, popxl.constant(outer), inputs_dict=info.inputs_dict(call))
                    var_updates.accumulate_mean_(mean, dx, counter)
                    ops.add_(counter, popxl.constant(1.0))
        assert run(ir, mean, counter) == [pytest.approx(18.0), 3.0]

    def test_values_of_iterations_kept_by_hand_and_gone_through_backwards(self, ir: popxl.Ir) -> None:
        """Three steps y = y^2, each keeping its input in a row of a stack."""
        with ir.main_graph:
            x = variable(np.array([1.5, -0.5], np.float32))
            step = ir.create_graph(lambda a: a * a, x)
            info = transforms.autodiff(step)

            def keep(a: Tensor, n: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
                (after,) = ops.call(step, a)
                row = ops.reshape(a, (1, 2))
                return after, n + 1, ops.dynamic_update(rows, ops.reshape(n, (1,)), row, [0], [1], True)

            def undo(g: Tensor, n: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
                n = n - 1
                row = ops.reshape(ops.dynamic_slice(rows, ops.reshape(n, (1,)), [0], [1], True), (2,))
                return ops.call(info.graph, g, row)[0], n

            number, rows = popxl.constant(0, popxl.int32), ops.init((3, 2), popxl.float32)
            _, number, rows = ops.repeat(ir.create_graph(keep, x, number, rows), 3, x, number, rows)
            seed = popxl.constant(np.ones(2, np.float32))
            found = ops.repeat(ir.create_graph(undo, seed, number, rows), 3, seed, number, rows)[0]
            stream = store(found)
        with popxl.Session(ir) as session:
            assert_close(session.run()[stream], 8 * np.array([1.5, -0.5]) ** 7)


class TestRecomputation:
    def wrapper(self, ir: popxl.Ir) -> tuple[popxl.Graph, popxl.Graph]:
        """The forward graph, and one that runs it again and then its gradient graph."""
        layer = Layer()
        forward = ir.create_graph(layer, popxl.TensorSpec((2, 3), popxl.float32))
        info = transforms.autodiff(forward, grads_required=[layer.W])

        def recompute(x: Tensor, w: Tensor, g: Tensor) -> Tensor:
            call = ops.call_with_info(forward, x, w)
            return ops.call(info.graph, g, inputs_dict=info.inputs_dict(call))[0]

        specs = [popxl.TensorSpec(s, popxl.float32) for s in [(2, 3), (3, 3), (2, 3)]]
        return forward, ir.create_graph(recompute, *specs)

    def test_a_graph_that_calls_both_needs_no_kept_values(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            forward, recompute = self.wrapper(ir)
            assert len(recompute.inputs) == 3
            x, w, g = variable(X[0]), variable(W), variable(G[0])
            ops.call(forward, x, w)
            stream = store(ops.call(recompute, x, w, g)[0])
        with popxl.Session(ir) as session:
            assert_close(session.run()[stream], weight_gradient(X[0], G[0]))

    def test_it_can_be_repeated(self, ir: popxl.Ir) -> None:
        with ir.main_graph:
            _, recompute = self.wrapper(ir)
            w, x, g = variable(W), variable(X[0]), variable(G[0])

            def step(w: Tensor, x: Tensor, g: Tensor) -> Tensor:
                return w - ops.call(recompute, x, w, g)[0] * 0.1

            stream = store(ops.repeat(ir.create_graph(step, w, x, g), 3, w, x, g)[0])
        expected = W.astype(np.float64)
        for _ in range(3):
            expected = expected - 0.1 * weight_gradient(X[0], G[0], expected)
        with popxl.Session(ir) as session:
            assert_close(session.run()[stream], expected)

    def test_a_gradient_made_by_hand_is_used_for_the_wrapper(self, ir: popxl.Ir) -> None:
        """A graph around the layer is differentiated, and uses the given gradient graph of the layer."""
        with ir.main_graph:
            layer = Layer()
            x, w, g = variable(X[0]), variable(W), variable(G[0])
            forward = ir.create_graph(layer, x)
            given = transforms.autodiff(forward)
            with given.graph:
                scaled = given.graph.outputs[1] * 100.0
                given.graph.remove_output(1)
                popxl.graph_output(scaled)
            outer = ir.create_graph(lambda x, w: ops.call(forward, x, w)[0] * 2.0, x, w)
            info = transforms.autodiff(outer, [outer.outputs[0]], called_graphs_grad_info={forward: given})
            call = ops.call_with_info(outer, x, w)
            found = ops.call(info.graph, g, inputs_dict=info.inputs_dict(call))
            stream = store(found[1])
        with popxl.Session(ir) as session:
            assert_close(session.run()[stream] / 100, weight_gradient(X[0], 2 * G[0]))
