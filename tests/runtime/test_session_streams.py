"""Streams, and the ops that use them, while a program is built (session.md §1, ops-nn.md §8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import popxl
from popxl import ops
from popxl.streams import DeviceToHostStream, HostToDeviceStream, Stream

MAKERS: list[Any] = [popxl.h2d_stream, popxl.d2h_stream]
Maker = Callable[..., Stream]


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


@pytest.mark.parametrize("kind", [Stream, HostToDeviceStream, DeviceToHostStream])
def test_stream_cannot_be_made_directly(kind: type[Stream]) -> None:
    with pytest.raises(NotImplementedError, match="directly"):
        kind()


@pytest.mark.parametrize("make", MAKERS)
def test_stream_needs_an_active_graph(make: Maker) -> None:
    with pytest.raises(RuntimeError, match="no graph has been selected"):
        make((), popxl.float32)


@pytest.mark.parametrize(
    ("make", "kind"), [(popxl.h2d_stream, HostToDeviceStream), (popxl.d2h_stream, DeviceToHostStream)]
)
def test_stream_knows_its_shape_and_dtype(ir: popxl.Ir, make: Maker, kind: type[Stream]) -> None:
    with ir.main_graph:
        stream = make([2, 3], popxl.float16, "s")
    assert type(stream) is kind
    assert (stream.shape, stream.dtype, stream.tensor_id) == ((2, 3), popxl.float16, "s")
    assert stream.spec.to_dict() == {"shape": (2, 3), "dtype": popxl.float16, "meta_shape": ()}
    assert str(stream) == f"{kind.__name__} Tensor[s popxl.dtypes.float16 (2, 3)]"


@pytest.mark.parametrize("attribute", ["dtype", "shape", "spec", "tensor_id"])
def test_stream_is_read_only(ir: popxl.Ir, attribute: str) -> None:
    with ir.main_graph:
        stream = popxl.h2d_stream((), popxl.float32)
    with pytest.raises(AttributeError):
        setattr(stream, attribute, None)


@pytest.mark.parametrize(("make", "name"), [(popxl.h2d_stream, "h2d_stream"), (popxl.d2h_stream, "d2h_stream")])
def test_default_name_is_made_unique(ir: popxl.Ir, make: Maker, name: str) -> None:
    with ir.main_graph:
        first, second = make((), popxl.float32), make((), popxl.float32)
    assert first.tensor_id == name
    assert second.tensor_id.startswith(f"{name}__t")


def test_name_scopes_apply_to_streams(ir: popxl.Ir) -> None:
    with ir.main_graph, popxl.name_scope("layer"):
        assert popxl.h2d_stream((), popxl.float32, "x").tensor_id == "layer/x"


@pytest.mark.parametrize("make", MAKERS)
def test_handle_is_in_the_main_graph_wherever_the_stream_is_made(ir: popxl.Ir, make: Maker) -> None:
    with ir.create_empty_graph("g"):
        assert make((), popxl.float32, "s").tensor.graph == ir.main_graph


def test_streams_of_the_ir_equal_the_originals(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x, y = popxl.h2d_stream((), popxl.float32, "x"), popxl.d2h_stream((), popxl.float32, "y")
        ops.host_store(y, ops.host_load(x))
    assert ir.get_all_h2d_streams() == {x}
    assert ir.get_all_d2h_streams() == {y}
    (found,) = ir.get_all_h2d_streams()
    assert {x: 1}[found] == 1


def test_streams_with_different_handles_differ(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x, y = popxl.h2d_stream((), popxl.float32, "x"), popxl.h2d_stream((), popxl.float32, "x")
    assert x != y
    assert x != "x"
    assert x != x.tensor


# host_load


def test_host_load_has_the_streams_spec_and_name(ir: popxl.Ir) -> None:
    with ir.main_graph:
        stream = popxl.h2d_stream((2, 3), popxl.int8, "x")
        t = ops.host_load(stream)
    assert (t.shape, t.dtype, t.name) == ((2, 3), popxl.int8, "x_hostload")
    assert [op.type for op in ir.main_graph.ops] == ["Init", "HostLoad"]
    assert [t.name for t in ir.main_graph.tensors] == ["x", "x_init", "x_hostload"]


def test_host_load_takes_a_name(ir: popxl.Ir) -> None:
    with ir.main_graph:
        ops.host_load(popxl.h2d_stream((), popxl.float32, "x"), "label")
    assert [t.name for t in ir.main_graph.tensors] == ["x", "label_init", "label_hostload"]


def test_host_load_in_a_graph_leaves_only_the_handle_in_main(ir: popxl.Ir) -> None:
    with ir.main_graph:
        stream = popxl.h2d_stream((), popxl.float32, "x")
    graph = ir.create_graph(lambda: ops.host_load(stream))
    assert [t.name for t in ir.main_graph.tensors] == ["x"]
    assert [t.name for t in graph.tensors] == ["x_init", "x_hostload"]


def test_host_load_refuses_a_stream_of_another_ir(ir: popxl.Ir) -> None:
    with popxl.Ir().main_graph:
        stream = popxl.h2d_stream((), popxl.float32)
    with ir.main_graph, pytest.raises(ValueError, match="belongs to"):
        ops.host_load(stream)


# host_store


def test_host_store_makes_one_op_and_no_tensor(ir: popxl.Ir) -> None:
    with ir.main_graph:
        c = popxl.constant(1.0, name="c")
        assert ops.host_store(popxl.d2h_stream((), popxl.float32, "y"), c) is None
    assert [op.type for op in ir.main_graph.ops] == ["HostStore"]
    assert [t.name for t in ir.main_graph.tensors] == ["c", "y"]


def test_host_store_of_no_tensor_is_a_type_error(ir: popxl.Ir) -> None:
    with ir.main_graph, pytest.raises(TypeError, match="`t` is not a Tensor"):
        ops.host_store(popxl.d2h_stream((), popxl.float32), 1.0)  # type: ignore[arg-type]


def test_host_store_of_a_tensor_of_another_graph_is_a_value_error(ir: popxl.Ir) -> None:
    with ir.main_graph:
        c, y = popxl.constant(1.0), popxl.d2h_stream((), popxl.float32)
    with ir.create_empty_graph(), pytest.raises(ValueError, match="`t`"):
        ops.host_store(y, c)


def test_host_store_to_a_stream_of_another_ir_is_a_value_error(ir: popxl.Ir) -> None:
    with popxl.Ir().main_graph:
        y = popxl.d2h_stream((), popxl.float32)
    with ir.main_graph, pytest.raises(ValueError, match="belongs to"):
        ops.host_store(y, popxl.constant(1.0))


def test_host_store_of_another_dtype_is_a_value_error(ir: popxl.Ir) -> None:
    with ir.main_graph, pytest.raises(ValueError, match=r"^dtype of stream y .*float16.*float32"):
        ops.host_store(popxl.d2h_stream((2,), popxl.float16, "y"), popxl.constant(1.0))  # the shape differs too


def test_host_store_of_another_shape_is_a_value_error(ir: popxl.Ir) -> None:
    with ir.main_graph, pytest.raises(ValueError, match=r"^shape of stream y .*\(2,\).*\(\)"):
        ops.host_store(popxl.d2h_stream((2,), popxl.float32, "y"), popxl.constant(1.0))
