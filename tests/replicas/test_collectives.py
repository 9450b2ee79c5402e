"""Collectives in whole programs: the examples of the specification, random groupings, graphs, loops, gradients."""

from __future__ import annotations

from typing import Any, get_args

import collective_meanings as meanings
import numpy as np
import pytest
from collective_meanings import Groups, groupings
from hypothesis import given, settings
from hypothesis import strategies as st
from replica_runs import run_replicas

import popxl
from popxl import ops, transforms
from popxl.ops.collectives import (
    all_reduce,
    all_reduce_identical_grad_inputs,
    all_reduce_identical_inputs,
    replica_sharded_slice,
    replicated_all_gather,
    replicated_all_reduce,
    replicated_all_reduce_,
    replicated_reduce_scatter,
    replicated_slice,
)
from popxl.ops.collectives.collectives import CollectiveOps
from popxl.plan import program as plan_program
from popxl.tensor import Tensor

FOUR = np.array([[r, 10 + r] for r in range(4)], np.float32)


def grouping(stride: int, group_size: int) -> popxl.ReplicaGrouping:
    return popxl.gcg().ir.replica_grouping(stride, group_size)


@pytest.fixture(params=["compiled", "driven by the host"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile called graphs into the ones around them, or let the host run each as a plan of its own."""
    if request.param != "compiled":
        monkeypatch.setattr(plan_program, "SMALL_GRAPH_OPS", -1)
        monkeypatch.setattr(plan_program, "SMALL_LOOP_OPS", -1)


both_ways = pytest.mark.usefixtures("way")

# The examples of the specification


@pytest.mark.parametrize(
    ("op", "even", "odd"),
    [("add", [2, 22], [4, 24]), ("mean", [1, 11], [2, 12]), ("square_add", [4, 244], [10, 290])],
)
@pytest.mark.parametrize("function", [replicated_all_reduce, replicated_all_reduce_])
def test_all_reduce(function: Any, op: CollectiveOps, even: list[int], odd: list[int]) -> None:
    (found,) = run_replicas(lambda t: function(t, op, grouping(2, 2)), FOUR)
    assert found.tolist() == [even, odd, even, odd]


@pytest.mark.parametrize(
    ("output_shape", "even", "odd"),
    [("concat", [0, 10, 2, 12], [1, 11, 3, 13]), ("new_axis", [[0, 10], [2, 12]], [[1, 11], [3, 13]])],
)
def test_gather(output_shape: Any, even: list[Any], odd: list[Any]) -> None:
    (found,) = run_replicas(lambda t: replicated_all_gather(t, 0, grouping(2, 2), output_shape), FOUR)
    assert found.tolist() == [even, odd, even, odd]


def test_gather_along_axis_1() -> None:
    x = np.array([np.full((2, 2), r) for r in range(2)], np.float32)
    (found,) = run_replicas(lambda t: replicated_all_gather(t, axis=1), x)
    assert found.tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]] * 2


def test_reduce_scatter() -> None:
    x = np.array([[r, 10 + r, 20 + r] for r in range(4)], np.float32)
    (found,) = run_replicas(lambda t: replicated_reduce_scatter(t, group=grouping(2, 2)), x)
    assert found.tolist() == [[2, 22], [4, 24], [42, 0], [44, 0]]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), (4, [[1, 2], [3, 4], [5, 6], [7, 8]])],
)
def test_slice(count: int, expected: list[Any]) -> None:
    x = np.array([[[1, 2], [3, 4], [5, 6], [7, 8]]] * count, np.float32)
    (found,) = run_replicas(lambda t: replicated_slice(t), x)
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (all_reduce, [[4, 6], [4, 6]]),
        (all_reduce_identical_inputs, [[1, 2], [3, 4]]),
        (all_reduce_identical_grad_inputs, [[4, 6], [4, 6]]),
    ],
)
def test_across_ipus(function: Any, expected: list[list[int]]) -> None:
    x = np.array([[1, 2]] * 2, np.float32)
    found = run_replicas(lambda t: function([t, popxl.constant([3.0, 4.0])], ipus=[0, 1]), x)
    assert [y.tolist() for y in found] == [[y, y] for y in expected]


# What all replicas hold in common


def test_slices_of_a_variable_differ() -> None:
    def build(t: Tensor) -> Tensor:
        return replica_sharded_slice(popxl.variable([1.0, 2.0, 3.0]))

    (found,) = run_replicas(build, np.zeros((2, 1), np.float32))
    assert found.tolist() == [[1, 2], [3, 0]]


def test_a_sum_of_equal_values_counts_each_replica() -> None:
    (found,) = run_replicas(lambda t: replicated_all_reduce(popxl.variable([1.0, 2.0])), np.zeros((4, 1), np.float32))
    assert found.tolist() == [[4, 8]] * 4


def test_a_variable_may_be_overwritten_by_a_sum_over_all() -> None:
    def build(t: Tensor) -> Tensor:
        total = popxl.variable([0.0, 0.0])
        ops.var_updates.accumulate_(total, replicated_all_reduce(t))
        return total

    (found,) = run_replicas(build, FOUR, runs=3)
    assert found.tolist() == [[18, 138]] * 4


def test_a_program_of_one_replica_may_have_collectives() -> None:
    def build(t: Tensor) -> list[Tensor]:
        shard = replica_sharded_slice(t)
        return [
            replicated_all_reduce(t, "square_add"),
            replicated_all_gather(t, output_shape="new_axis"),
            replicated_all_gather(shard * 2.0),
            replicated_reduce_scatter(t),
            replicated_slice(t, 1),
        ]

    found = run_replicas(build, np.array([[[1, 2], [3, 4]]], np.float32))
    assert [y[0].tolist() for y in found] == [
        [[1, 4], [9, 16]],
        [[[1, 2], [3, 4]]],
        [[2, 4], [6, 8]],
        [1, 2, 3, 4],
        [[1, 2], [3, 4]],
    ]


# Groupings


@settings(max_examples=12)
@given(
    st.sampled_from([g for count in (2, 4, 6, 8) for g in groupings(count)]),
    st.sampled_from([op for op in get_args(CollectiveOps) if op not in ("and", "or")]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(0, 2**32 - 1),
)
def test_collectives_of_any_grouping(groups: Groups, op: Any, shape: list[int], axis: int, seed: int) -> None:
    axis %= len(shape)
    x = np.random.default_rng(seed).integers(-4, 5, (groups.count, *shape)).astype(np.float32)

    def build(t: Tensor) -> list[Tensor]:
        group = grouping(groups.s, groups.k)
        gathered = replicated_all_gather(t, axis, group)
        shard = replicated_reduce_scatter(t, op, group, configure_output_for_replicated_tensor_sharding=True)
        return [
            replicated_all_reduce(t, op, group),
            gathered,
            shard,
            replicated_all_gather(shard, group=group),
            replicated_slice(gathered, axis, group),
        ]

    found = run_replicas(build, x)
    gathered = meanings.gather_concat(x, axis, groups)
    shards = meanings.reduce_scatter(x, op, groups)
    expected = [
        meanings.all_reduce(x, op, groups),
        gathered,
        shards,
        meanings.gather_meta_shape(shards, tuple(shape), groups),
        meanings.replicated_slice(gathered, axis, groups),
    ]
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, np.stack(wanted), rtol=1e-5)


# Graphs and loops


@both_ways
def test_a_collective_in_a_called_graph() -> None:
    def build(t: Tensor) -> Tensor:
        graph = popxl.gcg().ir.create_graph(lambda a: replicated_all_reduce(a, group=grouping(2, 2)) * 2.0, t)
        return ops.call(graph, ops.call(graph, t)[0])[0]

    (found,) = run_replicas(build, FOUR)
    assert found.tolist() == [[16, 176], [32, 192]] * 2


@both_ways
def test_a_collective_in_a_loop() -> None:
    def build(t: Tensor) -> Tensor:
        # Over all replicas the sum is the same for each, though what goes into the loop is not.
        graph = popxl.gcg().ir.create_graph(lambda a: replicated_all_reduce(a), t)
        return ops.repeat(graph, 3, t)[0]

    (found,) = run_replicas(build, FOUR)
    assert found.tolist() == [[6 * 16, 46 * 16]] * 4


@both_ways
def test_an_argument_by_reference_is_reduced_in_place() -> None:
    def reduce(a: popxl.TensorByRef) -> None:
        replicated_all_reduce_(a, "max")

    def build(t: Tensor) -> Tensor:
        ops.call(popxl.gcg().ir.create_graph(reduce, t), t)
        return t

    (found,) = run_replicas(build, FOUR)
    assert found.tolist() == [[3, 13]] * 4


def test_a_region_of_a_tensor_is_reduced_in_place() -> None:
    def build(t: Tensor) -> Tensor:
        replicated_all_reduce_(ops.slice_(t, 0, 1))
        return t

    (found,) = run_replicas(build, FOUR)
    assert found.tolist() == [[6, 10], [6, 11], [6, 12], [6, 13]]


# Gradients


def gradient(function: Any, x: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """The gradient of the argument of a function, which every replica calls with its own."""

    def build(t: Tensor, g: Tensor) -> Tensor:
        info = transforms.autodiff(popxl.gcg().ir.create_graph(function, t))
        return ops.call(info.graph, g)[0]

    return run_replicas(build, x, upstream)[0]


@both_ways
def test_gradient_of_all_reduce() -> None:
    found = gradient(lambda t: replicated_all_reduce(t, group=grouping(2, 2)), FOUR, FOUR)
    assert found.tolist() == [[2, 22], [4, 24]] * 2


@both_ways
def test_gradient_of_gather_is_not_added_up() -> None:
    upstream = np.arange(16, dtype=np.float32).reshape(4, 4)
    found = gradient(lambda t: replicated_all_gather(t, group=grouping(2, 2)), FOUR, upstream)
    assert found.tolist() == [[0, 1], [4, 5], [10, 11], [14, 15]]


@both_ways
def test_gradient_of_slice_is_gathered() -> None:
    x = np.zeros((2, 4, 2), np.float32)
    upstream = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)
    found = gradient(lambda t: replicated_slice(t), x, upstream)
    assert found.tolist() == [[[1, 2], [3, 4], [5, 6], [7, 8]]] * 2


@both_ways
def test_gradient_of_sharded_slice_has_the_shape_of_the_tensor() -> None:
    x = np.zeros((2, 1, 3), np.float32)
    found = gradient(lambda t: replica_sharded_slice(t), x, np.array([[1, 2], [3, 4]], np.float32))
    assert found.tolist() == [[[1, 2, 3]]] * 2


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (all_reduce, [[11, 11], [11, 11]]),
        (all_reduce_identical_inputs, [[11, 11], [11, 11]]),
        (all_reduce_identical_grad_inputs, [[1, 1], [10, 10]]),
    ],
)
def test_gradients_across_ipus(function: Any, expected: list[list[int]]) -> None:
    def build(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        graph = popxl.gcg().ir.create_graph(lambda a, b: function([a, b], ipus=[0, 1]), a, b)
        return ops.call(transforms.autodiff(graph).graph, a, b)

    ones = np.ones((1, 2), np.float32)
    assert [g[0].tolist() for g in run_replicas(build, ones, 10 * ones)] == expected


@both_ways
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_data_parallel_training_is_training_on_the_whole_batch(sharded: bool) -> None:
    """Two steps of linear regression, each replica with two of the eight rows of the batch."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 2, 3)).astype(np.float32), rng.normal(size=(4, 2, 2)).astype(np.float32)
    start = rng.normal(size=(3, 2)).astype(np.float32)

    def loss(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        error = x @ w - y
        return ops.mean(error * error)

    def build(x: Tensor, y: Tensor) -> Tensor:
        w = popxl.variable(start, name="w")
        ir = popxl.gcg().ir
        forward = ir.create_graph(loss, x, y, w)
        info = transforms.autodiff(forward, grads_required=[forward.inputs[2]])
        call = ops.call_with_info(forward, x, y, w)
        (dw,) = ops.call(info.graph, popxl.constant(1.0), inputs_dict=info.inputs_dict(call))
        if sharded:
            shard = replicated_reduce_scatter(dw, "mean", None, configure_output_for_replicated_tensor_sharding=True)
            updated = replica_sharded_slice(w) - shard * 0.1
            new = replicated_all_gather(updated)
        else:
            new = w - replicated_all_reduce(dw, "mean") * 0.1
        ops.var_updates.copy_var_update_(w, new)
        return w

    expected = start.astype(np.float64)
    rows, targets = x.reshape(8, 3).astype(np.float64), y.reshape(8, 2).astype(np.float64)
    for _ in range(2):
        expected = expected - 0.1 * 2 * rows.T @ (rows @ expected - targets) / 16
    (found,) = run_replicas(build, x, y, runs=2)
    np.testing.assert_allclose(found, np.broadcast_to(expected, (4, 3, 2)), rtol=1e-5, atol=1e-6)


def test_the_total_derivative_of_a_gathered_loss() -> None:
    # Each replica's loss sums up w_r * x_j over what all replicas have; the gradients of x_j are added up by hand.
    x, w = np.array([[1.0], [2.0], [3.0]], np.float32), np.array([[10.0], [20.0], [30.0]], np.float32)

    def build(x: Tensor, w: Tensor) -> Tensor:
        forward = popxl.gcg().ir.create_graph(lambda x, w: ops.sum(replicated_all_gather(x) * w), x, w)
        info = transforms.autodiff(forward, grads_required=[forward.inputs[0]])
        call = ops.call_with_info(forward, x, w)
        (own,) = ops.call(info.graph, popxl.constant(1.0), inputs_dict=info.inputs_dict(call))
        return own

    (found,) = run_replicas(build, x, w)
    assert found.tolist() == [[10], [20], [30]]


@both_ways
def test_a_gradient_through_a_loop_with_a_collective() -> None:
    def build(t: Tensor) -> Tensor:
        ir = popxl.gcg().ir
        body = ir.create_graph(lambda a: replicated_all_reduce(a, group=grouping(1, 2)), t)
        forward = ir.create_graph(lambda a: ops.repeat(body, 2, a)[0], t)
        info = transforms.autodiff(forward)
        call = ops.call_with_info(forward, t)
        return ops.call(info.graph, t, inputs_dict=info.inputs_dict(call))[0]

    # Twice the sum over pairs.
    (found,) = run_replicas(build, FOUR)
    assert found.tolist() == [[2, 42], [2, 42], [10, 50], [10, 50]]
