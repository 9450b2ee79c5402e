"""``popxl estimate``: what a run of a program will take, before it runs.

The program is executed as ``python PROGRAM.py ...`` would, up to the first `popxl.Session` that it makes. There the
command takes over: it makes a session of its own from the same arguments, with the budgets of the command line, and the
program ends. Nothing is uploaded, no callable that gives data is called, and no directory is made.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import popxl
from popxl import session as session_module
from popxl.errors import PopxlError, PopxlValueError
from popxl.ir import Ir
from popxl.observe.estimation import tier_bytes
from popxl.plan.costs import Prediction
from popxl.runtime.streaming import FileTier, StreamingMemory
from popxl.runtime.streaming.room import existing, free_bytes
from popxl.units import format_bytes, parse_bytes

_DOES_NOT_FIT = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says; None for what it leaves to the program.

    Attributes:
        device: Budget of device memory, such as ``"2GiB"``.
        host: Budget of host memory for rows.
        file: Space for rows on the disk.
        directory: Where the rows lie.
    """

    device: str | None = None
    host: str | None = None
    file: str | None = None
    directory: str | None = None


class _TakenOver(BaseException):
    """The program has made its session: it is not needed any more."""


class _Interceptor:
    """Stands where sessions are made.

    Args:
        wanted: What the command line says.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self.is_done = False
        self.status = 0

    def __call__(self, ir: Ir, arguments: dict[str, Any]) -> None:
        if not self.is_done:
            self.is_done = True
            self.show(ir, arguments)
        raise _TakenOver

    def show(self, ir: Ir, arguments: dict[str, Any]) -> None:
        """Estimate a program and print what was found."""
        before, session_module.on_construction = session_module.on_construction, None
        try:
            self.status = _show(ir, arguments, self._wanted)
        finally:
            session_module.on_construction = before


def estimate(program: str, words: Sequence[str], wanted: Wanted) -> int:
    """Print what a run of a program will take.

    Args:
        program: The path of the program.
        words: Its arguments.
        wanted: The budgets.

    Returns:
        0 if it fits, else 1.

    Raises:
        PopxlError: The program has made neither a session nor an Ir, or something is wrong with it.
    """
    for size in (wanted.device, wanted.host, wanted.file):
        parse_bytes(size)
    if not Path(program).is_file():
        raise PopxlValueError(f"There is no program {program!r}.", hint="name a Python file")
    interceptor = _Interceptor(wanted)
    found: dict[str, Any] = {}
    with _as_program(program, words):
        session_module.on_construction = interceptor
        try:
            found = runpy.run_path(program, run_name="__main__")
        except _TakenOver:
            pass
        except SystemExit:
            if not interceptor.is_done:
                raise
        finally:
            session_module.on_construction = None
        if not interceptor.is_done:
            _estimate_irs(found, interceptor, program)
    return interceptor.status


def _estimate_irs(found: dict[str, Any], interceptor: _Interceptor, program: str) -> None:
    irs = {id(value): (name, value) for name, value in found.items() if isinstance(value, Ir)}
    if not irs:
        raise PopxlError(
            f"{program} made no popxl.Session, and left no popxl.Ir in a global variable.",
            hint="estimate a program that makes one, with the arguments that it needs",
        )
    worst = 0
    for name, ir in irs.values():
        sys.stdout.write(f"{name}:\n")
        interceptor.show(ir, {})
        worst = max(worst, interceptor.status)
    interceptor.status = worst


@contextmanager
def _as_program(program: str, words: Sequence[str]) -> Generator[None]:
    """Let the program find the words and the folder that ``python PROGRAM.py ...`` would give it."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [program, *words]
    sys.path.insert(0, str(Path(program).resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


def _show(ir: Ir, arguments: dict[str, Any], wanted: Wanted) -> int:
    memory = _memory(arguments.pop("streaming_memory", None), wanted)
    if wanted.device is not None:
        arguments["device_memory"] = wanted.device
    try:
        session = popxl.Session(ir, **arguments, streaming_memory=memory)
        needed, available = _file_bytes(session, wanted)
    except MemoryError as error:
        sys.stdout.write(f"{error}\n")
        return _DOES_NOT_FIT
    if available is not None and needed > available:
        sys.stdout.write(_no_room(session, needed, available, is_given=wanted.file is not None))
        return _DOES_NOT_FIT
    prediction = session.estimate()
    sys.stdout.write(f"{session.figures}\n\n{_text(prediction, memory, available)}\n")
    return 0


def _text(prediction: Prediction, memory: StreamingMemory, available: int | None) -> str:
    lines = [str(prediction)]
    if isinstance(memory.tier, FileTier) and available is not None:
        lines.append(f"free on the disk of {memory.tier.directory}: {format_bytes(available)}")
    return "\n".join(lines)


def _memory(given: str | StreamingMemory | None, wanted: Wanted) -> StreamingMemory:
    """What the program gave its session, with what the command line says instead."""
    memory = StreamingMemory.from_spec(given)
    if wanted.directory is None and wanted.host is None:
        return memory
    tier = memory.tier
    if wanted.directory is not None:
        directory = wanted.directory
    elif isinstance(tier, FileTier):
        directory = os.fspath(tier.directory)
    else:
        raise PopxlValueError(
            f"--host is for rows in files; this program has {memory!r}.", hint="give --directory DIR too"
        )
    host = wanted.host if wanted.host is not None else memory.host_bytes
    checksums = tier.capabilities.checksums or not isinstance(tier, FileTier)
    return StreamingMemory(f"file:{directory}", checksums=checksums, host_memory=host)


def _file_bytes(session: popxl.Session, wanted: Wanted) -> tuple[int, int | None]:
    """Bytes that the files of a program take, and those that there are; None where nobody says."""
    tier = session.streaming_memory.tier
    if not isinstance(tier, FileTier):
        if wanted.file is not None:
            raise PopxlValueError(
                f"--file is for rows in files; this program has {session.streaming_memory!r}.",
                hint="give --directory DIR too",
            )
        return 0, None
    allowed = parse_bytes(wanted.file)
    free = free_bytes(existing(tier.directory))
    needed = tier_bytes(session._compiled)["file"]  # pyright: ignore[reportPrivateUsage]
    return needed, free if allowed is None else allowed


def _no_room(session: popxl.Session, needed: int, available: int, *, is_given: bool) -> str:
    tier = session.streaming_memory.tier
    there = "--file allows" if is_given else f"the disk of {getattr(tier, 'directory', tier)} has free"
    buffers = session.figures.buffer_bytes
    lines = [f"The rows take {format_bytes(needed)} ({needed} B) of files, and {there} {format_bytes(available)}."]
    lines += [f"    {format_bytes(n)}: buffer {i}" for i, n in sorted(buffers.items(), key=lambda item: -item[1])[:8]]
    lines.append("Rows of variables that a run stores to count twice: what was committed stays until the next commit.")
    change = "raise --file" if is_given else "name another directory with --directory"
    lines.append(f"  Hint: {format_bytes(needed)} are enough; {change}")
    return "\n".join(lines) + "\n"
