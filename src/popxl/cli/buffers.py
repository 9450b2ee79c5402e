"""``popxl buffers``: what the last commit of a Streaming Memory directory published, for people and other programs."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from popxl.errors import PopxlValueError
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.alloc import aligned_bytes, frozen_entry
from popxl.runtime.streaming.committed import CommittedDirectory
from popxl.units import format_bytes

from .main import printable
from .safetensors_file import DTYPE_CODES, TensorEntry, encode_header, lay_out, read_header

NAMES_SHOWN = 3
# Rows that a program stored where no variable lives are kept under a name of their own.
_UNNAMED = re.compile(r"buffer-(\d{1,19})\.entry-(\d{1,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Row:
    """One entry under the name that it has in a safetensors file."""

    spec: BufferSpec
    entry: int
    name: str


def list_buffers(directory: str) -> int:
    """Print a table of a directory's buffers. Returns the exit status."""
    with CommittedDirectory.open(directory) as committed:
        table = [("id", "shape", "dtype", "entries", "written", "bytes", "names")]
        table += [_line(committed, spec) for spec in committed.buffers]
        generation, specs = committed.generation, committed.buffers
    say(f"generation {generation}" if generation else "generation 0: nothing was committed yet")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        numbers = [cell.rjust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        say("  ".join([*numbers, row[-1]]).rstrip())
    total_bytes = sum(spec.entries * spec.entry_bytes for spec in specs)
    entries = sum(spec.entries for spec in specs)
    say(f"total: {count(len(specs), 'buffer')}, {count(entries, 'entry', 'entries')}, {format_bytes(total_bytes)}")
    return 0


def _line(committed: CommittedDirectory, spec: BufferSpec) -> tuple[str, ...]:
    names = list(dict.fromkeys(name for _, name in spec.names))
    shown = ", ".join(printable(name) for name in names[:NAMES_SHOWN])
    if len(names) > NAMES_SHOWN:
        shown += f" and {len(names) - NAMES_SHOWN} more"
    written = str(committed.written(spec.buffer_id).size) if spec.is_persistent else "-"
    size = format_bytes(spec.entries * spec.entry_bytes)
    shape = str(spec.shape)
    return str(spec.buffer_id), shape, spec.dtype.name, str(spec.entries), written, size, shown or "(scratch)"


def verify(directory: str) -> int:
    """Read every entry and print those that are damaged. Returns the exit status, 1 if there are any."""
    checked = damaged = checked_bytes = 0
    with CommittedDirectory.open(directory) as committed, Progress("checked", written_bytes(committed)) as progress:
        for spec, entry, problem in committed.verify():
            checked += 1
            checked_bytes += spec.entry_bytes
            if problem is not None:
                damaged += 1
                names = [name for named, name in spec.names if named == entry]
                progress.clear()
                say(printable(" ".join([problem, f"It is {', '.join(names)}."] if names else [problem])))
            progress.show(checked_bytes)
        generation = committed.generation
    what = f"{count(checked, 'entry', 'entries')} of {format_bytes(checked_bytes)}"
    say(f"generation {generation}: {what}, {damaged or 'none'} damaged")
    return 1 if damaged else 0


def export(directory: str, file: str, *, force: bool = False) -> int:
    """Write the variables of a directory to a safetensors file. Returns the exit status.

    Raises:
        PopxlValueError: The file exists and ``force`` is false, or the format cannot hold a name or a dtype.
        StreamingMemoryError: The directory cannot be read, or a row is damaged; no file is left then.
    """
    if not force and os.path.lexists(file):
        raise PopxlValueError(f"{file} exists.", hint="choose another name, or add --force.")
    with CommittedDirectory.open(directory) as committed:
        rows = _rows(committed)
        tensors = lay_out([(row.name, row.spec.dtype.name, row.spec.shape, row.spec.entry_bytes) for row in rows])
        metadata = {"format": "popxl-streaming-memory", "generation": str(committed.generation)}
        header = encode_header(tensors, metadata)
        total_bytes = tensors[-1].end
        with _replacing(Path(file)) as target, Progress("exported", total_bytes) as progress:
            target.write(header)
            for row, tensor in zip(rows, tensors, strict=True):
                for piece in committed.chunks(row.spec.buffer_id, row.entry):
                    target.write(piece)
                progress.show(tensor.end)
        generation = committed.generation
    say(f"generation {generation}: {count(len(rows), 'tensor')} of {format_bytes(total_bytes)} exported")
    return 0


def _rows(committed: CommittedDirectory) -> list[Row]:
    """Every row that an export holds: all variables, and whatever else was written to their buffers."""
    if not committed.generation:
        raise PopxlValueError(f"{committed.path} has no commit yet, so there is nothing to export.")
    rows: list[Row] = []
    for spec in committed.buffers:
        named = {entry for entry, _ in spec.names}
        rows += [Row(spec, entry, name) for entry, name in spec.names]
        unnamed = (entry for entry in map(int, committed.written(spec.buffer_id)) if entry not in named)
        rows += [Row(spec, entry, f"buffer-{spec.buffer_id}.entry-{entry}") for entry in unnamed]
    if not rows:
        raise PopxlValueError(f"{committed.path} holds no variables, so there is nothing to export.")
    # Wide elements first: then each tensor starts at a multiple of its element size, as readers like it.
    return sorted(rows, key=lambda row: -row.spec.dtype.itemsize)


@contextlib.contextmanager
def _replacing(path: Path) -> Generator[BinaryIO]:
    """A file that gets its name when it is complete, and is gone if it never is."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name[:100]}.", suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def import_(file: str, directory: str) -> int:
    """Commit the tensors of a safetensors file as the variables of a directory. Returns the exit status.

    Raises:
        PopxlValueError: The file is damaged, or its names, shapes or dtypes are not those of the directory.
        StreamingMemoryError: The directory is missing, in use or damaged, or the disk refuses.
    """
    with Path(file).open("rb") as source:
        tensors, start = read_header(source, file)
        with CommittedDirectory.open(directory) as committed:
            specs = committed.buffers
        pairs = _match(tensors, specs, file, directory)
        source.seek(start)
        tier = FileTier(directory, reopen=True)
        tier.open(specs)
        try:
            with Progress("imported", tensors[-1].end) as progress:
                _store_all(pairs, source, tier, progress)
            generation = tier.commit()
        finally:
            tier.close()
    say(f"generation {generation}: {count(len(pairs), 'tensor')} of {format_bytes(tensors[-1].end)} imported")
    return 0


def _match(
    tensors: Iterable[TensorEntry], specs: Sequence[BufferSpec], file: str, directory: str
) -> list[tuple[TensorEntry, Row]]:
    """Which row each tensor is, in the order of the file."""
    named = {name: Row(spec, entry, name) for spec in specs for entry, name in spec.names}
    by_id = {spec.buffer_id: spec for spec in specs}
    if not named:
        raise PopxlValueError(f"{directory} holds no variables, so nothing can be imported.")
    pairs: list[tuple[TensorEntry, Row]] = []
    for tensor in tensors:
        row = named.pop(tensor.name, None) or _unnamed(tensor.name, by_id)
        if row is None:
            raise PopxlValueError(
                f"{file} has the tensor {tensor.name!r}, and the program of {directory} has no such variable.",
                hint="list the names with `popxl buffers ls`.",
            )
        spec, here = row.spec, (tensor.dtype, tensor.shape)
        there = (DTYPE_CODES.get(spec.dtype.name, spec.dtype.name), spec.shape)
        if here != there or tensor.end - tensor.start != spec.entry_bytes:
            raise PopxlValueError(
                f"{tensor.name!r} has dtype {here[0]}, shape {here[1]} and {tensor.end - tensor.start} bytes in {file} "
                f"but dtype {there[0]}, shape {there[1]} and {spec.entry_bytes} bytes in {directory}."
            )
        pairs.append((tensor, row))
    if named:
        missing = next(iter(named))
        raise PopxlValueError(
            f"{file} has no tensor {missing!r}{f' and {len(named) - 1} more' if len(named) > 1 else ''}, which the "
            f"program of {directory} needs."
        )
    return pairs


def _unnamed(name: str, specs: dict[int, BufferSpec]) -> Row | None:
    found = _UNNAMED.fullmatch(name)
    spec = specs.get(int(found[1])) if found else None
    if found is None or spec is None or not spec.is_persistent:
        return None
    entry = int(found[2])
    # A variable's row goes by the variable's name only.
    return Row(spec, entry, name) if entry < spec.entries and all(n != entry for n, _ in spec.names) else None


def _store_all(
    pairs: Iterable[tuple[TensorEntry, Row]], source: BufferedReader, tier: FileTier, progress: Progress
) -> None:
    stored: dict[tuple[int, int], str] = {}
    for tensor, row in pairs:
        spec, entry = row.spec, row.entry
        value = _read_value(source, spec, tensor)
        other = stored.setdefault((spec.buffer_id, entry), tensor.name)
        if other == tensor.name:
            tier.store(spec.buffer_id, entry, value)
        elif not _same_bytes(np.asarray(tier.load(spec.buffer_id, entry)), value):
            raise PopxlValueError(
                f"{other!r} and {tensor.name!r} are the same entry of remote buffer {spec.buffer_id}, and the file has "
                "different values for them."
            )
        progress.show(tensor.end)


def _read_value(source: BufferedReader, spec: BufferSpec, tensor: TensorEntry) -> npt.NDArray[Any]:
    raw = aligned_bytes(spec)
    if source.readinto(raw.data) != spec.entry_bytes:
        raise PopxlValueError(f"The file ends inside of {tensor.name!r}.", hint="get the file again.")
    if spec.dtype == np.bool_ and (raw > 1).any():
        raise PopxlValueError(f"{tensor.name!r} is of dtype BOOL, and has elements that are neither 0 nor 1.")
    return frozen_entry(raw, spec)


def _same_bytes(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    # As bytes: NaN is not equal to itself.
    return bool(np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)))


def written_bytes(committed: CommittedDirectory) -> int:
    """Bytes of all rows that a commit published."""
    return sum(committed.written(spec.buffer_id).size * spec.entry_bytes for spec in committed.buffers)


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(line + "\n")


def count(n: int, one: str, many: str | None = None) -> str:
    """A number and what it is of."""
    return f"{n} {one if n == 1 else many or one + 's'}"


class Progress:
    """How far a command is, on the error stream, and only if that is a terminal."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self._what, self._total_bytes = what, total_bytes
        self._stream = sys.stderr if sys.stderr.isatty() else None
        self._shown = -1

    def show(self, done_bytes: int) -> None:
        """Say how much is done, once for each hundredth."""
        percent = 100 * done_bytes // max(self._total_bytes, 1)
        if self._stream and percent != self._shown:
            self._shown = percent
            self._stream.write(f"\r{self._what} {percent} % of {format_bytes(self._total_bytes)}\x1b[K")
            self._stream.flush()

    def clear(self) -> None:
        """Empty the line for something else."""
        if self._stream and self._shown >= 0:
            self._shown = -1
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()
