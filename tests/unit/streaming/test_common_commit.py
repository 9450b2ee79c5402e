"""Commits of several processes: after a crash of any of them at any step, all have it or none."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from peers_in_threads import CrashError, Faults, Process, counted_steps, no_steps, run_job

from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, FileTier

# A row of several pages, one of an element, and one that no commit keeps.
SPECS = (
    BufferSpec(1, (1200,), np.dtype("float32"), entries=3, names=((0, "w"), (2, "b"))),
    BufferSpec(2, (), np.dtype("int32"), entries=1, names=((0, "attempt"),)),
    BufferSpec(3, (9,), np.dtype("float32"), entries=1),
)


@pytest.fixture(autouse=True)
def _steps(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    with counted_steps(monkeypatch):
        yield


def is_written(attempt: int, entry: int) -> bool:
    return (attempt + entry) % 3 != 0


def row(process: int, entry: int, attempt: int) -> npt.NDArray[np.float32]:
    """What a process stores in an attempt to commit."""
    return np.random.default_rng([process, entry, attempt]).random(1200, np.float32)


@contextmanager
def opened(process: Process, directory: Path, *, reopen: bool = True) -> Generator[FileTier]:
    tier = FileTier(directory, reopen=reopen)
    try:
        tier.join(process)
        tier.open(SPECS)
        yield tier
    finally:
        with no_steps():
            tier.close()


def store(tier: FileTier, process: int, attempt: int) -> None:
    for entry in range(3):
        if is_written(attempt, entry):
            tier.store(1, entry, row(process, entry, attempt))
    tier.store(2, 0, np.int32(attempt))
    tier.store(3, 0, np.full(9, attempt, np.float32))


def look(process: Process, tier: FileTier, lineage: Mapping[int, int]) -> tuple[int, int]:
    """Check that the rows are those of one attempt; return the generation's number and the attempt.

    Args:
        lineage: For each attempt the one whose commit it went on from.
    """
    attempt = int(np.asarray(tier.load(2, 0)))
    for entry in range(3):
        writer = attempt
        while writer and not is_written(writer, entry):
            writer = lineage[writer]
        expected = row(process.index, entry, writer) if writer else np.zeros(1200, np.float32)
        np.testing.assert_array_equal(tier.load(1, entry), expected)
    np.testing.assert_array_equal(tier.load(3, 0), np.zeros(9))
    return tier.generation, attempt


def commit(directory: Path, count: int = 2, attempt: int = 1, faults: Mapping[int, Faults] | None = None) -> list[Any]:
    """One session that makes one attempt; what became of it in each process."""

    def work(process: Process) -> int:
        with opened(process, directory) as tier:
            store(tier, process.index, attempt)
            return tier.commit()

    return [process.result for process in run_job(count, work, faults)]


def found(directory: Path, lineage: Mapping[int, int], count: int = 2) -> tuple[int, int]:
    """What a new session finds: the same generation in all processes, and the same attempt."""

    def work(process: Process) -> tuple[int, int]:
        with opened(process, directory) as tier:
            return look(process, tier, lineage)

    results = {process.result for process in run_job(count, work)}
    assert len(results) == 1, results
    (result,) = results
    assert isinstance(result, tuple), result
    return result


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("generation"))


def facts(results: list[Any]) -> list[str]:
    assert all(isinstance(result, StreamingMemoryError) for result in results), results
    return [str(result) for result in results]


# What a commit leaves


@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_processes_go_on_from_the_last_commit(tmp_path: Path, count: int) -> None:
    for attempt in range(1, 5):
        assert commit(tmp_path / "rows", count, attempt) == [attempt] * count
    assert found(tmp_path / "rows", {2: 1, 3: 2, 4: 3, 1: 0}, count) == (4, 4)


def test_each_process_has_a_directory_of_its_own_and_nothing_else_is_there(tmp_path: Path) -> None:
    commit(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["process-0", "process-1"]
    assert names(tmp_path / "process-0") == names(tmp_path / "process-1") == ["generation"]


def test_rows_are_on_disk_before_any_process_gives_up_the_commit_before(tmp_path: Path) -> None:
    def work(process: Process) -> list[str]:
        with opened(process, tmp_path) as tier:
            store(tier, process.index, 1)
            start = len(process.steps)
            tier.commit()
            return process.steps[start:]

    for process in run_job(2, work):
        own = f"process-{process.index}"
        assert process.result == [
            "fdatasync buffer-1.slab",
            "fdatasync buffer-2.slab",
            "unlink generation.tmp",
            "fsync generation.tmp",
            "rename generation.tmp",
            f"fsync {own}",
            "gather",
            "rename generation.prepared",
            f"fsync {own}",
            "gather",
        ]


# A crash at every step


def steps_of(directory: Path) -> range:
    """The steps of a process that opens the directory and commits, from the start of the commit on."""

    def work(process: Process) -> range:
        with opened(process, directory) as tier:
            store(tier, process.index, 2)
            start = len(process.steps)
            tier.commit()
            return range(start, len(process.steps))

    first, second = (process.result for process in run_job(2, work))
    assert first == second
    return first


def test_after_crashes_at_any_two_steps_all_processes_have_the_old_commit_or_all_the_new_one(tmp_path: Path) -> None:
    start = tmp_path / "start"
    commit(start)
    shutil.copytree(start, tmp_path / "whole")
    steps = steps_of(tmp_path / "whole")
    outcomes: dict[int, int] = {}
    for crashes in itertools.product([*steps, steps.stop], repeat=2):
        directory = tmp_path / "crashed"
        shutil.copytree(start, directory)
        results = commit(directory, 2, 2, {k: Faults(crash=crash) for k, crash in enumerate(crashes)})
        number, attempt = found(directory, {2: 1, 1: 0})
        assert number == attempt
        # Whoever was told that it is committed is right.
        assert attempt in ({2} if 2 in results else {1, 2}), (crashes, results)
        assert names(directory / "process-0") in (["generation"], ["generation", "generation.tmp"])
        outcomes[attempt] = outcomes.get(attempt, 0) + 1
        shutil.rmtree(directory)
    assert outcomes.keys() == {1, 2}


def commit_in_the_end(tier: FileTier) -> bool:
    """Commit, and go back to the last commit if that fails; whether the rows are committed now."""
    before = tier.generation
    for _ in range(3):
        try:
            tier.commit()
        except StreamingMemoryError as error:
            if "All processes have written the commit" not in error.fact:
                tier.roll_back()
                break
        else:
            break
    else:
        tier.commit()  # what it raises ends the process
    return tier.generation > before


class History:
    """Sessions one after the other, each of some attempts to commit, with faults."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.count = count
        self.attempts = 0
        self.lineage: dict[int, int] = {}
        self.possible = {0}

    def session(self, commits: int, faults: Mapping[int, Faults]) -> None:
        """All processes make the attempts to commit."""
        first = self.attempts + 1
        self.attempts += commits
        confirmed: set[int] = set()
        tried: set[int] = set()

        def work(process: Process) -> None:
            with opened(process, self.directory) as tier:
                number, base = look(process, tier, self.lineage)
                assert base in self.possible
                self.possible = {base}
                for attempt in range(first, first + commits):
                    self.lineage[attempt] = base
                    store(tier, process.index, attempt)
                    tried.add(attempt)
                    if commit_in_the_end(tier):
                        assert tier.generation > number
                        number, base = tier.generation, attempt
                        confirmed.add(attempt)
                    else:
                        assert tier.generation == number

        run_job(self.count, work, faults)
        last = max(confirmed, default=0)
        self.possible = {attempt for attempt in self.possible | tried if attempt >= last}

    def check(self) -> None:
        attempt = found(self.directory, self.lineage, self.count)[1]
        assert attempt in self.possible
        self.possible = {attempt}


FAULTS = st.builds(
    Faults,
    crash=st.one_of(st.none(), st.integers(0, 60)),
    failing=st.one_of(st.just(frozenset[int]()), st.frozensets(st.integers(0, 60), max_size=4)),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(2, 3),
    sessions=st.lists(st.tuples(st.integers(1, 3), st.dictionaries(st.integers(0, 2), FAULTS)), min_size=1, max_size=5),
)
def test_any_history_of_crashes_and_failures_leaves_one_commit_of_all(
    tmp_path_factory: pytest.TempPathFactory, count: int, sessions: list[tuple[int, dict[int, Faults]]]
) -> None:
    history = History(tmp_path_factory.mktemp("history"), count)
    for commits, faults in sessions:
        history.session(commits, faults)
    history.check()
    history.session(1, {})
    history.check()
    assert history.possible == {history.attempts}


# A disk that refuses


def failing_commit(directory: Path, steps: list[int], then: Callable[[Process, FileTier], Any]) -> list[Any]:
    """Commit attempt 1; then attempt 2, in which the disk refuses steps of process 1; then something more."""

    def work(process: Process) -> Any:
        with opened(process, directory) as tier:
            store(tier, process.index, 1)
            tier.commit()
            store(tier, process.index, 2)
            if process.index == 1:
                process.faults.failing = frozenset(len(process.steps) + step for step in steps)
            with pytest.raises(StreamingMemoryError) as caught:
                tier.commit()
            process.faults.failing = frozenset()
            assert tier.generation == 1
            return str(caught.value), then(process, tier)

    return [process.result for process in run_job(2, work)]


@pytest.mark.parametrize("step", [3, 4, 5])
def test_nobody_commits_if_one_process_cannot_write_its_record(tmp_path: Path, step: int) -> None:
    results = failing_commit(tmp_path, [step], lambda *_: None)
    assert results[0][0].startswith("Nothing was committed: process 1 of 2 could not write its part.")
    assert results[1][0].startswith(f"The record of the commit, {tmp_path}/process-1/generation.prepared, cannot be")
    assert found(tmp_path, {2: 1, 1: 0}) == (1, 1)
    assert [names(tmp_path / f"process-{k}") for k in range(2)] == [["generation"]] * 2


@pytest.mark.parametrize("step", [3, 4, 5])
def test_next_commit_after_one_that_could_not_be_written_works(tmp_path: Path, step: int) -> None:
    results = failing_commit(tmp_path, [step], lambda _, tier: tier.commit())
    # A number that some process may have a record of is not used again.
    assert [number for _, number in results] == [3, 3]
    assert found(tmp_path, {2: 1, 1: 0}) == (3, 2)


def test_rows_that_cannot_be_synced_are_committed_by_nobody_until_they_are_stored_again(tmp_path: Path) -> None:
    def then(process: Process, tier: FileTier) -> int:
        with pytest.raises(StreamingMemoryError, match="Nothing was committed"):
            tier.commit()
        store(tier, process.index, 2)
        return tier.commit()

    assert [number for _, number in failing_commit(tmp_path, [0], then)] == [4, 4]
    assert found(tmp_path, {2: 1, 1: 0}) == (4, 2)


@pytest.mark.parametrize("step", [7, 8])
def test_commit_that_one_process_cannot_put_in_place_is_there_when_they_open_again(tmp_path: Path, step: int) -> None:
    for message, _ in failing_commit(tmp_path, [step], lambda *_: None):
        assert message.startswith("All processes have written the commit, and process 1 of 2 could not put its part")
    assert found(tmp_path, {2: 1, 1: 0}) == (2, 2)


@pytest.mark.parametrize("step", [7, 8])
def test_nothing_is_stored_until_a_commit_is_in_place_everywhere(tmp_path: Path, step: int) -> None:
    def then(process: Process, tier: FileTier) -> int:
        with pytest.raises(StreamingMemoryError, match="nobody knows"):
            tier.store(1, 0, row(process.index, 0, 3))
        with pytest.raises(StreamingMemoryError, match="All processes have written the commit"):
            tier.roll_back()
        number = tier.commit()
        store(tier, process.index, 3)
        return number

    assert [number for _, number in failing_commit(tmp_path, [step], then)] == [3, 3]
    # What was stored after that is in nobody's way.
    assert found(tmp_path, {2: 1, 1: 0}) == (3, 2)


def test_stores_after_a_second_attempt_that_fails_too_leave_the_commit_that_was_put_in_place(tmp_path: Path) -> None:
    def then(process: Process, tier: FileTier) -> None:
        if process.index == 0:
            # rename, fsync, gather: the commit before; then its own record.
            process.faults.failing = frozenset([len(process.steps) + 5])
        with pytest.raises(
            StreamingMemoryError,
            match=r"process 0 of 2 could not write its part|generation\.prepared, cannot be written",
        ):
            tier.commit()
        process.faults.failing = frozenset()
        store(tier, process.index, 3)
        assert tier.generation == 2

    failing_commit(tmp_path, [7], then)
    assert found(tmp_path, {2: 1, 1: 0}) == (2, 2)


def test_record_that_could_not_be_dropped_is_no_part_of_a_later_commit(tmp_path: Path) -> None:
    # Attempt 2 fails in process 1, and process 0 cannot drop its part; of attempt 3 only process 1 writes its part.
    def work(process: Process) -> None:
        with opened(process, tmp_path) as tier:
            store(tier, process.index, 1)
            tier.commit()
            store(tier, process.index, 2)
            start = len(process.steps)
            process.faults.failing = frozenset([start + (7 if process.index == 0 else 3)])
            with pytest.raises(StreamingMemoryError):
                tier.commit()
            assert process.index == 1 or (process.steps[-1] == "unlink generation.prepared")
            store(tier, process.index, 3)
            if process.index == 0:
                process.faults.crash = len(process.steps)
            tier.commit()

    assert [type(process.result) for process in run_job(2, work)] == [CrashError, CrashError]
    assert [names(tmp_path / f"process-{k}") for k in range(2)] == [["generation", "generation.prepared"]] * 2
    assert found(tmp_path, {3: 1, 2: 1, 1: 0}) == (1, 1)
    assert [names(tmp_path / f"process-{k}") for k in range(2)] == [["generation"]] * 2


def test_record_that_could_not_be_dropped_when_opening_is_no_part_of_a_later_commit(tmp_path: Path) -> None:
    commit(tmp_path)
    before = steps_of(_copied(tmp_path, "whole"))
    # Process 0 has prepared attempt 2, and process 1 has not.
    commit(tmp_path, 2, 2, {1: Faults(crash=before.start)})
    assert "generation.prepared" in names(tmp_path / "process-0")

    def work(process: Process) -> None:
        if process.index == 0:
            process.faults.failing = frozenset(range(before.start + 1))
        with opened(process, tmp_path) as tier:
            assert process.index == 1 or process.steps[-1] == "unlink generation.prepared"
            store(tier, process.index, 3)
            if process.index == 0:
                process.faults.crash = len(process.steps)
            tier.commit()

    assert [type(process.result) for process in run_job(2, work)] == [CrashError, CrashError]
    assert [names(tmp_path / f"process-{k}") for k in range(2)] == [["generation", "generation.prepared"]] * 2
    assert found(tmp_path, {3: 1, 2: 1, 1: 0}) == (1, 1)


def test_error_of_a_store_is_that_of_its_process_and_its_commit_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(process: Process) -> None:
        with opened(process, tmp_path) as tier:
            store(tier, process.index, 1)
            tier.commit()
            store(tier, process.index, 2)
            process.gather()  # only one store meets a disk that refuses
            if process.index == 0:
                with monkeypatch.context() as patch:
                    patch.setattr("os.pwritev", refuse)
                    with pytest.raises(StreamingMemoryError, match="No space left"):
                        tier.store(1, 0, row(0, 0, 3))
            process.gather()
            tier.commit()

    messages = facts([process.result for process in run_job(2, work)])
    assert "remote buffer 1, entry 0 has no value" in messages[0]
    assert "process 0 of 2 could not write its part" in messages[1]
    assert found(tmp_path, {2: 1, 1: 0}) == (1, 1)


def refuse(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


# Records that are left


def test_prepared_record_of_all_processes_is_the_last_commit(tmp_path: Path) -> None:
    commit(tmp_path)
    # Until both have written their part: one crashes where it would put it in place, and so does the other.
    total = steps_of(_copied(tmp_path, "whole")).stop
    commit(tmp_path, 2, 2, {0: Faults(crash=total - 3), 1: Faults(crash=total - 3)})
    assert [names(tmp_path / f"process-{k}") for k in range(2)] == [["generation", "generation.prepared"]] * 2
    assert found(tmp_path, {2: 1, 1: 0}) == (2, 2)
    assert [names(tmp_path / f"process-{k}") for k in range(2)] == [["generation"]] * 2


def _copied(directory: Path, name: str) -> Path:
    copy = directory.parent / f"{directory.name}-{name}"
    shutil.copytree(directory, copy)
    return copy


def test_first_commit_that_only_one_process_prepared_leaves_none(tmp_path: Path) -> None:
    assert [type(result) for result in commit(tmp_path, 2, 1, {1: Faults(crash=8)})] == [CrashError, CrashError]
    assert found(tmp_path, {1: 0}) == (0, 0)


def test_session_that_starts_with_zeros_settles_which_commit_is_the_last_one_too(tmp_path: Path) -> None:
    commit(tmp_path)
    start = steps_of(_copied(tmp_path, "whole")).stop
    # Process 1 has put its part in place, and process 0 has not.
    commit(tmp_path, 2, 2, {0: Faults(crash=start - 3), 1: Faults(crash=start - 1)})
    assert [names(tmp_path / f"process-{k}") for k in range(2)] == [
        ["generation", "generation.prepared"],
        ["generation"],
    ]

    def work(process: Process) -> int:
        with opened(process, tmp_path, reopen=False) as tier:
            assert not np.asarray(tier.load(1, 0)).any()
            return tier.generation

    assert [process.result for process in run_job(2, work)] == [0, 0]
    assert found(tmp_path, {2: 1, 1: 0}) == (2, 2)


def test_session_that_starts_with_zeros_replaces_the_commit_of_all_with_its_first(tmp_path: Path) -> None:
    commit(tmp_path)

    def work(process: Process) -> int:
        with opened(process, tmp_path, reopen=False) as tier:
            store(tier, process.index, 2)
            return tier.commit()

    assert [process.result for process in run_job(2, work)] == [2, 2]
    assert found(tmp_path, {2: 0}) == (2, 2)


def test_damaged_prepared_record_is_refused(tmp_path: Path) -> None:
    commit(tmp_path)
    (tmp_path / "process-1" / "generation.prepared").write_bytes(b"x")
    other, own = commit(tmp_path, 2, 2)
    assert isinstance(other, CrashError)
    assert f"{tmp_path}/process-1/generation.prepared is damaged" in str(own)


# Other jobs


def test_directories_of_different_jobs_are_refused_in_all_processes(tmp_path: Path) -> None:
    for attempt in (1, 2):
        commit(tmp_path / "a", 2, attempt)
    commit(tmp_path / "b")
    shutil.rmtree(tmp_path / "a" / "process-1")
    shutil.copytree(tmp_path / "b" / "process-1", tmp_path / "a" / "process-1")
    for message in facts(commit(tmp_path / "a", 2, 3)):
        assert message.startswith("The processes have no commit in common: process 0 has 2, process 1 has 1 (")
    assert [names(tmp_path / "a" / f"process-{k}") for k in range(2)] == [["generation"]] * 2


def test_stale_record_below_the_last_commit_is_no_commit_in_common(tmp_path: Path) -> None:
    commit(tmp_path)
    shutil.copy(tmp_path / "process-0" / "generation", tmp_path / "old")
    commit(tmp_path, 2, 2)
    # Process 1 is of a copy that was taken before.
    shutil.copy(tmp_path / "old", tmp_path / "process-0" / "generation.prepared")
    shutil.copy(tmp_path / "old", tmp_path / "process-1" / "generation")
    for message in facts(commit(tmp_path, 2, 3)):
        assert "process 0 has 2, process 1 has 1 (" in message


@pytest.mark.parametrize(("before", "now"), [(3, 2), (2, 1), (3, 1)])
def test_fewer_processes_than_before_are_refused(tmp_path: Path, before: int, now: int) -> None:
    commit(tmp_path, before)
    for message in facts(commit(tmp_path, now, 2)):
        assert f"has rows of process {now}, and this job has only {now} processes" in message
    assert found(tmp_path, {1: 0}, before) == (1, 1)


def test_more_processes_than_before_are_refused_and_as_many_work_again(tmp_path: Path) -> None:
    commit(tmp_path)
    for message in facts(commit(tmp_path, 3, 2)):
        assert "no commit in common: process 0 has 1, process 1 has 1, process 2 has 0 (" in message
    assert found(tmp_path, {1: 0}) == (1, 1)


def test_directory_of_one_process_alone_is_refused(tmp_path: Path) -> None:
    tier = FileTier(tmp_path)
    tier.open(SPECS)
    tier.close()
    for message in facts(commit(tmp_path)):
        assert "has rows of a program that ran in one process" in message


def test_directory_of_several_processes_is_refused_by_one_alone(tmp_path: Path) -> None:
    commit(tmp_path)
    with pytest.raises(StreamingMemoryError, match="it has 'process-0' and 1 more"):
        FileTier(tmp_path, reopen=True).open(SPECS)


def test_tier_that_is_opened_again_stays_in_its_directory(tmp_path: Path) -> None:
    def work(process: Process) -> list[int]:
        tier = FileTier(tmp_path, reopen=True)
        numbers = list[int]()
        for attempt in (1, 2):
            tier.join(process)
            tier.open(SPECS)
            store(tier, process.index, attempt)
            numbers.append(tier.commit())
            with no_steps():
                tier.close()
        return numbers

    assert [process.result for process in run_job(2, work)] == [[1, 2]] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["process-0", "process-1"]
