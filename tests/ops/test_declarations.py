"""Every declared op, by its own samples: value, dtype, shape, text, determinism, and what it overwrites.

Nothing here knows an op: a new declaration with samples is tested as soon as it is made. Ops without a lowering
(transfers, calls) are run by the runtime itself and have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from declared import (
    LOWERED,
    Called,
    assert_close,
    assert_same_bits,
    call,
    device_array,
    fitting_samples,
    grows,
    name_of,
    oracle_values,
    store,
)

import popxl
from popxl.aliasing import is_writable
from popxl.errors import CoreError
from popxl.op import Op, as_results
from popxl.ops._define import Declaration, define, registry, sample
from popxl.tensor import Tensor


@cache
def compute(declaration: Declaration) -> tuple[tuple[Op, tuple[np.ndarray, ...]], ...]:
    """Call all samples of an op. Return for each the op, and its outputs, computed by jitting the lowerings."""
    with popxl.Ir().main_graph as graph:
        called = [call(declaration, one) for one in fitting_samples(declaration)]
    leaves = [*(t for c in called for t in c.arguments), *graph.constants]

    def lowered(arrays: list[Any]) -> list[tuple[Any, ...]]:
        values: dict[Tensor, Any] = dict(zip(leaves, arrays, strict=True))
        for op in graph.ops:
            if op.outputs:
                assert op.definition.lower is not None
                results = op.definition.lower(*(values[t] for t in op.inputs), **op.attributes)
                values |= dict(zip(op.outputs, as_results(results), strict=False))
        return [tuple(values[t] for t in c.op.outputs) for c in called]

    with jax.enable_x64(True):
        results = jax.jit(lowered)([device_array(t) for t in leaves])
    return tuple((c.op, tuple(np.asarray(r) for r in outputs)) for c, outputs in zip(called, results, strict=True))


@dataclass(frozen=True)
class Ran:
    """What a session gave for one sample: the op's outputs, and the arguments as they were after it."""

    called: Called
    outputs: tuple[np.ndarray, ...]
    arguments: tuple[np.ndarray, ...]


@cache
def run(declaration: Declaration) -> tuple[tuple[Ran, ...], tuple[Ran, ...]]:
    """Run all samples of an op as one program, twice, each time from the same values."""
    ir = popxl.Ir()
    calls: list[tuple[Called, list[Any], list[Any]]] = []
    with ir.main_graph, popxl.in_sequence():
        for one in fitting_samples(declaration):
            called = call(declaration, one)
            calls.append((called, [store(t) for t in called.op.outputs], [store(t) for t in called.arguments]))
    initial = {v: np.array(v.host_value) for v in ir.main_graph.variables}
    with popxl.Session(ir) as session:
        first = session.run()
        session.write_variables_data(initial)
        second = session.run()

    def ran(stored: Any) -> tuple[Ran, ...]:
        return tuple(
            Ran(called, tuple(stored[s] for s in outputs), tuple(stored[s] for s in arguments))
            for called, outputs, arguments in calls
        )

    return ran(first), ran(second)


def cases(wanted: Callable[[Declaration], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Parametrize over the samples of the declared ops that are `wanted`."""

    def found() -> Iterator[Any]:
        for declaration in filter(wanted, LOWERED):
            for i in range(len(fitting_samples(declaration))):
                name = name_of(declaration)
                # One worker runs all tests of an op: it builds, compiles and runs its programs once.
                yield pytest.param(declaration, i, id=f"{name}-{i}", marks=pytest.mark.xdist_group(name))

    return pytest.mark.parametrize(("declaration", "i"), list(found()))


@pytest.mark.parametrize("declaration", LOWERED, ids=name_of)
def test_an_op_with_a_lowering_has_samples_and_an_oracle(declaration: Declaration) -> None:
    assert len(fitting_samples(declaration)) > 0
    assert declaration.oracle is not None


@pytest.mark.parametrize("declaration", [d for d in LOWERED if d.twin_of], ids=name_of)
def test_an_op_in_place_is_a_view_or_overwrites(declaration: Declaration) -> None:
    assert declaration.definition.is_view != bool(declaration.definition.mutates)


# Values


@cases()
def test_the_lowering_agrees_with_the_oracle(declaration: Declaration, i: int) -> None:
    one = fitting_samples(declaration)[i]
    op, values = compute(declaration)[i]
    for actual, expected, t in zip(values, oracle_values(declaration, one), op.outputs, strict=True):
        assert_close(actual, expected, t, one.tolerance)


@cases()
def test_the_rule_gives_the_shape_and_dtype_of_the_lowering(declaration: Declaration, i: int) -> None:
    op, values = compute(declaration)[i]
    for actual, t in zip(values, op.outputs, strict=True):
        assert (actual.shape, actual.dtype) == (t.shape, t.dtype.storage)


@cases()
def test_a_session_agrees_with_the_lowering_bit_for_bit(declaration: Declaration, i: int) -> None:
    ran = run(declaration)[0][i]
    op, values = compute(declaration)[i]
    for actual, expected, t in zip(ran.outputs, values, op.outputs, strict=True):
        assert actual.dtype == t.dtype.as_numpy()
        assert_same_bits(actual, expected)


@cases()
def test_a_session_agrees_with_the_oracle(declaration: Declaration, i: int) -> None:
    one = fitting_samples(declaration)[i]
    ran = run(declaration)[0][i]
    for actual, expected, t in zip(ran.outputs, oracle_values(declaration, one), ran.called.op.outputs, strict=True):
        assert_close(actual, expected, t, one.tolerance)


@cases()
def test_a_second_run_gives_the_same_bits(declaration: Declaration, i: int) -> None:
    first, second = (attempt[i] for attempt in run(declaration))
    for a, b in zip((*first.outputs, *first.arguments), (*second.outputs, *second.arguments), strict=True):
        assert_same_bits(a, b)


# Effects on the arguments


@cases(lambda d: bool(d.definition.mutates))
def test_an_op_in_place_leaves_its_result_in_its_argument(declaration: Declaration, i: int) -> None:
    ran = run(declaration)[0][i]
    target = ran.called.op.inputs[declaration.definition.mutates[0]]
    assert_same_bits(ran.arguments[ran.called.arguments.index(target)], ran.outputs[0])


@cases()
def test_an_op_leaves_its_other_arguments_as_they_were(declaration: Declaration, i: int) -> None:
    ran = run(declaration)[0][i]
    overwritten = [ran.called.op.inputs[k] for k in ran.called.op.mutates]
    for t, after in zip(ran.called.arguments, ran.arguments, strict=True):
        if t not in overwritten:
            assert_same_bits(after, device_array(t))


@pytest.mark.parametrize("declaration", [d for d in LOWERED if d.twin_of and d.definition.mutates], ids=name_of)
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
