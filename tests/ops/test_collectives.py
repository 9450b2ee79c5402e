"""Collectives: values on all groupings, the examples of the specification, gradients, errors, names, footprints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import collective_meanings as meanings
import numpy as np
import pytest
from collective_meanings import Groups, groupings
from replicas_in_order import evaluate, graph_of, per_replica, spec

import popxl
from popxl import ops, transforms
from popxl.errors import CoreError, PopxlError
from popxl.ops import collectives
from popxl.ops.collectives.collectives import CollectiveOps, members_of, to_collective_op
from popxl.tensor import Tensor

GROUPINGS = [g for count in (1, 4) for g in groupings(count)] + [Groups(6, 2, 3), Groups(6, 3, 2), Groups(8, 2, 2)]
ARITHMETIC = [op for op in get_args(CollectiveOps) if op not in ("and", "or")]
on_all_groupings = pytest.mark.parametrize("groups", GROUPINGS, ids=lambda g: f"{g.count}-{g.s}-{g.k}")


def grouping(groups: Groups) -> popxl.ReplicaGrouping:
    """The grouping in the current program."""
    return popxl.gcg().ir.replica_grouping(groups.s, groups.k)


def numbers(groups: Groups, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Different small numbers on each replica."""
    rng = np.random.default_rng([groups.count, groups.s, groups.k, *shape])
    values = rng.integers(-8, 9, (groups.count, *shape))
    return (values / 4 if np.dtype(dtype).kind == "f" else abs(values)).astype(dtype)


def assert_equal(actual: np.ndarray, expected: list[np.ndarray]) -> None:
    """Exactly: the numbers are chosen such that float32 does not round them."""
    wanted = np.stack(expected)
    assert actual.shape == wanted.shape
    np.testing.assert_array_equal(actual, wanted.astype(actual.dtype))


# Groups


@on_all_groupings
def test_members_are_those_of_the_formulas(groups: Groups) -> None:
    with popxl.Ir(replication=groups.count).main_graph:
        assert members_of(grouping(groups)) == groups.all_members()


def test_without_a_group_all_replicas_are_one() -> None:
    with popxl.Ir(replication=4).main_graph:
        assert members_of(None) == ((0, 1, 2, 3),)


# Values


@on_all_groupings
@pytest.mark.parametrize("op", ARITHMETIC)
def test_all_reduce(groups: Groups, op: CollectiveOps) -> None:
    x = numbers(groups, 2, 3)
    (found,) = per_replica(lambda t: collectives.replicated_all_reduce(t, op, grouping(groups)), x)
    if op in ("mean", "mul"):
        np.testing.assert_allclose(found, np.stack(meanings.all_reduce(x, op, groups)), rtol=1e-6)
    else:
        assert_equal(found, meanings.all_reduce(x, op, groups))


@on_all_groupings
@pytest.mark.parametrize("op", ["and", "or"])
def test_logical_all_reduce(groups: Groups, op: CollectiveOps) -> None:
    x = np.random.default_rng(groups.k).random((groups.count, 16)) < 0.7
    (found,) = per_replica(lambda t: collectives.replicated_all_reduce(t, op, grouping(groups)), x)
    assert_equal(found, meanings.all_reduce(x, op, groups))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int32, np.int64, np.uint8, np.uint32])
@pytest.mark.parametrize("op", ARITHMETIC)
def test_all_reduce_of_a_dtype(dtype: Any, op: CollectiveOps) -> None:
    groups = Groups(4, 2, 2)
    x = numbers(groups, 5, dtype=dtype)
    (found,) = per_replica(lambda t: collectives.replicated_all_reduce(t, op, grouping(groups)), x)
    assert found.dtype == dtype
    assert_equal(found, meanings.all_reduce(x, op, groups))


def test_float16_is_accumulated_in_float32_and_rounded_once() -> None:
    # Of 2048 + 1 + 1 + 1, float16 would give 2048, since it has no 2049.
    x = np.array([[2048], [1], [1], [1]], np.float16)
    (found,) = per_replica(lambda t: collectives.replicated_all_reduce(t), x)
    assert found.tolist() == [[2052]] * 4


def test_a_mean_of_large_float16_does_not_overflow() -> None:
    x = np.full((4, 1), 60000, np.float16)
    (found,) = per_replica(lambda t: collectives.replicated_all_reduce(t, "mean"), x)
    assert found.tolist() == x.tolist()


def test_the_mean_of_integers_is_rounded_down() -> None:
    x = np.array([[3, -3], [0, 0]], np.int32)
    (found,) = per_replica(lambda t: collectives.replicated_all_reduce(t, "mean"), x)
    assert found.tolist() == [[1, -2]] * 2


@on_all_groupings
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_gather_along_an_axis(groups: Groups, axis: int) -> None:
    x = numbers(groups, 2, 3, 4)
    (found,) = per_replica(lambda t: collectives.replicated_all_gather(t, axis, grouping(groups), "concat"), x)
    assert_equal(found, meanings.gather_concat(x, axis, groups))


@on_all_groupings
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_on_a_new_axis_in_front_whatever_the_axis(groups: Groups, axis: int) -> None:
    x = numbers(groups, 2, 3)
    (found,) = per_replica(lambda t: collectives.replicated_all_gather(t, axis, grouping(groups), "new_axis"), x)
    assert_equal(found, meanings.gather_new_axis(x, groups))


@on_all_groupings
def test_gather_without_a_meta_shape_gives_all_elements(groups: Groups) -> None:
    x = numbers(groups, 2, 3)
    (found,) = per_replica(lambda t: collectives.replicated_all_gather(t, 0, grouping(groups), "meta_shape"), x)
    assert_equal(found, meanings.gather_meta_shape(x, (6 * groups.k,), groups))


@on_all_groupings
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0)])
@pytest.mark.parametrize("op", ["add", "max"])
def test_reduce_scatter(groups: Groups, shape: tuple[int, ...], op: CollectiveOps) -> None:
    x = numbers(groups, *shape)
    (found,) = per_replica(lambda t: collectives.replicated_reduce_scatter(t, op, grouping(groups)), x)
    assert_equal(found, meanings.reduce_scatter(x, op, groups))


@on_all_groupings
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 0)])
def test_sharded_slice(groups: Groups, shape: tuple[int, ...]) -> None:
    x = numbers(groups, *shape)
    (found,) = per_replica(lambda t: collectives.replica_sharded_slice(t, grouping(groups)), x)
    assert_equal(found, meanings.sharded_slice(x, groups))


@pytest.mark.parametrize("dtype", [np.bool_, np.float16, np.uint8, np.int64])
def test_sharding_and_gathering_work_in_any_dtype(dtype: Any) -> None:
    x = np.tile((np.arange(5) % 2 == 0).astype(dtype), (4, 1))
    (found,) = per_replica(lambda t: collectives.replicated_all_gather(collectives.replica_sharded_slice(t)), x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, x)


def test_what_is_not_a_number_stays_with_its_shard() -> None:
    x = np.array([[1.0, np.nan, np.inf, 2.0]] * 2, np.float32)
    (found,) = per_replica(lambda t: collectives.replica_sharded_slice(t), x)
    np.testing.assert_array_equal(found, [[1.0, np.nan], [np.inf, 2.0]])


@on_all_groupings
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("quotient", [1, 2])
def test_slice_along_an_axis(groups: Groups, axis: int, quotient: int) -> None:
    shape = [2, 3, 4]
    shape[axis] = groups.k * quotient
    x = numbers(groups, *shape)
    (found,) = per_replica(lambda t: collectives.replicated_slice(t, axis, grouping(groups)), x)
    assert_equal(found, meanings.replicated_slice(x, axis, groups))


@on_all_groupings
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5)])
def test_gathering_shards_restores_the_tensor(groups: Groups, shape: tuple[int, ...]) -> None:
    x = np.broadcast_to(np.arange(1.0, 1 + np.prod(shape), dtype=np.float32).reshape(shape), (groups.count, *shape))

    def there_and_back(t: Tensor) -> Tensor:
        shard = collectives.replica_sharded_slice(t, grouping(groups))
        return collectives.replicated_all_gather(shard + 1.0, group=grouping(groups))

    (found,) = per_replica(there_and_back, x)
    np.testing.assert_array_equal(found, x + 1)


@on_all_groupings
def test_scattering_and_gathering_is_all_reduce(groups: Groups) -> None:
    x = numbers(groups, 3, 3)

    def function(t: Tensor) -> Tensor:
        group = grouping(groups)
        shard = collectives.replicated_reduce_scatter(t, "add", group, True)
        return collectives.replicated_all_gather(shard, group=group)

    (found,) = per_replica(function, x)
    assert_equal(found, meanings.all_reduce(x, "add", groups))


@on_all_groupings
@pytest.mark.parametrize("op", ["add", "mean", "square_add"])
def test_all_reduce_in_place_leaves_the_result_in_its_argument(groups: Groups, op: CollectiveOps) -> None:
    x = numbers(groups, 4)

    def function(t: Tensor) -> tuple[Tensor, Tensor]:
        kept = t + 0.0
        return collectives.replicated_all_reduce_(kept, op, grouping(groups)), kept

    result, argument = per_replica(function, x)
    np.testing.assert_allclose(result, np.stack(meanings.all_reduce(x, op, groups)), rtol=1e-6)
    np.testing.assert_array_equal(argument, result)


# The examples of the specification

FOUR = np.array([[r, 10 + r] for r in range(4)], np.float32)


def two_by_two() -> popxl.ReplicaGrouping:
    return popxl.gcg().ir.replica_grouping(stride=2, group_size=2)


@pytest.mark.parametrize(
    ("op", "even", "odd"),
    [("add", [2, 22], [4, 24]), ("mean", [1, 11], [2, 12]), ("square_add", [4, 244], [10, 290])],
)
def test_example_of_all_reduce(op: CollectiveOps, even: list[int], odd: list[int]) -> None:
    (found,) = per_replica(lambda t: collectives.replicated_all_reduce(t, op, two_by_two()), FOUR)
    assert found.tolist() == [even, odd, even, odd]


def test_example_of_gather() -> None:
    (found,) = per_replica(lambda t: collectives.replicated_all_gather(t, group=two_by_two()), FOUR)
    assert found.tolist() == [[0, 10, 2, 12], [1, 11, 3, 13]] * 2


def test_example_of_gather_on_a_new_axis() -> None:
    (found,) = per_replica(
        lambda t: collectives.replicated_all_gather(t, group=two_by_two(), output_shape="new_axis"), FOUR
    )
    assert found.tolist() == [[[0, 10], [2, 12]], [[1, 11], [3, 13]]] * 2


def test_example_of_gather_along_axis_1() -> None:
    x = np.array([np.full((2, 2), r) for r in range(2)], np.float32)
    (found,) = per_replica(lambda t: collectives.replicated_all_gather(t, axis=1), x)
    assert found.tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1]]] * 2


def test_example_of_reduce_scatter() -> None:
    x = np.array([[r, 10 + r, 20 + r] for r in range(4)], np.float32)
    (found,) = per_replica(lambda t: collectives.replicated_reduce_scatter(t, group=two_by_two()), x)
    assert found.tolist() == [[2, 22], [4, 24], [42, 0], [44, 0]]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]), (4, [[1, 2], [3, 4], [5, 6], [7, 8]])],
)
def test_examples_of_slice(count: int, expected: list[Any]) -> None:
    x = np.array([[[1, 2], [3, 4], [5, 6], [7, 8]]] * count, np.float32)
    (found,) = per_replica(lambda t: collectives.replicated_slice(t), x)
    assert found.tolist() == expected


TWO = [np.array([[1, 2]], np.float32), np.array([[3, 4]], np.float32)]


def across_two_ipus(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    return lambda a, b: function([a, b], ipus=[0, 1])


@pytest.mark.parametrize(
    ("function", "expected", "gradients"),
    [
        (collectives.all_reduce, [[4, 6], [4, 6]], [[11, 11], [11, 11]]),
        (collectives.all_reduce_identical_inputs, [[1, 2], [3, 4]], [[11, 11], [11, 11]]),
        (collectives.all_reduce_identical_grad_inputs, [[4, 6], [4, 6]], [[1, 1], [10, 10]]),
    ],
)
def test_examples_across_ipus(function: Any, expected: list[Any], gradients: list[Any]) -> None:
    assert [y[0].tolist() for y in per_replica(across_two_ipus(function), *TWO)] == expected
    upstream = [np.array([[1, 1]], np.float32), np.array([[10, 10]], np.float32)]
    assert [g[0].tolist() for g in differentiated(across_two_ipus(function), TWO, upstream)] == gradients


# Gradients


def differentiated(function: Callable[..., Any], xs: list[np.ndarray], upstream: list[np.ndarray]) -> list[np.ndarray]:
    """The gradients of the inputs, given those of the outputs: one for each replica."""
    info = transforms.autodiff(graph_of(len(xs[0]), function, *map(spec, xs)))
    assert len(info.graph.inputs) == len(upstream), "a gradient needs a forward tensor"
    return evaluate(info.graph, upstream)


@on_all_groupings
def test_gradient_of_all_reduce_adds_up_the_upstream_gradients(groups: Groups) -> None:
    x, g = numbers(groups, 3), numbers(groups, 3) + 1
    (found,) = differentiated(lambda t: collectives.replicated_all_reduce(t, group=grouping(groups)), [x], [g])
    assert_equal(found, meanings.all_reduce(g, "add", groups))


@on_all_groupings
@pytest.mark.parametrize("axis", [0, 1])
def test_gradient_of_gather_is_the_own_slice_of_the_own_gradient(groups: Groups, axis: int) -> None:
    x = numbers(groups, 2, 3)
    shape = [2, 3]
    shape[axis] *= groups.k
    g = numbers(groups, *shape)
    (found,) = differentiated(
        lambda t: collectives.replicated_all_gather(t, axis, grouping(groups), "concat"), [x], [g]
    )
    assert_equal(found, [np.split(g[r], groups.k, axis)[groups.rank(r)] for r in range(groups.count)])


@on_all_groupings
def test_gradient_of_gather_on_a_new_axis_is_the_own_element(groups: Groups) -> None:
    x, g = numbers(groups, 2, 3), numbers(groups, groups.k, 2, 3)
    (found,) = differentiated(lambda t: collectives.replicated_all_gather(t, 0, grouping(groups), "new_axis"), [x], [g])
    assert_equal(found, [g[r][groups.rank(r)] for r in range(groups.count)])


@on_all_groupings
def test_gradient_of_gathering_shards_is_the_own_shard(groups: Groups) -> None:
    g = numbers(groups, 7)
    size = -(-7 // groups.k)
    shard = popxl.TensorSpec((size,), popxl.float32, meta_shape=(7,))
    graph = graph_of(groups.count, lambda t: collectives.replicated_all_gather(t, group=grouping(groups)), shard)
    info = transforms.autodiff(graph)
    assert info.graph.outputs[0].meta_shape == (7,)
    assert_equal(evaluate(info.graph, [g])[0], meanings.sharded_slice(g, groups))


def test_gradient_of_gathering_over_a_larger_group_counts_what_was_gathered() -> None:
    # Two shards of 2 make the 4 elements; the other members' are dropped, and get no gradient.
    shard = popxl.TensorSpec((2,), popxl.float32, meta_shape=(4,))
    info = transforms.autodiff(graph_of(4, lambda t: collectives.replicated_all_gather(t), shard))
    g = np.arange(1.0, 17.0, dtype=np.float32).reshape(4, 4)
    assert evaluate(info.graph, [g])[0].tolist() == [[1, 2], [7, 8], [0, 0], [0, 0]]


@on_all_groupings
@pytest.mark.parametrize("shape", [(6,), (7,), (3, 5)])
def test_gradient_of_sharded_slice_is_gathered_into_the_shape(groups: Groups, shape: tuple[int, ...]) -> None:
    x = numbers(groups, *shape)
    g = numbers(groups, -(-x[0].size // groups.k))
    (found,) = differentiated(lambda t: collectives.replica_sharded_slice(t, grouping(groups)), [x], [g])
    assert_equal(found, meanings.gather_meta_shape(g, shape, groups))


@on_all_groupings
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gradient_of_slice_is_gathered_along_the_axis(groups: Groups, axis: int) -> None:
    shape = [2, 3, 4]
    shape[axis] = 2 * groups.k
    x = numbers(groups, *shape)
    shape[axis] = 2
    g = numbers(groups, *shape)
    (found,) = differentiated(lambda t: collectives.replicated_slice(t, axis, grouping(groups)), [x], [g])
    assert_equal(found, meanings.gather_concat(g, axis, groups))


def test_gradient_of_slices_of_one_element_is_stacked() -> None:
    x, g = np.zeros((4, 2, 4, 3), np.float32), numbers(Groups(4, 1, 4), 2, 3)
    (found,) = differentiated(lambda t: collectives.replicated_slice(t, axis=1), [x], [g])
    assert_equal(found, [np.stack(list(g), axis=1)] * 4)


def test_gradient_of_a_gradient_of_gather_is_gather() -> None:
    ir = popxl.Ir(replication=2)
    with ir.main_graph:
        forward = ir.create_graph(lambda t: collectives.replicated_all_gather(t), popxl.TensorSpec((2,), popxl.float32))
        backward = transforms.autodiff(forward).graph
        again = transforms.autodiff(backward).graph
    g = np.array([[1, 2], [3, 4]], np.float32)
    assert evaluate(again, [g])[0].tolist() == [[1, 2, 3, 4]] * 2


def test_one_gradient_across_ipus_may_be_missing() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        one = popxl.TensorSpec((1,), popxl.float32)
        graph = ir.create_graph(lambda a, b: collectives.all_reduce([a, b], [0, 1]), one, one)
        info = transforms.autodiff(graph, graph.outputs[:1])
    assert [g.tolist() for g in evaluate(info.graph, [np.array([[5]], np.float32)])] == [[[5]], [[5]]]


@pytest.mark.parametrize(
    ("function", "types"),
    [
        (lambda t: collectives.replicated_all_reduce(t), ["ReplicatedAllReduce"]),
        (lambda t: collectives.replica_sharded_slice(t), ["ReplicatedAllGather"]),
        (lambda t: collectives.replicated_all_gather(t, output_shape="meta_shape"), ["ReplicatedReduceScatter"]),
        (lambda t: collectives.all_reduce([t, t], [0, 1]), ["AllReduceGrad"]),
    ],
)
def test_ops_of_a_gradient_graph(function: Callable[..., Any], types: list[str]) -> None:
    info = transforms.autodiff(graph_of(2, function, popxl.TensorSpec((4,), popxl.float32)))
    assert [op.opType() for op in info.graph.ops if op.type != "Sum"] == types


def test_all_reduce_that_does_not_add_has_no_gradient_and_other_paths_count() -> None:
    def function(t: Tensor) -> Tensor:
        return t * 3.0 + collectives.replicated_all_reduce(t, "max")

    g = np.array([[1.0], [2.0]], np.float32)
    (found,) = differentiated(function, [g], [g])
    assert found.tolist() == [[3.0], [6.0]]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda t: collectives.replicated_reduce_scatter(t),
            "ReplicatedReduceScatterOp: grad op is only implemented when",
        ),
        (lambda t: collectives.all_reduce([t, t], [0, 1], "max"), "Cannot create grad op for AllReduceOp."),
        (lambda t: collectives.all_reduce_identical_inputs([t], [0], "mean"), "Cannot create grad op for AllReduceOp."),
    ],
)
def test_gradients_that_are_refused(function: Callable[..., Any], message: str) -> None:
    graph = graph_of(2, function, popxl.TensorSpec((4,), popxl.float32))
    with pytest.raises(CoreError) as caught:
        transforms.autodiff(graph)
    assert str(caught.value).startswith(message)


def test_all_reduce_in_place_has_no_gradient() -> None:
    def function(t: Tensor) -> Tensor:
        return collectives.replicated_all_reduce_(t * 2.0)

    graph = graph_of(2, function, popxl.TensorSpec((4,), popxl.float32))
    with pytest.raises(PopxlError):
        transforms.autodiff(graph)


# Names, footprints, meta shapes, places


@pytest.fixture
def x() -> Any:
    with popxl.Ir(replication=2).main_graph:
        yield popxl.variable(np.zeros((4, 2), np.float32), name="x")


def new_tensors(function: Callable[[], Any]) -> int:
    graph = popxl.gcg()
    before = len(graph.tensors)
    function()
    return len(graph.tensors) - before


FOOTPRINTS: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "all_reduce": (lambda x: collectives.all_reduce([x, x, x], [0, 1, 2]), ["AllReduce"]),
    "all_reduce max": (lambda x: collectives.all_reduce([x, x], [0, 1], "max"), ["AllReduce"]),
    "identical_inputs": (lambda x: collectives.all_reduce_identical_inputs([x], [0]), ["AllReduce"]),
    "identical_grad_inputs": (lambda x: collectives.all_reduce_identical_grad_inputs([x], [0]), ["AllReduce"]),
    "replicated_all_reduce": (lambda x: collectives.replicated_all_reduce(x), ["ReplicatedAllReduce"]),
    "replicated_all_reduce mean": (lambda x: collectives.replicated_all_reduce(x, "mean"), ["ReplicatedAllReduce"]),
    "replicated_all_reduce_": (lambda x: collectives.replicated_all_reduce_(x), ["ReplicatedAllReduceInplace"]),
    "gather": (lambda x: collectives.replicated_all_gather(x), ["Reshape", "ReplicatedAllGather", "Reshape"]),
    "gather new_axis": (
        lambda x: collectives.replicated_all_gather(x, output_shape="new_axis"),
        ["Reshape", "ReplicatedAllGather", "Reshape"],
    ),
    "gather axis 1": (
        lambda x: collectives.replicated_all_gather(x, 1),
        ["Transpose", "Reshape", "ReplicatedAllGather", "Reshape", "Transpose"],
    ),
    "gather meta_shape": (
        lambda x: collectives.replicated_all_gather(x, output_shape="meta_shape"),
        ["ReplicatedAllGather"],
    ),
    "reduce_scatter": (lambda x: collectives.replicated_reduce_scatter(x), ["ReplicatedReduceScatter"]),
    "sharded_slice": (lambda x: collectives.replica_sharded_slice(x), ["ReplicatedReduceScatter"]),
    "slice": (lambda x: collectives.replicated_slice(x), ["Reshape", "ReplicatedReduceScatter", "Reshape"]),
}


@pytest.mark.parametrize("case", FOOTPRINTS)
def test_footprint(case: str, x: Tensor) -> None:
    function, types = FOOTPRINTS[case]
    count = new_tensors(lambda: function(x))
    assert [op.opType() for op in x.graph.ops] == types
    assert count == (3 if case == "all_reduce" else 2 if case == "all_reduce max" else len(types))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (collectives.replicated_all_reduce, "x_all_reduce"),
        (collectives.replicated_all_reduce_, "x_all_reduce"),
        (collectives.replicated_reduce_scatter, "x_reduce_scattered"),
        (collectives.replica_sharded_slice, "x_sharded_slice"),
    ],
)
def test_names(function: Callable[[Tensor], Tensor], name: str, x: Tensor) -> None:
    assert function(x).name == name


def test_shards_have_the_meta_shape_of_the_tensor(x: Tensor) -> None:
    assert collectives.replica_sharded_slice(x).meta_shape == (4, 2)
    assert collectives.replicated_reduce_scatter(x, "add", None, True).meta_shape == (4, 2)


def test_pieces_and_slices_are_no_shards(x: Tensor) -> None:
    assert collectives.replicated_reduce_scatter(x).meta_shape == ()
    assert collectives.replicated_slice(x).meta_shape == ()


def test_shards_keep_their_meta_shape(x: Tensor) -> None:
    shard = collectives.replica_sharded_slice(x)
    assert collectives.replicated_all_reduce(shard).meta_shape == (4, 2)
    assert (shard * 2.0 + shard).meta_shape == (4, 2)
    assert ops.var_updates.accumulate_(shard, shard).meta_shape == (4, 2)


def test_a_gathered_tensor_is_no_shard(x: Tensor) -> None:
    gathered = collectives.replicated_all_gather(collectives.replica_sharded_slice(x))
    assert (gathered.shape, gathered.meta_shape) == ((4, 2), ())


def test_a_shard_is_concatenated_if_asked_for(x: Tensor) -> None:
    shard = collectives.replicated_reduce_scatter(x[:3, 1], configure_output_for_replicated_tensor_sharding=True)
    assert collectives.replicated_all_gather(shard, output_shape="concat").shape == (4,)
    assert collectives.replicated_all_gather(shard).shape == (3,)


def test_in_place_is_an_alias_that_modifies(x: Tensor) -> None:
    y = collectives.replicated_all_reduce_(x)
    assert y.storage is x
    assert y.producer is not None
    assert y.producer.modifiesIndex(0)


def test_tensors_across_ipus_are_where_they_were_put(x: Tensor) -> None:
    a, b = ops.identity(x), ops.identity(x)
    assert [t.ipu for t in collectives.all_reduce([a, b], [3, 5])] == [3, 5]


def test_the_first_use_across_ipus_places_a_variable() -> None:
    with popxl.Ir().main_graph:
        a, b = popxl.variable(1.0), popxl.variable(2.0)
        collectives.all_reduce([a, b], [3, 5])
        assert (a.ipu, b.ipu) == (3, 5)


def test_ipus_are_those_of_the_tensors() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable(1.0)
        tensors = [ops.identity(x), ops.ipu_copy(ops.identity(x), 1)]
        assert [t.ipu for t in collectives.all_reduce(tensors)] == [0, 1]


def test_tensors_across_ipus_keep_their_meta_shape(x: Tensor) -> None:
    shard = collectives.replica_sharded_slice(x)
    assert [t.meta_shape for t in collectives.all_reduce([shard, shard], [0, 1])] == [(4, 2)] * 2


@pytest.mark.parametrize(
    "function", [collectives.all_reduce, collectives.all_reduce_identical_inputs, collectives.replicated_all_reduce]
)
@pytest.mark.parametrize("op", ["add", "max"])
def test_an_op_knows_the_function_that_made_it(function: Any, op: CollectiveOps, x: Tensor) -> None:
    function(*([x], [0]) if "replicated" not in function.__name__ else (x,), op=op)
    assert [made.api for made in x.graph.ops] == [function.__name__]


# Names for companion libraries


@pytest.mark.parametrize("op", get_args(CollectiveOps))
def test_names_of_reductions_are_valid(op: CollectiveOps) -> None:
    assert to_collective_op(op) == op


def test_old_groups_have_their_defaults_and_members() -> None:
    group = collectives.CommGroup()
    assert (group.type, group.replicaGroupSize) == (collectives.CommGroupType.All, 0)
    assert [kind.name for kind in collectives.CommGroupType] == ["All", "Consecutive", "Orthogonal", "Ungrouped"]
    assert collectives.CommGroup(collectives.CommGroupType.Consecutive, 4).replicaGroupSize == 4
