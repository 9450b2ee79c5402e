"""Every function of ``popxl.ops`` can be called as in PopXL: ``signatures.txt`` is taken from the specification."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from popxl import ops
from popxl.ops import collectives, var_updates

WANTED = (Path(__file__).parent / "signatures.txt").read_text(encoding="utf-8").splitlines()


def as_text(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is inspect.Parameter.empty else f"={parameter.default!r}"
    star = "*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else ""
    return f"{star}{parameter.name}{default}"


@pytest.mark.parametrize("wanted", WANTED, ids=lambda line: line.partition("(")[0])
def test_a_function_takes_what_the_specification_says(wanted: str) -> None:
    name = wanted.partition("(")[0]
    function = next(getattr(m, name) for m in (ops, var_updates, collectives) if hasattr(m, name))
    parameters = inspect.signature(function).parameters.values()
    assert f"{name}({', '.join(map(as_text, parameters))})" == wanted
