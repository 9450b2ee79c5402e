"""Every declared op, by its own samples: value, dtype, shape, text, determinism, and what it overwrites.

Nothing here knows an op: a new declaration with samples is tested as soon as it is made. Ops without a lowering
(transfers, calls) are run by the runtime itself and have tests of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

import popxl
from popxl import dtypes, ops
from popxl.aliasing import is_writable
from popxl.errors import CoreError
from popxl.op import Op
from popxl.ops._define import Declaration, Sample, define, registry, sample
from popxl.tensor import Tensor

LOWERED = [d for d in registry.values() if d.definition.lower is not None]


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


@cache
def compute(op_type: str, i: int) -> tuple[Op, tuple[np.ndarray, ...]]:
    """Call sample `i` of an op. Return the op, and its outputs, computed by jitting each lowering up to it."""
    with popxl.Ir().main_graph as graph:
        called = call(registry[op_type], fitting_samples(registry[op_type])[i])
    values: dict[Tensor, Any] = {t: device_array(t) for t in (*called.arguments, *graph.constants)}
    for op in graph.ops:
        values |= dict(zip(op.outputs, jit(op)(*(values[t] for t in op.inputs)), strict=False))
    return called.op, tuple(values[t] for t in called.op.outputs)


def jit(op: Op) -> Callable[..., tuple[np.ndarray, ...]]:
    lower = op.definition.lower
    assert lower is not None

    def run(*arrays: Any) -> tuple[np.ndarray, ...]:
        with jax.enable_x64(True):
            result = jax.jit(partial(lower, **op.attributes))(*arrays)
        return tuple(np.asarray(r) for r in (result if isinstance(result, tuple | list) else (result,)))

    return run


@dataclass(frozen=True)
class Ran:
    """What a session gave for one sample: the op's outputs, and the arguments as they were after it."""

    called: Called
    outputs: tuple[np.ndarray, ...]
    arguments: tuple[np.ndarray, ...]


def store(t: Tensor) -> popxl.DeviceToHostStream:
    stream = popxl.d2h_stream(t.shape, t.dtype)
    ops.host_store(stream, t)
    return stream


@cache
def run(op_type: str, attempt: int) -> tuple[Ran, ...]:
    """Run all samples of an op as one program; each `attempt` builds and runs it anew."""
    declaration = registry[op_type]
    ir = popxl.Ir()
    calls: list[tuple[Called, list[Any], list[Any]]] = []
    with ir.main_graph, popxl.in_sequence():
        for one in fitting_samples(declaration):
            called = call(declaration, one)
            calls.append((called, [store(t) for t in called.op.outputs], [store(t) for t in called.arguments]))
    with popxl.Session(ir) as session:
        stored = session.run()
    return tuple(
        Ran(called, tuple(stored[s] for s in outputs), tuple(stored[s] for s in arguments))
        for called, outputs, arguments in calls
    )


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


def cases(wanted: Callable[[Declaration], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Parametrize over the samples of the declared ops that are `wanted`."""

    def found() -> Iterator[Any]:
        for declaration in filter(wanted, LOWERED):
            for i in range(len(fitting_samples(declaration))):
                yield pytest.param(declaration, i, id=f"{declaration.definition.type}-{i}")

    return pytest.mark.parametrize(("declaration", "i"), list(found()))


@pytest.mark.parametrize("declaration", LOWERED, ids=lambda d: d.definition.type)
def test_an_op_with_a_lowering_has_samples_and_an_oracle(declaration: Declaration) -> None:
    assert len(fitting_samples(declaration)) > 0
    assert declaration.oracle is not None


@pytest.mark.parametrize("declaration", [d for d in LOWERED if d.twin_of], ids=lambda d: d.definition.type)
def test_an_op_in_place_is_a_view_or_overwrites(declaration: Declaration) -> None:
    assert declaration.definition.is_view != bool(declaration.definition.mutates)


# Values


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


@cases()
def test_the_lowering_agrees_with_the_oracle(declaration: Declaration, i: int) -> None:
    one = fitting_samples(declaration)[i]
    op, values = compute(declaration.definition.type, i)
    for actual, expected, t in zip(values, oracle_values(declaration, one), op.outputs, strict=True):
        assert_close(actual, expected, t, one.tolerance)


@cases()
def test_the_rule_gives_the_shape_and_dtype_of_the_lowering(declaration: Declaration, i: int) -> None:
    op, values = compute(declaration.definition.type, i)
    for actual, t in zip(values, op.outputs, strict=True):
        assert (actual.shape, actual.dtype) == (t.shape, t.dtype.storage)


@cases()
def test_a_session_agrees_with_the_lowering_bit_for_bit(declaration: Declaration, i: int) -> None:
    ran = run(declaration.definition.type, 0)[i]
    op, values = compute(declaration.definition.type, i)
    for actual, expected, t in zip(ran.outputs, values, op.outputs, strict=True):
        assert actual.dtype == t.dtype.as_numpy()
        assert_same_bits(actual, expected)


@cases()
def test_a_session_agrees_with_the_oracle(declaration: Declaration, i: int) -> None:
    one = fitting_samples(declaration)[i]
    ran = run(declaration.definition.type, 0)[i]
    for actual, expected, t in zip(ran.outputs, oracle_values(declaration, one), ran.called.op.outputs, strict=True):
        assert_close(actual, expected, t, one.tolerance)


@cases()
def test_two_programs_give_the_same_bits(declaration: Declaration, i: int) -> None:
    first, second = (run(declaration.definition.type, attempt)[i] for attempt in (0, 1))
    for a, b in zip(first.outputs, second.outputs, strict=True):
        assert_same_bits(a, b)


# Effects on the arguments


@cases(lambda d: bool(d.definition.mutates))
def test_an_op_in_place_leaves_its_result_in_its_argument(declaration: Declaration, i: int) -> None:
    ran = run(declaration.definition.type, 0)[i]
    target = ran.called.op.inputs[declaration.definition.mutates[0]]
    assert_same_bits(ran.arguments[ran.called.arguments.index(target)], ran.outputs[0])


@cases()
def test_an_op_leaves_its_other_arguments_as_they_were(declaration: Declaration, i: int) -> None:
    ran = run(declaration.definition.type, 0)[i]
    overwritten = [ran.called.op.inputs[k] for k in ran.called.op.mutates]
    for t, after in zip(ran.called.arguments, ran.arguments, strict=True):
        if t not in overwritten:
            assert_same_bits(after, device_array(t))


@pytest.mark.parametrize(
    "declaration", [d for d in LOWERED if d.twin_of and d.definition.mutates], ids=lambda d: d.definition.type
)
def test_an_op_in_place_refuses_to_change_the_shape_or_dtype_of_its_argument(declaration: Declaration) -> None:
    for one in declaration.samples():
        if grows(declaration, one):
            with popxl.Ir().main_graph, pytest.raises(CoreError, match="cannot change shape or dtype"):
                call(declaration, one)


# Views


@cases(lambda d: d.definition.is_view)
def test_what_is_written_to_a_view_is_read_from_it(declaration: Declaration, i: int) -> None:
    with popxl.Ir().main_graph:
        called = call(declaration, fitting_samples(declaration)[i])
    (view,) = called.op.outputs
    assert is_writable(view)
    codes = np.random.default_rng(i).integers(0, 2, view.shape)
    new = codes.astype(view.dtype.storage)
    bases = [device_array(t) for t in called.arguments]
    with jax.enable_x64(True):
        changed = called.op.definition.put(new, *bases, **called.op.attributes)
        again = called.op.definition.lower(*changed, **called.op.attributes)
    assert_same_bits(again, new)


@cases(lambda d: d.definition.is_view)
def test_writing_what_a_view_holds_changes_nothing(declaration: Declaration, i: int) -> None:
    with popxl.Ir().main_graph:
        called = call(declaration, fitting_samples(declaration)[i])
    bases = [device_array(t) for t in called.arguments]
    with jax.enable_x64(True):
        new = called.op.definition.lower(*bases, **called.op.attributes)
        changed = called.op.definition.put(new, *bases, **called.op.attributes)
    for actual, expected in zip(changed, bases, strict=True):
        assert_same_bits(actual, expected)


# Text


@cases()
def test_the_text_of_a_program_shows_the_op_with_its_type(declaration: Declaration, i: int) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        op = call(declaration, fitting_samples(declaration)[i]).op
    names = ", ".join(t.name for t in op.outputs)
    types = ", ".join(f"{t.dtype.name}{list(t.shape)}" for t in op.outputs)
    (line,) = [line.strip() for line in str(ir).splitlines() if line.strip().startswith(f"{names} = ")]
    assert line.startswith(f"{names} = {declaration.definition.type}(")
    shown, _, aliased = line.rpartition(" : ")[2].partition(" alias of ")
    # Only a copy to another IPU is placed anywhere but on IPU 0 here.
    assert shown == types + (f" on ipu {op.ipu}" if op.ipu else "")
    assert bool(aliased) == bool(op.aliases)


# One declaration is all that a new op takes


@pytest.fixture
def toy() -> Iterator[Declaration]:
    def triple(t: Tensor) -> Tensor:
        return declaration.emit({"t": t}, "triple_out")[0]

    declaration = define(
        "ToyTriple",
        triple,
        lower=lambda t: t + t + t,
        oracle=lambda t: 3 * t,
        samples=lambda: (sample(np.array([1.0, -2.5], np.float32)),),
    )
    yield declaration
    del registry["ToyTriple"]


def test_one_define_call_makes_an_op_that_runs(toy: Declaration) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        out = store(toy.function(popxl.variable(np.array([1.0, -2.5], np.float32))))
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[out], [3.0, -7.5])


def test_one_define_call_makes_an_op_that_the_registry_knows(toy: Declaration) -> None:
    assert registry["ToyTriple"] is toy


def test_one_define_call_makes_an_op_that_has_a_text(toy: Declaration) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        toy.function(popxl.variable(np.array([1.0, -2.5], np.float32), name="x"))
    assert "triple_out = ToyTriple(x) : float32[2]" in str(ir)
