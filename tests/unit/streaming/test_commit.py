"""Commits of the file tier: what is on disk, in which order it gets there, and what every failure leaves."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.layout import Generation, decode_generation
from popxl.testing.tiers import assert_row

# 8000 bytes an entry: a slot has 8192, and the second half of the slab starts at 4 of them.
SPEC = BufferSpec(3, (2000,), np.dtype("float32"), entries=4, names=((0, "w"), (1, "b")))
SCRATCH = BufferSpec(4, (10,), np.dtype("float32"), entries=2)
SLOT, HALF = 8192, 4 * 8192
ONES = np.ones(2000, np.float32)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "rows"


@pytest.fixture
def tier(directory: Path) -> Generator[FileTier]:
    """A tier of which every entry ``e`` was committed as ``e`` in generation 1; entry 1 is 10 since."""
    tier = FileTier(directory)
    tier.open([SPEC, SCRATCH])
    for entry in range(4):
        tier.store(3, entry, entry * ONES)
    tier.commit()
    tier.store(3, 1, 10 * ONES)
    yield tier
    tier.close()


def record(directory: Path) -> Generation:
    path = directory / "generation"
    return decode_generation(path.read_bytes(), str(path), [SPEC])


def first_values(directory: Path, *, generation: int) -> list[float]:
    """Of each entry that a new session finds, after a look at all of them."""
    tier = FileTier(directory, reopen=True)
    tier.open([SPEC, SCRATCH])
    try:
        assert tier.generation == generation
        rows = [np.asarray(tier.load(3, entry)) for entry in range(4)]
        assert all((row == row[0]).all() for row in rows)
        return [float(row[0]) for row in rows]
    finally:
        tier.close()


def fails(code: int) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return call


def every_second_fails(call: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a commit put its record in place, but not put the one before back."""
    calls: list[None] = []

    def replaced(*given: Any, **others: Any) -> Any:
        calls.append(None)
        if len(calls) % 2 == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(*given, **others)

    return replaced


def fails_on_directories(times: int) -> Callable[[int], None]:
    """An ``fsync`` that fails for directories, the first few times."""
    fsync, left = os.fsync, [times]

    def call(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    return call


# ---------------------------------------------------------------- on disk


def test_record_names_slots_and_digests(tier: FileTier, directory: Path) -> None:
    table = record(directory).tables[3]
    assert record(directory).number == 1
    assert table.slots.tolist() == [1, 1, 1, 1]
    assert table.digests.tolist() == [xxhash.xxh3_64_intdigest((entry * ONES).tobytes()) for entry in range(4)]


def test_store_after_a_commit_goes_to_the_other_half(tier: FileTier, directory: Path) -> None:
    content = (directory / "buffer-3.slab").read_bytes()
    assert len(content) == 2 * HALF
    assert content[SLOT : SLOT + 8000] == ONES.tobytes()
    assert content[HALF + SLOT : HALF + SLOT + 8000] == (10 * ONES).tobytes()


def test_further_stores_before_the_commit_stay_in_that_half(tier: FileTier, directory: Path) -> None:
    for value in (11, 12, 13):
        tier.store(3, 1, value * ONES)
    content = (directory / "buffer-3.slab").read_bytes()
    assert content[SLOT : SLOT + 8000] == ONES.tobytes()
    assert content[HALF + SLOT : HALF + SLOT + 8000] == (13 * ONES).tobytes()


def test_only_changed_rows_change_their_slot(tier: FileTier, directory: Path) -> None:
    tier.commit()
    assert record(directory).tables[3].slots.tolist() == [1, 2, 1, 1]
    tier.store(3, 1, ONES)
    tier.store(3, 3, ONES)
    tier.commit()
    assert record(directory).tables[3].slots.tolist() == [1, 1, 1, 2]


def test_record_is_for_the_user_alone_and_nothing_is_left_beside_it(tier: FileTier, directory: Path) -> None:
    assert stat.S_IMODE((directory / "generation").stat().st_mode) == 0o600
    assert sorted(path.name for path in directory.iterdir()) == [
        ".lock",
        "buffer-3.slab",
        "buffer-4.slab",
        "generation",
        "streaming-memory.json",
    ]


def test_data_are_on_disk_before_the_record_and_that_before_its_name(
    tier: FileTier, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def spy(name: str) -> None:
        call = getattr(os, name)

        def noted(*given: Any, **others: Any) -> Any:
            subject = Path(f"/proc/self/fd/{given[0]}").readlink() if isinstance(given[0], int) else given[0]
            order.append(f"{name} {Path(subject).name}")
            return call(*given, **others)

        monkeypatch.setattr(os, name, noted)

    for name in ("fdatasync", "fsync", "rename"):
        spy(name)
    tier.commit()
    assert order == ["fdatasync buffer-3.slab", "fsync generation.tmp", "rename generation.tmp", "fsync rows"]


def test_slab_without_new_rows_is_not_synced(tier: FileTier, monkeypatch: pytest.MonkeyPatch) -> None:
    tier.commit()
    monkeypatch.setattr(os, "fdatasync", fails(errno.EIO))
    tier.store(4, 0, np.ones(10, np.float32))
    assert tier.commit() == 3


def test_variables_that_were_renamed_are_the_same_program(tier: FileTier, directory: Path) -> None:
    tier.close()
    renamed = BufferSpec(3, SPEC.shape, SPEC.dtype, SPEC.entries, names=((0, "weight"),))
    again = FileTier(directory, reopen=True)
    again.open([renamed, SCRATCH])
    assert_row(again.load(3, 2), 2 * ONES)
    again.close()
    assert '"weight"' in (directory / "streaming-memory.json").read_text()


def test_tier_goes_on_from_the_last_commit_each_time_it_is_opened(directory: Path) -> None:
    tier = FileTier(directory, reopen=True)
    for number in range(1, 5):
        tier.open([SPEC])
        assert tier.generation == number - 1
        for entry in range(number - 1):
            assert_row(tier.load(3, entry), (entry + 1) * ONES)
        tier.store(3, number - 1, number * ONES)
        tier.commit()
        tier.close()


# ---------------------------------------------------------------- a commit that fails


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_record_that_cannot_be_written_leaves_the_last_commit(
    tier: FileTier, directory: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = (directory / "generation").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails(errno.ENOSPC))
        with pytest.raises(StreamingMemoryError, match=r"generation, cannot be written: .* \(ENOSPC\)") as caught:
            tier.commit()
    assert caught.value.errno == errno.ENOSPC
    assert tier.generation == 1
    assert (directory / "generation").read_bytes() == before
    assert not (directory / "generation.tmp").exists()
    tier.close()
    assert first_values(directory, generation=1) == [0, 1, 2, 3]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_commit_that_failed_can_be_repeated(
    tier: FileTier, directory: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails(errno.EIO))
        with pytest.raises(StreamingMemoryError):
            tier.commit()
    assert_row(tier.load(3, 1), 10 * ONES)
    assert tier.commit() == 2
    tier.close()
    assert first_values(directory, generation=2) == [0, 10, 2, 3]


def test_first_commit_that_fails_leaves_none(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = FileTier(directory)
    tier.open([SPEC, SCRATCH])
    tier.store(3, 0, ONES)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_on_directories(1))
        with pytest.raises(StreamingMemoryError, match="EIO"):
            tier.commit()
    assert not (directory / "generation").exists()
    tier.close()
    assert first_values(directory, generation=0) == [0, 0, 0, 0]


def test_record_whose_name_cannot_be_synced_is_taken_back(
    tier: FileTier, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (directory / "generation").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_on_directories(1))
        with pytest.raises(StreamingMemoryError, match="EIO"):
            tier.commit()
    assert (directory / "generation").read_bytes() == before
    tier.store(3, 1, 11 * ONES)
    tier.close()
    assert first_values(directory, generation=1) == [0, 1, 2, 3]


@pytest.fixture
def undecided(tier: FileTier, monkeypatch: pytest.MonkeyPatch) -> FileTier:
    """After a commit whose record could neither be synced nor be taken back."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_on_directories(2))
        with pytest.raises(StreamingMemoryError, match="a crash now would leave one or the other"):
            tier.commit()
    return tier


def test_nothing_that_either_commit_has_is_overwritten_while_nobody_knows_which_is_on_disk(
    undecided: FileTier, directory: Path
) -> None:
    content = (directory / "buffer-3.slab").read_bytes()
    with pytest.raises(StreamingMemoryError, match="buffer 3, entry 1 cannot be stored: nobody knows"):
        undecided.store(3, 1, 11 * ONES)
    undecided.store(4, 0, np.ones(10, np.float32))
    assert (directory / "buffer-3.slab").read_bytes() == content
    assert_row(undecided.load(3, 1), 10 * ONES)


def test_next_commit_settles_which_one_is_on_disk(undecided: FileTier, directory: Path) -> None:
    assert undecided.commit() == 2
    undecided.store(3, 1, 11 * ONES)
    undecided.close()
    assert first_values(directory, generation=2) == [0, 10, 2, 3]


def test_roll_back_settles_which_one_is_on_disk(undecided: FileTier, directory: Path) -> None:
    undecided.roll_back()
    assert_row(undecided.load(3, 1), ONES)
    undecided.store(3, 1, 11 * ONES)
    undecided.close()
    assert first_values(directory, generation=1) == [0, 1, 2, 3]


def test_roll_back_of_a_session_that_started_with_zeros_keeps_the_commit_of_another(
    tier: FileTier, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier.close()
    tier.open([SPEC, SCRATCH])
    tier.store(3, 1, 11 * ONES)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_on_directories(4))
        patch.setattr(os, "rename", every_second_fails(os.rename))
        for _ in range(2):
            with pytest.raises(StreamingMemoryError, match="a crash now would leave one or the other"):
                tier.commit()
    tier.roll_back()
    assert_row(tier.load(3, 1), 0 * ONES)
    tier.close()
    assert first_values(directory, generation=1) == [0, 1, 2, 3]


def test_rows_of_a_truncated_slab_are_not_committed(tier: FileTier, directory: Path) -> None:
    before = (directory / "generation").read_bytes()
    os.truncate(directory / "buffer-3.slab", HALF)
    with pytest.raises(StreamingMemoryError, match=f"Expected a file of {2 * HALF} bytes, found {HALF}"):
        tier.commit()
    assert (directory / "generation").read_bytes() == before


def test_rows_that_cannot_be_synced_have_no_value_until_they_are_stored_again(
    tier: FileTier, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails(errno.EIO))
        with pytest.raises(StreamingMemoryError, match=r"buffer-3.slab cannot be synced: .* \(EIO\)"):
            tier.commit()
    with pytest.raises(StreamingMemoryError, match=r"buffer 3, entry 1: .* has no value"):
        tier.load(3, 1)
    with pytest.raises(StreamingMemoryError, match="Nothing was committed"):
        tier.commit()
    assert_row(tier.load(3, 0), 0 * ONES)
    tier.store(3, 1, 12 * ONES)
    assert tier.commit() == 2
    tier.close()
    assert first_values(directory, generation=2) == [0, 12, 2, 3]


# ---------------------------------------------------------------- a store that fails


@pytest.fixture
def torn(tier: FileTier, monkeypatch: pytest.MonkeyPatch) -> FileTier:
    """The last store to entry 2 failed."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fails(errno.ENOSPC))
        with pytest.raises(StreamingMemoryError):
            tier.store(3, 2, 12 * ONES)
    return tier


def test_row_without_a_value_is_not_committed(torn: FileTier, directory: Path) -> None:
    with pytest.raises(StreamingMemoryError, match=r"Nothing was committed to .* buffer 3, entry 2 has no value"):
        torn.commit()
    torn.close()
    assert first_values(directory, generation=1) == [0, 1, 2, 3]


def test_row_without_a_value_can_be_stored_again_and_committed(torn: FileTier, directory: Path) -> None:
    torn.store(3, 2, 13 * ONES)
    assert torn.commit() == 2
    torn.close()
    assert first_values(directory, generation=2) == [0, 10, 13, 3]


def test_roll_back_gives_a_row_without_a_value_its_committed_one(torn: FileTier) -> None:
    torn.roll_back()
    assert_row(torn.load(3, 2), 2 * ONES)
    assert torn.commit() == 2


# ---------------------------------------------------------------- damage


def refused(directory: Path, *, reopen: bool = True) -> str:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    tier = FileTier(directory, reopen=reopen)
    with pytest.raises(StreamingMemoryError) as caught:
        tier.open([SPEC, SCRATCH])
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert "Hint:" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("reopen", [True, False])
@pytest.mark.parametrize("position", [0, 20, 30, 60, -1])
def test_damaged_record_is_refused_and_left_as_it_is(
    tier: FileTier, directory: Path, position: int, reopen: bool
) -> None:
    tier.close()
    content = bytearray((directory / "generation").read_bytes())
    content[position] ^= 4
    (directory / "generation").write_bytes(content)
    assert str(directory / "generation") in refused(directory, reopen=reopen)


@pytest.mark.parametrize("change", [b"", b"x" * 1000], ids=["empty", "long"])
def test_record_of_another_size_is_refused(tier: FileTier, directory: Path, change: bytes) -> None:
    tier.close()
    (directory / "generation").write_bytes(change)
    assert "is damaged" in refused(directory)


def test_record_that_is_a_link_is_refused(tier: FileTier, directory: Path) -> None:
    tier.close()
    (directory / "generation").rename(directory.parent / "elsewhere")
    (directory / "generation").symlink_to(directory.parent / "elsewhere")
    assert "(ELOOP)" in refused(directory)


def test_record_that_is_a_pipe_is_refused_without_waiting(tier: FileTier, directory: Path) -> None:
    tier.close()
    (directory / "generation").unlink()
    os.mkfifo(directory / "generation")
    with pytest.raises(StreamingMemoryError, match="not a regular file"):
        FileTier(directory, reopen=True).open([SPEC, SCRATCH])


def test_slab_that_lost_committed_rows_is_refused(tier: FileTier, directory: Path) -> None:
    tier.close()
    os.truncate(directory / "buffer-3.slab", HALF)
    assert f"was truncated. Expected a file of {2 * HALF} bytes, found {HALF}" in refused(directory)


def test_record_that_was_half_written_when_the_process_died_is_ignored(tier: FileTier, directory: Path) -> None:
    tier.close()
    (directory / "generation.tmp").write_bytes((directory / "generation").read_bytes()[:40])
    assert first_values(directory, generation=1) == [0, 1, 2, 3]


def test_flipped_bit_in_a_committed_row_names_its_generation(tier: FileTier, directory: Path) -> None:
    tier.close()
    with (directory / "buffer-3.slab").open("r+b") as file:
        file.seek(SLOT + 77)
        file.write(b"\xff")
    again = FileTier(directory, reopen=True)
    again.open([SPEC, SCRATCH])
    with pytest.raises(StreamingMemoryError, match="buffer 3, entry 1, committed in generation 1: its bytes"):
        again.load(3, 1)
    assert_row(again.load(3, 2), 2 * ONES)
    again.close()
