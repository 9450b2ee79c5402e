"""``popxl buffers push``, ``pull`` and ``generations``: archives of committed generations in object stores."""

from __future__ import annotations

from pathlib import Path

from popxl.runtime.streaming.archive import Archive, Moved
from popxl.runtime.streaming.committed import CommittedDirectory
from popxl.units import format_bytes

from .buffers import Progress, count, say, written_bytes


def push(directory: str, url: str, codec: str) -> int:
    """Archive what the last commit of a directory published. Returns the exit status."""
    archive = Archive(url, create=True)
    with CommittedDirectory.open(directory) as committed:
        total_bytes = written_bytes(committed)
    with Progress("pushed", total_bytes) as progress:
        moved = archive.push(directory, codec, progress.show)
    say(f"generation {moved.generation}: {_rows(moved)}; {_objects(moved)} sent")
    return 0


def pull(url: str, directory: str, generation: int | None) -> int:
    """Make a directory hold what an archive does. Returns the exit status."""
    archive = Archive(url)
    record = archive.record(generation)
    with Progress("pulled", record.row_bytes) as progress:
        moved = archive.pull(directory, record.generation, progress.show)
    with CommittedDirectory.open(directory) as committed:
        number = committed.generation
    here = f"generation {number} of {Path(directory)}"
    say(f"generation {moved.generation} is {here}: {_rows(moved)}; {_objects(moved)} fetched")
    return 0


def generations(url: str) -> int:
    """List the generations of an archive. Returns the exit status."""
    archive = Archive(url)
    for number in archive.generations():
        record = archive.record(number)
        say(f"{number:>10}  {count(record.n_rows, 'row')} of {format_bytes(record.row_bytes)}")
    return 0


def _rows(moved: Moved) -> str:
    return f"{count(moved.rows, 'row')} of {format_bytes(moved.row_bytes)}"


def _objects(moved: Moved) -> str:
    return f"{count(moved.chunks, 'object')} of {format_bytes(moved.object_bytes)}"
