from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popxl.errors import PopxlKeyError, RemoteOffsetError, StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.committed import BeingWrittenError, CommittedDirectory

WEIGHTS = BufferSpec(1, (2, 3), np.dtype("float32"), entries=4, names=((0, "w0"), (2, "w2")))
SCRATCH = BufferSpec(2, (100,), np.dtype("float16"), entries=3)
LARGE = BufferSpec(7, (600_000,), np.dtype("float64"), entries=1, names=((0, "large"),))  # more than one piece of 4 MiB
SPECS = [WEIGHTS, SCRATCH, LARGE]
W0 = np.array([[1, 2, 3], [4, 5, np.nan]], np.float32)
BIG = np.arange(600_000, dtype=np.float64)


def opened(directory: Path, *, reopen: bool = False) -> FileTier:
    tier = FileTier(directory, reopen=reopen)
    tier.open(SPECS)
    return tier


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with one commit: WEIGHTS entry 0 and LARGE."""
    tier = opened(tmp_path / "rows")
    tier.store(1, 0, W0)
    tier.store(2, 1, np.ones(100, np.float16))
    tier.store(7, 0, BIG)
    tier.commit()
    tier.close()
    return tmp_path / "rows"


@pytest.fixture
def committed(directory: Path) -> Iterator[CommittedDirectory]:
    with CommittedDirectory.open(directory) as committed:
        yield committed


def flip_bit(path: Path, needle: bytes) -> None:
    """Flip a bit of the one place in a file that holds ``needle``."""
    content = bytearray(path.read_bytes())
    assert content.count(needle) == 1
    content[content.index(needle)] ^= 4
    path.write_bytes(content)


def problems(directory: Path) -> dict[tuple[int, int], str | None]:
    with CommittedDirectory.open(directory) as committed:
        return {(spec.buffer_id, entry): problem for spec, entry, problem in committed.verify()}


# ---------------------------------------------------------------- what it shows


def test_buffers_and_generation_are_those_of_the_program(committed: CommittedDirectory) -> None:
    assert committed.generation == 1
    assert list(committed.buffers) == SPECS


def test_committed_entry_is_read_bit_for_bit(committed: CommittedDirectory) -> None:
    value = committed.read(1, 0)
    assert (value.shape, value.dtype) == ((2, 3), np.dtype("float32"))
    assert value.tobytes() == W0.tobytes()


def test_entry_that_was_never_written_is_zeros(committed: CommittedDirectory) -> None:
    np.testing.assert_array_equal(committed.read(1, 2), np.zeros((2, 3), np.float32))


def test_written_entries_are_told(committed: CommittedDirectory) -> None:
    assert [committed.written(i).tolist() for i in (1, 2, 7)] == [[0], [], [0]]
    assert [committed.holds(1, entry) for entry in range(4)] == [True, False, False, False]


def test_pieces_of_a_large_entry_are_the_entry(committed: CommittedDirectory) -> None:
    pieces = [bytes(piece) for piece in committed.chunks(7, 0)]
    assert len(pieces) == 2
    assert b"".join(pieces) == BIG.tobytes()


def test_pieces_of_an_unwritten_entry_are_zeros(committed: CommittedDirectory) -> None:
    assert b"".join(map(bytes, committed.chunks(1, 3))) == bytes(24)


def test_entry_stays_readable_after_close(directory: Path) -> None:
    with CommittedDirectory.open(directory) as committed:
        value = committed.read(1, 0)
    assert value.tobytes() == W0.tobytes()


def test_directory_without_a_commit_is_generation_0_and_zeros(tmp_path: Path) -> None:
    tier = opened(tmp_path / "rows")
    tier.store(1, 0, W0)
    tier.close()
    with CommittedDirectory.open(tmp_path / "rows") as committed:
        assert committed.generation == 0
        assert not committed.read(1, 0).any()
        assert list(committed.verify()) == []


def test_buffer_without_variables_cannot_be_read(committed: CommittedDirectory) -> None:
    with pytest.raises(StreamingMemoryError, match="No commit publishes remote buffer 2"):
        committed.read(2, 1)


@pytest.mark.parametrize("entry", [-1, 4])
def test_entry_out_of_range_is_refused(committed: CommittedDirectory, entry: int) -> None:
    with pytest.raises(RemoteOffsetError, match=f"Entry {entry} is out of range"):
        committed.read(1, entry)


def test_unknown_buffer_is_refused(committed: CommittedDirectory) -> None:
    with pytest.raises(PopxlKeyError, match="no remote buffer 5"):
        committed.read(5, 0)


# ---------------------------------------------------------------- beside a session


def test_view_beside_an_open_session_shows_the_last_commit_only(directory: Path) -> None:
    tier = opened(directory, reopen=True)
    tier.store(1, 0, W0 + 1)
    with CommittedDirectory.open(directory) as committed:
        assert committed.read(1, 0).tobytes() == W0.tobytes()
    tier.close()


def test_view_changes_nothing_in_the_directory(directory: Path) -> None:
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size, p.read_bytes()) for p in directory.iterdir()}
    assert set(problems(directory).values()) == {None}
    assert {p.name: (p.stat().st_mtime_ns, p.stat().st_size, p.read_bytes()) for p in directory.iterdir()} == before


def test_rows_stay_readable_after_the_next_commit_as_long_as_they_are_there(directory: Path) -> None:
    with CommittedDirectory.open(directory) as committed:
        tier = opened(directory, reopen=True)
        tier.store(1, 0, W0 + 1)
        tier.commit()
        assert committed.read(1, 0).tobytes() == W0.tobytes()
        tier.close()


@pytest.mark.parametrize("action", ["read", "verify"])
def test_row_that_a_session_has_overwritten_is_being_written_and_not_damaged(directory: Path, action: str) -> None:
    with CommittedDirectory.open(directory) as committed:
        tier = opened(directory, reopen=True)
        for step in (1, 2):
            tier.store(1, 0, W0 + step)
            tier.commit()
        tier.close()
        with pytest.raises(BeingWrittenError, match=r"entry 0: the directory .* is being written; generation 1 is no"):
            committed.read(1, 0) if action == "read" else list(committed.verify())


def test_all_rows_are_of_one_generation_while_a_session_commits(tmp_path: Path) -> None:
    spec = BufferSpec(1, (20_000,), np.dtype("int64"), entries=6, names=tuple((i, f"w{i}") for i in range(6)))
    tier = FileTier(tmp_path / "rows")
    tier.open([spec])

    def commit_often() -> None:
        for generation in range(2, 60):
            commit_everywhere(generation)

    def commit_everywhere(generation: int) -> None:
        for entry in range(6):
            tier.store(1, entry, np.full(20_000, generation))
        assert tier.commit() == generation

    commit_everywhere(1)
    whole = 0
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(commit_often)
        while not (is_last := writing.done()) or not whole:
            with CommittedDirectory.open(tmp_path / "rows") as committed:
                try:
                    rows = [committed.read(1, entry) for entry in range(6)]
                except BeingWrittenError:
                    assert not is_last
                    continue
            whole += 1
            assert all((row == committed.generation).all() for row in rows)
        writing.result()
    tier.close()


# ---------------------------------------------------------------- damage


def test_flipped_bit_is_found_by_read_and_by_verify(directory: Path) -> None:
    flip_bit(directory / "buffer-1.slab", W0.tobytes())
    with (
        CommittedDirectory.open(directory) as committed,
        pytest.raises(
            StreamingMemoryError,
            match=r"Remote buffer 1, entry 0 of .*: its bytes have the digest \w{16}, and generation 1 has \w{16}",
        ),
    ):
        committed.read(1, 0)
    found = problems(directory)
    assert "digest" in (found[1, 0] or "")
    assert found[7, 0] is None


def test_flipped_bit_in_the_last_piece_of_a_large_entry_is_found(directory: Path) -> None:
    flip_bit(directory / "buffer-7.slab", BIG[-2:].tobytes())
    assert "digest" in (problems(directory)[7, 0] or "")


def test_flipped_bit_outside_of_what_was_committed_is_no_damage(directory: Path) -> None:
    with (directory / "buffer-1.slab").open("r+b") as slab:
        slab.seek(24)  # the padding of entry 0
        slab.write(b"x")
    assert set(problems(directory).values()) == {None}


def test_truncated_slab_is_told(directory: Path) -> None:
    os.truncate(directory / "buffer-1.slab", 10)
    assert f"buffer-1.slab has 10 of {2 * 4 * 4096} bytes" in (problems(directory)[1, 0] or "")


def test_missing_slab_is_told(directory: Path) -> None:
    (directory / "buffer-1.slab").unlink()
    assert "buffer-1.slab cannot be read: No such file" in (problems(directory)[1, 0] or "")


@pytest.mark.parametrize("name", ["buffer-1.slab", "generation", "streaming-memory.json"])
@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "directory"])
def test_file_that_is_not_of_its_own_is_not_read(directory: Path, name: str, kind: str) -> None:
    path, elsewhere = directory / name, directory.parent / "elsewhere"
    path.rename(elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "second name":
        os.link(elsewhere, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with (
        pytest.raises(StreamingMemoryError, match=r"ELOOP|is not a regular file of its own"),
        CommittedDirectory.open(directory) as committed,
    ):
        committed.read(1, 0)


@pytest.mark.parametrize("bit", [3, 100, 300, -5])
def test_damaged_record_is_refused(directory: Path, bit: int) -> None:
    content = bytearray((directory / "generation").read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (directory / "generation").write_bytes(content)
    with pytest.raises(StreamingMemoryError, match=r"generation is damaged"):
        CommittedDirectory.open(directory)


def test_record_of_another_size_is_refused_without_reading_it(directory: Path) -> None:
    os.truncate(directory / "generation", 2**40)  # a hole: it takes no space
    with pytest.raises(StreamingMemoryError, match=f"it has {2**40} bytes, more than"):
        CommittedDirectory.open(directory)


def test_manifest_that_lies_about_sizes_costs_no_memory(directory: Path) -> None:
    path = directory / "streaming-memory.json"
    manifest = json.loads(path.read_text())
    manifest["buffers"][0].update(shape=[2**30, 2**20], slot_bytes=2**52)
    path.write_text(json.dumps(manifest))
    with (
        CommittedDirectory.open(directory) as committed,
        pytest.raises(StreamingMemoryError, match=rf"buffer-1\.slab has \d+ of {2**55} bytes"),
    ):
        committed.read(1, 0)


@pytest.mark.parametrize("name", ["missing", "a-file", "empty"])
def test_what_is_no_streaming_memory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(StreamingMemoryError, match=r"cannot be read|holds no Streaming Memory") as caught:
        CommittedDirectory.open(tmp_path / name)
    assert caught.value.hint


def test_refused_directory_leaves_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the list itself is an open file
    with pytest.raises(StreamingMemoryError):
        CommittedDirectory.open(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    name=st.sampled_from(["streaming-memory.json", "generation", "buffer-1.slab"]),
    position=st.floats(0, 1, exclude_max=True),
    replacement=st.binary(min_size=1, max_size=40),
    cut=st.booleans(),
)
def test_file_damaged_anywhere_is_refused_or_gives_what_was_committed(
    directory: Path, name: str, position: float, replacement: bytes, cut: bool
) -> None:
    copy = directory.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for source in ("streaming-memory.json", "generation", "buffer-1.slab"):
        shutil.copy(directory / source, copy / source)
    content = (copy / name).read_bytes()
    at = int(position * len(content))
    (copy / name).write_bytes(content[:at] + replacement + (b"" if cut else content[at + len(replacement) :]))
    try:
        with CommittedDirectory.open(copy) as committed:
            value = committed.read(1, 0)
    except (StreamingMemoryError, PopxlKeyError, RemoteOffsetError):
        return
    # The shape, the names and the id in the manifest may have become other plausible ones; the bytes never do.
    assert value.tobytes() == W0.tobytes() or not value.any()
