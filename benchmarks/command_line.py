"""How soon the command line answers. Target: `popxl --help` in under 150 ms, the start of Python included.

Every call is a fresh process, as a shell makes it, with its files in the page cache. Beside it stands what an empty
Python program takes, below which no command can go, and what `import popxl` and everything behind it take: what a
command would pay that needed them only to tell its words.

Not measured: `popxl buffers`, `popxl run`, `popxl doctor`, whose time is that of what they do.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _measure import OtherLoad, alternate, print_table, print_verdict, spread

LIMIT_MS = 150.0
POPXL = str(Path(sys.executable).with_name("popxl"))


@dataclass(frozen=True, slots=True)
class Call:
    """A command and the exit status that it should have.

    Attributes:
        name: What it is called in the table.
        words: The command.
        status: Its exit status.
    """

    name: str
    words: tuple[str, ...]
    status: int = 0


CALLS = (
    Call("an empty Python program", (sys.executable, "-c", "pass")),
    Call("popxl --help", (POPXL, "--help")),
    Call("popxl buffers ls --help", (POPXL, "buffers", "ls", "--help")),
    Call("popxl with wrong words", (POPXL, "bufers"), 2),
    Call("import popxl", (sys.executable, "-c", "import popxl")),
    Call("import popxl, all of it used", (sys.executable, "-c", "from popxl import *")),
)


def runner(call: Call) -> Callable[[], None]:
    """What makes the call once and checks how it ended."""

    def run() -> None:
        done = subprocess.run(call.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        if done.returncode != call.status:
            raise RuntimeError(f"{' '.join(call.words)} ended with status {done.returncode}, not {call.status}")

    return run


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="calls of each command (default: 15)")
    arguments = parser.parse_args(argv)
    with OtherLoad() as load:
        timings = alternate({call.name: runner(call) for call in CALLS}, arguments.rounds)
    print(f"\nFresh processes, {arguments.rounds} rounds in turn: median (least..most).")
    print_table(["call", "ms"], [[name, spread(timing.wall_s, 1e3, 0)] for name, timing in timings.items()])
    print_verdict("popxl --help, in ms,", 1e3 * statistics.median(timings["popxl --help"].wall_s), LIMIT_MS)
    print(load.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
