"""What `benchmarks/command_line.py` reports, with one round. Times are not judged here."""

from __future__ import annotations

import sys

import command_line
import pytest


def test_it_runs_and_reports_each_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--rounds=1"]) == 0
    out = capsys.readouterr().out
    for words in (*(call.name for call in command_line.CALLS), "popxl --help, in ms,"):
        assert words in out


def test_call_that_ends_otherwise_is_an_error() -> None:
    run = command_line.runner(command_line.Call("fails", (sys.executable, "-c", "raise SystemExit(3)")))
    with pytest.raises(RuntimeError, match="status 3, not 0"):
        run()
