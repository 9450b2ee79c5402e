"""Runs graphs on several replicas without a runtime: op after op, each on arrays with an axis over all replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import popxl
from popxl.op import as_results
from popxl.tensor import Constant, Tensor


def evaluate(graph: popxl.Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a graph, of shape ``(R, *shape)``, for inputs of such shapes."""
    with jax.enable_x64(True):
        return [np.asarray(y) for y in jax.jit(partial(_run, graph))(*inputs)]


def _run(graph: popxl.Graph, *inputs: Any) -> list[Any]:
    count = graph.ir.replication_factor
    values: dict[Tensor, Any] = dict(zip(graph.inputs, inputs, strict=True))
    values |= {c: np.broadcast_to(c.host_value, (count, *c.shape)) for c in graph.tensors if isinstance(c, Constant)}
    for op in graph.ops:
        assert op.definition.lower is not None
        run = partial(op.definition.lower, **op.attributes)
        results = as_results((run if op.definition.across else jax.vmap(run))(*(values[t] for t in op.inputs)))
        for t, value in zip(op.outputs, results, strict=True):
            assert (value.shape, value.dtype) == ((count, *t.shape), t.dtype.storage)
            values[t] = value
        for i in op.mutates:
            values[op.inputs[i]] = results[0]
    return [values[t] for t in graph.outputs]


def graph_of(count: int, function: Callable[..., Any], *specs: popxl.TensorSpec) -> popxl.Graph:
    """The graph of a function, of a program with `count` replicas."""
    ir = popxl.Ir(replication=count)
    with ir.main_graph:
        return ir.create_graph(function, *specs)


def spec(x: np.ndarray) -> popxl.TensorSpec:
    """What a graph takes, of which `x` has one for each replica."""
    return popxl.TensorSpec(x.shape[1:], popxl.dtypes.dtype.as_dtype(x.dtype))


def per_replica(function: Callable[..., Any], *xs: Any) -> list[np.ndarray]:
    """The outputs of a function of tensors, called on arrays of shape ``(R, *shape)``."""
    arrays = [np.asarray(x) for x in xs]
    return evaluate(graph_of(len(arrays[0]), function, *map(spec, arrays)), arrays)
