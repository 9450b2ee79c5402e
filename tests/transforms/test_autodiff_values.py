"""Gradients of whole graphs have the values that calculus gives (spec ``transforms.md`` §1, §6)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from declared import store
from graph_gradients import gradients, new_graph
from op_gradients import variable

import popxl
from popxl import ops, transforms
from popxl.tensor import Tensor


class TestPaths:
    def test_product_rule(self) -> None:
        assert gradients(lambda x, w: x * w, [[2.0, 3.0], [5.0, 7.0]], [[10.0, 1.0]]) == [[50.0, 7.0], [20.0, 3.0]]

    def test_chain_rule(self) -> None:
        # d/dx (3 x)^2 = 18 x
        assert gradients(lambda x: (x * 3.0) * (x * 3.0), [[1.0, -2.0]]) == [[18.0, -36.0]]

    def test_a_diamond_adds_up_both_ways(self) -> None:
        def function(x: Tensor) -> Tensor:
            y = x * x
            return y * 3.0 + y * x  # 3 x^2 + x^3: 6 x + 3 x^2

        assert gradients(function, [[1.0, 2.0]]) == [[9.0, 24.0]]

    def test_a_tensor_used_many_times_gets_the_sum(self) -> None:
        assert gradients(lambda x: x * 2.0 + x * 3.0 + x * 5.0 - x, [1.5]) == [9.0]

    def test_a_tensor_used_twice_by_one_op(self) -> None:
        assert gradients(lambda x: x * x, [3.0]) == [6.0]

    def test_an_input_that_is_an_output_gets_what_is_provided(self) -> None:
        assert gradients(lambda x: x, [[1.0, 2.0]], [[3.0, 4.0]]) == [[3.0, 4.0]]

    def test_an_input_that_is_an_output_and_used_gets_both(self) -> None:
        assert gradients(lambda x: (x, x * x), [3.0], [10.0, 2.0]) == [10.0 + 2.0 * 6.0]

    def test_a_provided_output_that_is_used_inside_gets_both(self) -> None:
        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            y = x * 2.0
            return y, y * y

        # dy = 5 + 2 y = 17 at y = 6; dx = 2 dy
        assert gradients(function, [3.0], [5.0, 1.0]) == [34.0]

    def test_a_tensor_returned_twice_gets_both(self) -> None:
        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            y = x * 2.0
            return y, y

        assert gradients(function, [3.0], [5.0, 7.0]) == [24.0]

    def test_outputs_that_are_not_provided_do_not_count(self) -> None:
        assert gradients(lambda x: (x * 2.0, x * 100.0), [3.0], [1.0], provided=[0]) == [2.0]

    def test_gradients_come_in_the_order_of_the_required(self) -> None:
        found = gradients(lambda a, b, c: a * 2.0 + b * 3.0 + c * 5.0, [1.0, 1.0, 1.0], required=[2, 0])
        assert found == [5.0, 2.0]

    def test_one_tensor_may_be_required_twice(self) -> None:
        assert gradients(lambda a: a * 2.0, [1.0], required=[0, 0]) == [2.0, 2.0]

    def test_broadcast_operands_get_gradients_of_their_own_shape(self) -> None:
        found = gradients(lambda x, b: x + b, [[[1.0, 2.0], [3.0, 4.0]], [0.5, 0.5]], [[[1.0, 2.0], [3.0, 4.0]]])
        assert found == [[[1.0, 2.0], [3.0, 4.0]], [4.0, 6.0]]

    def test_other_paths_count_where_one_is_detached(self) -> None:
        assert gradients(lambda x: x * ops.detach(x) + x * 3.0, [5.0]) == [8.0]

    def test_other_paths_count_where_one_is_rounded_to_an_integer(self) -> None:
        assert gradients(lambda x: x * 3.0 + ops.cast(ops.cast(x, popxl.int32), popxl.float32), [5.25]) == [3.0]

    def test_ops_with_a_zero_gradient_give_zeros(self) -> None:
        assert gradients(lambda x: ops.floor(x), [[5.25, -1.0]]) == [[0.0, 0.0]]

    def test_gradients_have_the_dtypes_of_their_tensors(self) -> None:
        def function(x: Tensor, h: Tensor) -> Tensor:
            return x * ops.cast(h, popxl.float32)

        ir = popxl.Ir()
        with ir.main_graph:
            graph = ir.create_graph(function, popxl.TensorSpec((), popxl.float32), popxl.TensorSpec((), popxl.float16))
            info = transforms.autodiff(graph)
        assert [t.dtype for t in info.graph.outputs] == [popxl.float32, popxl.float16]
        assert gradients(function, [np.float32(2.0), np.float16(3.0)]) == [3.0, 2.0]

    def test_all_gradients_scale_with_the_loss(self) -> None:
        once = gradients(lambda x, w: ops.tanh(x * w), [[0.5, -1.0], [1.0, 0.25]], [1.0])
        scaled = gradients(lambda x, w: ops.tanh(x * w), [[0.5, -1.0], [1.0, 0.25]], [1024.0])
        np.testing.assert_array_equal(np.multiply(once, 1024.0), scaled)

    def test_conditions_and_indices_made_by_comparisons_are_no_obstacle(self) -> None:
        def function(x: Tensor, table: Tensor) -> Tensor:
            above = ops.greater(x, popxl.constant(0.0))
            row = ops.gather(table, ops.cast(above, popxl.int32))
            return ops.where(above, x * 3.0, x * 5.0) * row

        # x = -1: 5 x * table[0]; x = 2: 3 x * table[1]
        found = gradients(function, [[-1.0, 2.0], [10.0, 100.0]])
        assert found == [[50.0, 300.0], [-5.0, 6.0]]

    def test_a_comparison_that_was_detached_is_a_constant(self) -> None:
        def function(x: Tensor) -> Tensor:
            return x * ops.detach(ops.cast(ops.greater(x, popxl.constant(0.0)), popxl.float32))

        assert gradients(function, [[-1.0, 2.0]]) == [[0.0, 1.0]]


class TestIntermediates:
    def run(self, *, provided: bool, required: bool) -> list[float]:
        """Differentiate z = y * w * w of y = 3 x, with a provided or required y."""
        middle: dict[str, Tensor] = {}

        def function(x: Tensor, w: Tensor) -> Tensor:
            middle["y"] = x * 3.0
            return middle["y"] * w * w

        ir = popxl.Ir()
        with ir.main_graph:
            x, w = variable(np.float32(2.0)), variable(np.float32(5.0))
            forward = ir.create_graph(function, x, w)
            y = middle["y"]
            info = transforms.autodiff(
                forward,
                [forward.outputs[0], y] if provided else None,
                [y, forward.inputs[1]] if required else None,
            )
            call = ops.call_with_info(forward, x, w)
            seeds = [popxl.constant(1.0), popxl.constant(100.0)][: 1 + provided]
            found = ops.call(info.graph, *seeds, inputs_dict=info.inputs_dict(call))
            streams = [store(t) for t in found]
        with popxl.Session(ir) as session:
            stored = session.run()
        return [float(stored[s]) for s in streams]

    def test_a_provided_intermediate_adds_to_the_gradient(self) -> None:
        # dx = 3 (w^2 + 100); dw = 2 y w
        assert self.run(provided=True, required=False) == [375.0, 60.0]

    def test_a_required_intermediate_is_returned(self) -> None:
        assert self.run(provided=False, required=True) == [25.0, 60.0]

    def test_an_intermediate_may_be_both(self) -> None:
        assert self.run(provided=True, required=True) == [125.0, 60.0]


class TestSeveralOutputs:
    def test_unused_parts_of_a_split_get_zeros(self) -> None:
        def function(x: Tensor) -> Tensor:
            _, middle, _ = ops.split(x, 3)
            return middle * 7.0

        assert gradients(function, [[1.0, 2.0, 3.0]]) == [[0.0, 7.0, 0.0]]

    def test_all_parts_of_a_split(self) -> None:
        def function(x: Tensor) -> Tensor:
            a, b = ops.split(x, 2)
            return a * b

        assert gradients(function, [[1.0, 2.0, 3.0, 5.0]], [[10.0, 1.0]]) == [[30.0, 5.0, 10.0, 2.0]]

    def test_the_indices_of_topk_carry_no_gradient(self) -> None:
        def function(x: Tensor) -> tuple[Tensor, Tensor]:
            values, indices = ops.topk(x, 2, 0, True, True)
            return values, indices

        assert gradients(function, [[1.0, 9.0, 5.0]], [[3.0, 4.0], 0]) == [[0.0, 3.0, 4.0]]

    def test_only_the_indices_of_topk_are_used(self) -> None:
        def function(x: Tensor, table: Tensor) -> Tensor:
            return ops.gather(table, ops.topk(x, 1, 0, True, True)[1])

        assert gradients(function, [[1.0, 9.0, 5.0], [1.0, 2.0, 3.0]], required=[1]) == [[0.0, 1.0, 0.0]]

    def test_one_of_the_gradients_of_a_norm(self) -> None:
        # The rows are normalised to (-1, 1): dbias = sum g, dweight = sum g * (-1, 1)
        arrays = [[[0.0, 2.0], [5.0, 9.0]], [1.0, 1.0], [0.0, 0.0]]
        (weight,) = gradients(
            lambda t, w, b: ops.group_norm(t, w, b, 1, 1e-12), arrays, [[[1.0, 2.0], [3.0, 4.0]]], required=[1]
        )
        np.testing.assert_allclose(weight, [-4.0, 6.0], rtol=1e-6)


class TestCalls:
    def test_a_called_graph(self) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.call(new_graph(lambda a: a * a, x), x * 3.0)[0]

        assert gradients(function, [2.0]) == [36.0]

    def test_one_tensor_passed_twice_gets_both(self) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.call(new_graph(lambda a, b: a * a * b, x, x), x, x)[0]

        assert gradients(function, [2.0]) == [12.0]

    def test_one_graph_called_twice(self) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            layer = new_graph(lambda a, b: a * b, x, w)
            return ops.call(layer, ops.call(layer, x, w)[0], w)[0]

        assert gradients(function, [3.0, 5.0]) == [25.0, 30.0]

    def test_three_levels_with_values_kept_at_the_lowest(self) -> None:
        def function(x: Tensor) -> Tensor:
            def lowest(a: Tensor) -> Tensor:
                return ops.exp(a * 2.0) * 3.0

            def lower(a: Tensor) -> Tensor:
                return ops.call(new_graph(lowest, a), a)[0] * a

            return ops.call(new_graph(lower, x), x)[0] * 0.5

        # 1.5 x e^(2 x): (1.5 + 3 x) e^(2 x)
        np.testing.assert_allclose(gradients(function, [0.25]), [2.25 * np.exp(0.5)], rtol=1e-6)

    def test_an_inner_output_off_the_path_gets_zeros(self) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            inner = new_graph(lambda a, b: (a * b, ops.exp(a) * b), x, w)
            used, _ = ops.call(inner, x, w)
            return used * 2.0

        assert gradients(function, [3.0, 5.0]) == [10.0, 6.0]

    def test_an_inner_output_returned_twice(self) -> None:
        def function(x: Tensor) -> Tensor:
            def inner(a: Tensor) -> tuple[Tensor, Tensor]:
                y = a * a
                return y, y

            first, second = ops.call(new_graph(inner, x), x)
            return first * 2.0 + second * 5.0

        assert gradients(function, [3.0]) == [42.0]

    def test_an_inner_graph_that_returns_its_input(self) -> None:
        def function(x: Tensor) -> Tensor:
            same, double = ops.call(new_graph(lambda a: (a, a * 2.0), x), x)
            return same * 3.0 + double

        assert gradients(function, [3.0]) == [5.0]

    def test_an_inner_input_without_a_path(self) -> None:
        def function(x: Tensor, n: Tensor) -> Tensor:
            inner = new_graph(lambda a, i: (a * ops.detach(a), i), x, n)
            return ops.call(inner, x, n)[0]

        assert gradients(function, [3.0, 4], required=[0]) == [3.0]

    def test_a_comparison_returned_by_an_inner_graph_but_not_used(self) -> None:
        def function(x: Tensor) -> Tensor:
            def inner(a: Tensor) -> tuple[Tensor, Tensor]:
                hits = ops.cast(ops.equal(a, popxl.constant(3.0)), popxl.float32)
                return a * a, ops.mean(hits)

            return ops.call(new_graph(inner, x), x)[0]

        assert gradients(function, [3.0]) == [6.0]


def choose(condition: Tensor, then_graph: popxl.Graph, else_graph: popxl.Graph, *args: Tensor) -> Tensor:
    return ops.conditional(condition, then_graph, else_graph, args, args)[0]


@pytest.mark.parametrize("taken", [True, False])
class TestConditionals:
    def test_the_branch_that_is_taken(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor, w: Tensor) -> Tensor:
            return choose(c, new_graph(lambda a, b: a * b, x, w), new_graph(lambda a, b: a * a + b, x, w), x, w)

        assert gradients(function, [np.bool_(taken), 3.0, 5.0], required=[1, 2]) == ([5, 3] if taken else [6, 1])

    def test_an_input_of_the_other_branch_gets_zeros(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor, w: Tensor) -> Tensor:
            then_graph, else_graph = new_graph(lambda a: a * a, x), new_graph(lambda b: b * b, w)
            return ops.conditional(c, then_graph, else_graph, [x], [w])[0]

        assert gradients(function, [np.bool_(taken), 3.0, 5.0], required=[1, 2]) == ([6, 0] if taken else [0, 10])

    def test_one_graph_in_both_branches(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor, w: Tensor) -> Tensor:
            square = new_graph(lambda a: ops.exp(a) * 1.0, x)
            return ops.conditional(c, square, square, [x], [w])[0]

        found = gradients(function, [np.bool_(taken), 0.5, 0.25], required=[1, 2])
        np.testing.assert_allclose(found, [np.exp(0.5), 0] if taken else [0, np.exp(0.25)], rtol=1e-6)

    def test_values_inside_a_branch_are_computed_again(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor) -> Tensor:
            # tanh keeps its result, which is no output of the branch
            return choose(c, new_graph(lambda a: ops.tanh(a * 2.0) * 3.0, x), new_graph(lambda a: a * a * a, x), x)

        (found,) = gradients(function, [np.bool_(taken), 0.5], required=[1])
        np.testing.assert_allclose(found, 6 * (1 - np.tanh(1.0) ** 2) if taken else 0.75, rtol=1e-6)

    def test_a_conditional_in_a_call(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor) -> Tensor:
            def inner(c: Tensor, a: Tensor) -> Tensor:
                y = a * a
                return choose(c, new_graph(lambda b: b * b, y), new_graph(lambda b: b * 7.0, y), y)

            return ops.call(new_graph(inner, c, x), c, x)[0] * 2.0

        assert gradients(function, [np.bool_(taken), 3.0], required=[1]) == [2 * 4 * 27 if taken else 2 * 7 * 6]

    def test_a_call_in_a_branch(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor) -> Tensor:
            cube = new_graph(lambda a: a * a * a, x)

            def branch(a: Tensor) -> Tensor:
                return ops.call(cube, a * 2.0)[0]

            return choose(c, new_graph(branch, x), cube, x)

        assert gradients(function, [np.bool_(taken), 3.0], required=[1]) == [8.0 * 27.0 if taken else 27.0]

    def test_a_conditional_in_a_branch(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor) -> Tensor:
            def branch(c: Tensor, a: Tensor) -> Tensor:
                return choose(c, new_graph(lambda b: b * b, a), new_graph(lambda b: b * 11.0, a), a)

            return choose(c, new_graph(branch, c, x), new_graph(lambda _, a: a * 5.0, c, x), c, x)

        assert gradients(function, [np.bool_(taken), 3.0], required=[1]) == [6.0 if taken else 5.0]

    def test_integers_among_the_inputs(self, taken: bool) -> None:
        def function(c: Tensor, n: Tensor, x: Tensor) -> Tensor:
            def scaled(n: Tensor, a: Tensor) -> Tensor:
                return a * a * ops.cast(n, popxl.float32)

            return choose(c, new_graph(scaled, n, x), new_graph(lambda _, a: a * 2.0, n, x), n, x)

        assert gradients(function, [np.bool_(taken), 4, 3.0], required=[2]) == [24.0 if taken else 2.0]

    def test_a_branch_without_gradient(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor) -> Tensor:
            return choose(c, new_graph(lambda a: ops.detach(a), x), new_graph(lambda a: a * a, x), x)

        assert gradients(function, [np.bool_(taken), 3.0], required=[1]) == [0.0 if taken else 6.0]

    def test_an_output_of_the_branches_that_is_not_used(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor) -> Tensor:
            then_graph = new_graph(lambda a: (a * a, ops.exp(a), a), x)
            else_graph = new_graph(lambda a: (a * 2.0, a, a), x)
            first, _, last = ops.conditional(c, then_graph, else_graph, [x], [x])
            return first + last * 10.0

        assert gradients(function, [np.bool_(taken), 3.0], required=[1]) == [16.0 if taken else 12.0]

    def test_a_print_in_a_branch_is_no_obstacle(self, taken: bool, capfd: pytest.CaptureFixture[str]) -> None:
        def function(c: Tensor, x: Tensor) -> Tensor:
            def branch(a: Tensor) -> Tensor:
                return ops.exp(ops.print_tensor(a, title="seen"))

            return choose(c, new_graph(branch, x), new_graph(lambda a: a * 2.0, x), x)

        found = gradients(function, [np.bool_(taken), 0.5], required=[1])
        np.testing.assert_allclose(found, [np.exp(0.5) if taken else 2.0], rtol=1e-6)
        assert ("seen" in capfd.readouterr().err) == taken


class TestLoops:
    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_a_carried_value(self, count: int) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.repeat(new_graph(lambda a: a * 3.0, x), count, x)[0]

        assert gradients(function, [2.0]) == [3.0**count]

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_values_of_each_iteration_are_kept(self, count: int) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.repeat(new_graph(lambda a: a * a, x), count, x)[0]

        # x^(2^n): 2^n x^(2^n - 1)
        assert gradients(function, [1.5]) == [2**count * 1.5 ** (2**count - 1)]

    @pytest.mark.parametrize("count", [0, 1, 4])
    def test_an_invariant_gets_a_share_of_each_iteration(self, count: int) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            return ops.repeat(new_graph(lambda a, b: a * b, x, w), count, x, w)[0]

        # x w^n
        expected = [3.0**count, 2.0 * count * 3.0 ** (count - 1)]
        assert gradients(function, [2.0, 3.0]) == expected

    def test_integers_are_carried_along(self) -> None:
        def function(x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
            def body(a: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
                return a * ops.cast(i, popxl.float32), i + 1

            return ops.repeat(new_graph(body, x, n), 4, x, n)

        # x * 2 * 3 * 4 * 5
        assert gradients(function, [1.0, 2], [1.0, 0], required=[0]) == [120.0]

    def test_carried_values_change_places(self) -> None:
        def function(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
            return ops.repeat(new_graph(lambda a, b: (b, a + b), a, b), 5, a, b)

        # Fibonacci: (5 b + 3 a, 8 b + 5 a)
        assert gradients(function, [1.0, 1.0], [10.0, 1.0]) == [35.0, 58.0]

    def test_a_matrix_recurrence(self) -> None:
        rng = np.random.default_rng(5)
        x, w = rng.normal(size=(2, 3)), rng.normal(size=(3, 3)) * 0.5

        def function(x: Tensor, w: Tensor) -> Tensor:
            return ops.repeat(new_graph(lambda a, b: ops.tanh(a @ b), x, w), 3, x, w)[0]

        states = [x]
        for _ in range(3):
            states.append(np.tanh(states[-1] @ w))
        g, dw = np.ones_like(x), np.zeros_like(w)
        for before, after in reversed(list(itertools.pairwise(states))):
            g = g * (1 - after**2)
            dw += before.T @ g
            g = g @ w.T
        found = gradients(function, [x.astype(np.float32), w.astype(np.float32)])
        np.testing.assert_allclose(found[0], g, rtol=2e-5)
        np.testing.assert_allclose(found[1], dw, rtol=2e-5)

    def test_calls_within_the_body(self) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            inner = new_graph(lambda a, b: ops.exp(a) * b, x, w)

            def body(a: Tensor, b: Tensor) -> Tensor:
                return ops.call(inner, a * 0.5, b)[0]

            return ops.repeat(new_graph(body, x, w), 2, x, w)[0]

        x, w = 0.5, 0.75
        y = np.exp(0.5 * x) * w
        z = np.exp(0.5 * y) * w
        dy = 0.5 * z
        expected = [dy * 0.5 * y, np.exp(0.5 * y) + dy * np.exp(0.5 * x)]
        np.testing.assert_allclose(gradients(function, [x, w]), expected, rtol=1e-6)

    @pytest.mark.parametrize("taken", [True, False])
    def test_a_loop_in_a_branch(self, taken: bool) -> None:
        def function(c: Tensor, x: Tensor) -> Tensor:
            square = new_graph(lambda a: a * a, x)

            def branch(a: Tensor) -> Tensor:
                return ops.repeat(square, 2, a)[0]

            return choose(c, new_graph(branch, x), square, x)

        assert gradients(function, [np.bool_(taken), 3.0], required=[1]) == [108.0 if taken else 6.0]

    def test_a_branch_in_a_loop(self) -> None:
        def function(x: Tensor, n: Tensor) -> Tensor:
            def body(a: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
                first = ops.equal(i, popxl.constant(0, popxl.int32))
                return choose(first, new_graph(lambda b: b * b, a), new_graph(lambda b: b * 5.0, a), a), i + 1

            return ops.repeat(new_graph(body, x, n), 3, x, n)[0]

        # 25 x^2
        assert gradients(function, [3.0, 0], required=[0]) == [150.0]

    def test_a_loop_in_a_loop(self) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            inner = new_graph(lambda a, b: a * b, x, w)

            def body(a: Tensor, b: Tensor) -> Tensor:
                return ops.repeat(inner, 2, a, b)[0]

            return ops.repeat(new_graph(body, x, w), 3, x, w)[0]

        # x w^6
        assert gradients(function, [2.0, 3.0]) == [729.0, 2.0 * 6.0 * 243.0]

    def test_a_body_that_returns_its_input(self) -> None:
        def function(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
            return ops.repeat(new_graph(lambda a, b: (a * b, b), x, w), 2, x, w)

        assert gradients(function, [2.0, 3.0], [1.0, 10.0]) == [9.0, 22.0]

    def test_a_carried_value_that_is_overwritten_gets_zeros(self) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            return ops.repeat(new_graph(lambda a, b: (b * 2.0, b), x, w), 2, x, w)[0] + x * 7.0

        assert gradients(function, [2.0, 3.0]) == [7.0, 2.0]

    def test_a_body_that_detaches(self) -> None:
        def function(x: Tensor, w: Tensor) -> Tensor:
            return ops.repeat(new_graph(lambda a, b: ops.detach(a) * b, x, w), 2, x, w)[0]

        # a2 = (a1) w with a1 = x w held fixed
        assert gradients(function, [2.0, 3.0], required=[1]) == [6.0]

    def test_no_iterations_of_a_body_that_detaches_hand_the_gradient_on(self) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.repeat(new_graph(lambda a: ops.detach(a), x), 0, x)[0] * 4.0

        assert gradients(function, [2.0]) == [4.0]

    def test_empty_tensors(self) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.repeat(new_graph(lambda a: a * a, x), 2, x)[0]

        assert gradients(function, [np.zeros((0, 3), np.float32)]) == [[]]

    def test_a_print_in_the_body_is_no_obstacle(self, capfd: pytest.CaptureFixture[str]) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.repeat(new_graph(lambda a: ops.print_tensor(a * a, title="seen"), x), 2, x)[0]

        assert gradients(function, [2.0]) == [32.0]
        assert "seen" in capfd.readouterr().err


class TestPrint:
    def test_print_hands_the_gradient_on(self, capfd: pytest.CaptureFixture[str]) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.print_tensor(x * x, title="value")

        assert gradients(function, [3.0]) == [6.0]
        assert capfd.readouterr().err.count("value") == 1

    def test_print_shows_the_gradient(self, capfd: pytest.CaptureFixture[str]) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.print_tensor(x, title="x", print_self=False, print_gradient=True) * 625.0

        assert gradients(function, [3.0]) == [625.0]
        printed = capfd.readouterr().err
        assert "x_gradient" in printed
        assert "625" in printed


def second_derivative(function: Any, x: float) -> float:
    """Differentiate the gradient graph of a function of a number."""
    ir = popxl.Ir()
    with ir.main_graph:
        t, one = variable(np.float32(x)), popxl.constant(1.0)
        forward = ir.create_graph(function, t)
        first = transforms.autodiff(forward)

        def slope(t: Tensor, one: Tensor) -> Tensor:
            call = ops.call_with_info(forward, t)
            return ops.call(first.graph, one, inputs_dict=first.inputs_dict(call))[0]

        gradient = ir.create_graph(slope, t, one)
        second = transforms.autodiff(gradient, gradient.outputs[:1], gradient.inputs[:1])
        call = ops.call_with_info(gradient, t, one)
        (found,) = ops.call(second.graph, one, inputs_dict=second.inputs_dict(call))
        stream = store(found)
    with popxl.Session(ir) as session:
        return float(session.run()[stream])


class TestSecondOrder:
    def test_a_polynomial(self) -> None:
        assert second_derivative(lambda x: x * x * x, 2.0) == 12.0

    def test_tanh(self) -> None:
        t = np.tanh(0.5)
        assert second_derivative(ops.tanh, 0.5) == pytest.approx(-2 * t * (1 - t * t), rel=1e-5)

    def test_through_a_call(self) -> None:
        def function(x: Tensor) -> Tensor:
            return ops.call(new_graph(lambda a: a * a * a, x), x * 2.0)[0]

        assert second_derivative(function, 0.5) == 24.0

    def test_through_a_loop(self) -> None:
        # x^4
        assert second_derivative(lambda x: ops.repeat(new_graph(lambda a: a * a, x), 2, x)[0], 3.0) == 108.0

    def test_a_gradient_graph_itself(self) -> None:
        ir = popxl.Ir()
        with ir.main_graph:
            x, g, h = (variable(np.float32(v)) for v in (3.0, 5.0, 7.0))
            forward = ir.create_graph(lambda a: a * a, x)
            first = transforms.autodiff(forward)
            second = transforms.autodiff(first.graph)
            assert [t.name for t in first.graph.inputs] == ["Gradient___mul_out", "a"]
            call = ops.call_with_info(first.graph, g, x)
            found = ops.call(second.graph, h, inputs_dict=second.inputs_dict(call))
            streams = [store(t) for t in found]
        with popxl.Session(ir) as session:
            stored = session.run()
        # dx = 2 g x
        assert [float(stored[s]) for s in streams] == [2 * 3 * 7, 2 * 5 * 7]
