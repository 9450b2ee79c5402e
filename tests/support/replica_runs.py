"""Runs small programs on several replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import popxl
from popxl import ops
from popxl.tensor import Tensor


def run_replicas(build: Callable[..., Tensor | Sequence[Tensor]], *arrays: Any, runs: int = 1) -> list[np.ndarray]:
    """Run a main graph on as many replicas as the arrays have rows; return what each replica had, ``(R, *shape)``.

    Args:
        build: Takes the tensors that the replicas load, returns those that they store.
        arrays: What they load: one row for each replica.
        runs: How often; what the last run stored is returned.
    """
    loaded = [np.asarray(a) for a in arrays]
    count = len(loaded[0])
    ir = popxl.Ir(replication=count)
    with ir.main_graph, popxl.in_sequence():
        given = [popxl.h2d_stream(a.shape[1:], popxl.dtypes.dtype.as_dtype(a.dtype)) for a in loaded]
        found = build(*(ops.host_load(stream) for stream in given))
        results = [found] if isinstance(found, Tensor) else list(found)
        stored = [popxl.d2h_stream(t.shape, t.dtype) for t in results]
        for stream, t in zip(stored, results, strict=True):
            ops.host_store(stream, t)
    # A program of one replica has no axis over replicas.
    inputs = {s: a if count > 1 else a[0] for s, a in zip(given, loaded, strict=True)}
    outputs: Any = {}
    with popxl.Session(ir, "cpu") as session:
        for _ in range(runs):
            outputs = session.run(inputs)
    return [np.asarray(outputs[s]).reshape(count, *s.shape) for s in stored]
