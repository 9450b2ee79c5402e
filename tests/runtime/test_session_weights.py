"""Variables between host and device: when they are copied, and what may be written (session.md §2.3, §2.4)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.tensor import Constant, Variable


@dataclass(frozen=True)
class Transfers:
    """How often all variables went to the device, and came back."""

    up: int
    down: int


class Counted:
    """A program whose transfers can be counted: the row of ``row`` is touched by them and by nothing else."""

    def __init__(self, memory: str = "ram") -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            buffer = popxl.remote_buffer((), popxl.float32, 1)
            self.row: Variable = popxl.remote_variable(1.0, buffer, 0, name="row")
            self.v: Variable = popxl.variable([1.0, 2.0], name="v")
            self.w: Variable = popxl.variable([3.0, 4.0], name="w")
            self.c: Constant = popxl.constant([5.0, 6.0], name="c")
            self.v += 1
            self.w += 10
        self.session = popxl.Session(self.ir, streaming_memory=memory)

    @property
    def transfers(self) -> Transfers:
        counters = self.session.streaming_memory.counters
        return Transfers(counters.stores, counters.loads)


@pytest.fixture
def counted() -> Counted:
    """Of files, less is transferred: see test_session_commit.py."""
    return Counted()


# When variables are copied


def test_entering_uploads_and_leaving_downloads_once(counted: Counted) -> None:
    with counted.session:
        assert counted.transfers == Transfers(1, 0)
        counted.session.run()
        assert counted.transfers == Transfers(1, 0)
    assert counted.transfers == Transfers(1, 1)


def test_nested_entries_transfer_nothing(counted: Counted) -> None:
    with counted.session, counted.session:
        assert counted.transfers == Transfers(1, 0)
    assert counted.transfers == Transfers(1, 1)


def test_leaving_downloads_even_if_nothing_ran(counted: Counted) -> None:
    with counted.session:
        pass
    assert counted.transfers == Transfers(1, 1)


def test_get_before_any_run_transfers_nothing(counted: Counted) -> None:
    with counted.session as session:
        assert session.get_tensor_data(counted.v).tolist() == [1, 2]
        assert counted.transfers == Transfers(1, 0)


def test_first_get_after_a_run_transfers_and_later_ones_do_not(counted: Counted) -> None:
    with counted.session as session:
        session.run()
        assert session.get_tensor_data(counted.v).tolist() == [2, 3]
        assert counted.transfers == Transfers(1, 1)
        assert session.get_tensor_data(counted.w).tolist() == [13, 14]
        assert session.get_tensor_data(counted.row) == 1
        assert counted.transfers == Transfers(1, 1)
        session.run()
        assert session.get_tensor_data(counted.v).tolist() == [3, 4]
        assert counted.transfers == Transfers(1, 2)


def test_getting_several_variables_transfers_once(counted: Counted) -> None:
    with counted.session as session:
        session.run()
        values = session.get_tensors_data([counted.v, counted.c, counted.w])
        assert {t.name: value.tolist() for t, value in values.items()} == {"v": [2, 3], "c": [5, 6], "w": [13, 14]}
        assert counted.transfers == Transfers(1, 1)


def test_getting_only_constants_never_transfers(counted: Counted) -> None:
    with counted.session as session:
        session.run()
        assert session.get_tensor_data(counted.c).tolist() == [5, 6]
        assert session.get_tensors_data([]) == {}
        assert counted.transfers == Transfers(1, 0)


def test_weights_to_host_always_transfers_and_counts_as_a_fetch(counted: Counted) -> None:
    with counted.session as session:
        session.weights_to_host()
        assert counted.transfers == Transfers(1, 1)
        session.run()
        session.weights_to_host()
        assert counted.transfers == Transfers(1, 2)
        session.get_tensor_data(counted.v)
        assert counted.transfers == Transfers(1, 2)


def test_detached_get_never_transfers(counted: Counted) -> None:
    with counted.session as session:
        session.run()
    assert session.get_tensor_data(counted.v).tolist() == [2, 3]
    assert not session.is_attached
    assert counted.transfers == Transfers(1, 1)


def test_detached_get_after_a_failed_run_does_not_try_to_transfer(counted: Counted) -> None:
    def run_and_fail(session: popxl.Session) -> None:
        session.run()
        raise KeyError

    with pytest.raises(KeyError), counted.session as session:
        run_and_fail(session)
    assert counted.session.get_tensor_data(counted.v).tolist() == [1, 2]


def test_weights_from_host_uploads_everything_and_does_not_count_as_a_fetch(counted: Counted) -> None:
    with counted.session as session:
        session.run()
        session.weights_from_host()
        assert counted.transfers == Transfers(2, 0)
        assert session.get_tensor_data(counted.v).tolist() == [1, 2]
        assert counted.transfers == Transfers(2, 1)


def test_every_run_makes_the_host_out_of_date(counted: Counted) -> None:
    v = counted.v
    assert v.in_sync_with_ipu
    with counted.session as session:
        assert v.in_sync_with_ipu
        session.run()
        assert not v.in_sync_with_ipu
        session.weights_from_host()
        assert not v.in_sync_with_ipu
        session.get_tensor_data(v)
        assert v.in_sync_with_ipu
    assert counted.c.in_sync_with_ipu


def test_write_while_detached_transfers_nothing(counted: Counted) -> None:
    counted.session.write_variable_data(counted.row, np.array(9, np.float32))
    assert counted.transfers == Transfers(0, 0)
    assert counted.session.get_tensor_data(counted.row) == 9


def test_write_while_attached_uploads_what_was_written(counted: Counted) -> None:
    with counted.session as session:
        session.write_variable_data(counted.row, np.array(9, np.float32))
        assert counted.transfers == Transfers(2, 0)
        session.write_variable_data(counted.v, np.array([0, 0], np.float32))
        assert counted.transfers == Transfers(2, 0)
        assert session.get_tensor_data(counted.v).tolist() == [0, 0]
        assert counted.transfers == Transfers(2, 0)
        session.run()
        assert session.get_tensor_data(counted.v).tolist() == [1, 1]
        assert session.get_tensor_data(counted.row) == 9


def test_write_after_a_run_leaves_the_other_variables_of_the_device(counted: Counted) -> None:
    with counted.session as session:
        session.run()
        session.write_variable_data(counted.v, np.array([0, 0], np.float32))
        session.run()
        values = session.get_tensors_data([counted.v, counted.w])
    assert values[counted.v].tolist() == [1, 1]
    assert values[counted.w].tolist() == [23, 24]


def test_value_written_before_the_fetch_is_the_one_that_is_read(counted: Counted) -> None:
    with counted.session as session:
        session.run()
        session.write_variable_data(counted.v, np.array([7, 8], np.float32))
        assert session.get_tensor_data(counted.v).tolist() == [7, 8]


def test_sharing_a_streaming_memory_adds_to_its_counters() -> None:
    counted = Counted()
    for runs in range(1, 4):
        with counted.session:
            pass
        assert counted.transfers == Transfers(runs, runs)


# What get returns


def test_array_shows_later_fetches_and_a_copy_does_not(counted: Counted) -> None:
    with counted.session as session:
        live = session.get_tensor_data(counted.v)
        copy = live.copy()
        session.run()
        assert live.tolist() == [1, 2]
        session.weights_to_host()
    assert live.tolist() == [2, 3]
    assert copy.tolist() == [1, 2]


@pytest.mark.parametrize("data", [3.0, [1.0], np.zeros((2, 3)), np.zeros((0, 3)), np.zeros((2, 3)).T])
def test_array_has_the_variables_shape_and_dtype_and_is_contiguous(data: Any) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v, c = popxl.variable(data), popxl.constant(data)
        v + c
    session = popxl.Session(ir)
    for t in (v, c):
        array = session.get_tensor_data(t)
        assert type(array) is np.ndarray
        assert (array.shape, array.dtype) == (t.shape, np.float32)
        assert array.flags.c_contiguous


def test_constant_cannot_be_changed_through_its_array(counted: Counted) -> None:
    with pytest.raises(ValueError, match="read-only"):
        counted.session.get_tensor_data(counted.c)[0] = 1


def test_changing_the_users_array_changes_no_variable() -> None:
    ir = popxl.Ir()
    data = np.zeros(64, np.float32)
    with ir.main_graph:
        v = popxl.variable(data)
        v += 1
    session = popxl.Session(ir)
    data[:] = 5
    with session:
        session.run()
    assert session.get_tensor_data(v).tolist() == [1] * 64
    written = np.zeros(64, np.float32)
    with session:
        session.write_variable_data(v, written)
        written[:] = 7
        session.run()
    assert session.get_tensor_data(v).tolist() == [1] * 64


def test_changing_the_returned_array_changes_nothing_on_the_device(counted: Counted) -> None:
    with counted.session as session:
        session.get_tensor_data(counted.v)[...] = 100
        session.get_tensor_data(counted.row)[...] = 100
        session.run()
        assert session.get_tensor_data(counted.v).tolist() == [2, 3]
        assert session.get_tensor_data(counted.row) == 1


@pytest.mark.parametrize(
    "choose",
    [
        lambda p: p.v + p.w,
        lambda p: popxl.h2d_stream((), popxl.float32),
        lambda p: popxl.h2d_stream((), popxl.float32).tensor,
        lambda p: "v",
        lambda p: None,
        lambda p: np.zeros(2),
    ],
)
def test_only_variables_and_constants_have_data(choose: Callable[[Counted], Any]) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v, w = popxl.variable(1.0), popxl.variable(2.0)
        other = choose(type("Both", (), {"v": v, "w": w}))  # type: ignore[arg-type]
        v + w
    session = popxl.Session(ir)
    with pytest.raises(TypeError, match="is not of type Constant or Variable"):
        session.get_tensor_data(other)
    with session:
        session.run()
        with pytest.raises(TypeError, match="is not of type Constant or Variable"):
            session.get_tensors_data([v, other])


def test_tensors_of_another_program_are_refused(counted: Counted) -> None:
    other = Counted()
    for t in (other.v, other.c):
        with pytest.raises(ValueError, match="belongs to"):
            counted.session.get_tensor_data(t)
    with pytest.raises(ValueError, match="belongs to"):
        counted.session.write_variable_data(other.v, np.zeros(2, np.float32))


# What may be written


def assert_unchanged(counted: Counted) -> None:
    with counted.session as session:
        session.run()
        assert session.get_tensor_data(counted.v).tolist() == [2, 3]


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        np.zeros(2),
        np.zeros(2, np.int32),
        np.zeros(2, np.float16),
        np.zeros(3),  # dtype before shape
        np.zeros(2, ">f4"),
        [0.0, 0.0],
        None,
        "0",
    ],
)
def test_write_of_another_dtype_is_a_type_error(attached: bool, data: Any) -> None:
    counted = Counted()
    if attached:
        with counted.session as session:
            with pytest.raises(TypeError, match="float32"):
                session.write_variable_data(counted.v, data)
            session.run()
            assert session.get_tensor_data(counted.v).tolist() == [2, 3]
    else:
        with pytest.raises(TypeError, match="float32"):
            counted.session.write_variable_data(counted.v, data)
        assert_unchanged(counted)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 2), (2, 1), (0,)])
def test_write_of_another_shape_is_a_value_error(shape: tuple[int, ...]) -> None:
    counted = Counted()
    with pytest.raises(ValueError, match="shape"):
        counted.session.write_variable_data(counted.v, np.zeros(shape, np.float32))
    assert_unchanged(counted)


@pytest.mark.parametrize("choose", [lambda p: p.c, lambda p: popxl.h2d_stream((), popxl.float32), lambda p: "v"])
def test_only_variables_can_be_written(choose: Callable[[Counted], Any]) -> None:
    counted = Counted()
    with popxl.Ir().main_graph:
        target = choose(counted)
    with pytest.raises(TypeError, match=r"^Tensor .* is not of type"):
        counted.session.write_variable_data(target, np.zeros(2, np.float32))


@pytest.mark.parametrize("number", [7, 7.0, np.float32(7), np.int64(7), True + 6, np.float64(7)])
@pytest.mark.parametrize("dtype", [popxl.float32, popxl.int32, popxl.uint8, popxl.float16])
def test_number_takes_the_variables_dtype(number: Any, dtype: Any) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(1, dtype)
        v += 1
    with popxl.Session(ir) as session:
        session.write_variable_data(v, number)
        session.run()
        assert session.get_tensor_data(v) == 8
        assert session.get_tensor_data(v).dtype == dtype.as_numpy()


def test_number_that_overflows_becomes_infinite_without_a_warning() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(1.0, popxl.float16)
        v += 1
    session = popxl.Session(ir)
    session.write_variable_data(v, 1e30)
    assert session.get_tensor_data(v) == np.inf


def test_number_for_a_variable_of_several_elements_is_a_value_error(counted: Counted) -> None:
    with pytest.raises(ValueError, match=r"shape \(\), not \(2,\)"):
        counted.session.write_variable_data(counted.v, 1.0)


@pytest.mark.parametrize("data", [1, 1.0, np.zeros(1, np.uint8), np.zeros(1, np.float16)])
def test_float8_variable_takes_only_its_own_codes(data: Any) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable([1.0], popxl.float8_143)
        ops.host_store(popxl.d2h_stream((1,), popxl.float8_143), v)
    session = popxl.Session(ir)
    with pytest.raises(TypeError, match="dtype"):
        session.write_variable_data(v, data)


def test_array_that_is_not_contiguous_can_be_written() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(np.zeros((2, 3), np.float32))
        v += 1
    data = np.arange(6, dtype=np.float32).reshape(3, 2).T
    with popxl.Session(ir) as session:
        session.write_variable_data(v, data)
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(v), data + 1)


def test_values_before_a_refused_one_are_written_on_the_host(counted: Counted) -> None:
    with pytest.raises(ValueError, match="shape"):
        counted.session.write_variables_data(
            {counted.v: np.array([8, 9], np.float32), counted.w: np.zeros(5, np.float32)}
        )
    assert counted.session.get_tensor_data(counted.v).tolist() == [8, 9]
    assert counted.session.get_tensor_data(counted.w).tolist() == [3, 4]


def test_several_variables_are_written_together(counted: Counted) -> None:
    with counted.session as session:
        session.write_variables_data(
            {counted.v: np.zeros(2, np.float32), counted.w: np.ones(2, np.float32), counted.row: 5}
        )
        session.run()
        values = session.get_tensors_data([counted.v, counted.w, counted.row])
    assert [v.tolist() for v in values.values()] == [[1, 1], [11, 11], 5]


@pytest.mark.parametrize("memory", ["ram", "file:{}"])
def test_a_lazy_value_is_gone_before_the_next_one_is_made(memory: str, tmp_path: Path) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def make() -> np.ndarray:
        alive.append(sum(value() is not None for value in made))
        value = np.zeros(1024, np.float32)
        made.append(weakref.ref(value))
        return value

    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((1024,), popxl.float32, 3)
        for entry in range(3):
            popxl.remote_variable(make, buffer, entry)
        ops.remote_load(buffer, 0)
    with popxl.Session(ir, streaming_memory=memory.format(tmp_path / "rows")):
        assert alive == [0, 0, 0]
