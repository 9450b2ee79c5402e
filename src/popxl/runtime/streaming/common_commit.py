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

from .directory import UndecidedCommitError, put_in_place, read_generation, write_synced
from .layout import GENERATION_NAME
from .tier import BufferSpec, Peers

PREPARED_NAME = GENERATION_NAME + ".prepared"
_NONE = -1


def directory_name(process: int) -> str:
    """Name of the directory of a process inside that of the job."""
    return f"process-{process}"


def own_directory(directory: Path, peers: Peers) -> Path:
    """Return the directory of this process inside that of the job.

    Raises:
        StreamingMemoryError: The job that left it had more processes.
    """
    number = peers.count
    if (directory / directory_name(number)).exists():
        raise StreamingMemoryError(
            f"The Streaming Memory directory {directory} has rows of process {number}, and this job has only "
            f"{peers.count} processes.",
            hint="start as many processes as before, or name another directory.",
        )
    return directory / directory_name(peers.index)


def settle(directory: Path, buffers: Sequence[BufferSpec], peers: Peers) -> None:
    """Make the last commit that all processes have the last one of this process, whose directory is locked.

    Raises:
        StreamingMemoryError: There is no such commit: the directories are of different jobs.
    """
    last = read_generation(directory, buffers)
    prepared = read_generation(directory, buffers, PREPARED_NAME)
    mine = (last.number if last else 0, prepared.number if prepared else _NONE)
    found = peers.gather(*mine)
    common = set[int].intersection(*(set(numbers) - {_NONE} for numbers in found))
    if not common:
        raise StreamingMemoryError(
            f"The processes have no commit in common: {', '.join(_described(i, n) for i, n in enumerate(found))} "
            f"(this is process {peers.index}, {directory}).",
            hint="the directories are of different jobs; restore them together from a copy, or name others.",
        )
    if mine[1] == max(common) > mine[0]:
        put_in_place(directory, PREPARED_NAME)
    elif prepared is not None:
        discard(directory)


def commit_together(directory: Path, peers: Peers, prepare: Callable[[], bytes]) -> None:
    """Publish a record in all processes, or in none.

    Args:
        directory: Of this process.
        peers: The processes.
        prepare: Gives the record of this one, once everything that it names is on disk.

    Raises:
        UndecidedCommitError: The others have published it, and this process could not; opening it again will.
        StreamingMemoryError: Some process could not prepare its record; the commit before stands.
    """
    failure: StreamingMemoryError | None = None
    try:
        write_synced(directory, PREPARED_NAME, prepare())
    except StreamingMemoryError as error:
        failure = error
    verdicts = [verdict for (verdict,) in peers.gather(failure is None)]
    if not all(verdicts):
        discard(directory)
        raise failure or StreamingMemoryError(
            f"Nothing was committed: process {verdicts.index(0)} of {peers.count} could not write its part.",
            hint="see the error of that process.",
        )
    try:
        put_in_place(directory, PREPARED_NAME)
    except StreamingMemoryError as error:
        undecided = UndecidedCommitError(
            f"The other processes have committed, and {directory} could not be changed: {error.fact}",
            hint="end the session; opening it again with reopen=True takes the new commit.",
        )
        undecided.errno = error.errno
        raise undecided from error
    peers.gather()  # from here on each can read what the others have committed


def discard(directory: Path) -> None:
    """Drop a record that was prepared for nothing. One that stays does no harm: not all processes have it."""
    with contextlib.suppress(OSError):
        (directory / PREPARED_NAME).unlink()


def _described(process: int, numbers: Sequence[int]) -> str:
    return f"process {process} has {' and '.join(str(n) for n in numbers if n != _NONE)}"
