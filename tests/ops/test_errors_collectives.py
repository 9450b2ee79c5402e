"""What collectives refuse, and how they say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlError
from popxl.ops import collectives
from popxl.tensor import Tensor


def irregular() -> popxl.ReplicaGrouping:
    return popxl.gcg().ir.replica_grouping_from_assignments([0, 1, 1, 0])


def of_another_program() -> popxl.ReplicaGrouping:
    return popxl.Ir(replication=4).replica_grouping()


Case = tuple[Callable[[Tensor], Any], type[BaseException], str]
ERRORS: dict[str, Case] = {
    "unknown reduction": (lambda t: collectives.replicated_all_reduce(t, "sum"), ValueError, "Not a valid op: "),
    "local reduction": (lambda t: collectives.replicated_reduce_scatter(t, "local"), ValueError, "Not a valid op: "),
    "unknown reduction in place": (
        lambda t: collectives.replicated_all_reduce_(t, "Add"),
        ValueError,
        "Not a valid op: ",
    ),
    "unknown reduction across ipus": (
        lambda t: collectives.all_reduce([t], [0], "local"),
        ValueError,
        "Not a valid op: ",
    ),
    "logical reduction of floats": (
        lambda t: collectives.replicated_all_reduce(t, "and"),
        CoreError,
        '"and" reduces bool, and this is float32.',
    ),
    "sum of bools": (
        lambda t: collectives.replicated_all_reduce(ops.cast(t, popxl.bool)),
        CoreError,
        "Unsupported dtype",
    ),
    "maximum of bools": (
        lambda t: collectives.replicated_all_reduce(ops.cast(t, popxl.bool), "max"),
        CoreError,
        '"max" reduces numbers, and this is bool.',
    ),
    "axis": (lambda t: collectives.replicated_all_gather(t, 0.5), ValueError, "Axis should be an int. "),
    "output_shape": (
        lambda t: collectives.replicated_all_gather(t, output_shape="stack"),
        ValueError,
        "output_shape must equal one of ",
    ),
    "concatenated scalars": (
        lambda t: collectives.replicated_all_gather(ops.sum(t)),
        IndexError,
        "Axis 0 does not exist",
    ),
    "stacked scalars": (
        lambda t: collectives.replicated_all_gather(ops.sum(t), output_shape="new_axis"),
        IndexError,
        "Axis 0 does not exist",
    ),
    "axis of gather out of range": (
        lambda t: collectives.replicated_all_gather(t, 2),
        IndexError,
        "Axis 2 does not exist",
    ),
    "too few shards": (
        lambda t: collectives.replicated_all_gather(
            collectives.replica_sharded_slice(t), group=popxl.gcg().ir.replica_grouping(group_size=2)
        ),
        CoreError,
        "2 replicas with 2 elements each",
    ),
    "slice that does not divide": (
        lambda t: collectives.replicated_slice(t, 1),
        ValueError,
        "Replicated slice must equally divide axis. ",
    ),
    "axis of slice out of range": (
        lambda t: collectives.replicated_slice(t, -3),
        IndexError,
        "Axis -3 does not exist",
    ),
    "no tensor across ipus": (lambda t: collectives.all_reduce([]), CoreError, "AllReduceOp::setup"),
    "shapes across ipus": (
        lambda t: collectives.all_reduce([t, ops.flatten(t)], [0, 1]),
        CoreError,
        "AllReduceOp::setup not all inputs have the same shape",
    ),
    "dtypes across ipus": (
        lambda t: collectives.all_reduce([t, ops.cast(t, popxl.float16)], [0, 1]),
        CoreError,
        "AllReduceOp::setup not all inputs have the same shape",
    ),
    "as many ipus": (
        lambda t: collectives.all_reduce([t, t], [0]),
        ValueError,
        "Number of specified tensor does not equal number of specified IPUs. ",
    ),
    "unknown ipu": (
        lambda t: collectives.all_reduce_identical_inputs([popxl.variable(1.0), popxl.variable(1.0)]),
        ValueError,
        "Could not automatically infer the IPU of all input Tensors `ts`. ",
    ),
    "no tensor": (lambda t: collectives.replicated_all_reduce(1.0), TypeError, "The input `t` is not a Tensor."),
    "no tensor across": (lambda t: collectives.all_reduce([t, 1.0], [0, 1]), TypeError, "The input `ts_1` is not"),
    "no grouping": (lambda t: collectives.replicated_slice(t, 0, 2), TypeError, "The group 2 is no ReplicaGrouping."),
}
TAKING_A_GROUP: dict[str, Callable[[Tensor, popxl.ReplicaGrouping], Any]] = {
    "all_reduce": lambda t, group: collectives.replicated_all_reduce(t, "add", group),
    "all_reduce_": lambda t, group: collectives.replicated_all_reduce_(t, "add", group),
    "all_gather": lambda t, group: collectives.replicated_all_gather(t, 0, group),
    "reduce_scatter": lambda t, group: collectives.replicated_reduce_scatter(t, "add", group),
    "sharded_slice": collectives.replica_sharded_slice,
    "slice": lambda t, group: collectives.replicated_slice(t, 0, group),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error(case: str) -> None:
    function, kind, message = ERRORS[case]
    with popxl.Ir(replication=4).main_graph:
        t = popxl.variable(np.zeros((4, 2), np.float32), name="x")
        with pytest.raises(kind) as caught:
            function(t)
    assert isinstance(caught.value, PopxlError)
    assert str(caught.value).startswith(message)
    assert "Hint: " in str(caught.value)


@pytest.mark.parametrize("name", TAKING_A_GROUP)
def test_a_grouping_without_a_constant_stride_is_not_implemented(name: str) -> None:
    with popxl.Ir(replication=4).main_graph:
        t = popxl.variable(np.zeros((4, 2), np.float32))
        with pytest.raises(NotImplementedError, match="const_rg"):
            TAKING_A_GROUP[name](t, irregular())


@pytest.mark.parametrize("name", TAKING_A_GROUP)
def test_a_grouping_of_another_program_is_an_error(name: str) -> None:
    with popxl.Ir(replication=4).main_graph:
        t = popxl.variable(np.zeros((4, 2), np.float32))
        with pytest.raises(ValueError, match="belongs to another Ir"):
            TAKING_A_GROUP[name](t, of_another_program())


def test_a_grouping_of_another_replication_factor_is_an_error() -> None:
    ir = popxl.Ir(replication=4)
    group = ir.replica_grouping()
    ir.replication_factor = 2
    with ir.main_graph, pytest.raises(ValueError, match="replication factor"):
        collectives.replicated_all_reduce(popxl.variable(1.0), group=group)


@pytest.mark.parametrize("name", TAKING_A_GROUP)
def test_a_tensor_of_another_graph_is_an_error(name: str) -> None:
    ir = popxl.Ir(replication=4)
    with ir.main_graph:
        t = popxl.variable(np.zeros((4, 2), np.float32))
    with ir.create_empty_graph(), pytest.raises(ValueError, match="The input tensor `t` is not in the current Graph"):
        TAKING_A_GROUP[name](t, ir.replica_grouping())


def test_a_failed_collective_leaves_the_graph_as_it_was() -> None:
    with popxl.Ir(replication=2).main_graph as graph:
        x = popxl.variable(np.zeros((4, 2), np.float32))
        with pytest.raises(CoreError):
            collectives.replicated_reduce_scatter(x, "and")
    assert (graph.tensors, graph.ops) == ((x,), ())
