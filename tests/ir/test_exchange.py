"""`merge_exchange` and `io_tile_exchange` (spec core.md §5, transforms.md §8)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.context import get_current_context
from popxl.transforms import io_tile_exchange, merge_exchange

REMAINED = r"^More than one Op remained after `io_tile_exchange`\."


@pytest.fixture
def buffer(main: popxl.Graph) -> popxl.RemoteBuffer:
    return popxl.remote_buffer((2,), popxl.float32, entries=4)


def test_independent_transfers_are_fine(buffer: popxl.RemoteBuffer) -> None:
    x = popxl.constant([1.0, 2.0])
    stream_in, stream_out = (make((2,), popxl.float32) for make in (popxl.h2d_stream, popxl.d2h_stream))
    with popxl.io_tiles():
        y = ops.identity(x)
    with io_tile_exchange():
        ops.host_load(stream_in)
        ops.host_store(stream_out, y)
        ops.remote_load(buffer, 0)
        ops.remote_store(buffer, 1, y)


def store_loaded(buffer: popxl.RemoteBuffer, _: popxl.Tensor) -> None:
    ops.remote_store(buffer, 1, ops.remote_load(buffer, 0))


def store_loaded_in_place(buffer: popxl.RemoteBuffer, x: popxl.Tensor) -> None:
    ops.remote_load_(buffer, 0, x)
    ops.remote_store(buffer, 1, x)


def load_and_compute(buffer: popxl.RemoteBuffer, x: popxl.Tensor) -> None:
    ops.remote_load(buffer, 0)
    ops.relu(x)


def compute_twice(_: popxl.RemoteBuffer, x: popxl.Tensor) -> None:
    ops.relu(x)
    ops.relu(x)


@pytest.mark.parametrize("body", [store_loaded, store_loaded_in_place, load_and_compute, compute_twice])
def test_ops_that_cannot_happen_together_raise(buffer: popxl.RemoteBuffer, body: Callable[..., None]) -> None:
    x = popxl.variable([0.0, 0.0])
    with pytest.raises(RuntimeError, match=REMAINED):
        io_tile_exchange()(body)(buffer, x)


@pytest.mark.parametrize("count", [0, 1])
def test_up_to_one_op_is_fine(main: popxl.Graph, count: int) -> None:
    x = popxl.variable([0.0, 0.0])
    with io_tile_exchange():
        for _ in range(count):
            ops.relu(x)


def test_ops_before_the_block_do_not_count(buffer: popxl.RemoteBuffer) -> None:
    with popxl.io_tiles():
        x = ops.remote_load(buffer, 0)
    with io_tile_exchange():
        ops.remote_store(buffer, 1, x)


def test_check_can_be_switched_off(buffer: popxl.RemoteBuffer) -> None:
    with io_tile_exchange(verify_overlap=False):
        ops.remote_store(buffer, 1, ops.remote_load(buffer, 0))


def test_error_of_the_block_itself_comes_first(buffer: popxl.RemoteBuffer) -> None:
    def failing() -> None:
        with io_tile_exchange():
            ops.remote_store(buffer, 1, ops.remote_load(buffer, 0))
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        failing()


def test_ops_are_on_io_tiles_and_unordered(buffer: popxl.RemoteBuffer, main: popxl.Graph) -> None:
    with io_tile_exchange():
        ops.remote_load(buffer, 0)
        ops.remote_load(buffer, 1)
    assert {op.tile_set for op in main.ops} == {"io"}
    assert {op.after for op in main.ops} == {()}


def test_merge_exchange_leaves_the_state_alone(main: popxl.Graph) -> None:
    before = repr(get_current_context())
    with merge_exchange() as value:
        assert repr(get_current_context()) == before
    assert value is None


def test_both_decorate(main: popxl.Graph) -> None:
    stream = popxl.h2d_stream((), popxl.float32)

    @io_tile_exchange()
    def load() -> popxl.Tensor:
        return merge_exchange()(ops.host_load)(stream)

    assert load().tile_set == "io"


def test_values_do_not_change(ir: popxl.Ir) -> None:
    with ir.main_graph:
        source, sink = (make((2,), popxl.float32) for make in (popxl.h2d_stream, popxl.d2h_stream))
        with merge_exchange():
            ops.host_store(sink, ops.host_load(source))
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run({source: np.float32([1, 2])})[sink], [1, 2])
