"""Every gradient op: against central differences of the oracle in float64, in each float dtype, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from declared import LOWERED, Called, call, convert, fitting_samples, name_of, oracle_values, store

import popxl
from popxl import ops
from popxl.ops._define import FLOATS, Declaration, Sample, registry
from popxl.ops._gradient import add_gradient_op, differentiable_inputs, gradient_definition, needed_tensors
from popxl.tensor import Tensor

HAVE_ONE = [d for d in LOWERED if d.definition.gradient and not d.definition.gradient.refusal and d.twin_of is None]
POINTS = 12
"""Elements of an input at which differences are taken, at most."""


def only_finite(one: Sample) -> bool:
    found: list[bool] = []
    convert(one.args, lambda a: found.append(a.dtype.kind != "f" or bool(np.isfinite(a).all())))
    return all(found)


def widened(one: Sample) -> Sample:
    return replace(one, args=convert(one.args, lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a))


def smooth_samples(declaration: Declaration) -> list[Sample]:
    return [one for one in fitting_samples(declaration) if one.smooth and only_finite(one)]


@dataclass(frozen=True)
class Gradients:
    """What a session gave for one sample: the gradients given, by output, and those found twice, by argument."""

    given: dict[int, np.ndarray]
    found: dict[int, np.ndarray]
    again: dict[int, np.ndarray]


def build(
    declaration: Declaration, one: Sample, seed: int
) -> tuple[Called, dict[int, np.ndarray], dict[int, Any]] | None:
    """Call an op, and the op of its gradients with respect to its arguments. None if no argument has one."""
    called = call(declaration, one)
    numbers = {i: called.arguments.index(called.op.inputs[i]) for i in wanted_inputs(called)}
    if not numbers:
        return None
    rng = np.random.default_rng(seed)
    given = {
        k: rng.uniform(0.5, 1.5, t.shape).astype(t.dtype.storage) * np.where(rng.random(t.shape) < 0.5, -1, 1)
        for k, t in enumerate(called.op.outputs)
        if t.dtype in FLOATS
    }
    given = {k: g.astype(called.op.outputs[k].dtype.storage) for k, g in given.items()}
    grads = add_gradient_op(
        called.op, {k: popxl.variable(g, called.op.outputs[k].dtype) for k, g in given.items()}, list(numbers)
    )
    for i, grad in zip(numbers, grads, strict=True):
        assert (grad.shape, grad.dtype) == (called.op.inputs[i].shape, called.op.inputs[i].dtype)
    return called, given, {numbers[i]: store(g) for i, g in zip(numbers, grads, strict=True)}


def wanted_inputs(called: Called) -> list[int]:
    """The inputs with a gradient that are arguments themselves, not casts of one or numbers."""
    return [i for i in differentiable_inputs(called.op) if called.op.inputs[i] in called.arguments]


@cache
def run(declaration: Declaration, in_float64: bool) -> dict[int, Gradients]:
    """Run the gradients of all smooth samples of an op as one program. The keys are the samples' numbers."""
    ir = popxl.Ir()
    built: dict[int, Any] = {}
    with ir.main_graph, popxl.in_sequence():
        for i, one in enumerate(smooth_samples(declaration)):
            found = build(declaration, widened(one) if in_float64 else one, seed=i)
            if found:
                built[i] = found
    with popxl.Session(ir) as session:
        runs = [session.run() for _ in range(2)]
    return {
        i: Gradients(given, *({n: stored[s] for n, s in streams.items()} for stored in runs))
        for i, (_, given, streams) in built.items()
    }


def arrays_of(one: Sample) -> list[np.ndarray]:
    arrays: list[np.ndarray] = []
    convert(one.args, lambda a: arrays.append(a.copy()))
    return arrays


def with_arrays(one: Sample, arrays: Sequence[np.ndarray]) -> Sample:
    left = iter(arrays)
    return replace(one, args=convert(one.args, lambda _: next(left)))


def difference(
    declaration: Declaration, one: Sample, given: Mapping[int, np.ndarray], number: int, place: Any
) -> float:
    """The derivative of the sum of the outputs times `given`, by one element of one argument."""

    def total(arrays: Sequence[np.ndarray]) -> float:
        values = oracle_values(declaration, with_arrays(one, arrays))
        return float(np.sum([np.sum(np.float64(g) * values[k]) for k, g in given.items()]))

    arrays = arrays_of(one)
    step = 4e-6 * max(1.0, abs(float(arrays[number][place])))
    sides: list[float] = []
    for sign in (1, -1):
        moved = [a.copy() for a in arrays]
        moved[number][place] += sign * step
        sides.append(total(moved))
    return (sides[0] - sides[1]) / (2 * step)


def some_places(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All places of a small array; some of a large one."""
    count = int(np.prod(shape, dtype=int))
    chosen = range(count) if count <= POINTS else np.random.default_rng(count).choice(count, POINTS, replace=False)
    return [tuple(int(n) for n in np.unravel_index(k, shape)) for k in chosen] if count else []


def of_each(declarations: Sequence[Declaration]) -> pytest.MarkDecorator:
    # One worker runs all tests of an op: it builds, compiles and runs its programs once.
    cases = [pytest.param(d, id=name_of(d), marks=pytest.mark.xdist_group(name_of(d))) for d in declarations]
    return pytest.mark.parametrize("declaration", cases)


@of_each(HAVE_ONE)
def test_the_gradient_is_that_of_the_oracle(declaration: Declaration) -> None:
    compared = 0
    for i, gradients in run(declaration, True).items():
        one = widened(smooth_samples(declaration)[i])
        for number, found in gradients.found.items():
            places = some_places(found.shape)
            expected = [difference(declaration, one, gradients.given, number, place) for place in places]
            actual = [found[place] for place in places]
            np.testing.assert_allclose(
                actual, expected, rtol=2e-6, atol=2e-6, err_msg=f"sample {i}, argument {number}, at {places}"
            )
            compared += len(places)
    assert compared > 0, "no sample is smooth, finite and not empty"


@of_each(HAVE_ONE)
def test_the_gradient_in_each_dtype_is_that_in_float64(declaration: Declaration) -> None:
    narrow, wide = (run(declaration, in_float64) for in_float64 in (False, True))
    for i, gradients in narrow.items():
        one = smooth_samples(declaration)[i]
        widest = max(gradients.given.values(), key=lambda g: g.dtype.itemsize, default=np.zeros(0))
        narrowest = min([a.dtype for a in arrays_of(one) if a.dtype.kind == "f"], key=lambda d: d.itemsize)
        tolerance = {2: 2e-2, 4: 2e-4, 8: 1e-9}[min(narrowest.itemsize, widest.dtype.itemsize)]
        for number, found in gradients.found.items():
            expected = wide[i].found[number]
            scale = max(1.0, float(np.abs(expected).max(initial=0)))
            np.testing.assert_allclose(
                found.astype(np.float64),
                expected,
                rtol=tolerance,
                atol=tolerance * scale,
                err_msg=f"sample {i}, argument {number}",
            )


@of_each(HAVE_ONE)
def test_a_second_run_gives_the_same_gradients_bit_for_bit(declaration: Declaration) -> None:
    for i, gradients in run(declaration, False).items():
        for number, found in gradients.found.items():
            same = found.tobytes() == gradients.again[number].tobytes()
            assert same, f"sample {i}, argument {number}"


@of_each([d for d in LOWERED if d.definition.mutates])
def test_an_op_that_overwrites_has_no_gradient(declaration: Declaration) -> None:
    assert declaration.definition.gradient is None


@of_each([d for d in LOWERED if d.definition.is_view and d.twin_of])
def test_a_view_has_the_gradient_of_its_copy(declaration: Declaration) -> None:
    assert declaration.twin_of is not None
    assert declaration.definition.gradient is declaration.twin_of.definition.gradient


# What gradients need


def of_shape(*shape: int) -> Tensor:
    return popxl.variable(np.linspace(0.5, 1.5, int(np.prod(shape))).reshape(shape).astype(np.float32))


NEEDS: Mapping[str, tuple[Callable[[], Tensor], str]] = {
    "add": (lambda: ops.add(of_shape(2, 3), of_shape(3)), ""),
    "sub": (lambda: ops.sub(of_shape(2, 3), of_shape(3)), ""),
    "mul": (lambda: ops.mul(of_shape(2, 3), of_shape(3)), "01"),
    "matmul": (lambda: ops.matmul(of_shape(2, 3), of_shape(3, 4)), "01"),
    "sum": (lambda: ops.sum(of_shape(2, 3), 1), ""),
    "mean": (lambda: ops.mean(of_shape(2, 3), 1), ""),
    "transpose": (lambda: ops.transpose(of_shape(2, 3)), ""),
    "reshape_": (lambda: ops.reshape_(of_shape(2, 3), (6,)), ""),
    "slice": (lambda: ops.slice(of_shape(5), 1, 3), ""),
    "concat": (lambda: ops.concat([of_shape(2), of_shape(3)]), ""),
    "cast": (lambda: ops.cast(of_shape(2), popxl.float16), ""),
    "log": (lambda: ops.log(of_shape(2)), "0"),
    "gelu": (lambda: ops.gelu(of_shape(2)), "0"),
    "exp": (lambda: ops.exp(of_shape(2)), "y"),
    "tanh": (lambda: ops.tanh(of_shape(2)), "y"),
    "sqrt": (lambda: ops.sqrt(of_shape(2)), "y"),
    "relu": (lambda: ops.relu(of_shape(2)), "y"),
    "softmax": (lambda: ops.softmax(of_shape(2, 3), 1), "y"),
    "max": (lambda: ops.max(of_shape(2, 3), 1), "0y"),
    "where": (lambda: ops.where(popxl.variable([True, False]), of_shape(2), of_shape(2)), "0"),
    "gather": (lambda: ops.gather(of_shape(4, 2), popxl.variable([1, 1, 3])), "1"),
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_gradient_needs_only_the_forward_tensors_that_it_uses(name: str) -> None:
    make, needs = NEEDS[name]
    with popxl.Ir().main_graph:
        op = make().producer
        assert op is not None
        found = needed_tensors(op, [0], differentiable_inputs(op))
    expected = [op.outputs[0] if letter == "y" else op.inputs[int(letter)] for letter in needs]
    assert list(found) == expected


def test_a_gradient_for_one_operand_does_not_need_that_operand() -> None:
    with popxl.Ir().main_graph:
        op = ops.mul(of_shape(2), of_shape(2)).producer
        assert op is not None
        assert needed_tensors(op, [0], [0]) == (op.inputs[1],)


def test_gradients_of_outputs_that_are_not_given_count_as_zero() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = of_shape(4)
        first, _second = ops.split(x, 2)
        assert first.producer is not None
        (grad,) = add_gradient_op(first.producer, {0: popxl.variable(np.array([3.0, 4.0], np.float32))}, [0])
        stream = store(grad)
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[stream], [3, 4, 0, 0])


def test_a_gradient_op_has_a_gradient_itself() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x, one = popxl.variable(np.array([0.5, -2.0], np.float32)), popxl.variable(np.ones(2, np.float32))
        forward = ops.log(x).producer
        assert forward is not None
        (first,) = add_gradient_op(forward, {0: one}, [0])
        assert first.producer is not None
        (second,) = add_gradient_op(first.producer, {0: one}, [1])
        stream = store(second)
    with popxl.Session(ir) as session:
        np.testing.assert_allclose(session.run()[stream], [-4, -0.25], rtol=1e-6)


def test_a_gradient_op_can_be_made_in_another_graph() -> None:
    ir = popxl.Ir()

    def forward(t: Tensor) -> Tensor:
        return ops.log(t)

    x = np.array([0.5, 4.0], np.float32)
    with ir.main_graph:
        graph = ir.create_graph(forward, popxl.TensorSpec((2,), popxl.float32))
    (op,) = graph.ops

    def backward(grad: Tensor, t: Tensor) -> Tensor:
        (out,) = add_gradient_op(op, {0: grad}, [0], forward={op.inputs[0]: t}.__getitem__)
        return out

    with ir.main_graph:
        one = popxl.variable(np.ones(2, np.float32))
        (grad,) = ops.call(ir.create_graph(backward, one, one), one, popxl.variable(x))
        stream = store(grad)
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[stream], 1 / x)


def test_the_text_of_a_gradient_op_names_its_forward_op() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        op = ops.mul(of_shape(2, 3), of_shape(3)).producer
        assert op is not None
        add_gradient_op(op, {0: of_shape(2, 3)}, [1])
    (line,) = [line for line in str(ir).splitlines() if "MulGrad(" in line]
    assert "inputs=[float32[2, 3], float32[3]]" in line
    assert line.rstrip().endswith(": float32[3]")


@pytest.mark.parametrize("print_gradient", [True, False])
def test_the_gradient_of_a_printed_tensor_is_printed_if_asked_for(
    print_gradient: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        op = ops.print_tensor(of_shape(2), "weights", print_self=False, print_gradient=print_gradient).producer
        assert op is not None
        assert needed_tensors(op, [0], [0]) == ()
        (grad,) = add_gradient_op(op, {0: popxl.variable(np.array([3.0, 4.0], np.float32))}, [0])
        stream = store(grad)
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[stream], [3, 4])
    assert ("weights_gradient" in capfd.readouterr().err) == print_gradient


def test_the_type_of_a_gradient_op_is_made_once() -> None:
    mul = registry["Mul"].definition
    assert gradient_definition(mul) is gradient_definition(mul)
