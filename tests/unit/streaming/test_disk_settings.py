"""The settings of a disk: measured, kept beside the rows, and read without trust."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popxl.runtime.streaming import BufferSpec, FileTier, disk_settings
from popxl.runtime.streaming.disk import DEFAULT_SETTINGS, DiskQueue, DiskSettings
from popxl.runtime.streaming.disk_settings import CANDIDATES, PROBE_FROM_BYTES, cached, probe
from popxl.runtime.streaming.small_files import SETTINGS_NAME, keep_note
from popxl.testing.tiers import assert_row


def test_probe_keeps_its_answer_and_nothing_else(tmp_path: Path) -> None:
    settings = probe(tmp_path, limit_s=0.0)
    assert settings in CANDIDATES
    assert cached(tmp_path) == settings
    assert [path.name for path in tmp_path.iterdir()] == [SETTINGS_NAME]
    assert stat.S_IMODE((tmp_path / SETTINGS_NAME).stat().st_mode) == 0o600


def test_probe_where_there_is_no_direct_io_answers_with_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EINVAL, "no direct I/O here")

    monkeypatch.setattr(os, "open", refuse)
    assert probe(tmp_path) == DEFAULT_SETTINGS
    assert not list(tmp_path.iterdir())


def test_probe_of_a_full_disk_raises_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev = os.pwritev

    def full(fd: int, buffers: Any, offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space left"):
        probe(tmp_path, limit_s=0.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 4000,
        b'{"threads": 4}',
        b'{"threads": true, "piece_bytes": 4096}',
        b'{"threads": 0, "piece_bytes": 4096}',
        b'{"threads": 1000000, "piece_bytes": 4096}',
        b'{"threads": 2, "piece_bytes": 5000}',
        b'{"threads": 2, "piece_bytes": -4096}',
        b'{"threads": 2, "piece_bytes": 1e6}',
        b'{"threads": 2, "piece_bytes": 1099511627776}',
        b" " * 5000 + b'{"threads": 2, "piece_bytes": 4096}',
    ],
    ids=range(14),
)
def test_settings_that_make_no_sense_are_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SETTINGS_NAME).write_bytes(content)
    assert cached(tmp_path) == DEFAULT_SETTINGS


def test_settings_that_are_a_link_or_a_pipe_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"threads": 2, "piece_bytes": 4096}')
    (tmp_path / SETTINGS_NAME).symlink_to(tmp_path / "elsewhere")
    assert cached(tmp_path) == DEFAULT_SETTINGS
    (tmp_path / SETTINGS_NAME).unlink()
    os.mkfifo(tmp_path / SETTINGS_NAME)
    assert cached(tmp_path) == DEFAULT_SETTINGS


def test_tier_uses_the_settings_of_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[DiskSettings] = []
    init = DiskQueue.__init__

    def noted(self: DiskQueue, settings: DiskSettings) -> None:
        used.append(settings)
        init(self, settings)

    monkeypatch.setattr(DiskQueue, "__init__", noted)
    spec = BufferSpec(1, (5000,), np.dtype("float32"), entries=1)
    tier = FileTier(tmp_path)
    tier.open([spec])
    tier.close()
    (tmp_path / SETTINGS_NAME).write_text('{"threads": 1, "piece_bytes": 8192}')
    tier.open([spec])
    tier.store(1, 0, np.ones(5000, np.float32))
    assert_row(tier.load(1, 0), np.ones(5000, np.float32))
    tier.close()
    assert used == [DEFAULT_SETTINGS, DiskSettings(1, 8192)]


def test_probe_may_come_before_the_first_open(tmp_path: Path) -> None:
    probe(tmp_path, limit_s=0.0)
    tier = FileTier(tmp_path)
    tier.open([BufferSpec(1, (2,), np.dtype("float32"), entries=1)])
    tier.close()


# When a tier measures

LARGE = BufferSpec(1, (PROBE_FROM_BYTES // 4096,), np.dtype("uint8"), entries=4096)
SMALL = BufferSpec(1, (PROBE_FROM_BYTES // 4096,), np.dtype("uint8"), entries=4095)
MEASURED = DiskSettings(1, 8192)


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories that were probed; the answer is `MEASURED`."""
    directories: list[Path] = []

    def play(directory: Path) -> DiskSettings:
        directories.append(directory)
        keep_note(directory, SETTINGS_NAME, asdict(MEASURED))
        return MEASURED

    monkeypatch.setattr(disk_settings, "probe", play)
    return directories


def settings_of_a_tier(directory: Path, spec: BufferSpec) -> DiskSettings:
    tier = FileTier(directory)
    tier.open([spec])
    assert tier._queue is not None
    used = tier._queue.settings
    tier.store(1, 0, np.ones(spec.shape, np.uint8))
    assert_row(tier.load(1, 0), np.ones(spec.shape, np.uint8))
    tier.close()
    return used


def test_first_tier_with_much_to_move_measures_and_later_ones_use_its_answer(
    tmp_path: Path, probed: list[Path]
) -> None:
    assert settings_of_a_tier(tmp_path / "rows", LARGE) == MEASURED
    assert settings_of_a_tier(tmp_path / "rows", LARGE) == MEASURED
    assert probed == [tmp_path / "rows"]


def test_tier_with_little_to_move_does_not_measure(tmp_path: Path, probed: list[Path]) -> None:
    assert settings_of_a_tier(tmp_path / "rows", SMALL) == DEFAULT_SETTINGS
    assert probed == []


def test_tier_measures_where_the_settings_make_no_sense(tmp_path: Path, probed: list[Path]) -> None:
    (tmp_path / SETTINGS_NAME).write_bytes(b"{}")
    assert settings_of_a_tier(tmp_path, LARGE) == MEASURED
    assert probed == [tmp_path]


def test_tier_that_cannot_measure_uses_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path) -> DiskSettings:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk_settings, "probe", full)
    assert settings_of_a_tier(tmp_path / "rows", LARGE) == DEFAULT_SETTINGS


def test_tier_really_measures_within_its_own_directory(tmp_path: Path) -> None:
    assert settings_of_a_tier(tmp_path / "rows", LARGE) in CANDIDATES
    assert (tmp_path / "rows" / SETTINGS_NAME).exists()
