"""Runs one op by itself: its values, and the gradients of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from declared import store

import popxl
from popxl import dtypes
from popxl.ops._gradient import add_gradient_op
from popxl.tensor import Tensor


def variable(array: Any) -> Tensor:
    array = np.asarray(array)
    return popxl.variable(array, dtypes.dtype.as_dtype(array.dtype))


def values_and_gradients(
    function: Callable[..., Any], arrays: Sequence[Any], given: Mapping[int, Any], wrt: Sequence[int] = ()
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Call `function` with a variable for each array.

    Returns:
        The outputs of the op that made what `function` returns (the first, if several), and the gradients of its
        inputs `wrt`, given those of some outputs by their number. Gradients given broadcast.
    """
    ir = popxl.Ir()
    with ir.main_graph:
        op = _outputs(function(*(variable(a) for a in arrays)))[0].producer
        assert op is not None
        grads: dict[int, Tensor] = {}
        for k, g in given.items():
            t = op.outputs[k]
            grads[k] = variable(np.broadcast_to(np.asarray(g), t.shape).astype(t.dtype.storage))
        added = add_gradient_op(op, grads, wrt) if wrt else ()
        found = _run(ir, [*op.outputs, *added])
    return found[: len(op.outputs)], found[len(op.outputs) :]


def values(function: Callable[..., Any], *arrays: Any) -> list[np.ndarray]:
    """What `function` returns, given `arrays` as tensors."""
    ir = popxl.Ir()
    with ir.main_graph:
        return _run(ir, _outputs(function(*(variable(a) for a in arrays))))


def gradients(
    function: Callable[..., Any], arrays: Sequence[Any], given: Mapping[int, Any] | Any, wrt: Sequence[int]
) -> list[np.ndarray]:
    """The gradients of inputs of an op, given those of its outputs by number, or that of the first."""
    return values_and_gradients(function, arrays, given if isinstance(given, Mapping) else {0: given}, wrt)[1]


def result_of(function: Callable[..., Tensor], array: Any, *args: Any, **kwargs: Any) -> np.ndarray:
    """The value of ``function(array, *args, **kwargs)``, as a session gives it."""
    return values_and_gradients(lambda t: function(t, *args, **kwargs), [array], {})[0][0]


def gradient_of(function: Callable[..., Tensor], array: Any, *args: Any, g: Any, **kwargs: Any) -> np.ndarray:
    """The gradient by `array`, given that of the result, `g`, which broadcasts to its shape."""
    (gradient,) = gradients(lambda t: function(t, *args, **kwargs), [array], g, [0])
    return gradient


def _outputs(result: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [result] if isinstance(result, Tensor) else result


def _run(ir: popxl.Ir, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Store the tensors of the main graph, which is the current one, and run it."""
    streams = [store(t) for t in tensors]
    with popxl.Session(ir) as session:
        stored = session.run()
    return [np.asarray(stored[s]) for s in streams]
