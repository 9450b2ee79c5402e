"""Every declared op, by its own samples: value, dtype, shape, text, determinism, and what it overwrites.

Nothing here knows an op: a new declaration with samples is tested as soon as it is made. Ops without a lowering
(transfers, calls) are run by the runtime itself and have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from popxl.ops._define import Declaration, Sample, define, registry, sample
from popxl.tensor import Tensor


@dataclass(frozen=True)
class Lowerings:
    """Calls of an op, and one function of all their arrays that does what the lowerings of their ops do."""

    called: list[Called]
    function: Callable[[list[Any]], list[tuple[Any, ...]]]
    arrays: list[np.ndarray]

    def computed(self) -> list[tuple[np.ndarray, ...]]:
        """The outputs of each call, computed by jitting the lowerings."""
        with jax.enable_x64(True):
            results = jax.jit(self.function)(self.arrays)
        return [tuple(np.asarray(r) for r in outputs) for outputs in results]

    def promised(self) -> list[tuple[Any, ...]]:
        """The shapes and dtypes of the outputs of each call, without computing them."""
        with jax.enable_x64(True):
            return jax.eval_shape(self.function, self.arrays)


def lowerings(declaration: Declaration, samples: Sequence[Sample]) -> Lowerings:
    with popxl.Ir().main_graph as graph:
        called = [call(declaration, one) for one in samples]
    leaves = [*(t for c in called for t in c.arguments), *graph.constants]

    def lowered(arrays: list[Any]) -> list[tuple[Any, ...]]:
        values: dict[Tensor, Any] = dict(zip(leaves, arrays, strict=True))
        for op in graph.ops:
            if op.outputs:
                assert op.definition.lower is not None
                results = op.definition.lower(*(values[t] for t in op.inputs), **op.attributes)
                values |= dict(zip(op.outputs, as_results(results), strict=False))
        return [tuple(values[t] for t in c.op.outputs) for c in called]

    return Lowerings(called, lowered, [device_array(t) for t in leaves])


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
    samples = fitting_samples(declaration)  # first: it makes programs of its own
    with ir.main_graph, popxl.in_sequence():
        for one in samples:
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


def of_each(wanted: Callable[[Declaration], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Parametrize over the declared ops that are `wanted`."""
    # One worker runs all tests of an op: it builds, compiles and runs its programs once.
    found = [pytest.param(d, id=name_of(d), marks=pytest.mark.xdist_group(name_of(d))) for d in filter(wanted, LOWERED)]
    return pytest.mark.parametrize("declaration", found)


@contextmanager
def sample_number(i: int, one: Sample) -> Iterator[None]:
    """Say of which sample a failure is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"sample {i}: {one}")
        raise


def for_each_sample(declaration: Declaration, check: Callable[[Sample, Ran], None]) -> None:
    """Check what a session gave for each sample of an op."""
    for i, (one, ran) in enumerate(zip(fitting_samples(declaration), run(declaration)[0], strict=True)):
        with sample_number(i, one):
            check(one, ran)


@pytest.mark.parametrize("declaration", LOWERED, ids=name_of)
def test_an_op_with_a_lowering_has_samples_and_an_oracle(declaration: Declaration) -> None:
    assert len(fitting_samples(declaration)) > 0
    assert declaration.oracle is not None


@pytest.mark.parametrize("declaration", [d for d in LOWERED if d.twin_of], ids=name_of)
def test_an_op_in_place_is_a_view_or_overwrites(declaration: Declaration) -> None:
    assert declaration.definition.is_view != bool(declaration.definition.mutates)


# Values


@of_each()
def test_the_lowering_gives_the_first_sample_what_the_session_does_bit_for_bit(declaration: Declaration) -> None:
    compare_with_lowering(declaration, fitting_samples(declaration)[:1])


@of_each()
@pytest.mark.nightly
def test_the_lowering_gives_each_sample_what_the_session_does_bit_for_bit(declaration: Declaration) -> None:
    compare_with_lowering(declaration, fitting_samples(declaration))


def compare_with_lowering(declaration: Declaration, samples: Sequence[Sample]) -> None:
    values = lowerings(declaration, samples).computed()
    for i, (ran, outputs) in enumerate(zip(run(declaration)[0], values, strict=False)):
        with sample_number(i, samples[i]):
            for actual, expected in zip(ran.outputs, outputs, strict=True):
                assert_same_bits(actual, expected)
    assert len(values) == len(samples)


@of_each()
def test_the_rule_gives_the_shape_and_dtype_of_the_lowering(declaration: Declaration) -> None:
    samples = fitting_samples(declaration)
    found = lowerings(declaration, samples)
    for i, (called, outputs) in enumerate(zip(found.called, found.promised(), strict=True)):
        with sample_number(i, samples[i]):
            for actual, t in zip(outputs, called.op.outputs, strict=True):
                assert (actual.shape, actual.dtype) == (t.shape, t.dtype.storage)


@of_each()
def test_a_session_agrees_with_the_oracle(declaration: Declaration) -> None:
    def check(one: Sample, ran: Ran) -> None:
        values = oracle_values(declaration, one)
        for actual, expected, t in zip(ran.outputs, values, ran.called.op.outputs, strict=True):
            assert actual.dtype == t.dtype.as_numpy()
            assert_close(actual, expected, t, one.tolerance)

    for_each_sample(declaration, check)


@of_each()
def test_a_second_run_gives_the_same_bits(declaration: Declaration) -> None:
    first, second = run(declaration)
    for i, one in enumerate(fitting_samples(declaration)):
        with sample_number(i, one):
            before, after = ((*ran[i].outputs, *ran[i].arguments) for ran in (first, second))
            for a, b in zip(before, after, strict=True):
                assert_same_bits(a, b)


# Effects on the arguments


@of_each(lambda d: bool(d.definition.mutates))
def test_an_op_in_place_leaves_its_result_in_its_argument(declaration: Declaration) -> None:
    def check(_: Sample, ran: Ran) -> None:
        target = ran.called.op.inputs[declaration.definition.mutates[0]]
        assert_same_bits(ran.arguments[ran.called.arguments.index(target)], ran.outputs[0])

    for_each_sample(declaration, check)


@of_each()
def test_an_op_leaves_its_other_arguments_as_they_were(declaration: Declaration) -> None:
    def check(_: Sample, ran: Ran) -> None:
        overwritten = [ran.called.op.inputs[k] for k in ran.called.op.mutates]
        for t, after in zip(ran.called.arguments, ran.arguments, strict=True):
            if t not in overwritten:
                assert_same_bits(after, device_array(t))

    for_each_sample(declaration, check)


@pytest.mark.parametrize("declaration", [d for d in LOWERED if d.twin_of and d.definition.mutates], ids=name_of)
def test_an_op_in_place_refuses_to_change_the_shape_or_dtype_of_its_argument(declaration: Declaration) -> None:
    for one in declaration.samples():
        if grows(declaration, one):
            with popxl.Ir().main_graph, pytest.raises(CoreError, match="cannot change shape or dtype"):
                call(declaration, one)


# Views


@of_each(lambda d: d.definition.is_view)
def test_what_is_written_to_a_view_is_read_from_it(declaration: Declaration) -> None:
    for i, one in enumerate(fitting_samples(declaration)):
        with sample_number(i, one), popxl.Ir().main_graph:
            called = call(declaration, one)
            (view,) = called.op.outputs
            assert is_writable(view)
            codes = np.random.default_rng(i).integers(0, 2, view.shape)
            new = codes.astype(view.dtype.storage)
            bases = [device_array(t) for t in called.arguments]
            with jax.enable_x64(True):
                changed = called.op.definition.put(new, *bases, **called.op.attributes)
                again = called.op.definition.lower(*changed, **called.op.attributes)
            assert_same_bits(again, new)


@of_each(lambda d: d.definition.is_view)
def test_writing_what_a_view_holds_changes_nothing(declaration: Declaration) -> None:
    for i, one in enumerate(fitting_samples(declaration)):
        with sample_number(i, one), popxl.Ir().main_graph:
            called = call(declaration, one)
            bases = [device_array(t) for t in called.arguments]
            with jax.enable_x64(True):
                new = called.op.definition.lower(*bases, **called.op.attributes)
                changed = called.op.definition.put(new, *bases, **called.op.attributes)
            for actual, expected in zip(changed, bases, strict=True):
                assert_same_bits(actual, expected)


# Text


@of_each()
def test_the_text_of_a_program_shows_the_op_with_its_type(declaration: Declaration) -> None:
    for i, one in enumerate(fitting_samples(declaration)):
        ir = popxl.Ir()
        with sample_number(i, one), ir.main_graph:
            op = call(declaration, one).op
            check_line(declaration, str(ir), op)


def check_line(declaration: Declaration, text: str, op: Op) -> None:
    names = ", ".join(t.name for t in op.outputs)
    types = ", ".join(f"{t.dtype.name}{list(t.shape)}" for t in op.outputs)
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith(f"{names} = ")]
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
