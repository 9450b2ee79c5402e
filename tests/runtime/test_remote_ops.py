"""`remote_load`, `remote_load_` and `remote_store` while a program is built (remote-memory.md §3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import RemoteOffsetError

ROW = (2, 3)


class Scene:
    """A buffer, a tensor that fits it, and the three ops as functions of the offset."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.buffer = popxl.remote_buffer(ROW, popxl.float32, 4)
            self.t = popxl.variable(np.zeros(ROW, np.float32), name="t")

    def load(self, offset: Any, buffer: Any = None, t: Any = None) -> Any:
        return ops.remote_load(buffer or self.buffer, offset)

    def load_(self, offset: Any, buffer: Any = None, t: Any = None) -> Any:
        return ops.remote_load_(buffer or self.buffer, offset, self.t if t is None else t)

    def store(self, offset: Any, buffer: Any = None, t: Any = None) -> Any:
        return ops.remote_store(buffer or self.buffer, offset, self.t if t is None else t)


Use = Callable[..., Any]
EACH = [Scene.load, Scene.load_, Scene.store]
INTO = [Scene.load_, Scene.store]


@pytest.fixture
def scene() -> Scene:
    return Scene()


# Footprint and names


def footprint(scene: Scene, use: Use, offset: Any) -> tuple[list[str], list[str]]:
    """The types of the ops and the names of the tensors that a use adds."""
    graph = scene.ir.main_graph
    ops_before, tensors_before = len(graph.ops), {t.id for t in graph.tensors}
    with graph:
        use(scene, offset)
    return [op.type for op in graph.ops[ops_before:]], [t.name for t in graph.tensors if t.id not in tensors_before]


def test_load_makes_an_offset_an_init_and_a_result(scene: Scene) -> None:
    made = footprint(scene, Scene.load, 3)
    names = ["offset", "id_1_offset_offset_remote_load", "id_1_offset_offset_remote_loaded"]
    assert made == (["Init", "RemoteLoad"], names)


def test_load_in_place_makes_an_offset_and_an_alias(scene: Scene) -> None:
    assert footprint(scene, Scene.load_, 3) == (["RemoteLoadInplace"], ["offset", "remote_load_inplace_out"])


def test_store_makes_an_offset(scene: Scene) -> None:
    assert footprint(scene, Scene.store, 3) == (["RemoteStore"], ["offset"])


def test_tensor_offset_adds_no_tensor_and_names_the_load(scene: Scene) -> None:
    with scene.ir.main_graph:
        row = popxl.constant(1, popxl.uint32, "row")
    assert footprint(scene, Scene.load, row)[1] == ["id_1_offset_row_remote_load", "id_1_offset_row_remote_loaded"]
    assert footprint(scene, Scene.load_, row)[1] == ["remote_load_inplace_out"]
    assert footprint(scene, Scene.store, row)[1] == []


def test_name_of_a_load_can_be_chosen(scene: Scene) -> None:
    with scene.ir.main_graph:
        assert ops.remote_load(scene.buffer, 0, "w").name == "w_remote_loaded"


@pytest.mark.parametrize("use", EACH)
def test_int_offset_is_a_uint32_constant_of_rank_0(scene: Scene, use: Use) -> None:
    footprint(scene, use, 3)
    (offset,) = [c for c in scene.ir.main_graph.constants if c.name == "offset"]
    assert (offset.dtype, offset.shape, int(offset.host_value)) == (popxl.uint32, (), 3)


def test_bool_is_an_int(scene: Scene) -> None:
    footprint(scene, Scene.load, True)
    assert int(scene.ir.main_graph.constants[0].host_value) == 1


# Results


def test_loaded_tensor_is_like_the_row(scene: Scene) -> None:
    scene.buffer.meta_shape = (6,)
    with scene.ir.main_graph:
        t = scene.load(0)
    assert (t.shape, t.dtype, t.meta_shape) == (ROW, popxl.float32, (6,))


def test_loaded_tensor_keeps_the_row_of_the_time_it_was_made(scene: Scene) -> None:
    with scene.ir.main_graph:
        t = scene.load(0)
    scene.buffer.meta_shape = (6,)
    scene.buffer.set_remote_buffer_info(popxl.int8, (9,), 1)
    assert (t.shape, t.dtype, t.meta_shape) == (ROW, popxl.float32, ())


def test_load_in_place_gives_another_handle_on_the_same_storage(scene: Scene) -> None:
    with scene.ir.main_graph:
        alias = scene.load_(0)
    assert alias != scene.t
    assert alias.storage is scene.t
    assert (alias.shape, alias.dtype) == (ROW, popxl.float32)


def test_load_in_place_sets_the_meta_shape_even_if_it_is_then_refused(scene: Scene) -> None:
    with scene.ir.main_graph:
        scene.buffer.meta_shape = (6,)
        alias = scene.load_(0)
        assert scene.t.meta_shape == alias.meta_shape == (6,)
        wrong = popxl.variable(0.0)
        with pytest.raises(ValueError, match="does not match buffer"):
            scene.load_(0, t=wrong)
        assert wrong.meta_shape == (6,)
        scene.buffer.meta_shape = ()
        scene.load_(0)
        assert scene.t.meta_shape == ()


def test_store_gives_nothing_and_keeps_the_meta_shape(scene: Scene) -> None:
    with scene.ir.main_graph:
        scene.buffer.meta_shape = (6,)
        assert scene.store(0) is None
    assert scene.t.meta_shape == ()


# Refusals


@pytest.mark.parametrize("use", INTO)
@pytest.mark.parametrize("data", [np.zeros(6, np.float32), np.zeros((3, 2), np.float32), np.zeros(ROW, np.float16)])
def test_tensor_must_match_the_row(scene: Scene, use: Use, data: np.ndarray) -> None:
    with scene.ir.main_graph:
        t = popxl.variable(data)
        with pytest.raises(ValueError, match=rf"^Tensor {t.id} does not match buffer\."):
            use(scene, 0, t=t)


@pytest.mark.parametrize("use", INTO)
def test_tensor_must_be_a_tensor(scene: Scene, use: Use) -> None:
    with scene.ir.main_graph, pytest.raises(TypeError, match="`t` is not a Tensor"):
        use(scene, 0, t=np.zeros(ROW, np.float32))


@pytest.mark.parametrize("use", INTO)
def test_tensor_must_be_of_the_current_graph(scene: Scene, use: Use) -> None:
    with scene.ir.create_empty_graph(), pytest.raises(ValueError, match="`t`"):
        use(scene, 0)


@pytest.mark.parametrize("use", EACH)
@pytest.mark.parametrize("offset", [np.int32(1), np.uint32(1), 1.0, "1", None, [1]])
def test_offset_must_be_an_int_or_a_tensor(scene: Scene, use: Use, offset: Any) -> None:
    with scene.ir.main_graph, pytest.raises(TypeError, match="`offset` is not a Tensor"):
        use(scene, offset)


@pytest.mark.parametrize("use", EACH)
def test_offset_must_be_of_the_current_graph(scene: Scene, use: Use) -> None:
    with scene.ir.create_empty_graph():
        offset = popxl.constant(0, popxl.uint32)
    with scene.ir.main_graph, pytest.raises(ValueError, match="`offset`"):
        use(scene, offset)


@pytest.mark.parametrize("use", EACH)
@pytest.mark.parametrize("data", [np.zeros(2, np.uint32), np.zeros((), np.float32), np.zeros((), bool)])
def test_offset_must_be_one_integer(scene: Scene, use: Use, data: np.ndarray) -> None:
    with scene.ir.main_graph:
        offset = popxl.constant(data)
        with pytest.raises(ValueError, match="must be an integer tensor with one element"):
            use(scene, offset)


@pytest.mark.parametrize("use", EACH)
@pytest.mark.parametrize("offset", [-1, -4, 1 << 32, (1 << 32) + 1])
def test_int_offset_that_no_uint32_holds_is_refused_at_once(scene: Scene, use: Use, offset: int) -> None:
    with scene.ir.main_graph, pytest.raises(RemoteOffsetError, match=f"offset {offset} ") as caught:
        use(scene, offset)
    assert isinstance(caught.value, ValueError)
    assert "0 <= offset < 4" in str(caught.value)
    assert [op.type for op in scene.ir.main_graph.ops] == []


@pytest.mark.parametrize("use", EACH)
def test_buffer_must_be_of_the_same_ir(scene: Scene, use: Use) -> None:
    with popxl.Ir().main_graph:
        stranger = popxl.remote_buffer(ROW, popxl.float32, 4)
    with scene.ir.main_graph, pytest.raises(ValueError, match="belongs to"):
        use(scene, 0, buffer=stranger)


def test_constant_cannot_be_loaded_into(scene: Scene) -> None:
    with scene.ir.main_graph:
        c = popxl.constant(np.zeros(ROW, np.float32))
        with pytest.raises(ValueError, match="Cannot load into"):
            scene.load_(0, t=c)


# What a session checks


@pytest.mark.parametrize("use", EACH)
@pytest.mark.parametrize("offset", [4, 5, (1 << 32) - 1])
def test_static_offset_beyond_the_buffer_is_refused_by_the_session(scene: Scene, use: Use, offset: int) -> None:
    with scene.ir.main_graph:
        use(scene, offset)
    with pytest.raises(RemoteOffsetError, match=f"Offset {offset} is outside") as caught:
        popxl.Session(scene.ir)
    message = str(caught.value)
    assert "id=1" in message
    assert "4 entries" in message
    assert __file__ in message
    assert "Hint:" in message


def test_static_offset_of_a_called_graph_is_checked_too(scene: Scene) -> None:
    with scene.ir.main_graph:
        ops.call(scene.ir.create_graph(lambda: scene.load(7)))
    with pytest.raises(ValueError, match="Offset 7 is outside"):
        popxl.Session(scene.ir)


def test_negative_constant_is_refused_by_the_session(scene: Scene) -> None:
    with scene.ir.main_graph:
        scene.load(popxl.constant(-1, popxl.int32))
    with pytest.raises(ValueError, match="Offset -1 is outside"):
        popxl.Session(scene.ir)


def test_graph_that_nothing_calls_is_not_checked(scene: Scene) -> None:
    with scene.ir.main_graph:
        scene.ir.create_graph(lambda: scene.load(7))
        scene.load(0)
    with popxl.Session(scene.ir) as session:
        session.run()


def test_buffer_may_grow_after_the_op_was_made(scene: Scene) -> None:
    with scene.ir.main_graph:
        scene.store(9)
    scene.buffer.entries = max(scene.buffer.entries, 10)
    with popxl.Session(scene.ir) as session:
        session.run()


def test_buffer_that_shrank_below_an_offset_is_refused(scene: Scene) -> None:
    with scene.ir.main_graph:
        scene.store(3)
    scene.buffer.entries = 3
    with pytest.raises(ValueError, match="Offset 3 is outside"):
        popxl.Session(scene.ir)


@pytest.mark.parametrize("use", EACH)
@pytest.mark.parametrize(("dtype", "shape"), [(popxl.float32, (3, 2)), (popxl.int32, ROW)])
def test_buffer_that_changed_its_rows_is_refused(scene: Scene, use: Use, dtype: Any, shape: tuple[int, ...]) -> None:
    with scene.ir.main_graph:
        use(scene, 0)
    scene.buffer.set_remote_buffer_info(dtype, shape, 4)
    with pytest.raises(ValueError, match="changed after the op was made") as caught:
        popxl.Session(scene.ir)
    assert __file__ in str(caught.value)
