"""Runs small programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import popxl
from popxl import ops


def run(build: Callable[[popxl.Ir], Sequence[popxl.Tensor]], runs: int = 1) -> list[Any]:
    """Build a main graph, run it `runs` times, and return the last values of the tensors that `build` returns."""
    ir = popxl.Ir()
    with ir.main_graph:
        wanted = build(ir)
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in wanted]
        for stream, t in zip(streams, wanted, strict=True):
            ops.host_store(stream, t)
    with popxl.Session(ir) as session:
        for _ in range(runs):
            found = session.run()
    return [found[stream].tolist() for stream in streams]
