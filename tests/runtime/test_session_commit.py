"""Commits, going on from them, and what the host need not copy (docs/explanation/streaming-engine.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import PopxlTypeError, PopxlValueError, StreamingMemoryError
from popxl.runtime.streaming import StreamingMemory
from popxl.tensor import Variable

Data = Any


class Counting:
    """Each run adds one to row 0 of two and two to a variable on the device; row 1 and scratch rows stay."""

    def __init__(self, data: Data = lambda: np.zeros(4, np.float32)) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((4,), popxl.float32, 2)
            scratch = popxl.remote_buffer((4,), popxl.float32, 2)
            self.row: Variable = popxl.remote_variable(data, buffer, 0, name="row")
            self.kept: Variable = popxl.remote_variable(np.full(4, 7, np.float32), buffer, 1, name="kept")
            self.v: Variable = popxl.variable(0.0, name="v")
            self.v += 2
            grown = ops.remote_load(buffer, 0) + 1
            ops.remote_store(buffer, 0, grown)
            ops.remote_store(scratch, 1, grown)
            self.out = popxl.d2h_stream((4,), popxl.float32)
            ops.host_store(self.out, ops.remote_load(scratch, 0))

    def session(self, directory: Path, *, reopen: bool = False, on_exit: bool = True) -> popxl.Session:
        memory = StreamingMemory(f"file:{directory}", reopen=reopen)
        return popxl.Session(self.ir, weights_to_host_on_exit=on_exit, streaming_memory=memory)

    def check(self, session: popxl.Session, runs: int) -> None:
        assert session.get_tensor_data(self.row).tolist() == [runs] * 4
        assert session.get_tensor_data(self.kept).tolist() == [7] * 4
        assert session.get_tensor_data(self.v) == 2 * runs


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tmp_path / "rows"


def forbidden() -> np.ndarray:
    raise AssertionError("the initial value was asked for")


# Going on


@pytest.mark.parametrize("on_exit", [True, False])
def test_a_session_that_was_left_is_gone_on_with(rows: Path, on_exit: bool) -> None:
    with Counting().session(rows, on_exit=on_exit) as session:
        for _ in range(3):
            session.run()
    other = Counting(forbidden)
    with other.session(rows, reopen=True) as session:
        assert session.generation == 1
        other.check(session, 3)
        session.run()
        other.check(session, 4)


def test_a_commit_is_gone_on_with_though_the_session_failed_later(rows: Path) -> None:
    def run_and_fail(session: popxl.Session) -> None:
        session.run()
        assert session.commit() == 1
        session.run()
        assert session.commit() == 2
        session.run()
        raise KeyError

    session = Counting().session(rows)
    with pytest.raises(KeyError), session:
        run_and_fail(session)
    other = Counting(forbidden)
    with other.session(rows, reopen=True) as session:
        assert session.generation == 2
        other.check(session, 2)


def test_scratch_rows_are_zeros_again(rows: Path) -> None:
    with Counting().session(rows) as session:
        session.run()
    other = Counting()
    with other.session(rows, reopen=True) as session:
        assert session.run()[other.out].tolist() == [0] * 4


def test_where_nothing_was_committed_a_session_starts_anew(rows: Path) -> None:
    counting = Counting()
    with counting.session(rows, reopen=True) as session:
        assert session.generation == 0
        session.run()
        counting.check(session, 1)


def test_without_reopen_a_session_starts_anew_and_the_commit_stands_until_its_own(rows: Path) -> None:
    with Counting().session(rows) as session:
        session.run()

    def run_and_fail(session: popxl.Session) -> None:
        counting.check(session, 0)
        session.run()
        raise KeyError

    counting = Counting()
    with pytest.raises(KeyError), counting.session(rows) as session:
        run_and_fail(session)
    with Counting(forbidden).session(rows, reopen=True) as session:
        assert session.generation == 1
    with counting.session(rows) as session:
        session.run()
        session.run()
    other = Counting(forbidden)
    with other.session(rows, reopen=True) as session:
        assert session.generation == 2
        other.check(session, 2)


def test_a_session_that_did_nothing_commits_nothing(rows: Path) -> None:
    with Counting().session(rows) as session:
        session.run()
    with Counting(forbidden).session(rows, reopen=True, on_exit=False) as session:
        pass
    assert session.generation == 0  # it is closed
    with Counting(forbidden).session(rows, reopen=True) as session:
        assert session.generation == 1


def test_a_variable_that_was_written_is_committed(rows: Path) -> None:
    counting = Counting()
    with counting.session(rows) as session:
        session.write_variables_data({counting.row: np.full(4, 50, np.float32), counting.v: 100.0})
    other = Counting(forbidden)
    with other.session(rows, reopen=True) as session:
        other.check(session, 50)


def test_only_files_have_commits(rows: Path) -> None:
    counting = Counting()
    session = counting.session(rows)
    with pytest.raises(PopxlValueError, match="Must be attached"):
        session.commit()
    with popxl.Session(Counting().ir, streaming_memory="ram") as session:
        assert session.generation == 0
        with pytest.raises(PopxlValueError, match="has no commits"):
            session.commit()


@pytest.mark.parametrize("option", [{"reopen": True}, {"checksums": False}, {"host_memory": "1MiB"}])
def test_options_of_files_are_refused_elsewhere(option: dict[str, Any]) -> None:
    with pytest.raises(PopxlTypeError, match=next(iter(option))):
        StreamingMemory("ram", **option)


# What the host knows


def test_leaving_reads_nothing_back(rows: Path) -> None:
    counting = Counting()
    session = counting.session(rows)
    with session:
        session.run()
        session.wait()
        loads = session.streaming_memory.counters.loads
    assert session.streaming_memory.counters.loads == loads
    counting.check(session, 1)


def test_get_reads_the_row_that_is_asked_for_and_no_other(rows: Path) -> None:
    counting = Counting()
    with counting.session(rows) as session:
        session.run()
        session.wait()
        loads = session.streaming_memory.counters.loads
        for _ in range(2):
            assert session.get_tensor_data(counting.row).tolist() == [1] * 4
        assert session.streaming_memory.counters.loads == loads + 1
        assert counting.row.in_sync_with_ipu
        assert not counting.kept.in_sync_with_ipu


def test_entering_again_goes_on_with_what_the_host_knows(rows: Path) -> None:
    counting = Counting()
    session = counting.session(rows)
    for runs in range(1, 4):
        with session:
            session.run()
        counting.check(session, runs)


def test_weights_from_host_goes_back_to_what_was_last_brought_to_the_host(rows: Path) -> None:
    counting = Counting()
    with counting.session(rows) as session:
        session.run()
        session.weights_to_host()
        session.run()
        session.weights_from_host()
        session.run()
        counting.check(session, 2)


def test_values_of_a_directory_that_another_session_has_used_since_are_refused(rows: Path) -> None:
    counting, other = Counting(), Counting()
    with counting.session(rows) as session:
        session.run()
    with other.session(rows) as second:
        second.run()
    with pytest.raises(StreamingMemoryError, match=r"as generation 1; that directory now holds generation 2"):
        session.get_tensor_data(counting.row)


def test_rows_in_ram_are_not_copied_for_the_host() -> None:
    counting = Counting(np.zeros(4, np.float32))
    session = popxl.Session(counting.ir, streaming_memory="ram")
    with session:
        session.run()
    assert counting.row.is_lazy
    counting.check(session, 1)
    given = session.get_tensor_data(counting.row)
    given[...] = 9  # the user's own
    counting.check(session, 1)


# Lazy initial values


@pytest.mark.parametrize("memory", ["ram", "file"])
def test_a_function_is_called_once_for_each_upload(rows: Path, memory: str) -> None:
    calls: list[int] = []

    def data() -> np.ndarray:
        calls.append(1)
        return np.full(4, 3, np.float32)

    counting = Counting(data)
    session = popxl.Session(counting.ir, streaming_memory="ram" if memory == "ram" else f"file:{rows}")
    assert not calls
    with session:
        assert len(calls) == 1
        session.run()
        assert session.get_tensor_data(counting.row).tolist() == [4] * 4
    assert session.get_tensor_data(counting.row).tolist() == [4] * 4
    with session:
        pass
    assert len(calls) == 1


@pytest.mark.parametrize("memory", ["ram", "file"])
def test_a_value_that_is_reused_by_its_function_is_not_the_rows(rows: Path, memory: str) -> None:
    reused = np.full(4, 3, np.float32)
    counting = Counting(lambda: reused)
    options = {"streaming_memory": "ram" if memory == "ram" else StreamingMemory(f"file:{rows}", host_memory="1MiB")}
    with popxl.Session(counting.ir, **options) as session:
        reused[...] = 100
        session.run()
        assert session.get_tensor_data(counting.row).tolist() == [4] * 4


def test_an_array_that_functions_fill_in_turn_gives_each_row_its_own_value(rows: Path) -> None:
    size, count = 1 << 20, 8
    shared = np.empty(size, np.float32)

    def fill(number: int) -> Callable[[], np.ndarray]:
        def data() -> np.ndarray:
            shared.fill(number)
            return shared

        return data

    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((size,), popxl.float32, count)
        variables = [popxl.remote_variable(fill(k), buffer, k) for k in range(count)]
        ops.remote_store(buffer, 0, ops.remote_load(buffer, 0))
    with popxl.Session(ir, streaming_memory=f"file:{rows}") as session:
        session.run()
        found = session.get_tensors_data(variables)
    assert [set(found[v].tolist()) for v in variables] == [{float(k)} for k in range(count)]


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (lambda: np.zeros(4), PopxlTypeError, "variable row have dtype float64, not float32"),
        (lambda: np.zeros(5, np.float32), PopxlValueError, r"variable row have shape \(5,\), not \(4,\)"),
    ],
)
def test_a_function_that_gives_something_else_is_refused(
    rows: Path, data: Callable[[], np.ndarray], error: type[Exception], words: str
) -> None:
    session = Counting(data).session(rows)
    with pytest.raises(error, match=words):
        session.__enter__()
    assert not session.is_attached


def test_an_error_of_the_function_is_the_users_to_see(rows: Path) -> None:
    session = Counting(lambda: 1 / 0).session(rows)
    with pytest.raises(ZeroDivisionError):
        session.__enter__()
    assert not session.is_attached


def test_a_tensor_of_a_safetensors_file_is_read_when_it_is_uploaded(tmp_path: Path, rows: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    save_file({"w": np.full(4, 5, np.float32)}, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        counting = Counting(file.get_slice("w"))
        assert counting.row.is_lazy
        assert counting.row.shape == (4,)
        with counting.session(rows) as session:
            session.run()
            assert session.get_tensor_data(counting.row).tolist() == [6] * 4
