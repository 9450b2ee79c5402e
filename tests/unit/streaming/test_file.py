"""The file tier beyond the contract of every tier: what is on disk, and transfers that go wrong."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import xxhash

from popxl.errors import PopxlValueError, StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.alloc import aligned_bytes
from popxl.runtime.streaming.transfer import Transfer
from popxl.testing.tier_commits import CommittingTierTests
from popxl.testing.tier_transfers import AsynchronousTierTests
from popxl.testing.tiers import assert_row, sample

# 8000 bytes an entry: one page and most of a second, so a slot has 8192.
SPEC = BufferSpec(3, (2000,), np.dtype("float32"), entries=4)
SLOT = 8192
ZEROS = np.zeros(2000, np.float32)
ONES = np.ones(2000, np.float32)


class TestFileTier(AsynchronousTierTests, CommittingTierTests):
    def make_tier(self, directory: Path) -> FileTier:
        return FileTier(directory)

    def make_tier_again(self, directory: Path) -> FileTier:
        return FileTier(directory, reopen=True)


class TestFileTierThroughThePageCache(AsynchronousTierTests, CommittingTierTests):
    @pytest.fixture(autouse=True)
    def no_direct_io(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse_direct_io(monkeypatch)

    def make_tier(self, directory: Path) -> FileTier:
        return FileTier(directory)

    def make_tier_again(self, directory: Path) -> FileTier:
        return FileTier(directory, reopen=True)


def refuse_direct_io(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file system without direct I/O does."""
    open_as_before = os.open

    def call(path: Any, flags: int, mode: int = 0o777, **others: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O here")
        return open_as_before(path, flags, mode, **others)

    monkeypatch.setattr(os, "open", call)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "rows"


@pytest.fixture
def tier(directory: Path) -> Generator[FileTier]:
    """A tier that is open for ``SPEC``."""
    tier = FileTier(directory)
    tier.open([SPEC])
    yield tier
    tier.close()


def slab(directory: Path) -> Path:
    return directory / "buffer-3.slab"


def fails(code: int) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


# ---------------------------------------------------------------- on disk


def test_entry_lies_at_its_slot_in_native_bytes(tier: FileTier, directory: Path) -> None:
    value = np.arange(2000, dtype=np.float32)
    tier.store(3, 2, value)
    content = slab(directory).read_bytes()
    assert content[2 * SLOT : 2 * SLOT + 8000] == value.tobytes()
    assert content[: 2 * SLOT] == bytes(2 * SLOT)
    assert content[2 * SLOT + 8000 :] == bytes(2 * SLOT - 8000)


def test_open_makes_the_files_at_full_size_without_taking_the_space(tmp_path: Path) -> None:
    tier = FileTier(tmp_path)
    tier.open([BufferSpec(1, (2**20,), np.dtype("uint8"), entries=1000)])
    status = (tmp_path / "buffer-1.slab").stat()
    assert status.st_size == 1000 * 2**20
    assert status.st_blocks * 512 < 2**20
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "streaming-memory.json", "buffer-1.slab"}
    tier.close()


def test_files_are_for_the_user_alone(tier: FileTier, directory: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys([".lock", "streaming-memory.json", "buffer-3.slab"], 0o600)


def test_directory_is_made_with_its_parents_for_the_user_alone(tmp_path: Path) -> None:
    tier = FileTier(tmp_path / "a" / "b")
    tier.open([SPEC])
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    tier.close()


def test_close_leaves_the_rows_on_disk(tier: FileTier, directory: Path) -> None:
    tier.store(3, 0, ONES)
    tier.close()
    assert slab(directory).read_bytes()[:8000] == ONES.tobytes()


def test_same_buffers_in_another_order_are_the_same_program(directory: Path) -> None:
    other = BufferSpec(1, (), np.dtype("bool"), entries=1)
    tier = FileTier(directory)
    for buffers in ([SPEC, other], [other, SPEC]):
        tier.open(buffers)
        tier.close()


def test_directory_is_the_one_meant_when_the_tier_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tier = FileTier("rows")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tier.open([SPEC])
    assert slab(tmp_path / "rows").exists()
    tier.close()


def test_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert repr(FileTier("~/rows")) == "FileTier('/home/somebody/rows')"


@pytest.mark.parametrize("name", ["", "a\0b", "~nobody-of-this-name/rows"])
def test_name_that_is_no_directory_is_refused(name: str) -> None:
    with pytest.raises(PopxlValueError):
        FileTier(name)


# ---------------------------------------------------------------- memory of a load


@pytest.mark.parametrize(("elements", "alignment"), [(1, 64), (1023, 64), (1024, 4096), (100_000, 4096)])
def test_load_is_read_only_and_aligned(directory: Path, elements: int, alignment: int) -> None:
    tier = FileTier(directory)
    tier.open([BufferSpec(1, (elements,), np.dtype("float32"), entries=1)])
    row = np.asarray(tier.load(1, 0))
    assert not row.flags.writeable
    assert row.ctypes.data % alignment == 0
    tier.close()


def test_jax_uses_the_memory_of_a_load_in_place(tier: FileTier) -> None:
    row = np.asarray(tier.load(3, 0))
    assert jax.device_put(row, jax.devices("cpu")[0]).unsafe_buffer_pointer() == row.ctypes.data


def spy_on_writes(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """Of each call to the system: the address and size of each piece of memory."""
    seen: list[list[tuple[int, int]]] = []
    pwritev = os.pwritev

    def spy(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        seen.append([(np.frombuffer(each, np.uint8).ctypes.data, len(each)) for each in buffers])
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", spy)
    return seen


def test_store_of_a_page_aligned_array_passes_its_own_whole_pages(
    tier: FileTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = aligned_bytes(SPEC).view(np.float32)
    value[:] = 1
    seen = spy_on_writes(monkeypatch)
    tier.store(3, 0, value)
    assert seen[0][0] == (value.ctypes.data, 4096)


def test_store_through_the_page_cache_passes_memory_of_any_alignment(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_direct_io(monkeypatch)
    tier = FileTier(directory)
    tier.open([SPEC])
    value = np.arange(2001, dtype=np.float32)[1:]
    seen = spy_on_writes(monkeypatch)
    tier.store(3, 0, value)
    assert seen[0][0] == (value.ctypes.data, 4096)
    tier.close()


@pytest.mark.parametrize("shift", [1, 4, 16, 64, 512])
def test_store_takes_memory_of_any_alignment(tier: FileTier, shift: int) -> None:
    raw = np.arange(8000 + shift, dtype=np.uint32).astype(np.uint8)[shift:]
    value = raw.view(np.float32)
    tier.store(3, 2, value)
    assert_row(tier.load(3, 2), value)


def test_file_system_without_direct_io_is_told_once_and_serves(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse_direct_io(monkeypatch)
    tier = FileTier(directory)
    with caplog.at_level("INFO", logger="popxl"):
        tier.open([SPEC])
    assert [record.getMessage() for record in caplog.records] == [
        f"The file system of {directory} has no direct I/O: rows go through the page cache."
    ]
    assert not tier.direct_io
    tier.store(3, 1, ONES)
    assert_row(tier.load(3, 1), ONES)
    tier.close()


# ---------------------------------------------------------------- transfers in part


# Direct I/O moves whole sectors, the page cache any number of bytes.
SHORT = pytest.mark.parametrize(("is_direct", "most"), [(True, 1024), (False, 999)])


def open_tier(directory: Path, monkeypatch: pytest.MonkeyPatch, *, is_direct: bool) -> FileTier:
    if not is_direct:
        refuse_direct_io(monkeypatch)
    tier = FileTier(directory)
    tier.open([SPEC])
    return tier


@SHORT
def test_load_goes_on_after_short_reads(
    directory: Path, monkeypatch: pytest.MonkeyPatch, is_direct: bool, most: int
) -> None:
    tier = open_tier(directory, monkeypatch, is_direct=is_direct)
    value = np.arange(2000, dtype=np.float32)
    tier.store(3, 1, value)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:most]], offset))
    assert_row(tier.load(3, 1), value)
    tier.close()


@SHORT
def test_store_goes_on_after_short_writes(
    directory: Path, monkeypatch: pytest.MonkeyPatch, is_direct: bool, most: int
) -> None:
    tier = open_tier(directory, monkeypatch, is_direct=is_direct)
    value = np.arange(2000, dtype=np.float32)
    pwritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: pwritev(fd, [buffers[0][:most]], offset))
    tier.store(3, 1, value)
    assert_row(tier.load(3, 1), value)
    assert_row(tier.load(3, 2), ZEROS)
    tier.close()


def test_write_that_makes_no_progress_is_an_error(tier: FileTier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(StreamingMemoryError, match="wrote 0 of 8192 bytes"):
        tier.store(3, 1, ONES)


# ---------------------------------------------------------------- transfers that fail


def test_failed_read_names_buffer_entry_file_and_errno(
    tier: FileTier, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier.store(3, 1, ONES)
    monkeypatch.setattr(os, "preadv", fails(errno.EIO))
    with pytest.raises(StreamingMemoryError) as caught:
        tier.load(3, 1)
    message = str(caught.value)
    assert message.startswith(
        f"Remote buffer 3, entry 1 cannot be read from {slab(directory)}: Input/output error (EIO)"
    )
    assert "Hint:" in message
    assert caught.value.errno == errno.EIO


def test_full_disk_names_buffer_entry_file_and_errno(
    tier: FileTier, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwritev", fails(errno.ENOSPC))
    with pytest.raises(StreamingMemoryError) as caught:
        tier.store(3, 1, ONES)
    message = str(caught.value)
    assert message.startswith(
        f"Remote buffer 3, entry 1 cannot be written to {slab(directory)}: No space left on device"
    )
    assert "Hint: free space" in message
    assert caught.value.errno == errno.ENOSPC


@pytest.fixture
def torn(tier: FileTier, monkeypatch: pytest.MonkeyPatch) -> FileTier:
    """Entry 1 was ones; the store of twos failed after 999 bytes. Entries 0 and 2 are ones."""
    for entry in range(3):
        tier.store(3, entry, ONES)
    pwritev = os.pwritev

    def fill_up(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset % 4096:
            raise OSError(errno.ENOSPC, "full")
        return pwritev(fd, [buffers[0][:999]], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fill_up)
        with pytest.raises(StreamingMemoryError):
            tier.store(3, 1, 2 * ONES)
    return tier


def test_entry_whose_store_failed_half_way_is_never_handed_out(torn: FileTier) -> None:
    with pytest.raises(StreamingMemoryError, match="buffer 3, entry 1: the last store to it failed half-way"):
        torn.load(3, 1)


def test_store_that_failed_leaves_the_other_rows(torn: FileTier) -> None:
    assert_row(torn.load(3, 0), ONES)
    assert_row(torn.load(3, 2), ONES)


def test_next_store_mends_an_entry_whose_store_failed(torn: FileTier) -> None:
    torn.store(3, 1, 3 * ONES)
    assert_row(torn.load(3, 1), 3 * ONES)


def test_entry_whose_store_failed_is_zeros_after_the_next_open(torn: FileTier) -> None:
    torn.close()
    torn.open([SPEC])
    assert_row(torn.load(3, 1), ZEROS)


def test_store_that_was_interrupted_counts_as_failed(tier: FileTier, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tier.store(3, 1, ONES)
    with pytest.raises(StreamingMemoryError, match="failed half-way"):
        tier.load(3, 1)


# ---------------------------------------------------------------- bytes that changed on disk


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Change one bit behind the tier's back, past the page cache or not."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.parametrize(("position", "bit"), [(0, 0), (4095, 7), (4096, 3), (7999, 5)])
def test_flipped_bit_is_an_error_with_both_digests(tier: FileTier, directory: Path, position: int, bit: int) -> None:
    tier.store(3, 1, ONES)
    flip(slab(directory), SLOT + position, bit)
    changed = bytearray(ONES.tobytes())
    changed[position] ^= 1 << bit
    with pytest.raises(StreamingMemoryError) as caught:
        tier.load(3, 1)
    message = str(caught.value)
    assert message.startswith("Remote buffer 3, entry 1, stored after generation 0: ")
    assert f"have the checksum {xxhash.xxh3_64_hexdigest(bytes(changed))}" in message
    assert f"those stored had {xxhash.xxh3_64_hexdigest(ONES.tobytes())}" in message


def test_bytes_that_fail_the_checksum_never_reach_the_caller(tier: FileTier, directory: Path) -> None:
    tier.store(3, 1, ONES)
    flip(slab(directory), SLOT + 5)
    raw = np.frombuffer(mmap.mmap(-1, SLOT), np.uint8)
    transfer = Transfer(SPEC, 1, raw)
    tier.start_reads([transfer])
    transfer.wait_quietly()
    assert isinstance(transfer.error, StreamingMemoryError)
    assert not raw.any()


def test_flipped_bit_in_the_padding_harms_nobody(tier: FileTier, directory: Path) -> None:
    tier.store(3, 1, ONES)
    flip(slab(directory), SLOT + 8000)
    assert_row(tier.load(3, 1), ONES)


def test_row_that_was_stored_again_after_a_flipped_bit_reads_back(tier: FileTier, directory: Path) -> None:
    tier.store(3, 1, ONES)
    flip(slab(directory), SLOT)
    tier.store(3, 1, 2 * ONES)
    assert_row(tier.load(3, 1), 2 * ONES)


def test_flipped_bit_in_a_large_row_is_found(directory: Path) -> None:
    spec = BufferSpec(3, (9 << 20,), np.dtype(np.uint8), entries=1)
    tier = FileTier(directory)
    tier.open([spec])
    tier.store(3, 0, sample(spec, seed=1))
    flip(slab(directory), 5 << 20)
    with pytest.raises(StreamingMemoryError, match="have the checksum"):
        tier.load(3, 0)
    tier.close()


def test_tier_without_checksums_says_so_and_compares_nothing(directory: Path) -> None:
    tier = FileTier(directory, checksums=False)
    assert not tier.capabilities.checksums
    assert FileTier.capabilities.checksums
    tier.open([SPEC])
    tier.store(3, 1, ONES)
    flip(slab(directory), SLOT + 4095)
    assert np.count_nonzero(np.asarray(tier.load(3, 1)) != ONES) == 1
    tier.close()


# ---------------------------------------------------------------- a slab that shrank


@pytest.mark.parametrize(("left", "found"), [(SLOT, 0), (SLOT + 1, 1), (SLOT + 7999, 7999)])
def test_load_from_a_truncated_slab_names_expected_and_found_bytes(
    tier: FileTier, directory: Path, left: int, found: int
) -> None:
    tier.store(3, 1, ONES)
    os.truncate(slab(directory), left)
    with pytest.raises(StreamingMemoryError) as caught:
        tier.load(3, 1)
    message = str(caught.value)
    assert message.startswith(f"Remote buffer 3, entry 1: the slab {slab(directory)} was truncated")
    assert f"Expected 8000 bytes at offset 8192, found {found}." in message


def test_store_to_a_truncated_slab_is_refused_and_does_not_extend_it(tier: FileTier, directory: Path) -> None:
    os.truncate(slab(directory), 3 * SLOT)
    with pytest.raises(StreamingMemoryError, match="Expected a file of 32768 bytes, found 24576"):
        tier.store(3, 0, ONES)
    assert slab(directory).read_bytes() == bytes(3 * SLOT)


def test_store_refused_by_a_truncated_slab_leaves_the_entry_readable(tier: FileTier, directory: Path) -> None:
    tier.store(3, 0, ONES)
    os.truncate(slab(directory), 3 * SLOT)
    with pytest.raises(StreamingMemoryError):
        tier.store(3, 0, 2 * ONES)
    assert_row(tier.load(3, 0), ONES)


# ---------------------------------------------------------------- one session at a time

HOLD = """
import sys
import numpy as np
from popxl.runtime.streaming import BufferSpec, FileTier
tier = FileTier(sys.argv[1])
tier.open([BufferSpec(3, (2000,), np.dtype("float32"), entries=4)])
print("open", flush=True)
sys.stdin.read()
"""


def test_directory_open_in_another_process_is_refused_until_that_process_ends(directory: Path) -> None:
    tier = FileTier(directory)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StreamingMemoryError, match=f"{directory} is in use by another session"):
            tier.open([SPEC])
        other.stdin.close()
        assert other.wait() == 0
    tier.open([SPEC])
    tier.close()


def test_directory_open_in_this_process_is_refused_and_loses_nothing(tier: FileTier, directory: Path) -> None:
    tier.store(3, 1, ONES)
    second = FileTier(directory)
    with pytest.raises(StreamingMemoryError, match="in use by another session"):
        second.open([SPEC])
    assert_row(tier.load(3, 1), ONES)
    tier.close()
    second.open([SPEC])
    second.close()


def test_tier_that_was_dropped_unclosed_frees_the_directory(directory: Path) -> None:
    dropped = FileTier(directory)
    dropped.open([SPEC])
    del dropped
    gc.collect()
    tier = FileTier(directory)
    tier.open([SPEC])
    tier.close()


def test_close_by_another_thread_frees_the_directory(tier: FileTier, directory: Path) -> None:
    thread = threading.Thread(target=tier.close)
    thread.start()
    thread.join()
    other = FileTier(directory)
    other.open([SPEC])
    other.close()


def files_in(directory: Path) -> set[int]:
    """The open files of this process that lie in a directory."""
    numbers = (int(path.name) for path in Path("/proc/self/fd").iterdir())
    return {n for n in numbers if _is_in(directory, n)}


def _is_in(directory: Path, number: int) -> bool:
    try:
        return Path(f"/proc/self/fd/{number}").readlink().is_relative_to(directory)
    except FileNotFoundError:  # the list itself is read through one
        return False


def test_close_closes_every_file(directory: Path) -> None:
    tier = FileTier(directory)
    tier.open([SPEC, BufferSpec(4, (), np.dtype("bool"), entries=1)])
    assert len(files_in(directory)) == 3
    tier.close()
    assert not files_in(directory)


def test_close_that_fails_says_so_and_closes_the_rest(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def close_with_late_error(fd: int) -> None:
        close(fd)
        if fd in late:
            raise OSError(errno.EIO, "late")

    late: set[int] = set()
    monkeypatch.setattr(os, "close", close_with_late_error)
    tier = FileTier(directory)
    tier.open([SPEC, BufferSpec(4, (), np.dtype("bool"), entries=1)])
    late.update(files_in(directory))
    assert late
    with pytest.raises(StreamingMemoryError, match="not closed cleanly: late"):
        tier.close()
    late.clear()
    assert not files_in(directory)
    tier.open([SPEC, BufferSpec(4, (), np.dtype("bool"), entries=1)])
    tier.close()
