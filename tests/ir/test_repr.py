"""Each public object prints on one line, whatever it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import popxl
from popxl import ops
from popxl.tensorlocation import LocationInfo
from popxl.testing import get_all_dtypes

shapes = st.lists(st.integers(0, 3), max_size=8).map(tuple)
dtypes = st.sampled_from([*get_all_dtypes(), popxl.bool])
names = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=200)


def assert_one_line(value: object) -> None:
    assert len(repr(value).splitlines()) == 1, repr(value)


@given(shapes, dtypes, shapes, names)
def test_tensors_graphs_and_ops(shape: Any, dtype: Any, meta_shape: Any, name: str) -> None:
    ir = popxl.Ir()
    graph = ir.create_empty_graph(name)
    with popxl.name_scope(name), graph:
        t = popxl.graph_input(shape, dtype, name, meta_shape=meta_shape)
        popxl.graph_output(t)
        ops.init(shape, dtype, name)
        c = popxl.constant(1.0, name=name)
    with ir.main_graph:
        info = ops.call_with_info(graph, ops.init(shape, dtype))
        buffer = popxl.remote_buffer(shape, dtype, 3)
    for value in (ir, graph, t, c, t.spec, graph.ops[0], graph.ops[0].definition, info, buffer):
        assert_one_line(value)


@given(shapes, dtypes, names)
def test_streams(shape: Any, dtype: Any, name: str) -> None:
    with popxl.Ir().main_graph:
        assert_one_line(popxl.h2d_stream(shape, dtype, name))
        assert_one_line(popxl.d2h_stream(shape, dtype, name))


@given(st.integers(1, 64))
def test_variables_and_groupings(replicas: int) -> None:
    ir = popxl.Ir(replicas)
    grouping = ir.replica_grouping(group_size=1)
    with ir.main_graph:
        value = np.zeros((replicas, 2) if replicas > 1 else (2,), np.float32)
        assert_one_line(popxl.variable(value, replica_grouping=grouping))
    assert_one_line(grouping)


@given(st.lists(st.integers(0, 5), max_size=64))
def test_long_constants(value: list[int]) -> None:
    with popxl.Ir().main_graph:
        assert_one_line(popxl.constant(value, popxl.int32))


def test_sessions_and_locations(ir: popxl.Ir) -> None:
    with ir.main_graph:
        ops.init((), popxl.float32)
    for value in (popxl.Session(ir), popxl.TensorLocation(), LocationInfo(), popxl.TensorByRef, ir.main_graph.ops[0]):
        assert_one_line(value)
