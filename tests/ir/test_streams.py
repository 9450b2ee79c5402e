"""Host streams (spec session.md §1)."""

from __future__ import annotations

from typing import Any

import pytest

import popxl
from popxl import ops
from popxl.streams import Stream

MAKERS = [
    pytest.param(popxl.h2d_stream, popxl.HostToDeviceStream, id="h2d"),
    pytest.param(popxl.d2h_stream, popxl.DeviceToHostStream, id="d2h"),
]


@pytest.mark.parametrize("kind", [Stream, popxl.HostToDeviceStream, popxl.DeviceToHostStream])
def test_constructor_raises(kind: type) -> None:
    with pytest.raises(NotImplementedError, match=f"Cannot create a {kind.__name__} directly"):
        kind()


@pytest.mark.parametrize(("make", "kind"), MAKERS)
def test_properties(main: popxl.Graph, make: Any, kind: type) -> None:
    stream = make([2, 3], popxl.float16, "x")
    assert type(stream) is kind
    assert (stream.shape, stream.dtype, stream.tensor_id) == ((2, 3), popxl.float16, "x")
    assert stream.spec == popxl.TensorSpec((2, 3), popxl.float16)


@pytest.mark.parametrize(("make", "kind"), MAKERS)
@pytest.mark.parametrize("name", ["shape", "dtype", "spec", "tensor_id"])
def test_properties_are_read_only(main: popxl.Graph, make: Any, kind: type, name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(make((), popxl.float32), name, None)


@pytest.mark.parametrize(("make", "kind"), MAKERS)
def test_text(main: popxl.Graph, make: Any, kind: type) -> None:
    assert str(make((2, 3), popxl.float32, "x")) == f"{kind.__name__} Tensor[x popxl.dtypes.float32 (2, 3)]"


@pytest.mark.parametrize(("make", "kind"), MAKERS)
def test_creation_needs_a_graph(make: Any, kind: type) -> None:
    with pytest.raises(RuntimeError, match="no graph has been selected"):
        make((), popxl.float32)


@pytest.mark.parametrize(("make", "kind"), MAKERS)
def test_handle_is_in_the_main_graph_wherever_it_was_made(ir: popxl.Ir, make: Any, kind: type) -> None:
    with ir.create_empty_graph() as graph:
        stream = make((), popxl.float32, "x")
    assert [t.id for t in ir.main_graph.tensors] == ["x"] == [stream.tensor_id]
    assert graph.tensors == ()


def test_names_are_made_unique_and_take_scopes(main: popxl.Graph) -> None:
    ids = [popxl.h2d_stream((), popxl.float32).tensor_id for _ in range(2)]
    with popxl.name_scope("s"):
        ids.append(popxl.d2h_stream((), popxl.float32, "x").tensor_id)
    assert ids == ["h2d_stream", "h2d_stream__t0", "s/x"]


def test_equality_and_hash_are_those_of_the_handle(ir: popxl.Ir) -> None:
    with ir.main_graph:
        a, b = (popxl.h2d_stream((), popxl.float32) for _ in range(2))
        ops.host_load(a)
    (listed,) = ir.get_all_h2d_streams()
    assert listed == a != b
    assert {a: "value"}[listed] == "value"
    assert a != "h2d_stream"


def test_equal_ids_of_two_irs_are_different_streams() -> None:
    streams = []
    for _ in range(2):
        with popxl.Ir().main_graph:
            streams.append(popxl.h2d_stream((), popxl.float32))
    assert streams[0] != streams[1]


# Loads and stores


def test_host_load_makes_two_ops_and_two_tensors(main: popxl.Graph) -> None:
    stream = popxl.h2d_stream((2,), popxl.float16, "x")
    t = ops.host_load(stream)
    assert [op.type for op in main.ops] == ["Init", "HostLoad"]
    assert [t.name for t in main.tensors] == ["x", "x_init", "x_hostload"]
    assert (t.shape, t.dtype) == ((2,), popxl.float16)


def test_host_load_with_a_name(main: popxl.Graph) -> None:
    assert ops.host_load(popxl.h2d_stream((), popxl.float32), "y").name == "y_hostload"
    assert "y_init" in {t.name for t in main.tensors}


def test_host_load_in_a_subgraph(ir: popxl.Ir) -> None:
    with ir.main_graph:
        stream = popxl.h2d_stream((), popxl.float32, "x")
        graph = ir.create_graph(lambda: ops.host_load(stream))
    assert graph.outputs[0].name == "x_hostload"


def test_host_load_of_a_stream_of_another_ir_raises(ir: popxl.Ir) -> None:
    with popxl.Ir().main_graph:
        stream = popxl.h2d_stream((), popxl.float32)
    with ir.main_graph, pytest.raises(ValueError, match="belongs to"):
        ops.host_load(stream)


def test_host_store_makes_one_op_and_no_tensor(main: popxl.Graph) -> None:
    t = popxl.constant(1.0)
    result = ops.host_store(popxl.d2h_stream((), popxl.float32), t)  # type: ignore[func-returns-value]
    assert result is None
    assert [op.type for op in main.ops] == ["HostStore"]


def test_host_store_of_no_tensor_raises(main: popxl.Graph) -> None:
    stream = popxl.d2h_stream((), popxl.float32)
    with pytest.raises(TypeError, match="is not a Tensor"):
        ops.host_store(stream, 1.0)  # type: ignore[arg-type]


def test_host_store_of_a_tensor_of_another_graph_raises(ir: popxl.Ir, main: popxl.Graph) -> None:
    stream, t = popxl.d2h_stream((), popxl.float32), popxl.constant(1.0)
    with pytest.raises(ValueError, match="is not in the current Graph"):
        ir.create_graph(lambda: ops.host_store(stream, t))


def test_host_store_to_a_stream_of_another_ir_raises(ir: popxl.Ir) -> None:
    with popxl.Ir().main_graph:
        stream = popxl.d2h_stream((), popxl.float32)
    with ir.main_graph:
        t = popxl.constant(1.0)
        with pytest.raises(ValueError, match="belongs to"):
            ops.host_store(stream, t)


@pytest.mark.parametrize(("value", "start"), [(1, "dtype of stream"), ([1.0], "shape of stream")])
def test_host_store_of_another_dtype_or_shape_raises(main: popxl.Graph, value: Any, start: str) -> None:
    stream, t = popxl.d2h_stream((), popxl.float32), popxl.constant(value)
    with pytest.raises(ValueError, match=f"^{start}"):
        ops.host_store(stream, t)
