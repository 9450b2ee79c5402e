"""Which Streaming Memory a session uses, and what happens when files fail it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import PopxlTypeError, PopxlValueError, StreamingMemoryError
from popxl.runtime.streaming import FileTier, RamTier, StreamingMemory


class Grow:
    """Row 0 grows by one per run, and so does a variable on the device; row 2 is only read."""

    def __init__(self, size: int = 4) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.buffer = popxl.remote_buffer((size,), popxl.float32, 3)
            self.row = popxl.remote_variable(np.zeros(size, np.float32), self.buffer, 0)
            popxl.remote_variable(np.zeros(size, np.float32), self.buffer, 2)
            self.v = popxl.variable(0.0)
            self.v += 1
            ops.remote_store(self.buffer, 0, ops.remote_load(self.buffer, 0) + 1)
            self.read = ops.remote_load(self.buffer, 2)
            self.v += 1

    def check(self, session: popxl.Session, runs: int) -> None:
        assert session.get_tensor_data(self.row).tolist() == [runs] * 4
        assert session.get_tensor_data(self.v) == 2 * runs


# Which memory


def test_ram_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POPXL_STREAMING_MEMORY", raising=False)
    assert isinstance(popxl.Session(Grow().ir).streaming_memory.tier, RamTier)


def test_environment_chooses_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPXL_STREAMING_MEMORY", f"file:{tmp_path / 'rows'}")
    grow = Grow()
    with popxl.Session(grow.ir) as session:
        session.run()
        assert any((tmp_path / "rows").iterdir())
        grow.check(session, 1)


def test_argument_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPXL_STREAMING_MEMORY", f"file:{tmp_path / 'rows'}")
    with popxl.Session(Grow().ir, streaming_memory="ram") as session:
        session.run()
    assert not (tmp_path / "rows").exists()


def test_wrong_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPXL_STREAMING_MEMORY", "disk")
    with pytest.raises(PopxlValueError, match=r"disk.*\n.*POPXL_STREAMING_MEMORY"):
        popxl.Session(Grow().ir)


@pytest.mark.parametrize(
    ("memory", "error"), [("disk:x", PopxlValueError), ("file:", PopxlValueError), (RamTier(), PopxlTypeError)]
)
def test_wrong_argument_is_refused(memory: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        popxl.Session(Grow().ir, streaming_memory=memory)


def test_object_of_the_user_is_the_one_that_is_used(tmp_path: Path) -> None:
    memory = StreamingMemory(tier=FileTier(tmp_path / "rows"))
    grow = Grow()
    with popxl.Session(grow.ir, streaming_memory=memory) as session:
        assert session.streaming_memory is memory
        session.run()
        counters = memory.counters
        session.wait()
        # Both uploads and the store; both loads.
        assert (counters.stores, counters.loads) == (3, 2)
        assert (counters.bytes_stored, counters.bytes_loaded) == (48, 32)
        grow.check(session, 1)


def test_making_a_session_touches_no_file(tmp_path: Path) -> None:
    popxl.Session(Grow().ir, streaming_memory=f"file:{tmp_path / 'rows'}")
    assert not (tmp_path / "rows").exists()


def test_refused_program_touches_no_file(tmp_path: Path) -> None:
    grow = Grow()
    grow.buffer.entries = 1
    with pytest.raises(ValueError, match="Offset 2"):
        popxl.Session(grow.ir, streaming_memory=f"file:{tmp_path / 'rows'}")
    assert not (tmp_path / "rows").exists()


# One directory, several sessions


def test_object_serves_one_open_session_at_a_time(memory: str) -> None:
    shared = StreamingMemory(memory)
    first, second = Grow(), Grow()
    sessions = [popxl.Session(g.ir, streaming_memory=shared) for g in (first, second)]
    with sessions[0]:
        sessions[0].run()
        with pytest.raises(StreamingMemoryError, match="already serves an open session"):
            sessions[1].__enter__()
        assert not sessions[1].is_attached
        sessions[0].run()
        first.check(sessions[0], 2)
    with sessions[1]:
        sessions[1].run()
        second.check(sessions[1], 1)


def test_directory_is_locked_while_a_session_is_open(tmp_path: Path) -> None:
    first, second = Grow(), Grow()
    sessions = [popxl.Session(g.ir, streaming_memory=f"file:{tmp_path}/rows") for g in (first, second)]
    with sessions[0]:
        sessions[0].run()
        with pytest.raises(StreamingMemoryError, match="in use by another session") as caught:
            sessions[1].__enter__()
        assert str(tmp_path / "rows") in str(caught.value)
        assert not sessions[1].is_attached
        sessions[0].run()
    first.check(sessions[0], 2)
    with sessions[1]:
        sessions[1].run()
    second.check(sessions[1], 1)


def test_ram_sessions_are_independent() -> None:
    first, second = Grow(), Grow()
    with popxl.Session(first.ir) as one, popxl.Session(second.ir) as two:
        one.run()
        one.run()
        two.run()
        first.check(one, 2)
        second.check(two, 1)


def test_directory_of_another_program_is_left_alone(tmp_path: Path) -> None:
    memory = f"file:{tmp_path}/rows"
    with popxl.Session(Grow(4).ir, streaming_memory=memory) as session:
        session.run()
    before = {p.name: p.read_bytes() for p in (tmp_path / "rows").iterdir()}
    other = popxl.Session(Grow(5).ir, streaming_memory=memory)
    with pytest.raises(StreamingMemoryError, match="of another program"):
        other.__enter__()
    assert not other.is_attached
    assert {p.name: p.read_bytes() for p in (tmp_path / "rows").iterdir()} == before


def test_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    session = popxl.Session(Grow().ir, streaming_memory=f"file:{tmp_path}")
    with pytest.raises(StreamingMemoryError, match=r"thesis\.tex"):
        session.__enter__()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


# Files that fail


def slab_of(session: popxl.Session) -> Path:
    tier = session.streaming_memory.tier
    assert isinstance(tier, FileTier)
    return tier.directory / "buffer-1.slab"


def test_truncated_slab_is_reported_with_the_line_and_nothing_else_is_lost(tmp_path: Path) -> None:
    grow = Grow()
    with popxl.Session(grow.ir, streaming_memory=f"file:{tmp_path}/rows") as session:
        session.run()
        grow.check(session, 1)
        slab = slab_of(session)
        size = slab.stat().st_size
        os.truncate(slab, size // 3)  # row 0 is there, row 2 is not
        with pytest.raises(StreamingMemoryError, match="truncated") as caught:
            session.run()
        notes = "\n".join(caught.value.__notes__)
        assert __file__ in notes
        assert "in __init__" in notes
        assert str(slab) in str(caught.value)
        # What the host last fetched is still there, and what is written is there again.
        assert session.is_attached
        os.truncate(slab, size)
        session.write_variables_data({grow.row: np.full(4, 1, np.float32), grow.v: 2.0})
        session.run()
        grow.check(session, 2)


def test_slab_truncated_behind_the_session_is_reported_when_it_is_left(tmp_path: Path) -> None:
    grow = Grow()
    session = popxl.Session(grow.ir, streaming_memory=f"file:{tmp_path}/rows")
    session.__enter__()
    session.run()
    session.weights_to_host()
    session.run()
    session.wait()
    os.truncate(slab_of(session), 0)
    with pytest.raises(StreamingMemoryError, match="truncated"):
        session.__exit__(None, None, None)
    assert not session.is_attached
    with pytest.raises(StreamingMemoryError, match="truncated"):  # the last commit's row went with the file
        session.get_tensor_data(grow.row)


def test_variables_of_the_device_are_whole_after_a_failed_transfer(tmp_path: Path) -> None:
    grow = Grow()
    with popxl.Session(grow.ir, weights_to_host_on_exit=False, streaming_memory=f"file:{tmp_path}/rows") as session:
        slab = slab_of(session)
        size = slab.stat().st_size
        os.truncate(slab, size // 3)
        with pytest.raises(StreamingMemoryError, match="truncated"):
            session.run()
        os.truncate(slab, size)
        assert session.get_tensor_data(grow.v) == 1  # as far as the run came
