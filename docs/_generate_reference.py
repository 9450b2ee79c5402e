"""Writes ``reference/functions.md`` and ``reference/command-line.md``; run by ``conf.py``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import _generate_ops

from popxl.cli.main import build_parser

REFERENCE = Path(__file__).parent / "reference"

FUNCTIONS_HEAD = """\
# Ops in detail

<!-- Written by docs/_generate_reference.py from the docstrings. -->

Every function of `popxl.ops`, by family. Dtypes, gradients and memory of all of them at a glance stand on the page
[supported ops](supported-ops.md).
"""

COMMAND_HEAD = """\
# Command line

<!-- Written by docs/_generate_reference.py from what the commands say of themselves. -->

`popxl` is installed with the package; `python -m popxl.cli` is the same. The exit status is 0, or 1 if something failed
or a check did, or 2 if the words are wrong, or 130 if it was interrupted.
"""


def functions_page() -> str:
    """The docstring of each op, by the module that defines it."""
    lines = [FUNCTIONS_HEAD]
    for module, names in _generate_ops.families().items():
        title = _generate_ops.sentence(module.__doc__).split(" (spec ")[0].rstrip(".")
        lines += [f"## {title}", "", "```{eval-rst}"]
        for name in sorted(names):
            lines += [f".. autofunction:: popxl.ops.{name}", ""]
        lines += ["```", ""]
    return "\n".join(lines)


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands, those of groups before those in them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from commands(command)


def command_page() -> str:
    """What each command prints for ``--help``."""
    lines = [COMMAND_HEAD]
    for parser in commands(build_parser()):
        lines += [f"## {parser.prog}", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def write() -> None:
    """Write the pages that are not up to date."""
    for name, text in (("functions.md", functions_page()), ("command-line.md", command_page())):
        page = REFERENCE / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
