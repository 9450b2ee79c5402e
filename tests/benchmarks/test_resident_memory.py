"""What `benchmarks/resident_memory.py` counts, for a tiny model. How much memory it takes is not judged here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import _watch
import pytest
import resident_memory

MIB = 1 << 20


def test_the_memory_of_a_process_is_what_it_has_touched() -> None:
    before = _watch.anonymous_bytes(os.getpid())
    memory = bytearray(b"x") * (64 * MIB)
    assert 60 * MIB < _watch.anonymous_bytes(os.getpid()) - before < 80 * MIB
    del memory


def test_a_process_that_is_gone_has_no_memory() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert _watch.anonymous_bytes(process.pid) == 0


def test_a_child_tells_its_phases_and_facts() -> None:
    program = "print('phase first'); print('fact size 7'); print('phase second')"
    child = _watch.watch([sys.executable, "-c", program], {})
    assert child.facts == {"size": 7}
    assert list(child.peaks)[-1] == "second"


def test_a_child_that_fails_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _watch.watch([sys.executable, "-c", "raise SystemExit(3)"], {})


def test_it_runs_and_reports_each_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resident_memory, "TIMES", (3,))
    monkeypatch.setattr(resident_memory, "VARIANTS", {resident_memory.USUAL: {}})
    sizes = ["--layers=1", "--width=64", "--rounds=1", "--runs=1", "--host-mib=1", f"--directory={tmp_path}"]
    assert resident_memory.main(sizes) == 0
    out = capsys.readouterr().out
    for words in ("| as it is", "resident over planned, 3 x 1 layers", "Not measured"):
        assert words in out
