"""Making a session, and what its context attaches and detaches (session.md §2.1, §2.2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.runtime import devices
from popxl.tensor import Variable


class Counter:
    """``count`` and ``row`` both grow by one per run; the streamed value is ``count`` before that."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            buffer = popxl.remote_buffer((), popxl.int32, 1)
            self.count: Variable = popxl.variable(0, popxl.int32, "count")
            self.row: Variable = popxl.remote_variable(0, buffer, 0, popxl.int32, "row")
            self.out = popxl.d2h_stream((), popxl.int32, "out")
            ops.host_store(self.out, self.count + 0)
            ops.remote_store(buffer, 0, ops.remote_load(buffer, 0) + 1)
            self.count += 1

    def values(self, session: popxl.Session) -> tuple[int, int]:
        data = session.get_tensors_data([self.count, self.row])
        return int(data[self.count]), int(data[self.row])


@pytest.fixture
def counter() -> Counter:
    return Counter()


# Construction


@pytest.mark.parametrize("device", ["cpu", "ipu_model", "ipu_hw"])
def test_devices_of_the_reference_stand_for_what_is_there(counter: Counter, device: str) -> None:
    with popxl.Session(counter.ir, device) as session:
        assert session.run()[counter.out] == 0


@pytest.mark.parametrize("device", ["", "CPU", "tpu9", None, 3])
def test_unknown_device_is_a_value_error(counter: Counter, device: Any) -> None:
    with pytest.raises(ValueError, match=r"^Incorrect device type provided") as caught:
        popxl.Session(counter.ir, device)
    assert repr(device) in str(caught.value)
    assert "'cpu'" in str(caught.value)


def test_missing_device_is_a_runtime_error(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devices._BACKENDS, "gpu", "nowhere")  # also where there is a GPU
    with pytest.raises(RuntimeError, match=r"^Failed to acquire device with.*cpu"):
        popxl.Session(counter.ir, "gpu")


@pytest.mark.parametrize("program", [lambda ir: ir.main_graph, lambda _ir: None, lambda _ir: "cpu"])
def test_anything_but_an_ir_is_a_type_error(counter: Counter, program: Callable[[popxl.Ir], Any]) -> None:
    with pytest.raises(TypeError, match="takes an Ir"):
        popxl.Session(program(counter.ir))


def test_program_without_ops_is_a_runtime_error() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        popxl.variable(1.0)
    with pytest.raises(RuntimeError, match="has no graphs"):
        popxl.Session(ir)


def test_session_takes_the_ir(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    assert session.ir is session.ir_ is counter.ir
    with pytest.raises(RuntimeError, match="already prepared"):
        counter.ir.replication_factor = 2
    with counter.ir.main_graph, pytest.raises(RuntimeError, match="already prepared"):
        counter.count + 1


def test_refused_program_can_be_mended() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((), popxl.int32, 1)
        row = popxl.remote_variable(7, buffer, 4, popxl.int32)
        ops.remote_store(buffer, 0, ops.remote_load(buffer, 4))
    with pytest.raises(ValueError, match="Offset 4"):
        popxl.Session(ir)
    buffer.entries = 5
    with popxl.Session(ir) as session:
        session.run()
        assert session.get_tensor_data(row) == 7


def test_properties_are_read_only(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    for name in ("ir", "is_attached"):
        with pytest.raises(AttributeError):
            setattr(session, name, None)


def test_text_tells_program_state_and_memory(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    assert repr(session) == f"Session[{counter.ir!r} detached StreamingMemory(RamTier())]"
    with session:
        assert "attached" in repr(session)


# Attach and detach


def run_and_fail(session: popxl.Session) -> None:
    session.run()
    raise KeyError


def test_session_starts_detached(counter: Counter) -> None:
    assert not popxl.Session(counter.ir).is_attached


@pytest.mark.parametrize("call", ["run", "run_with_outputs", "wait", "weights_from_host", "weights_to_host"])
def test_runtime_functions_need_the_context(counter: Counter, call: str) -> None:
    session = popxl.Session(counter.ir)
    with pytest.raises(ValueError, match=r"^Must be attached to device before calling a runtime function\."):
        getattr(session, call)()
    with session:
        session.run()
    with pytest.raises(ValueError, match=r"^Must be attached to device before calling a runtime function\."):
        getattr(session, call)()


def test_values_are_read_and_written_while_detached(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    assert counter.values(session) == (0, 0)
    session.write_variables_data({counter.count: np.array(5, np.int32), counter.row: np.array(6, np.int32)})
    assert counter.values(session) == (5, 6)
    assert not session.is_attached
    with session:
        session.run()
        assert counter.values(session) == (6, 7)


def test_entering_attaches_and_leaving_detaches(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    with session as entered:
        assert entered is session
        assert session.is_attached
    assert not session.is_attached


def test_leaving_fetches_the_variables(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    with session:
        session.run()
        session.run()
    assert counter.values(session) == (2, 2)


def test_variables_go_on_where_they_were_when_a_session_is_entered_again(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    for expected in range(3):
        with session:
            assert session.run()[counter.out] == expected
    assert counter.values(session) == (3, 3)


def test_rows_that_no_variable_owns_are_zeros_again_when_entered_again(memory: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.int32, 1)
        out = popxl.d2h_stream((2,), popxl.int32)
        row = ops.remote_load(buffer, 0)
        ops.host_store(out, row)
        ops.remote_store(buffer, 0, row + 1)
    session = popxl.Session(ir, streaming_memory=memory)
    for _ in range(2):
        with session:
            assert [session.run()[out].tolist() for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]


def test_nested_entry_changes_nothing(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    with session:
        session.run()
        with session as inner:
            assert inner is session
            assert session.run()[counter.out] == 1  # nothing was uploaded
            with session:
                session.run()
        assert session.is_attached
        assert session.run()[counter.out] == 3
    assert not session.is_attached
    assert counter.values(session) == (4, 4)


def test_nested_exit_fetches_nothing(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    with session:
        live = session.get_tensor_data(counter.count)
        with session:
            session.run()
        assert live == 0
    assert live == 1


def test_exception_in_a_nested_entry_that_is_caught_outside_leaves_the_session_attached(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    with session:
        with pytest.raises(KeyError), session:
            run_and_fail(session)
        assert session.is_attached
        assert counter.values(session) == (1, 1)


def test_exception_detaches_without_fetching(counter: Counter) -> None:
    session = popxl.Session(counter.ir)
    with pytest.raises(KeyError), session:
        run_and_fail(session)
    assert not session.is_attached
    assert counter.values(session) == (0, 0)
    with session:
        assert session.run()[counter.out] == 0


def test_weights_to_host_on_exit_can_be_turned_off(counter: Counter) -> None:
    session = popxl.Session(counter.ir, weights_to_host_on_exit=False)
    with session:
        session.run()
    assert counter.values(session) == (0, 0)
    with session:
        assert session.run()[counter.out] == 0
    session.weights_to_host_on_exit = True
    with session:
        session.run()
    assert counter.values(session) == (1, 1)


def test_failed_entry_leaves_the_session_detached(
    counter: Counter, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = popxl.Session(counter.ir, streaming_memory=memory)

    def fail(_variables: object) -> None:
        raise OSError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(session._weights, "upload", fail)
        with pytest.raises(OSError, match="broken"):
            session.__enter__()
        assert not session.is_attached
    with session:
        session.run()
    assert counter.values(session) == (1, 1)


def test_failed_fetch_at_the_end_detaches_all_the_same(
    counter: Counter, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = popxl.Session(counter.ir, streaming_memory=memory)

    def fail() -> None:
        raise OSError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(session, "weights_to_host", fail)
        with pytest.raises(OSError, match="broken"), session:
            session.run()
        assert not session.is_attached
    with session:
        assert session.run()[counter.out] == 0


def test_second_session_may_take_the_program_after_the_first(counter: Counter) -> None:
    with popxl.Session(counter.ir) as first:
        first.run()
    with popxl.Session(counter.ir) as second:
        assert second.run()[counter.out] == 1


def test_equal_segments_are_compiled_once() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((3,), popxl.float32, 4)
        for i in range(4):
            ops.remote_store(buffer, i, ops.remote_load(buffer, i) * 2)
    assert popxl.Session(ir).executable_count == 1


def test_session_writes_the_final_dot_checkpoint(counter: Counter, tmp_path: Path) -> None:
    counter.ir.dot_checkpoint("Before", tmp_path)
    popxl.Session(counter.ir)
    assert any("final" in path.name.lower() for path in tmp_path.iterdir())


# The optional check of the reference


def ambiguous(in_sequence: bool) -> popxl.Ir:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence(in_sequence):
        v = popxl.variable(1.0)
        out = popxl.d2h_stream((), popxl.float32)
        ops.host_store(out, v + 1)
        v += 1
    return ir


def test_ambiguous_program_runs_in_the_order_of_creation_unless_it_is_checked() -> None:
    ir = ambiguous(in_sequence=False)
    (out,) = ir.get_all_d2h_streams()
    with popxl.Session(ir) as session:
        assert [float(session.run()[out]) for _ in range(2)] == [2.0, 3.0]


def test_ambiguous_program_is_refused_when_checked() -> None:
    with pytest.raises(RuntimeError, match=r"^Inplacing ambiguity detected\."):
        popxl.Session(ambiguous(in_sequence=False), check_ambiguity=True)


def test_ordered_program_passes_the_check() -> None:
    ir = ambiguous(in_sequence=True)
    with popxl.Session(ir, check_ambiguity=True) as session:
        session.run()
