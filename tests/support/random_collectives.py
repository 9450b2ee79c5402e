"""Collectives of random numbers on four replicas, to be compared between one process and several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import popxl
from popxl.ops import collectives

COUNT, GROUP_SIZE = 4, 2
OPS: tuple[Any, ...] = ("add", "mean", "mul", "min", "max", "square_add")
INTEGERS = np.random.default_rng(0).integers(-1000, 1000, (COUNT, 5, 7)).astype(np.int32)
FLOATS = np.random.default_rng(1).normal(size=(COUNT, 5, 7)).astype(np.float32)


def build(t: Any) -> list[Any]:
    """Each collective, over all replicas and over pairs of them."""
    results: list[Any] = []
    for group in (None, popxl.gcg().ir.replica_grouping(2, GROUP_SIZE)):
        results += [collectives.replicated_all_reduce(t, op, group) for op in OPS]
        results += [collectives.replicated_reduce_scatter(t, op, group) for op in OPS]
        results += [collectives.replicated_all_gather(t, 1, group)]
    return results


def results(run_replicas: Callable[..., list[np.ndarray]]) -> dict[str, np.ndarray]:
    """What all replicas have, by name."""
    found = {"int32": run_replicas(build, INTEGERS), "float32": run_replicas(build, FLOATS)}
    return {f"{dtype} {k}": array for dtype, arrays in found.items() for k, array in enumerate(arrays)}
