"""What ``popxl --help`` and wrong words load: nothing that takes time."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator

from popxl.cli.main import build_parser

HEAVY = {"filelock", "jax", "jaxlib", "ml_dtypes", "numpy", "xxhash"}


def commands(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command and group of commands, the empty ones first."""
    yield words
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, (*words, name))


def test_help_of_each_command_and_wrong_words_load_nothing_heavy() -> None:
    calls = [[*words, last] for words in commands(build_parser()) for last in ("--help", "--no-such-option")]
    assert ["buffers", "ls", "--help"] in calls
    program = f"""
import json, sys
from popxl.cli.main import main
for words in {calls!r}:
    try:
        main(words)
        sys.exit(f"{{words}} did not exit")
    except SystemExit as stop:
        if stop.code != (0 if words[-1] == "--help" else 2):
            raise
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.rpartition("\n{")[2].splitlines()[-1])
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()
    ours = {name for name in loaded if name.startswith("popxl.")}
    assert ours == {"popxl.cli", "popxl.cli.main", "popxl.errors"}
