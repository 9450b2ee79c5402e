"""Each Python block of the README and the documentation runs, those of one page one after the other.

A line `print(...)  # text` promises what it prints; a page that prints promises every line.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMISE = re.compile(r"^ *print\(.*\) *# (.*)$", re.MULTILINE)


def pages_with_code() -> list[Path]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in pages if BLOCK.search(page.read_text(encoding="utf-8"))]


def compiled_blocks(page: Path) -> list[CodeType]:
    """Code of each block; blank lines before it make a traceback show the line of the page."""
    text = page.read_text(encoding="utf-8")
    return [
        compile("\n" * text.count("\n", 0, found.start(1)) + found[1], str(page), "exec")
        for found in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("page", pages_with_code(), ids=lambda page: str(page.relative_to(ROOT)))
def test_code_of_page_runs_and_prints_what_it_promises(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in compiled_blocks(page):
        exec(block, names)
    code = "".join(found[1] for found in BLOCK.finditer(page.read_text(encoding="utf-8")))
    assert capsys.readouterr().out.splitlines() == PROMISE.findall(code)
