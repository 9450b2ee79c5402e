"""Runs a graph and its gradient graph, and returns the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from declared import store
from op_gradients import variable

import popxl
from popxl import ops, transforms
from popxl.tensor import Tensor


def new_graph(function: Callable[..., Any], *args: Any) -> popxl.Graph:
    """A graph in the current program."""
    return popxl.gcg().ir.create_graph(function, *args)


def gradients(
    function: Callable[..., Any],
    arrays: Sequence[Any],
    outer: Sequence[Any] | None = None,
    *,
    required: Sequence[int] | None = None,
    provided: Sequence[int] | None = None,
) -> list[Any]:
    """Differentiate the graph of `function`, and run it at `arrays`.

    Args:
        function: Takes tensors, returns tensors.
        arrays: Its arguments; lists of numbers are float32.
        outer: The gradients of the provided outputs; ones if not given.
        required: The inputs whose gradients are wanted, by number; all if not given.
        provided: The outputs whose gradients are given, by number; all if not given.

    Returns:
        The gradients, as (nested lists of) numbers.
    """
    ir = popxl.Ir()
    with ir.main_graph:
        arguments = [variable(as_array(a)) for a in arrays]
        forward = ir.create_graph(function, *arguments)
        goals = forward.outputs if provided is None else [forward.outputs[k] for k in provided]
        wanted = forward.inputs if required is None else [forward.inputs[i] for i in required]
        info = transforms.autodiff(forward, goals, wanted)
        call = ops.call_with_info(forward, *arguments)
        given = [1.0] * len(goals) if outer is None else outer
        seeds = [seed(t, g) for t, g in zip(goals, given, strict=True)]
        found = ops.call(info.graph, *seeds, inputs_dict=info.inputs_dict(call))
        streams = [store(t) for t in found]
    with popxl.Session(ir) as session:
        stored = session.run()
    return [np.asarray(stored[s]).tolist() for s in streams]


def as_array(a: Any) -> np.ndarray:
    """Lists of floats as float32; arrays and ints as they are (int32 for ints)."""
    if isinstance(a, np.ndarray | np.generic):
        return np.asarray(a)
    array = np.asarray(a)
    return array.astype({"f": np.float32, "i": np.int32}.get(array.dtype.kind, array.dtype))


def seed(t: Tensor, value: Any) -> Tensor:
    """The gradient of `t`: `value`, which broadcasts to its shape."""
    array = np.broadcast_to(np.asarray(value), t.shape).astype(t.dtype.storage)
    return popxl.constant(array, t.dtype)
