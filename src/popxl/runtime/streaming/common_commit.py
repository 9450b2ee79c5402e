"""Commits of several processes at once: after a crash of any of them at any instant, all have it or none.

Each process *prepares* a record beside its last one and waits until it is on disk. Only when all have done so does any
put its prepared record in place. So at any instant either nobody has given up the old commit, or everybody has the
new one; a process that opens its directory asks the others which records they have, and all take the last one that
nobody lacks. No file is shared between processes, and no process is the one that must survive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from popxl.errors import StreamingMemoryError

from .directory import (
    UndecidedCommitError,
    io_error,
    put_in_place,
    read_generation,
    sync_directory,
    write_synced,
)
from .layout import GENERATION_NAME, MANIFEST_NAME
from .tier import BufferSpec, Peers

PREPARED_NAME = GENERATION_NAME + ".prepared"
_NONE = -1


def directory_name(process: int) -> str:
    """Name of the directory of a process inside that of the job."""
    return f"process-{process}"


def own_directory(directory: Path, peers: Peers) -> Path:
    """Return the directory of this process inside that of the job.

    Raises:
        StreamingMemoryError: The job that left it had more processes, or was one process by itself.
    """
    number = peers.count
    if (directory / MANIFEST_NAME).exists():
        raise StreamingMemoryError(
            f"The Streaming Memory directory {directory} has rows of a program that ran in one process, and this job "
            f"has {number} processes.",
            hint="start one process, or name another directory.",
        )
    # The manifest, since a start with too many processes may have left the directory.
    if (directory / directory_name(number) / MANIFEST_NAME).exists():
        raise StreamingMemoryError(
            f"The Streaming Memory directory {directory} has rows of process {number}, and this job has only "
            f"{number} processes.",
            hint="start as many processes as before, or name another directory.",
        )
    return directory / directory_name(peers.index)


def settle(directory: Path, buffers: Sequence[BufferSpec], peers: Peers) -> int:
    """Make the last commit that all processes have the last one of this process, whose directory is locked.

    Returns:
        The largest number that any process has a record of. The next commit takes a larger one: a record that some
        process prepared for nothing is then never taken for a part of it.

    Raises:
        StreamingMemoryError: There is no such commit: the directories are of different jobs.
    """
    last = read_generation(directory, buffers)
    prepared = read_generation(directory, buffers, PREPARED_NAME)
    number = last.number if last else 0
    mine = (number, prepared.number if prepared and prepared.number > number else _NONE)
    found = peers.gather(*mine)
    common = set[int].intersection(*(set(numbers) - {_NONE} for numbers in found))
    if not common:
        raise StreamingMemoryError(
            f"The processes have no commit in common: {', '.join(_described(i, n) for i, n in enumerate(found))} "
            f"(this is process {peers.index}, {directory}).",
            hint="the directories are of different jobs; restore them together from a copy, or name others.",
        )
    if mine[1] == max(common):
        put_in_place(directory, PREPARED_NAME)
    elif prepared is not None:
        discard(directory)
    return max(number for numbers in found for number in numbers)


def commit_together(directory: Path, peers: Peers, prepare: Callable[[], bytes]) -> None:
    """Publish a record in all processes, or in none.

    Args:
        directory: Of this process.
        peers: The processes.
        prepare: Gives the record of this one, once everything that it names is on disk. It has the same number in all
            processes, and one that no record had before.

    Raises:
        UndecidedCommitError: Some process could not put its record in place; see `put_in_place_together`.
        StreamingMemoryError: Some process could not prepare its record; the commit before stands.
    """
    failure: StreamingMemoryError | None = None
    try:
        write_synced(directory, PREPARED_NAME, prepare())
    except StreamingMemoryError as error:
        failure = error
    verdicts = _verdicts(peers, failure)
    if not all(verdicts):
        discard(directory)
        raise failure or StreamingMemoryError(
            f"Nothing was committed: process {verdicts.index(False)} of {peers.count} could not write its part.",
            hint="see the error of that process.",
        )
    put_in_place_together(directory, peers)


def put_in_place_together(directory: Path, peers: Peers) -> None:
    """Put the record in place that all processes have prepared. Afterwards each can read what the others committed.

    Raises:
        UndecidedCommitError: Some process could not; in all of them, since all must do the same next. Either they call
            this once more, or the next that opens the directories finds the new commit.
    """
    failure: StreamingMemoryError | None = None
    try:
        if (directory / PREPARED_NAME).exists():
            put_in_place(directory, PREPARED_NAME)
        else:  # a second attempt, after a rename that could not be synced: make another that can
            write_synced(directory, GENERATION_NAME, (directory / GENERATION_NAME).read_bytes())
    except StreamingMemoryError as error:
        failure = error
    except OSError as error:
        failure = io_error(f"The record of the commit, {directory / GENERATION_NAME}, cannot be read", error)
    verdicts = _verdicts(peers, failure)
    if not all(verdicts):
        reason = failure.fact if failure is not None else "see the error of that process"
        undecided = UndecidedCommitError(
            f"All processes have written the commit, and process {verdicts.index(False)} of {peers.count} could not "
            f"put its part in place: {reason} (this is process {peers.index}, {directory}).",
            hint="commit again once the cause is gone, or end the session: one that goes on from there finds this "
            "commit. Until then no variable can be stored.",
        )
        undecided.errno = failure.errno if failure is not None else None
        raise undecided from failure


def _verdicts(peers: Peers, failure: StreamingMemoryError | None) -> list[bool]:
    return [bool(verdict) for (verdict,) in peers.gather(failure is None)]


def discard(directory: Path) -> None:
    """Drop a record that was prepared for nothing. One that stays does no harm: no other will have its number."""
    with contextlib.suppress(OSError):
        (directory / PREPARED_NAME).unlink()
        sync_directory(directory)


def _described(process: int, numbers: Sequence[int]) -> str:
    return f"process {process} has {' and '.join(str(n) for n in numbers if n != _NONE)}"
