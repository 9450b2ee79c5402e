"""Declared ops as tests see them: their samples, called in a graph, run, and computed by their oracles."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import popxl
from popxl import dtypes, ops
from popxl.op import Op
from popxl.ops._define import Declaration, Sample, registry, variants
from popxl.tensor import Tensor

LOWERED = [d for d in (*registry.values(), *variants) if d.definition.lower is not None and d.definition.across is None]
"""Ops across replicas have tests of their own."""


def name_of(declaration: Declaration) -> str:
    """The type of a declared op; of a function that is not its type's only one, with the function."""
    name = declaration.definition.type
    return f"{name}.{declaration.function.__name__}" if declaration in variants else name


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def convert(value: Any, array: Callable[[np.ndarray], Any]) -> Any:
    """Apply `array` to the arrays of an argument, which may be a sequence of them."""
    if is_array(value):
        return array(np.asarray(value))
    if isinstance(value, list | tuple):
        return type(value)(convert(v, array) for v in value)
    return value


def bits(value: Any) -> np.ndarray:
    """The bytes of an array, whatever its dtype; arrays are the same only if these and the shapes are."""
    return np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)


def assert_same_bits(actual: Any, expected: Any) -> None:
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_array_equal(bits(actual), bits(expected))


def device_array(t: Any) -> np.ndarray:
    """The host value of a variable as the device has it: float8 as codes."""
    return t.host_value.view(t.dtype.storage)


# Programs


@dataclass(frozen=True)
class Called:
    """One sample, called in a graph: its op, and the tensors made of the sample's arrays."""

    op: Op
    arguments: tuple[Tensor, ...]


def call(declaration: Declaration, one: Sample) -> Called:
    """Call the public function of `declaration` in the current graph."""
    arguments: list[Tensor] = []

    def variable(array: np.ndarray) -> Tensor:
        arguments.append(popxl.variable(array, dtypes.dtype.as_dtype(array.dtype), name="x"))
        return arguments[-1]

    declaration.function(*convert(one.args, variable), **one.kwargs)
    own = [op for op in arguments[0].graph.ops if op.type == declaration.definition.type] if arguments else []
    op = own[-1] if own else popxl.gcg().ops[-1]
    assert op.type == declaration.definition.type, f"{declaration.function.__name__} made {op} instead"
    return Called(op, tuple(arguments))


def store(t: Tensor) -> popxl.DeviceToHostStream:
    stream = popxl.d2h_stream(t.shape, t.dtype)
    ops.host_store(stream, t)
    return stream


# Which samples


def grows(declaration: Declaration, one: Sample) -> bool:
    """Whether the op that `declaration` does in place would change the shape or dtype of what is overwritten."""
    if declaration.twin_of is None or not declaration.definition.mutates:
        return False
    with popxl.Ir().main_graph:
        op = call(declaration.twin_of, one).op
    target = op.inputs[declaration.definition.mutates[0]]
    return (op.outputs[0].shape, op.outputs[0].dtype) != (target.shape, target.dtype)


@cache
def fitting_samples(declaration: Declaration) -> list[Sample]:
    return [one for one in declaration.samples() if not grows(declaration, one)]


# Oracles


def oracle_values(declaration: Declaration, one: Sample) -> list[np.ndarray]:
    def widen(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float64) if array.dtype.kind == "f" else array

    assert declaration.oracle is not None
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = declaration.oracle(*convert(one.args, widen), **one.kwargs)
    return [np.asarray(r) for r in (result if isinstance(result, tuple | list) else [result])]


def assert_close(actual: Any, expected: np.ndarray, t: Tensor, tolerance: float) -> None:
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    if expected.dtype.names or t.dtype.storage.kind != "f":
        assert_same_bits(actual, expected.astype(t.dtype.as_numpy()))
        return
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = expected.astype(t.dtype.storage).astype(np.float64)
    np.testing.assert_allclose(actual.astype(np.float64), rounded, rtol=tolerance, atol=tolerance)
