"""The README and the documentation keep what they promise.

The Python blocks of a page run one after the other and share their names, as in a reader's file. What a page says that
a block prints is what it prints. Commands that are shown with their output are run too; of all others the words are
checked.
"""

from __future__ import annotations

import doctest
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from pages import ROOT, Block, blocks, commands, pages

from popxl.cli.main import build_parser, main

CHECKER = doctest.OutputChecker()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
#: Programs of others, which are not looked into.
FOREIGN = {"cd", "export", "pip", "srun"}
#: Names that stand for the reader's own program.
PLACEHOLDERS = {"program.py", "train.py", "first.py"}
PYTHON = {"python", ".venv/bin/python"}
POPXL = {"popxl", ".venv/bin/popxl"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def has_code(page: Path) -> bool:
    return any(block.language == "python" for block in blocks(page))


def words_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a command, without what sets environment variables: those are set."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        name, value = words.pop(0).split("=", 1)
        monkeypatch.setenv(name, value)
    return words


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = words_of(command, monkeypatch)
    if program in POPXL:
        main(arguments)
    else:
        assert program in PYTHON, f"{command} is shown with its output, but this test cannot run it"
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def run_block(block: Block, page: Path, names: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    if block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        # Blank lines before it make a traceback show the line of the page.
        exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    elif block.language == "sh" and block.prints is not None:
        for command in commands(block):
            run_command(command, monkeypatch)


@pytest.mark.parametrize("page", [p for p in pages() if has_code(p)], ids=name_of)
def test_code_of_page_runs_and_prints_what_it_promises(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        run_block(block, page, names, monkeypatch)
        promised = "" if block.file else block.prints
        if promised is not None and block.language in ("python", "sh"):
            printed = capsys.readouterr().out
            assert CHECKER.check_output(promised, printed, FLAGS), (
                f"{name_of(page)}:{block.line + 1} promises\n{promised}\nand prints\n{printed}"
            )


def check_dev(arguments: list[str]) -> None:
    script = (ROOT / "dev").read_text(encoding="utf-8")
    assert re.search(rf"^    {re.escape(arguments[0])}\)", script, re.MULTILINE), f"./dev has no {arguments[0]}"
    options = [word for word in arguments[1:] if word.startswith("-")]
    if arguments[0] == "demo":
        example = "train_larger_than_memory.py" if "--train" in options else "minilm_streamed.py"
        script += (ROOT / "examples" / example).read_text(encoding="utf-8")
    for option in options:
        assert option in script, f"./dev {arguments[0]} has no {option}"


def check_program(arguments: list[str], own: set[str]) -> None:
    name, *rest = arguments
    if name == "-m":
        return
    if name in own | PLACEHOLDERS:
        return
    text = (ROOT / name).read_text(encoding="utf-8")
    for option in (word for word in rest if word.startswith("-")):
        assert f'"{option}"' in text, f"{name} has no {option}"


def check_words(words: list[str], own: set[str]) -> None:
    program, *arguments = words
    for i, word in enumerate(arguments):
        if word in ("|", ">", "&"):
            arguments = arguments[:i]
            break
    if program == "./dev":
        check_dev(arguments)
    elif program in POPXL:
        parsed = build_parser().parse_args(arguments)  # exits if a word is wrong
        for word in getattr(parsed, "arguments", ()):
            name = word.removeprefix("--").replace("-", "_")
            assert name == word or not hasattr(parsed, name), f"{word} comes behind the program, and goes to it"
        if hasattr(parsed, "program"):
            check_program([parsed.program, *parsed.arguments], own)
    elif program in PYTHON:
        check_program(arguments, own)
    else:
        assert program in FOREIGN, f"nothing here knows {program}"


@pytest.mark.parametrize("page", [p for p in pages() if any(b.language == "sh" for b in blocks(p))], ids=name_of)
def test_commands_of_page_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {block.file for block in blocks(page) if block.file}
    for block in blocks(page):
        if block.language == "sh":
            for command in commands(block):
                check_words(words_of(command, monkeypatch), own)
