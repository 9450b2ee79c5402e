"""Properties and methods of tensors (spec tensors-dtypes.md §5.1-§5.2, §6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import UndefinedValue
from popxl.tensor import Constant, Tensor, Variable


@pytest.mark.parametrize("kind", [Tensor, Variable, Constant])
def test_constructor_raises(kind: type) -> None:
    with pytest.raises(RuntimeError, match=f"Cannot create a {kind.__name__} directly"):
        kind()


def test_kinds(main: popxl.Graph) -> None:
    assert type(popxl.variable(1.0)) is Variable
    assert type(popxl.constant(1.0)) is Constant
    assert type(ops.relu(popxl.constant(1.0))) is Tensor


def test_one_object_per_id(main: popxl.Graph) -> None:
    x = popxl.variable(1.0, name="x")
    assert main.get_tensor("x") is x is main.variables[0]


@pytest.mark.parametrize(("shape", "rank", "nelms"), [((), 0, 1), ((3,), 1, 3), ((2, 3, 4), 3, 24), ((2, 0), 2, 0)])
def test_shape_rank_and_number_of_elements(main: popxl.Graph, shape: tuple[int, ...], rank: int, nelms: int) -> None:
    t = popxl.variable(np.zeros(shape, np.float32))
    assert (t.shape, t.rank, t.nelms) == (shape, rank, nelms)
    assert type(t.nelms) is int


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.bool_, np.int64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (1, 5), (4, 1)])
def test_strides_are_those_of_numpy(main: popxl.Graph, dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    assert popxl.constant(array, downcast=False).strides() == array.strides


def test_strides_of_another_shape(main: popxl.Graph) -> None:
    assert popxl.constant(np.zeros(6, np.float32)).strides((2, 3)) == np.zeros((2, 3), np.float32).strides


def test_ir_is_that_of_the_graph(ir: popxl.Ir, main: popxl.Graph) -> None:
    assert popxl.constant(1.0).ir is ir


@pytest.mark.parametrize("name", ["id", "name", "scope", "dtype", "shape", "rank", "nelms", "spec", "ir", "ipu"])
def test_properties_are_read_only(main: popxl.Graph, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(popxl.constant(1.0), name, None)


@pytest.mark.parametrize("name", ["copy_", "astype", "cast", "item", "abs", "__floordiv__", "__lshift__", "__lt__"])
def test_name_is_not_provided(name: str) -> None:
    assert name not in vars(Tensor)


def test_repr(main: popxl.Graph) -> None:
    assert repr(popxl.variable([1], name="bob")) == "Variable[bob popxl.dtypes.int32 (1,)]"
    assert repr(popxl.constant(1.0, name="c")) == "Constant[c popxl.dtypes.float32 ()]"
    assert repr(ops.relu(popxl.constant(1.0))) == "Tensor[relu_out popxl.dtypes.float32 ()]"


# meta_shape


def shard(name: str, shape: tuple[int, ...], meta_shape: tuple[int, ...]) -> popxl.Tensor:
    return popxl.graph_input(shape, popxl.float32, name, meta_shape=meta_shape)


def test_meta_shape_is_empty_unless_the_tensor_is_a_shard(ir: popxl.Ir) -> None:
    with ir.create_empty_graph():
        assert shard("a", (2,), ()).meta_shape == ()
        assert shard("b", (2,), (3, 1)).meta_shape == (3, 1)


def test_meta_shape_goes_through_elementwise_ops(ir: popxl.Ir) -> None:
    with ir.create_empty_graph():
        a = shard("a", (2,), (4,))
        assert ops.relu(a).meta_shape == (4,)
        assert (a + a).meta_shape == (4,)
        assert (a + 1.0).meta_shape == (4,)
        assert (1.0 + a).meta_shape == (4,)


def test_different_meta_shapes_do_not_go_together(ir: popxl.Ir) -> None:
    with ir.create_empty_graph():
        a, b = shard("a", (2,), (4,)), shard("b", (2,), (3,))
        with pytest.raises(popxl.errors.CoreError, match="Incompatible meta shapes"):
            a + b


# Placement


def test_fresh_variable_is_placed_nowhere(main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    with pytest.raises(UndefinedValue):
        x.ipu  # noqa: B018 - the access is the test
    with pytest.raises(UndefinedValue):
        x.tile_set  # noqa: B018 - the access is the test


def test_variable_is_where_its_consumer_is(main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    with popxl.ipu(3), popxl.io_tiles():
        ops.relu(x)
    assert (x.ipu, x.tile_set) == (3, "io")


def test_result_is_where_its_producer_is(main: popxl.Graph) -> None:
    with popxl.ipu(1):
        y = ops.relu(popxl.variable(1.0))
    with popxl.ipu(2):
        ops.relu(ops.init((), popxl.float32))
    assert (y.ipu, y.tile_set) == (1, "compute")


def test_graph_input_without_a_consumer_is_where_the_call_site_is(ir: popxl.Ir, main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    graph = ir.create_graph(lambda x: x, x)
    with pytest.raises(UndefinedValue):
        graph.inputs[0].ipu  # noqa: B018 - the access is the test
    with popxl.ipu(2):
        ops.call(graph, x)
    assert graph.inputs[0].ipu == 2


# Host data


def test_location_info_of_a_device_tensor(main: popxl.Graph) -> None:
    info = (popxl.variable(1.0) + 1.0).location_info
    assert (info.isRemote(), info.isSharded()) == (False, False)


def test_location_info_keeps_what_is_set(main: popxl.Graph) -> None:
    t = popxl.variable(1.0) + 1.0
    t.location_info.setRemoteBufferInfo(2, 5)
    assert t.location_info.getRemoteBufferInfo() == (2, 5)


def test_host_copy_is_in_sync_until_a_run_and_after_a_fetch(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x, c = popxl.variable(1.0), popxl.constant(1.0)
        x += c
    assert x.in_sync_with_ipu
    with popxl.Session(ir) as session:
        assert x.in_sync_with_ipu
        session.run()
        assert not x.in_sync_with_ipu
        assert c.in_sync_with_ipu
        session.weights_to_host()
        assert x.in_sync_with_ipu


def test_tensor_without_host_data_has_no_sync_state(main: popxl.Graph) -> None:
    with pytest.raises(UndefinedValue, match="has no host data"):
        ops.init((), popxl.float32).in_sync_with_ipu  # noqa: B018 - the access is the test


# Methods that forward to ops


@pytest.mark.parametrize(
    ("build", "type", "shape"),
    [
        (lambda t: t.transpose(), "Transpose", (4, 3, 2)),
        (lambda t: t.transpose((0, 2, 1)), "Transpose", (2, 4, 3)),
        (lambda t: t.transpose_(), "TransposeInplace", (4, 3, 2)),
        (lambda t: t.transpose_((1, 0, 2)), "TransposeInplace", (3, 2, 4)),
        (lambda t: t.T, "Transpose", (4, 3, 2)),
        (lambda t: t.T_, "TransposeInplace", (4, 3, 2)),
        (lambda t: t.reshape((6, 4)), "Reshape", (6, 4)),
        (lambda t: t.reshape_((4, -1)), "ReshapeInplace", (4, 6)),
        (lambda t: t.flatten(), "Reshape", (24,)),
        (lambda t: t.flatten_(), "ReshapeInplace", (24,)),
        (lambda t: t.detach(), "Detach", (2, 3, 4)),
        (lambda t: t.detach_(), "DetachInplace", (2, 3, 4)),
    ],
)
def test_method_makes_the_op_of_its_name(main: popxl.Graph, build: Any, type: str, shape: tuple[int, ...]) -> None:
    result = build(popxl.variable(np.zeros((2, 3, 4), np.float32)))
    assert (result.producer.type, result.shape) == (type, shape)


@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (2, 3), (3, 2), (4, 2), (1, 4), (4, 1)])
def test_diag_is_the_diagonal(main: popxl.Graph, evaluate: Any, shape: tuple[int, int]) -> None:
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    result = popxl.constant(value).diag()
    assert result.shape == (min(shape),)
    np.testing.assert_array_equal(evaluate(result)[0], np.diag(value))


@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2)])
def test_diag_needs_a_matrix(main: popxl.Graph, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Diag expected a 2d tensor"):
        popxl.constant(np.zeros(shape, np.float32)).diag()
