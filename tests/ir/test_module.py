"""`popxl.Module` (spec core.md §4)."""

from __future__ import annotations

import numpy as np
import pytest

import popxl
from popxl import ops


class Linear(popxl.Module):
    def build(self, x: popxl.Tensor, out: int = 2) -> popxl.Tensor:
        self.w = popxl.graph_input((x.shape[-1], out), x.dtype, "w")
        return x @ self.w


def test_call_forwards_to_build() -> None:
    class Sum(popxl.Module):
        def build(self, a: int, b: int = 0) -> int:
            return a + b

    assert Sum()(1, b=2) == 3


def test_build_must_be_overridden() -> None:
    with pytest.raises(NotImplementedError, match="must override `build`"):
        popxl.Module()()


def test_graph_has_the_name_of_the_class_and_the_signature_of_build(ir: popxl.Ir) -> None:
    graph = ir.create_graph(Linear(), popxl.TensorSpec((4, 3), popxl.float32), out=5)
    assert graph.name == "Linear_subgraph(0)"
    assert [t.name for t in graph.inputs] == ["x", "w"]
    assert graph.outputs[0].shape == (4, 5)


def test_attributes_map_inputs_at_the_call_site(ir: popxl.Ir, main: popxl.Graph, evaluate) -> None:
    linear = Linear()
    x = popxl.variable([[1.0, 2.0]])
    graph = ir.create_graph(linear, x)
    w = popxl.variable([[1.0, 10.0], [100.0, 1000.0]])
    (y,) = ops.call(graph, x, inputs_dict={linear.w: w})
    np.testing.assert_array_equal(evaluate(y)[0], [[201.0, 2010.0]])


def test_second_graph_overwrites_the_attributes(ir: popxl.Ir) -> None:
    linear, spec = Linear(), popxl.TensorSpec((1, 1), popxl.float32)
    first = ir.create_graph(linear, spec)
    second = ir.create_graph(linear, spec)
    assert linear.w in second
    assert linear.w not in first
