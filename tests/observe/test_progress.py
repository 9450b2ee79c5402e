"""The line on a terminal: there it is, elsewhere nothing."""

from __future__ import annotations

import io
import re
import threading

import pytest
from rich.console import Console

from popxl.observe import progress


def shown(*, is_terminal: bool, **environment: str) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=120, _environ=environment)
    with progress(4, done=1, console=console) as bar:
        bar.step(loss=2.34567)
        bar.step(loss=1.5)
        bar.step(loss=0.25)
    return file.getvalue()


def test_nothing_is_shown_where_there_is_no_terminal() -> None:
    assert not shown(is_terminal=False).strip()


def test_a_terminal_shows_steps_speed_and_facts() -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(is_terminal=True, TERM="xterm-256color"))
    assert "4/4" in text
    assert "loss 0.25" in text
    assert re.search(r"steps/s|s a step", text)


@pytest.mark.parametrize(("environment", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_obeyed(environment: dict[str, str], is_coloured: bool) -> None:
    text = shown(is_terminal=True, TERM="xterm-256color", **environment)
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", text)) is is_coloured


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    shown(is_terminal=True, TERM="xterm")
    assert set(threading.enumerate()) <= before
