"""What logical ops add to a graph; their values are in the samples (spec ops-math.md §3-§4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops

OPS = {"And": (ops.logical_and, "and_out"), "Or": (ops.logical_or, "or_out")}


@pytest.fixture
def main() -> Iterator[popxl.Graph]:
    with popxl.Ir().main_graph as graph:
        yield graph


def truth(name: str) -> popxl.Tensor:
    return popxl.variable([True, False], name=name)


@pytest.mark.parametrize(("type", "function", "name"), [(t, *f) for t, f in OPS.items()])
def test_bools_are_not_cast(main: popxl.Graph, type: str, function: Callable[..., Any], name: str) -> None:
    assert function(truth("a"), truth("b")).name == name
    assert [op.type for op in main.ops] == [type]


@pytest.mark.parametrize(("type", "function", "name"), [(t, *f) for t, f in OPS.items()])
def test_each_number_is_cast(main: popxl.Graph, type: str, function: Callable[..., Any], name: str) -> None:
    function(popxl.variable(1, name="a"), truth("b"))
    function(popxl.variable(1, name="c"), popxl.variable(1.5, name="d"))
    assert [op.type for op in main.ops] == ["Cast", type, "Cast", "Cast", type]
    assert [op.outputs[0].name for op in main.ops if op.type == "Cast"] == ["a_bool", "c_bool", "d_bool"]


def test_not_casts_numbers_and_no_bools(main: popxl.Graph) -> None:
    assert ops.logical_not(truth("a")).name == "not_out"
    ops.logical_not(popxl.variable([0, 2]))
    assert [op.type for op in main.ops] == ["Not", "Cast", "Not"]


def test_a_cast_is_placed_by_the_context_and_no_reason_to_refuse(main: popxl.Graph) -> None:
    with popxl.ipu(1):
        a, b = ops.identity(truth("a")), ops.identity(popxl.variable(1.0))
    assert ops.logical_and(a, b).ipu == 0


def test_a_condition_that_the_host_decides_is_made_of_others() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        streams = [popxl.h2d_stream((), popxl.int32, name) for name in "ab"]
        out = popxl.d2h_stream((), popxl.float32, "out")
        a, b = (ops.host_load(s) for s in streams)
        one, other = (ir.create_graph(lambda v=v: popxl.constant(v)) for v in (1.0, 2.0))
        ops.host_store(out, ops.conditional(a & ~b, one, other)[0])
    with popxl.Session(ir) as session:
        got = [session.run(dict(zip(streams, map(np.int32, v), strict=True)))[out] for v in ((2, 0), (0, 0), (1, 4))]
    assert [float(g) for g in got] == [1.0, 2.0, 2.0]
