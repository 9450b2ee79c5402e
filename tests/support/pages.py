"""What the pages of the documentation promise: their code, what it prints, and the commands that they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>prints|file: \S+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
#: Pages that are written from the code.
_WRITTEN = {Path("reference", name) for name in ("supported-ops.md", "functions.md", "command-line.md")}
_PROMISE = re.compile(r"^ *print\(.*\) *# (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: What it is: ``python``, ``sh``, ``text``...
        text: What is in it.
        line: Number of the page's line before its first one.
        file: The file that it is the content of, if the page says so.
        prints: What it prints: the text block below it that is marked so, with ``...`` for whatever differs; or, of
            Python code without one, each comment behind a ``print``. None where nothing is promised of a command.
    """

    language: str
    text: str
    line: int
    file: str = ""
    prints: str | None = None


def pages() -> list[Path]:
    """The README and the pages of the documentation, but those that are written from the code, and what is built."""
    docs = ROOT / "docs"
    found = {page.relative_to(docs) for page in docs.rglob("*.md")} - _WRITTEN
    return [ROOT / "README.md", *(docs / page for page in sorted(found) if page.parts[0] != "_build")]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order; what a block prints belongs to it and is not one of its own."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    for fence in _FENCE.finditer(text):
        mark, language, content = fence["mark"] or "", fence["language"], fence["text"]
        line = text.count("\n", 0, fence.start("text"))
        if mark == "prints":
            last = found.pop()
            found.append(Block(last.language, last.text, last.line, last.file, content))
            continue
        promised = "".join(f"{line}\n" for line in _PROMISE.findall(content)) if language == "python" else None
        found.append(Block(language, content, line, mark.removeprefix("file: "), promised))
    return found


def commands(block: Block) -> Iterator[str]:
    """The commands of a block of the shell, each on one line and without comments."""
    joined = block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        command = re.sub(r"(^|\s)#.*", "", line).strip()
        if command:
            yield command
