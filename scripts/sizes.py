"""Prints how long the source files and functions are, and fails where one is too long.

A file may grow to 500 lines before it is flagged and to 800 before it fails; a function to 60, not counting its
docstring: public functions here are documented at length.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_SOFT_LINES = 500
FILE_HARD_LINES = 800
FUNCTION_HARD_LINES = 60
SHOWN = 12


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its ``def`` to its end, without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def long_functions(path: Path) -> Iterator[tuple[int, str]]:
    """The functions of a file over the limit, each as its lines and its place."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = function_lines(node)
            if lines > FUNCTION_HARD_LINES:
                yield lines, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def main() -> int:
    sizes = sorted(
        ((len(path.read_text(encoding="utf-8").splitlines()), path) for path in (ROOT / "src").rglob("*.py")),
        reverse=True,
    )
    counts = [lines for lines, _ in sizes]
    print(f"{len(sizes)} files, {sum(counts)} lines, median {statistics.median(counts):.0f} (wanted: 200 or less)")
    failed = False
    for rank, (lines, path) in enumerate(sizes):
        flag = ""
        if lines > FILE_HARD_LINES:
            flag, failed = f"  TOO LONG: over {FILE_HARD_LINES}", True
        elif lines > FILE_SOFT_LINES:
            flag = f"  long: over {FILE_SOFT_LINES}"
        if flag or rank < SHOWN:
            print(f"{lines:6}  {path.relative_to(ROOT)}{flag}")

    functions = sorted((found for _, path in sizes for found in long_functions(path)), reverse=True)
    if functions:
        failed = True
        print(f"functions over {FUNCTION_HARD_LINES} lines:")
        for lines, place in functions:
            print(f"{lines:6}  {place}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
