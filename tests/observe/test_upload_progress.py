"""The line that an upload shows: on a terminal, where it lasts, and nowhere else."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest

import popxl
from popxl.observe import progress_bar
from popxl.observe.progress_bar import ByteProgress

KIB = 256 * [0.0]  # a KiB of float32


class Terminal(io.StringIO):
    """What can be written to and says that it is a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """All that was written, without what moves the cursor or colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock that the line goes by, which stands still otherwise."""
    now_s = [100.0]
    monkeypatch.setattr(progress_bar, "perf_counter", lambda: now_s[0])

    def advance(seconds: float) -> None:
        now_s[0] += seconds

    return advance


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal, and an environment that says nothing of it."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def program(value_s: float, pass_time: Callable[[float], None]) -> popxl.Ir:
    """Four remote variables of a KiB; to make the value of each takes `value_s` seconds."""

    def make() -> np.ndarray:
        pass_time(value_s)
        return np.array(KIB, np.float32)

    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((256,), popxl.float32, entries=4)
        for entry in range(4):
            popxl.remote_variable(make, buffer, entry)
        popxl.ops.remote_load(buffer, 0)
    return ir


@pytest.mark.parametrize("memory", ["ram", "file:{}"])
def test_an_upload_that_lasts_shows_bytes_rate_and_time_left(
    memory: str, terminal: Terminal, pass_time: Callable[[float], None], tmp_path: Path
) -> None:
    session = popxl.Session(program(1.5, pass_time), streaming_memory=memory.format(tmp_path / "rows"))
    with redirect_stderr(terminal), session:
        text = terminal.text
    # The second of four is done after 3 s.
    assert re.search(r"uploading \S+ +2\.00 KiB of 4\.00 KiB  683 B/s  0:00:03 left", text)
    assert "3.00 KiB of 4.00 KiB  683 B/s  0:00:02 left" in text
    assert "1.00 KiB of" not in text


def test_the_line_is_gone_when_the_upload_ends(terminal: Terminal, pass_time: Callable[[float], None]) -> None:
    with redirect_stderr(terminal), popxl.Session(program(3.0, pass_time)):
        # The last thing done to the line is to empty it.
        assert terminal.getvalue().endswith("\x1b[2K")


def test_a_quick_upload_shows_nothing(terminal: Terminal, pass_time: Callable[[float], None]) -> None:
    with redirect_stderr(terminal), popxl.Session(program(0.4, pass_time)):
        assert not terminal.getvalue()


def test_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch, pass_time: Callable[[float], None]) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    out, into = os.pipe()
    with os.fdopen(into, "w") as writer, os.fdopen(out) as reader:
        with redirect_stderr(writer), popxl.Session(program(3.0, pass_time)):
            pass
        writer.close()
        assert not reader.read()


@pytest.mark.parametrize("is_coloured", [True, False])
def test_no_color_is_obeyed(
    *, is_coloured: bool, terminal: Terminal, pass_time: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_coloured:
        monkeypatch.setenv("NO_COLOR", "1")
    with redirect_stderr(terminal), ByteProgress(2) as add:
        pass_time(3.0)
        add(1)
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.getvalue())) is is_coloured


def test_a_failed_upload_empties_the_line(terminal: Terminal, pass_time: Callable[[float], None]) -> None:
    with redirect_stderr(terminal), pytest.raises(OSError, match="broken"), ByteProgress(2) as add:  # noqa: PT012
        pass_time(3.0)
        add(1)
        raise OSError("broken")
    assert terminal.getvalue().endswith("\x1b[2K")
