"""Variables whose host data are a memory-mapped file (session.md §2.3, remote-memory.md §8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import PopxlError


class Mapped:
    """A memory-mapped variable of ``[1, 2]``, on the device or in a row, that grows by one per run."""

    def __init__(self, path: Path, mode: Any, remote: bool) -> None:
        self.path = path
        np.array([1, 2], np.float32).tofile(path)
        self.map = np.memmap(path, np.float32, mode, shape=(2,))
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.plain = popxl.variable(0.0)
            self.plain += 1
            if remote:
                buffer = popxl.remote_buffer((2,), popxl.float32, 1)
                self.v = popxl.remote_variable(self.map, buffer, 0)
                ops.remote_store(buffer, 0, ops.remote_load(buffer, 0) + 1)
            else:
                self.v = popxl.variable(self.map)
                self.v += 1

    @property
    def on_disk(self) -> list[float]:
        return np.fromfile(self.path, np.float32).tolist()


@pytest.fixture(params=[False, True], ids=["device", "remote"])
def remote(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_memory_map_is_the_hosts_storage(tmp_path: Path, remote: bool, memory: str) -> None:
    mapped = Mapped(tmp_path / "w", "r+", remote)
    with popxl.Session(mapped.ir, streaming_memory=memory) as session:
        session.run()
        assert mapped.on_disk == [1, 2]
        assert session.get_tensor_data(mapped.v) is mapped.map
        assert mapped.map.tolist() == [2, 3]
        assert mapped.on_disk == [2, 3]
        session.run()
    assert mapped.on_disk == [3, 4]
    session.write_variable_data(mapped.v, np.array([8, 9], np.float32))
    assert mapped.on_disk == [8, 9]


def test_map_that_the_user_changes_while_attached_does_not_reach_the_device(
    tmp_path: Path, remote: bool, memory: str
) -> None:
    mapped = Mapped(tmp_path / "w", "r+", remote)  # its memory starts at a page, so a device could use it in place
    with popxl.Session(mapped.ir, streaming_memory=memory) as session:
        mapped.map[...] = 50
        session.run()
        assert session.get_tensor_data(mapped.v).tolist() == [2, 3]


def test_copy_on_write_map_leaves_the_file(tmp_path: Path, remote: bool) -> None:
    mapped = Mapped(tmp_path / "w", "c", remote)
    with popxl.Session(mapped.ir) as session:
        session.run()
    assert session.get_tensor_data(mapped.v) is mapped.map
    assert mapped.map.tolist() == [2, 3]
    assert mapped.on_disk == [1, 2]


def test_read_only_map_turns_fetching_on_exit_off_and_says_so(
    tmp_path: Path, remote: bool, caplog: pytest.LogCaptureFixture
) -> None:
    mapped = Mapped(tmp_path / "w", "r", remote)
    with caplog.at_level("INFO", "popxl"):
        session = popxl.Session(mapped.ir)
    assert "read-only" in caplog.text
    assert session.weights_to_host_on_exit is False
    with session:
        session.run()
    assert mapped.on_disk == [1, 2]
    assert session.get_tensor_data(mapped.v) is mapped.map


def test_read_only_map_cannot_be_fetched(tmp_path: Path, remote: bool) -> None:
    mapped = Mapped(tmp_path / "w", "r", remote)
    session = popxl.Session(mapped.ir)
    with pytest.raises(PopxlError, match="read-only"):  # before the check that it is attached
        session.weights_to_host()
    with session:
        assert session.get_tensor_data(mapped.v).tolist() == [1, 2]
        session.run()
        for variable in (mapped.v, mapped.plain):
            with pytest.raises(PopxlError, match=f"'{mapped.v.id}'.*read-only"):
                session.get_tensor_data(variable)
    assert session.get_tensor_data(mapped.plain) == 0


def test_read_only_map_cannot_be_written(tmp_path: Path, remote: bool) -> None:
    mapped = Mapped(tmp_path / "w", "r", remote)
    session = popxl.Session(mapped.ir)
    with pytest.raises(ValueError, match="read-only"):
        session.write_variable_data(mapped.v, np.zeros(2, np.float32))
    session.write_variable_data(mapped.plain, 3.0)
    assert session.get_tensor_data(mapped.plain) == 3


def test_memory_map_is_used_by_the_program(tmp_path: Path, remote: bool, memory: str) -> None:
    mapped = Mapped(tmp_path / "w", "r", remote)
    ir = popxl.Ir()
    with ir.main_graph:
        out = popxl.d2h_stream((2,), popxl.float32)
        if remote:
            buffer = popxl.remote_buffer((2,), popxl.float32, 1)
            popxl.remote_variable(mapped.map, buffer, 0)
            ops.host_store(out, ops.remote_load(buffer, 0) * 2)
        else:
            ops.host_store(out, popxl.variable(mapped.map) * 2)
    with popxl.Session(ir, streaming_memory=memory) as session:
        assert session.run()[out].tolist() == [2, 4]
