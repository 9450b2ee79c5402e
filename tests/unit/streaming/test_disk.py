"""The disk queue: how requests are cut and joined, that every byte arrives, and that failures stay where they are."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import xxhash

from popxl.runtime.streaming.disk import DiskQueue, DiskSettings, direct_alignment, make_direct
from popxl.runtime.streaming.pieces import Batch, Request, Segment, Slab, SlabTruncatedError, Staging, join
from popxl.runtime.streaming.tier import PAGE_BYTES

SLAB_BYTES = 1 << 20
SMALL = DiskSettings(threads=3, piece_bytes=4 * PAGE_BYTES)


class Ends:
    """Collects how requests ended, and lets a test wait for all of them."""

    def __init__(self) -> None:
        self.of: dict[int, list[tuple[BaseException | None, int | None]]] = {}
        self._left = threading.Semaphore(0)

    def note(self, name: int) -> Callable[[BaseException | None, int | None], None]:
        def on_done(error: BaseException | None, digest: int | None) -> None:
            self.of.setdefault(name, []).append((error, digest))
            self._left.release()

        return on_done

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self._left.acquire(timeout=60)

    def error(self, name: int) -> BaseException | None:
        ((error, _),) = self.of[name]
        return error

    def digest(self, name: int) -> int | None:
        ((error, digest),) = self.of[name]
        assert error is None
        return digest


def pages(nbytes: int) -> npt.NDArray[np.uint8]:
    padded_bytes = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
    return np.frombuffer(mmap.mmap(-1, max(padded_bytes, 1)), np.uint8)[:padded_bytes]


def random_bytes(nbytes: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.frombuffer(np.random.default_rng(seed).bytes(nbytes), np.uint8)


@pytest.fixture
def slab(tmp_path: Path) -> Generator[Slab]:
    path = tmp_path / "slab"
    path.write_bytes(bytes(SLAB_BYTES))
    fd = os.open(path, os.O_RDWR)
    alignment = direct_alignment(tmp_path)
    yield Slab(fd, path, SLAB_BYTES, alignment if make_direct(fd, alignment) else 1)
    os.close(fd)


@pytest.fixture
def disk() -> Generator[DiskQueue]:
    disk = DiskQueue(SMALL)
    yield disk
    disk.close()


def write(slab: Slab, offset: int, raw: npt.NDArray[np.uint8], ends: Ends, name: int = 0) -> Request:
    return Request(slab, offset, raw, raw.size, is_write=True, is_hashed=True, on_done=ends.note(name))


def read(slab: Slab, offset: int, nbytes: int, ends: Ends, name: int = 0) -> Request:
    return Request(slab, offset, pages(nbytes), nbytes, is_write=False, is_hashed=True, on_done=ends.note(name))


# ---------------------------------------------------------------- cutting and joining

NOWHERE = Slab(-1, Path("nowhere"), 2**62)
ELSEWHERE = Slab(-2, Path("elsewhere"), 2**62)


def planned(*where: tuple[int, int], slab: Slab = NOWHERE, piece_pages: int = 8) -> list[list[tuple[int, int]]]:
    """The first and last page of each segment of each batch, for reads of ``(first page, pages)``."""
    requests = [read(slab, first * PAGE_BYTES, count * PAGE_BYTES, Ends()) for first, count in where]
    return [[extent(segment) for segment in batch.segments] for batch in join(requests, piece_pages * PAGE_BYTES)]


def extent(segment: Segment) -> tuple[int, int]:
    offset = segment.request.offset
    return (offset + segment.start) // PAGE_BYTES, (offset + segment.stop) // PAGE_BYTES - 1


def test_neighbours_share_a_batch() -> None:
    assert planned((0, 1), (1, 2), (3, 1)) == [[(0, 0), (1, 2), (3, 3)]]


def test_neighbours_that_come_backwards_share_a_batch_in_the_order_of_the_file() -> None:
    assert planned((3, 1), (1, 2), (0, 1)) == [[(0, 0), (1, 2), (3, 3)]]


def test_gap_ends_a_batch() -> None:
    assert planned((0, 1), (2, 1), (3, 1)) == [[(0, 0)], [(2, 2), (3, 3)]]


def test_batch_is_no_larger_than_a_piece() -> None:
    assert planned((0, 3), (3, 3), (6, 3)) == [[(0, 2), (3, 5)], [(6, 8)]]


def test_batch_has_at_most_256_segments() -> None:
    batches = planned(*((page, 1) for page in range(300)), piece_pages=1000)
    assert [len(batch) for batch in batches] == [256, 44]


def test_neighbours_in_different_files_do_not_share_a_batch() -> None:
    ends = Ends()
    requests = [read(NOWHERE, 0, PAGE_BYTES, ends), read(ELSEWHERE, PAGE_BYTES, PAGE_BYTES, ends)]
    assert [len(batch.segments) for batch in join(requests, 8 * PAGE_BYTES)] == [1, 1]


def test_large_request_is_cut_into_equal_pieces_of_whole_pages() -> None:
    assert planned((10, 9)) == [[(10, 14)], [(15, 18)]]
    assert planned((0, 17)) == [[(0, 5)], [(6, 11)], [(12, 16)]]


@hypothesis.given(
    sizes=st.lists(st.tuples(st.integers(1, 40 * PAGE_BYTES), st.integers(-1, 1)), max_size=30),
    piece_pages=st.integers(1, 12),
)
def test_every_page_is_in_one_batch_and_in_the_order_of_the_requests(
    sizes: list[tuple[int, int]], piece_pages: int
) -> None:
    requests: list[Request] = []
    low = high = 1 << 30
    for nbytes, side in sizes:
        padded_bytes = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
        offset = low - padded_bytes if side < 0 else high + side * PAGE_BYTES
        requests.append(read(NOWHERE, offset, nbytes, Ends()))
        low, high = min(low, offset), max(high, offset + padded_bytes)
    seen: dict[int, list[tuple[int, int]]] = {}
    for batch in join(requests, piece_pages * PAGE_BYTES):
        starts = [segment.request.offset + segment.start for segment in batch.segments]
        stops = [segment.request.offset + segment.stop for segment in batch.segments]
        assert starts[1:] == stops[:-1]
        assert stops[-1] - starts[0] <= piece_pages * PAGE_BYTES
        for segment in batch.segments:
            seen.setdefault(requests.index(segment.request), []).append((segment.start, segment.stop))
    for index, request in enumerate(requests):
        parts = seen[index]
        assert parts[0][0] == 0
        assert parts[-1][1] == request.padded_bytes
        assert [start for start, _ in parts[1:]] == [stop for _, stop in parts[:-1]]
        assert all(start % PAGE_BYTES == 0 for start, _ in parts)


# ---------------------------------------------------------------- digests

SIZE = 20 * PAGE_BYTES - 100


@hypothesis.given(order=st.permutations(range(5)), raced=st.integers(0, 4))
def test_digest_is_that_of_the_bytes_in_whatever_order_the_pieces_come(order: list[int], raced: int) -> None:
    ends, raw = Ends(), random_bytes(SIZE)
    request = write(NOWHERE, 0, raw, ends)
    assert len(list(request.cut(4 * PAGE_BYTES))) == 5
    for place, piece in enumerate(order):
        request.digest_piece(piece)
        if place >= raced:
            request.complete_piece(piece, None)
    for piece in order[:raced]:
        assert not ends.of
        request.complete_piece(piece, None)
    assert ends.digest(0) == xxhash.xxh3_64_intdigest(raw.tobytes())


@hypothesis.given(order=st.permutations(range(5)), failed=st.sets(st.integers(0, 4), min_size=1))
def test_request_in_pieces_ends_once_with_the_first_error_by_place(order: list[int], failed: set[int]) -> None:
    ends = Ends()
    request = read(NOWHERE, 0, SIZE, ends)
    errors = {piece: OSError(errno.EIO, str(piece)) for piece in failed}
    list(request.cut(4 * PAGE_BYTES))
    for piece in order:
        if piece not in failed:
            request.digest_piece(piece)
        request.complete_piece(piece, errors.get(piece))
    assert ends.error(0) is errors[min(failed)]


# ---------------------------------------------------------------- every byte arrives

SIZES = [1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 16 * PAGE_BYTES, 17 * PAGE_BYTES - 5, 100_003]


@pytest.mark.parametrize("shift", [0, 1, 64, 512])
@pytest.mark.parametrize("nbytes", SIZES)
def test_what_was_written_is_read(slab: Slab, disk: DiskQueue, nbytes: int, shift: int) -> None:
    ends, raw = Ends(), random_bytes(nbytes + shift)[shift:]
    disk.start([write(slab, 2 * PAGE_BYTES, raw, ends, 0)])
    ends.wait(1)
    request = read(slab, 2 * PAGE_BYTES, nbytes, ends, 1)
    disk.start([request])
    ends.wait(1)
    assert request.raw[:nbytes].tobytes() == raw.tobytes()
    assert ends.digest(0) == ends.digest(1) == xxhash.xxh3_64_intdigest(raw.tobytes())


@pytest.mark.parametrize("nbytes", SIZES)
def test_write_changes_its_own_pages_only_and_pads_with_zeros(slab: Slab, disk: DiskQueue, nbytes: int) -> None:
    slab.path.write_bytes(b"\xff" * SLAB_BYTES)
    ends, raw = Ends(), random_bytes(nbytes)
    disk.start([write(slab, 2 * PAGE_BYTES, raw, ends)])
    ends.wait(1)
    padded_bytes = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
    expected = bytearray(b"\xff" * SLAB_BYTES)
    expected[2 * PAGE_BYTES : 2 * PAGE_BYTES + padded_bytes] = raw.tobytes() + bytes(padded_bytes - nbytes)
    assert slab.path.read_bytes() == bytes(expected)


def test_joined_writes_of_every_alignment_arrive(slab: Slab, disk: DiskQueue) -> None:
    ends, memory = Ends(), pages(50 * 3000)
    memory[:] = random_bytes(memory.size)
    rows = [memory[3000 * entry :][:2999] for entry in range(50)]
    disk.start(write(slab, entry * PAGE_BYTES, row, ends, entry) for entry, row in enumerate(rows))
    ends.wait(50)
    content = slab.path.read_bytes()
    for entry, row in enumerate(rows):
        assert ends.error(entry) is None
        assert content[entry * PAGE_BYTES :][:2999] == row.tobytes()


def test_joined_requests_are_one_call(slab: Slab, disk: DiskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    preadv = os.preadv

    def spy(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append((len(buffers), offset))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", spy)
    ends = Ends()
    disk.start(read(slab, page * PAGE_BYTES, 100, ends, page) for page in range(4))
    ends.wait(4)
    assert calls == [(4, 0)]


# ---------------------------------------------------------------- failures


def failing(call: Callable[..., int], bad_page: int, code: int) -> Callable[..., int]:
    """``call``, on a disk of which one page is bad."""

    def replaced(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset <= bad_page * PAGE_BYTES < offset + sum(map(len, buffers)):
            raise OSError(code, os.strerror(code))
        return call(fd, buffers, offset)

    return replaced


def test_bad_page_fails_only_the_read_that_wants_it(
    slab: Slab, disk: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    slab.path.write_bytes(random_bytes(SLAB_BYTES).tobytes())
    ends = Ends()
    requests = [read(slab, page * PAGE_BYTES, 4000, ends, page) for page in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(os.preadv, 2, errno.EIO))
        disk.start(requests)
        ends.wait(4)
    error = ends.error(2)
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    for page in (0, 1, 3):
        assert ends.digest(page) == xxhash.xxh3_64_intdigest(random_bytes(SLAB_BYTES)[page * PAGE_BYTES :][:4000])


def test_full_disk_fails_only_the_write_that_meets_it_and_the_queue_lives_on(
    slab: Slab, disk: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, row = Ends(), random_bytes(4000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", failing(os.pwritev, 1, errno.ENOSPC))
        disk.start(write(slab, page * PAGE_BYTES, row, ends, page) for page in range(3))
        ends.wait(3)
    assert [getattr(ends.error(page), "errno", None) for page in range(3)] == [None, errno.ENOSPC, None]
    disk.start([write(slab, PAGE_BYTES, row, ends, 3)])
    ends.wait(1)
    assert ends.error(3) is None
    content = slab.path.read_bytes()
    assert all(content[page * PAGE_BYTES :][:4000] == row.tobytes() for page in range(3))


@pytest.mark.parametrize("code", [errno.EINTR, errno.EIO, errno.ENOSPC, errno.EINVAL], ids=errno.errorcode.get)
def test_error_of_one_piece_is_that_of_the_request(
    slab: Slab, disk: DiskQueue, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    ends = Ends()
    monkeypatch.setattr(os, "pwritev", failing(os.pwritev, 9, code))
    disk.start([write(slab, 0, random_bytes(20 * PAGE_BYTES), ends)])
    ends.wait(1)
    assert getattr(ends.error(0), "errno", None) == code


def test_joined_reads_past_the_end_of_a_truncated_file_fail_and_those_before_do_not(
    slab: Slab, disk: DiskQueue
) -> None:
    os.truncate(slab.path, PAGE_BYTES + 2000)
    ends = Ends()
    disk.start(read(slab, page * PAGE_BYTES, 2000 + page, ends, page) for page in range(3))
    ends.wait(3)
    assert ends.error(0) is None
    assert isinstance(ends.error(1), SlabTruncatedError)
    assert str(ends.error(1)) == "Expected 2001 bytes at offset 4096, found 2000."
    assert str(ends.error(2)) == "Expected 2002 bytes at offset 8192, found 0."


def test_entry_that_ends_just_before_the_cut_is_read(slab: Slab, disk: DiskQueue) -> None:
    os.truncate(slab.path, PAGE_BYTES + 2000)
    ends = Ends()
    disk.start([read(slab, PAGE_BYTES, 2000, ends)])
    ends.wait(1)
    assert ends.error(0) is None


def test_large_read_from_a_truncated_file_counts_what_is_there(slab: Slab, disk: DiskQueue) -> None:
    os.truncate(slab.path, 7 * PAGE_BYTES + 10)
    ends = Ends()
    disk.start([read(slab, 0, 20 * PAGE_BYTES, ends)])
    ends.wait(1)
    assert str(ends.error(0)) == f"Expected {20 * PAGE_BYTES} bytes at offset 0, found {7 * PAGE_BYTES + 10}."


def test_write_to_a_truncated_file_is_refused_before_a_byte_is_written(slab: Slab, disk: DiskQueue) -> None:
    os.truncate(slab.path, SLAB_BYTES - 1)
    ends = Ends()
    disk.start([write(slab, 0, random_bytes(100), ends)])
    ends.wait(1)
    assert isinstance(ends.error(0), SlabTruncatedError)
    assert slab.path.read_bytes() == bytes(SLAB_BYTES - 1)


def test_lack_of_memory_is_the_error_of_the_request(
    slab: Slab, disk: DiskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> memoryview:
        raise MemoryError

    monkeypatch.setattr(Staging, "put", no_memory)
    ends = Ends()
    disk.start([write(slab, 0, random_bytes(100), ends)])
    ends.wait(1)
    assert isinstance(ends.error(0), MemoryError)


# ---------------------------------------------------------------- threads


def test_close_does_what_is_waiting_and_ends_the_threads(slab: Slab) -> None:
    before = set(threading.enumerate())
    disk, ends = DiskQueue(SMALL), Ends()
    assert len(set(threading.enumerate()) - before) == 3
    disk.start(read(slab, 2 * page * PAGE_BYTES, 100, ends, page) for page in range(100))
    disk.close()
    assert len(ends.of) == 100
    assert set(threading.enumerate()) <= before


def test_several_threads_work_at_once(slab: Slab, disk: DiskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, preadv, ends = threading.Barrier(3, timeout=60), os.preadv, Ends()

    def call(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        meeting.wait()
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", call)
    disk.start([read(slab, 0, 12 * PAGE_BYTES, ends)])
    ends.wait(1)
    assert ends.error(0) is None


def test_idle_queue_keeps_no_memory_of_others(slab: Slab) -> None:
    ends = Ends()
    disk = DiskQueue(DiskSettings(threads=1, piece_bytes=4 * PAGE_BYTES))
    request = read(slab, 0, 100, ends)
    memory = weakref.ref(request.raw)
    disk.start([request])
    del request
    # The thread begins the next work only after it has let go of the one before.
    entered, leave = threading.Event(), threading.Event()
    disk.run(lambda _: (entered.set(), leave.wait(60), None)[-1])
    assert entered.wait(60)
    gc.collect()
    assert memory() is None
    leave.set()
    disk.close()


def test_batch_of_an_interrupted_call_reports_the_interrupt(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "preadv", interrupt)
    ends = Ends()
    request = read(slab, 0, 100, ends)
    Batch((Segment(request, 0, 0, PAGE_BYTES),)).perform(Staging(PAGE_BYTES))
    assert isinstance(ends.error(0), KeyboardInterrupt)


# ---------------------------------------------------------------- what the file system takes


def refuse_open(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def call(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", call)


def test_file_system_that_refuses_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_open(monkeypatch, errno.EINVAL)
    assert direct_alignment(tmp_path) == 1


def test_file_system_without_nameless_files_gets_aligned_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_open(monkeypatch, errno.EOPNOTSUPP)
    assert direct_alignment(tmp_path) == PAGE_BYTES


@pytest.mark.parametrize(("taken", "expected"), [(64, 64), (4096, 4096), (1 << 20, 1)])
def test_alignment_is_the_least_that_the_file_system_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, expected: int
) -> None:
    def pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        # A page-aligned address may be aligned better by chance: what counts is how it was meant.
        shift = np.frombuffer(buffers[0], np.uint8).ctypes.data % PAGE_BYTES or PAGE_BYTES
        if shift % taken:
            raise OSError(errno.EINVAL, "not aligned")
        return len(buffers[0])

    monkeypatch.setattr(os, "pwritev", pwritev)
    assert direct_alignment(tmp_path) == expected


def test_finding_out_leaves_no_file(tmp_path: Path) -> None:
    direct_alignment(tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_for_copies_goes_back_when_nothing_is_copied_for_long() -> None:
    staging = Staging(2 * PAGE_BYTES)

    def put() -> weakref.ref[object]:
        view = staging.put(np.ones(3, np.uint8), PAGE_BYTES)
        assert bytes(view[:4]) == b"\1\1\1\0"
        return weakref.ref(view.obj)

    memory = put()
    for _ in range(1000):
        staging.clear()
        staging.rest()
    assert memory() is None
    assert put()() is not None
