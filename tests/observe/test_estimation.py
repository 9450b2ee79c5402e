"""`Session.estimate`: what it says beside what happens, and that it touches nothing. Times are not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.observe import disk_probe
from popxl.runtime.streaming.small_files import SPEEDS_NAME

SHAPE = (64, 1024)
ROW = 4 * 64 * 1024


def untouchable() -> np.ndarray:
    raise AssertionError("the data are wanted")


def program(data=untouchable, count: int = 6) -> popxl.Ir:
    """Load each row, change it, and store every other one."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer(SHAPE, popxl.float32, count)
        x = popxl.variable(np.zeros(SHAPE, np.float32), name="x")
        for i in range(count):
            popxl.remote_variable(data, buffer, i)
            x = ops.tanh(x + ops.remote_load(buffer, i))
            if i % 2:
                ops.remote_store(buffer, i, x)
        ops.host_store(popxl.d2h_stream(SHAPE, popxl.float32), x)
    return ir


def zeros() -> np.ndarray:
    return np.zeros(SHAPE, np.float32)


def test_nothing_is_asked_for_data_and_no_directory_is_made(tmp_path):
    directory = tmp_path / "a" / "rows"
    session = popxl.Session(program(), streaming_memory=f"file:{directory}")
    found = session.estimate()
    assert list(tmp_path.iterdir()) == []
    assert found.step_s >= found.bound_s > 0
    assert found.bound in ("compute", "loads and stores", "host")
    assert min(found.load_s, found.store_s, found.compute_s, found.host_s) > 0


@pytest.mark.parametrize("memory", ["ram", "file"])
def test_bytes_are_those_of_a_run(memory, tmp_path):
    spec = "ram" if memory == "ram" else f"file:{tmp_path / 'rows'}"
    session = popxl.Session(program(zeros), streaming_memory=spec, weights_to_host_on_exit=False)
    found = session.estimate()
    counters = session.streaming_memory.counters
    with session:
        before = counters.bytes_loaded, counters.bytes_stored
        session.run()
        session.wait()
        assert (found.load_bytes, found.store_bytes) == (6 * ROW, 3 * ROW)
        assert (counters.bytes_loaded - before[0], counters.bytes_stored - before[1]) == (6 * ROW, 3 * ROW)


def test_files_take_the_bytes_that_are_said_once_two_commits_are_there(tmp_path):
    session = popxl.Session(program(zeros), streaming_memory=f"file:{tmp_path}", weights_to_host_on_exit=False)
    found = session.estimate()
    with session:
        for _ in range(3):
            session.run()
            session.commit()
        taken = sum(512 * path.stat().st_blocks for path in tmp_path.iterdir() if path.stat().st_size >= ROW)
    assert found.tier_bytes["file"] == (6 + 3 + 1) * ROW
    assert taken == found.tier_bytes["file"]
    assert found.tier_bytes["device"] == session.figures.device.peak_bytes


def test_a_session_that_is_attached_goes_on_as_before(tmp_path):
    with popxl.Session(program(zeros), streaming_memory=f"file:{tmp_path}") as session:
        first = session.run()
        session.estimate()
        second = session.run()
    assert [a.tolist() for a in first.values()] != []
    assert np.isfinite(next(iter(second.values()))).all()


def test_the_disk_is_measured_once(tmp_path, monkeypatch):
    popxl.Session(program(), streaming_memory=f"file:{tmp_path}").estimate()
    kept = json.loads((tmp_path / SPEEDS_NAME).read_text())

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(disk_probe, "_measured", fail)
    session = popxl.Session(program(zeros), streaming_memory=f"file:{tmp_path}")
    assert session.estimate().load_s > 0
    with session:  # the directory counts as empty
        session.run()
    assert json.loads((tmp_path / SPEEDS_NAME).read_text()) == kept


@pytest.mark.parametrize("change", [{"version": 0}, {"sizes": [1]}, {"read": 3}, {"row_s": "fast"}, {"row_s": -1.0}])
def test_what_was_kept_of_something_else_is_not_used(change, tmp_path):
    use = disk_probe.DiskUse((ROW,), popxl.Session(program())._compiled.limits, True)
    disk_probe.probe_disk(tmp_path, use)
    path = tmp_path / SPEEDS_NAME
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, **change}))
    disk_probe.probe_disk(tmp_path, use)
    found = json.loads(path.read_text())
    assert set(found) == set(kept)
    assert all(found[name] != value for name, value in change.items())


def test_a_line_goes_through_what_was_measured():
    line = disk_probe._line([(1000, 2.0), (5000, 4.0)])
    assert (line.seconds(1000), line.seconds(5000)) == (pytest.approx(2.0), pytest.approx(4.0))
    assert disk_probe._line([(1000, 2.0)]).seconds(500) == pytest.approx(1.0)
    # A large row that was quicker than a small one says nothing of a byte's price that could be below nothing.
    assert disk_probe._line([(1000, 2.0), (5000, 1.0)]).seconds(9000) >= 0


def test_a_program_without_rows_is_estimated_too():
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable(np.ones((8, 8), np.float32))
        ops.host_store(popxl.d2h_stream((8, 8), popxl.float32), x @ x)
    found = popxl.Session(ir).estimate()
    assert (found.load_bytes, found.tier_bytes["ram"]) == (0, 0)
    assert found.step_s > 0


def test_the_report_shows_the_prediction():
    session = popxl.Session(program(zeros))
    assert "predicted" not in str(session.report()).splitlines()[-1]
    session.estimate()
    assert session.report().predicted is not None


def test_a_disk_that_refuses_is_named_in_the_error(tmp_path: Path, monkeypatch):
    def refuse(*_):
        raise OSError("no room")

    monkeypatch.setattr(disk_probe, "_measured", refuse)
    session = popxl.Session(program(), streaming_memory=f"file:{tmp_path}")
    with pytest.raises(popxl.errors.StreamingMemoryError, match=f"The disk of {tmp_path} cannot be measured: no room"):
        session.estimate()
