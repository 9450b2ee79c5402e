"""Disks without room: limits of the system that are real, in a process of its own, and a slab larger than the disk."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.small_files import SETTINGS_NAME

# Rows of one page; slot 1 of entry n is at page n, slot 2 at page 4 + n. The file may grow to a size only, as if the
# disk were full beyond it. Python ignores the signal that comes with the error.
CHILD = """
import resource
import sys
import numpy as np
from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, FileTier

def limit(n_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))

def row(number):
    return np.full(1024, number, np.float32)

def attempt(what):
    try:
        return what()
    except StreamingMemoryError as error:
        return str(error)

tier = FileTier(sys.argv[1])
tier.open([BufferSpec(3, (1024,), np.dtype("float32"), 4, ((0, "w"),))])
for entry in range(4):
    tier.store(3, entry, row(1))
tier.commit()
"""


def child(directory: Path, script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD + script, str(directory)], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def committed(directory: Path) -> list[float]:
    tier = FileTier(directory, reopen=True)
    tier.open([BufferSpec(3, (1024,), np.dtype("float32"), 4, ((0, "w"),))])
    values = [float(np.asarray(tier.load(3, entry))[7]) for entry in range(4)]
    tier.close()
    return values


def test_store_that_the_system_refuses_is_an_error_and_spares_the_other_rows(tmp_path: Path) -> None:
    script = """
limit(6 * 4096)
print(attempt(lambda: tier.store(3, 1, row(2))))
print(attempt(lambda: tier.store(3, 2, row(2))).splitlines()[0])
print(*(tier.load(3, entry)[7] for entry in (0, 1, 3)))
limit(resource.RLIM_INFINITY)
print(attempt(lambda: tier.store(3, 2, row(3))), tier.load(3, 2)[7])
tier.commit()
"""
    stored, refused, loaded, mended = child(tmp_path / "rows", script)
    assert stored == "None"
    slab = tmp_path / "rows" / "buffer-3.slab"
    assert refused.startswith(f"Remote buffer 3, entry 2 cannot be written to {slab}: File too large (EFBIG)")
    assert loaded == "1.0 2.0 1.0"
    assert mended == "None 3.0"
    assert committed(tmp_path / "rows") == [1, 2, 3, 1]


def test_commit_that_the_system_refuses_leaves_the_one_before(tmp_path: Path) -> None:
    script = """
tier.store(3, 0, row(2))
limit(64)
print(attempt(tier.commit).splitlines()[0])
limit(resource.RLIM_INFINITY)
"""
    (refused,) = child(tmp_path / "rows", script)
    assert "The record of the commit" in refused
    assert "EFBIG" in refused
    assert committed(tmp_path / "rows") == [1, 1, 1, 1]


def test_full_disk_names_the_bytes_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tier = FileTier(tmp_path)
    tier.open([BufferSpec(3, (5000,), np.dtype("float32"), 1)])
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(StreamingMemoryError, match=r"\(ENOSPC\)\. It takes 20\.00 KiB, and the disk has .* free\."):
        tier.store(3, 0, np.ones(5000, np.float32))
    tier.close()


def warnings_of_opening(directory: Path, rows_bytes: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    row_bytes = 1 << 26
    (directory / SETTINGS_NAME).write_text('{"threads": 1, "piece_bytes": 4096}')
    tier = FileTier(directory)
    with caplog.at_level(logging.WARNING, "popxl"):
        tier.open([BufferSpec(1, (row_bytes,), np.dtype("uint8"), rows_bytes // row_bytes)])
    tier.close()
    return caplog.messages


def test_rows_that_the_disk_has_no_room_for_are_told_at_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    status = os.statvfs(tmp_path)
    (warning,) = warnings_of_opening(tmp_path, status.f_bavail * status.f_frsize + (1 << 32), caplog)
    assert warning.startswith(f"The rows in {tmp_path} take ")
    assert "free" in warning


def test_rows_that_the_disk_has_room_for_are_not_worth_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of_opening(tmp_path, 1 << 26, caplog) == []
