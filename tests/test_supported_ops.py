"""The page of supported ops, which is written from the declarations."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest

from popxl import ops

GENERATOR = Path(__file__).resolve().parent.parent / "docs" / "_generate_ops.py"


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    """The cells of each function's row, without the first."""
    spec = importlib.util.spec_from_file_location("generate_ops", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, list[str]] = {}
    for line in module.page().splitlines():
        if line.startswith("| `"):
            call, *cells = line.strip("| ").split(" | ")
            name = call.strip("`").split("(")[0]
            assert name not in found
            found[name] = [cell.strip() for cell in cells]
    return found


def test_every_public_function_has_a_row(rows: dict[str, list[str]]) -> None:
    assert {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))} <= rows.keys()


def test_functions_of_packages_have_a_row(rows: dict[str, list[str]]) -> None:
    assert "var_updates.accumulate_" in rows


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("reshape", ["all", "`t`", "copy", "`reshape_`", "`Reshape`"]),
        ("reshape_", ["all", "`t`", "view of `t`", "", "`ReshapeInplace`"]),
        ("concat_", ["all", "`ts`", "view of `ts`", "", "`ConcatInplace`"]),
        ("add", ["numbers", "`lhs`, `rhs`", "copy", "`add_`", "`Add`"]),
        ("add_", ["numbers", "none", "overwrites `lhs`", "", "`AddLhsInplace`"]),
        ("gelu", ["floats", "`t`", "copy", "`gelu_`", "`Gelu`"]),
        ("detach", ["all", "none", "copy", "`detach_`", "`Detach`"]),
        ("greater", ["numbers", "refused", "copy", "", "`Greater`"]),
        (
            "remote_load_",
            ["all", "none", "overwrites `t` (reads an entry of a remote buffer)", "", "`RemoteLoadInplace`"],
        ),
        ("call", ["all", "those of the graph", "runs a graph once", "", "`Call`"]),
        ("squeeze", ["", "those of its parts", "", "", "made of other ops"]),
    ],
)
def test_a_row_tells_what_the_declaration_tells(rows: dict[str, list[str]], name: str, cells: list[str]) -> None:
    assert rows[name][1:] == cells


def test_every_row_says_what_the_function_does(rows: dict[str, list[str]]) -> None:
    assert [name for name, cells in rows.items() if not cells[0].endswith((".", ":"))] == []
