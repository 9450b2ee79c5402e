"""``popxl doctor``: whether this machine, and a directory of it, are fit for streaming."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from popxl.runtime.streaming.room import existing

from .directory_checks import check_directory
from .disk_speed import speed_finding
from .finding import Finding, Level
from .machine_checks import check_machine


def doctor(directory: str, *, measure: bool = False) -> int:
    """Print one line for each check: OK, or WARN or FAIL and how to mend it.

    Args:
        directory: The directory of a session, or for one. Nothing is left there.
        measure: Whether to tell how fast its disk is, too.

    Returns:
        The exit status: 1 if streaming cannot work there at all, else 0.
    """
    worst: list[Level] = []
    for finding in _findings(Path(directory).absolute(), measure):
        worst.append(finding.level)
        sys.stdout.write(f"{finding}\n")
        sys.stdout.flush()  # some checks take a second
    failures, warnings = worst.count(Level.FAIL), worst.count(Level.WARN)
    can = "cannot work" if failures else "works"
    sys.stdout.write(f"Streaming Memory {can} there: {failures} FAIL, {warnings} WARN.\n")
    return 1 if failures else 0


def _findings(directory: Path, measure: bool) -> Iterator[Finding]:
    is_fit = True
    for finding in check_directory(directory):
        is_fit = is_fit and finding.level is not Level.FAIL
        yield finding
    if measure and is_fit:
        yield speed_finding(existing(directory))
    yield from check_machine()
