"""Which directories the file tier takes, and that it leaves every other one as it was."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.testing.tiers import assert_row

SPEC = BufferSpec(3, (5,), np.dtype("float32"), entries=4)
LARGER = BufferSpec(3, (6,), np.dtype("float32"), entries=4)
SECOND = BufferSpec(4, (), np.dtype("int8"), entries=1)
MANIFEST = "streaming-memory.json"
SLAB = "buffer-3.slab"


def snapshot(directory: Path) -> dict[str, Any]:
    """Everything below a directory: kind, mode, time of change and content."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        content: Any = None
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file() and status.st_size < 2**20:
            content = path.read_bytes()
        found[str(path.relative_to(directory))] = (status.st_mode, status.st_mtime_ns, status.st_size, content)
    return found


def refused(directory: Path, *buffers: BufferSpec) -> str:
    """The message of an ``open`` that must fail and must change nothing, next to the directory neither."""
    before = snapshot(directory.parent)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StreamingMemoryError) as caught:
        FileTier(directory).open(buffers or [SPEC])
    assert snapshot(directory.parent) == before
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    assert "Hint:" in str(caught.value)
    return str(caught.value)


def opens(directory: Path, *buffers: BufferSpec) -> bool:
    tier = FileTier(directory)
    tier.open(buffers or [SPEC])
    try:
        assert_row(tier.load(3, 1), np.zeros((buffers or [SPEC])[0].shape, np.float32))
    finally:
        tier.close()
    return True


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A directory that a program with ``SPEC`` has left, with a row in it."""
    directory = tmp_path / "rows"
    tier = FileTier(directory)
    tier.open([SPEC])
    tier.store(3, 1, np.ones(5, np.float32))
    tier.close()
    return directory


def rewrite(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / MANIFEST
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------- taken


def test_empty_directory_is_taken(tmp_path: Path) -> None:
    assert opens(tmp_path)


def test_directory_of_the_same_program_is_taken_again(used: Path) -> None:
    assert opens(used)


def test_directory_reached_through_a_link_is_taken(used: Path) -> None:
    (used.parent / "link").symlink_to(used)
    assert opens(used.parent / "link")


def test_files_of_others_beside_the_manifest_are_left_alone(used: Path) -> None:
    (used / "notes.txt").write_text("mine")
    assert opens(used)
    assert (used / "notes.txt").read_text() == "mine"


def test_first_open_that_was_interrupted_before_the_manifest_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "streaming-memory.json.tmp").write_text('{"format": "popxl-str')
    assert opens(tmp_path)
    assert not (tmp_path / "streaming-memory.json.tmp").exists()


def test_notes_on_the_disk_do_not_make_a_directory_anothers(tmp_path: Path) -> None:
    for note in ("disk-settings.json", "disk-speeds.json"):
        (tmp_path / note).touch()
        (tmp_path / f"{note}.tmp").write_text('{"thre')  # one that was interrupted
    assert opens(tmp_path)


def test_first_open_that_was_interrupted_before_the_slabs_can_be_repeated(used: Path) -> None:
    (used / SLAB).unlink()
    assert opens(used)


def test_slab_of_the_wrong_size_is_made_anew_by_the_same_program(used: Path) -> None:
    (used / SLAB).write_bytes(b"x" * 100)
    assert opens(used)


# ---------------------------------------------------------------- refused


def test_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "photos"
    directory.mkdir()
    (directory / "cat.jpg").write_bytes(b"cat")
    (directory / "dog.jpg").write_bytes(b"dog")
    assert re.search(r"photos is not empty .* it has 'cat.jpg' and 1 more", refused(directory))


def test_slab_without_a_manifest_is_refused(used: Path) -> None:
    (used / MANIFEST).unlink()
    assert f"it has '{SLAB}', but no {MANIFEST}" in refused(used)


@pytest.mark.parametrize(
    ("buffers", "difference"),
    [
        ([LARGER], "buffer 3 has shape (5,) in the directory and (6,) in the program"),
        ([SPEC, SECOND], "buffer 4 is in the program but not in the directory"),
        ([SECOND], "buffer 3 is in the directory but not in the program"),
    ],
    ids=["shape", "added", "gone"],
)
def test_directory_of_another_program_is_refused(used: Path, buffers: list[BufferSpec], difference: str) -> None:
    assert difference in refused(used, *buffers)


@pytest.mark.parametrize("version", [1, 3])
def test_other_version_is_refused(used: Path, version: int) -> None:
    rewrite(used, lambda content: content.update(version=version))
    assert f"of format version {version}" in refused(used)


def test_foreign_format_is_refused(used: Path) -> None:
    rewrite(used, lambda content: content.update(format="zarr"))
    assert "of the format 'zarr'" in refused(used)


def test_other_byte_order_is_refused(used: Path) -> None:
    rewrite(used, lambda content: content.update(byte_order="middle"))
    assert "byte order 'middle'" in refused(used)


@pytest.mark.parametrize("entries", [-1, 2**63, 10**30, "4", None, True])
def test_damaged_number_is_refused(used: Path, entries: Any) -> None:
    rewrite(used, lambda content: content["buffers"][0].update(entries=entries))
    assert "damaged: entries is" in refused(used)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_truncated_manifest_is_refused(used: Path, length: int) -> None:
    os.truncate(used / MANIFEST, length)
    assert "damaged: it is not JSON" in refused(used)


def test_huge_manifest_is_refused_without_reading_it(used: Path) -> None:
    os.truncate(used / MANIFEST, 2**40)
    assert "not a regular file of at most" in refused(used)


def test_manifest_that_is_a_link_is_refused(used: Path) -> None:
    (used / MANIFEST).rename(used.parent / "elsewhere.json")
    (used / MANIFEST).symlink_to(used.parent / "elsewhere.json")
    assert "(ELOOP)" in refused(used)


def test_manifest_that_is_a_pipe_is_refused_without_waiting(used: Path) -> None:
    (used / MANIFEST).unlink()
    os.mkfifo(used / MANIFEST)
    assert "not a regular file" in refused(used)


def test_slab_that_is_a_link_is_refused_and_its_target_kept(used: Path) -> None:
    (used.parent / "precious").write_bytes(b"precious")
    (used / SLAB).unlink()
    (used / SLAB).symlink_to(used.parent / "precious")
    assert "(ELOOP)" in refused(used)


def test_slab_that_is_a_dangling_link_is_refused(used: Path) -> None:
    (used / SLAB).unlink()
    (used / SLAB).symlink_to(used.parent / "nowhere")
    assert "(ELOOP)" in refused(used)


def test_slab_that_has_another_name_too_is_refused(used: Path) -> None:
    (used.parent / "backup").hardlink_to(used / SLAB)
    assert "2 links" in refused(used)


def test_slab_that_is_a_pipe_is_refused_without_waiting(used: Path) -> None:
    (used / SLAB).unlink()
    os.mkfifo(used / SLAB)
    assert "not a regular file" in refused(used)


def test_one_bad_slab_leaves_the_rows_of_the_others(tmp_path: Path) -> None:
    directory = tmp_path / "rows"
    tier = FileTier(directory)
    tier.open([SPEC, SECOND])
    tier.store(3, 1, np.ones(5, np.float32))
    tier.close()
    (directory / "buffer-4.slab").unlink()
    (directory / "buffer-4.slab").mkdir()
    assert "(EISDIR)" in refused(directory, SPEC, SECOND)


def test_lock_that_is_a_link_is_refused(used: Path) -> None:
    (used.parent / "precious").write_bytes(b"precious")
    (used / ".lock").unlink()
    (used / ".lock").symlink_to(used.parent / "precious")
    assert "(ELOOP)" in refused(used)


def test_buffer_larger_than_any_file_is_refused_before_the_directory_is_made(tmp_path: Path) -> None:
    message = refused(tmp_path / "rows", BufferSpec(3, (2**40,), np.dtype("float32"), entries=2**30))
    assert f"{2**72} bytes" in message


# ---------------------------------------------------------------- the system says no


def test_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("a file")
    message = refused(tmp_path / "rows")
    assert f"{tmp_path / 'rows'} cannot be used" in message
    assert "name a directory" in message


def test_file_in_the_path_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("a file")
    assert "Not a directory (ENOTDIR)" in refused(tmp_path / "rows" / "deeper")


def test_file_system_where_nothing_can_be_made() -> None:
    # Even the superuser cannot make a directory there, so this needs no user without rights.
    with pytest.raises(StreamingMemoryError, match=r"/proc/popxl-rows cannot be used: .* \(ENOENT\)"):
        FileTier("/proc/popxl-rows").open([SPEC])


def fail_on(code: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(Path, "mkdir", fail_on(code))
    assert f"{os.strerror(code)} ({errno.errorcode[code]})" in refused(tmp_path / "rows")


@pytest.mark.parametrize("call", ["ftruncate", "fsync"])
def test_full_disk_during_the_first_open_leaves_an_empty_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    directory = tmp_path / "rows"
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_on(errno.ENOSPC))
        with pytest.raises(StreamingMemoryError, match=r"No space left on device \(ENOSPC\)") as caught:
            FileTier(directory).open([SPEC])
    assert str(directory) in str(caught.value)
    assert not {MANIFEST, SLAB} & {path.name for path in directory.iterdir()}
    assert opens(directory, LARGER)


LIMITED = """
import resource
import sys
import numpy as np
from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, FileTier
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    FileTier(sys.argv[1]).open([BufferSpec(3, (5,), np.dtype("float32"), entries=1000)])
except StreamingMemoryError as error:
    print(error)
"""


def test_real_limit_on_the_file_size_is_an_error_with_file_and_size(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "rows")], capture_output=True, text=True, check=True
    )
    assert f"{tmp_path / 'rows' / SLAB} of 4096000 bytes cannot be made: File too large (EFBIG)" in done.stdout
    assert "ulimit -f" in done.stdout
    assert opens(tmp_path / "rows", LARGER)


def test_open_that_failed_frees_the_directory(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = FileTier(used)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail_on(errno.EIO))
        with pytest.raises(StreamingMemoryError):
            tier.open([SPEC])
    tier.open([SPEC])
    tier.close()
