"""Steps of optimisers: the updaters, and usual compositions over several steps (spec ops-updates.md §3-§5).

The compositions are compared with loops in NumPy over float64, in which only what is stored is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from running import run

import popxl
from popxl import ops
from popxl.ops.var_updates import (
    accumulate_,
    accumulate_mean_,
    accumulate_moving_average_,
    accumulate_moving_average_square_,
    accumulator_scale_,
    accumulator_zero_,
    adam_updater,
    adam_var_update,
    adamax_updater,
    copy_var_update_,
    lamb_updater,
)
from popxl.tensor import Tensor

Variables = dict[str, Tensor]
Arrays = dict[str, Any]
updaters = pytest.mark.parametrize("updater", [adam_updater, lamb_updater])


# Examples of the specification


def moments() -> tuple[Tensor, Tensor]:
    return popxl.variable(0.1), popxl.variable(0.01)


@updaters
def test_two_steps_with_the_same_moments(updater: Callable[..., Tensor]) -> None:
    def build(ir: popxl.Ir) -> Sequence[Tensor]:
        m, v = moments()
        time_step = popxl.variable(0.0)
        return [updater(m, v, time_step=time_step, beta1=0.9, beta2=0.99, epsilon=1e-7) for _ in range(2)]

    np.testing.assert_allclose(run(build), [0.9999999, 0.742460], rtol=5e-7)


@updaters
def test_a_step_without_correction(updater: Callable[..., Tensor]) -> None:
    np.testing.assert_allclose(run(lambda ir: [updater(*moments(), epsilon=0.1)]), [0.5], rtol=1e-6)


@pytest.mark.parametrize(("limit", "expected"), [(10.0, 1), (0.1, 1.95), (None, 1), (0.0, 1.5)])
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_a_weight_takes_a_step_with_its_trust_ratio(limit: float | None, expected: float, kind: str) -> None:
    def build(ir: popxl.Ir) -> Sequence[Tensor]:
        t = popxl.variable(2.0)
        rate, bound = (
            popxl.variable(value) if kind == "tensor" and value is not None else value for value in (0.5, limit)
        )
        adam_var_update(t, popxl.constant(1.0), popxl.constant(4.0), popxl.constant(1.0), rate, bound)
        return [t]

    np.testing.assert_allclose(run(build), [expected], rtol=1e-6)


@pytest.mark.parametrize(("r1", "r2"), [(0.0, 4.0), (4.0, 0.0), (0.0, 0.0)])
def test_without_a_norm_the_trust_ratio_is_1(r1: float, r2: float) -> None:
    def build(ir: popxl.Ir) -> Sequence[Tensor]:
        t = popxl.variable(2.0)
        adam_var_update(t, popxl.constant(1.0), popxl.constant(r1), popxl.constant(r2), 0.5, 10.0)
        return [t]

    assert run(build) == [1.5]


# Inputs and results


@pytest.mark.parametrize("decay", [None, 0.0])
def test_a_weight_is_not_connected_without_weight_decay(decay: float | None) -> None:
    with popxl.Ir().main_graph as graph:
        m, v, w = (popxl.variable([1.0]) for _ in range(3))
        adam_updater(m, v, weight=w, weight_decay=decay)
    assert graph.ops[0].inputs == (m, v)


def test_a_weight_decay_that_is_a_tensor_counts_whatever_it_holds() -> None:
    with popxl.Ir().main_graph as graph:
        m, v, w, decay = (popxl.variable(0.0) for _ in range(4))
        adam_updater(m, v, weight=w, weight_decay=decay)
    assert graph.ops[0].inputs == (m, v, w, decay)


def test_betas_are_not_connected_without_correction() -> None:
    with popxl.Ir().main_graph as graph:
        m, v, beta = (popxl.variable(0.5) for _ in range(3))
        adam_updater(m, v, beta1=beta, beta2=beta)
    assert graph.ops[0].inputs == (m, v)


@pytest.mark.parametrize(
    ("decay", "dtype"), [(0.0, popxl.float16), (None, popxl.float16), (0.1, popxl.float32)], ids=str
)
def test_the_result_has_the_dtype_of_the_weight_if_it_is_connected(decay: float | None, dtype: Any) -> None:
    with popxl.Ir().main_graph:
        m, v = popxl.variable([1.0], popxl.float16), popxl.variable([1.0], popxl.float32)
        w = popxl.variable([1.0], popxl.float32)
        for updater in (adam_updater, lamb_updater, adamax_updater):
            x = updater(m, v, w, popxl.variable(0.0), decay, 0.9, 0.99)
            assert x.dtype == dtype


@pytest.mark.parametrize("updater", [adam_updater, lamb_updater, adamax_updater])
def test_an_updater_adds_one_op_and_one_tensor(updater: Callable[..., Tensor]) -> None:
    with popxl.Ir().main_graph as graph:
        m, v, time_step, beta = (popxl.variable(1.0) for _ in range(4))
        before = len(graph.tensors)
        betas = {} if updater is adamax_updater else {"beta2": beta}
        updater(m, v, time_step=time_step, beta1=0.9, **betas)
    assert [op.type for op in graph.ops] == ["AdamUpdater"]
    assert graph.ops[0].isOptimizerOp()
    assert graph.ops[0].api == updater.__name__
    assert len(graph.tensors) == before + 1


def test_steps_from_shards_are_shards() -> None:
    with popxl.Ir().create_empty_graph():
        m, v, w = (popxl.graph_input((1,), popxl.float32, name, meta_shape=(4,)) for name in "mvw")
        assert adam_updater(m, v, w, weight_decay=0.1).meta_shape == (4,)


def test_corrections_do_not_cancel_for_betas_near_1() -> None:
    # In float32, 1 - 0.999999 is 9.5e-07 to 1e-06: 5 % off.
    def build(ir: popxl.Ir) -> Sequence[Tensor]:
        m, v = popxl.variable(1e-6), popxl.variable(1e-6)
        return [adam_updater(m, v, time_step=popxl.variable(0.0), beta1=0.999999, beta2=0.999999, epsilon=0.0)]

    np.testing.assert_allclose(run(build), [1.0], rtol=1e-6)


# Compositions


def train(start: Arrays, step: Callable[[Variables, Tensor], Any], grads: Sequence[np.ndarray]) -> Arrays:
    """Run `step`, which updates variables with a gradient, for each gradient. Return the variables' last values."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        variables: Variables = {name: popxl.variable(value, name=name) for name, value in start.items()}
        stream = popxl.h2d_stream(grads[0].shape, popxl.dtypes.dtype.as_dtype(grads[0].dtype))
        step(variables, ops.host_load(stream))
    with popxl.Session(ir) as session:
        for grad in grads:
            session.run({stream: grad})
        return {name: session.get_tensor_data(t) for name, t in variables.items()}


class State(dict[str, Any]):
    """Values in float64, rounded to float16 when they are stored where the start has that dtype."""

    def __init__(self, start: Arrays) -> None:
        super().__init__({name: np.float64(value) for name, value in start.items()})
        self._low = {name for name, value in start.items() if value.dtype == np.float16}

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, np.float64(np.float16(value)) if name in self._low else np.float64(value))


def simulate(start: Arrays, step: Callable[[State, np.ndarray, int], None], grads: Sequence[np.ndarray]) -> Arrays:
    """Do the same with NumPy; `step` is given the number of the step as well."""
    state = State(start)
    for i, grad in enumerate(grads):
        step(state, np.float64(grad), i + 1)
    return state


def data(dtypes: str, steps: int = 6) -> tuple[Arrays, list[np.ndarray]]:
    """Starting values of w, m, v with the dtypes of such letters, and gradients with that of the last letter."""
    rng = np.random.default_rng(7)
    w_dtype, m_dtype, v_dtype, grad_dtype = (np.dtype(letter) for letter in dtypes)
    start = {
        "w": rng.normal(size=(3, 4)).astype(w_dtype),
        "m": np.zeros((3, 4), m_dtype),
        "v": np.zeros((3, 4), v_dtype),
        "t": np.zeros((), np.float32),
    }
    return start, [rng.normal(size=(3, 4)).astype(grad_dtype) for _ in range(steps)]


def assert_equal_states(got: Arrays, expected: Arrays) -> None:
    """Compare what was stored. A value next to the middle of two float16 may be rounded to either."""
    for name, value in got.items():
        # The weight depends on all the others.
        low = np.float16 in [v.dtype for v in (got.values() if name == "w" else [value])]
        double = all(v.dtype == np.float64 for n, v in got.items() if n != "t")
        tolerance = 1e-3 if low else 1e-12 if double else 2e-6
        np.testing.assert_allclose(np.float64(value), expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


mixed = pytest.mark.parametrize("dtypes", ["ffff", "feff", "fefe", "eeee", "dddd"])
"""Dtypes of w, m, v and the gradient: e is float16, f float32, d float64."""


@mixed
def test_gradient_descent(dtypes: str) -> None:
    def step(state: State, grad: np.ndarray, _i: int) -> None:
        state["w"] = state["w"] - 0.1 * grad

    start, grads = data(dtypes)
    got = train(start, lambda s, g: ops.scaled_add_(s["w"], g, b=-0.1), grads)
    assert_equal_states(got, simulate(start, step, grads))


@mixed
def test_gradient_descent_with_momentum(dtypes: str) -> None:
    def build(s: Variables, grad: Tensor) -> None:
        accumulator_scale_(s["m"], 0.9)
        accumulate_(s["m"], grad)
        ops.scaled_add_(s["w"], s["m"], b=-0.1)

    def step(state: State, grad: np.ndarray, _i: int) -> None:
        state["m"] = 0.9 * state["m"] + grad
        state["w"] = state["w"] - 0.1 * state["m"]

    start, grads = data(dtypes)
    assert_equal_states(train(start, build, grads), simulate(start, step, grads))


def adam_direction(state: State, grad: np.ndarray, i: int) -> Any:
    state["t"] = i
    state["m"] = 0.9 * state["m"] + 0.1 * grad
    state["v"] = 0.99 * state["v"] + 0.01 * grad**2
    corrected = state["m"] / (1 - 0.9**i)
    return corrected / (np.sqrt(state["v"] / (1 - 0.99**i)) + 1e-5) + 0.05 * state["w"]


def adam_moments(s: Variables, grad: Tensor) -> None:
    accumulate_moving_average_(s["m"], grad, 0.9)
    accumulate_moving_average_square_(s["v"], grad, 0.99)


def adam_arguments(s: Variables) -> dict[str, Any]:
    names = {"acc_first_order": "m", "acc_second_order": "v", "weight": "w", "time_step": "t"}
    tensors = {argument: s[name] for argument, name in names.items()}
    return {**tensors, "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-5}


@mixed
def test_adam_with_weight_decay(dtypes: str) -> None:
    def build(s: Variables, grad: Tensor) -> None:
        adam_moments(s, grad)
        ops.scaled_add_(s["w"], adam_updater(**adam_arguments(s)), b=-0.1)

    def step(state: State, grad: np.ndarray, i: int) -> None:
        state["w"] = state["w"] - 0.1 * adam_direction(state, grad, i)

    start, grads = data(dtypes)
    assert_equal_states(train(start, build, grads), simulate(start, step, grads))


@pytest.mark.parametrize("limit", [0.5, 10.0, None])
@mixed
def test_lamb(dtypes: str, limit: float | None) -> None:
    def build(s: Variables, grad: Tensor) -> None:
        adam_moments(s, grad)
        x = lamb_updater(**adam_arguments(s))
        adam_var_update(s["w"], x, ops.lamb_square(s["w"]), ops.lamb_square(x), 0.1, limit)

    def step(state: State, grad: np.ndarray, i: int) -> None:
        x = adam_direction(state, grad, i)
        norm = min(np.linalg.norm(state["w"]), np.inf if limit is None else limit)
        state["w"] = state["w"] - 0.1 * norm / np.linalg.norm(x) * x

    start, grads = data(dtypes)
    assert_equal_states(train(start, build, grads), simulate(start, step, grads))


@mixed
def test_adamax(dtypes: str) -> None:
    def build(s: Variables, grad: Tensor) -> None:
        accumulate_moving_average_(s["m"], grad, 0.9)
        decayed = ops.cast(ops.scaled_add(s["v"], s["v"], 0.99, 0.0), s["v"].dtype)
        copy_var_update_(s["v"], ops.maximum(decayed, ops.cast(ops.abs(grad), s["v"].dtype)))
        x = adamax_updater(s["m"], s["v"], s["w"], s["t"], weight_decay=0.05, beta1=0.9, epsilon=1e-5)
        ops.scaled_add_(s["w"], x, b=-0.1)

    def step(state: State, grad: np.ndarray, i: int) -> None:
        state["t"] = i
        state["m"] = 0.9 * state["m"] + 0.1 * grad
        state["v"] = np.maximum(0.99 * state["v"], np.abs(grad))
        x = state["m"] / (1 - 0.9**i) / (state["v"] + 1e-5) + 0.05 * state["w"]
        state["w"] = state["w"] - 0.1 * x

    start, grads = data(dtypes)
    assert_equal_states(train(start, build, grads), simulate(start, step, grads))


@pytest.mark.parametrize("reset", ["all", "the counter alone"])
def test_gradients_are_averaged_over_micro_batches(reset: str) -> None:
    def build(s: Variables, grad: Tensor) -> None:
        accumulator_zero_(s["t"])
        if reset == "all":
            accumulator_zero_(s["m"])
        for k in range(3):
            accumulate_mean_(s["m"], ops.mul(grad, popxl.constant(float(k))), s["t"])
            accumulate_(s["t"], popxl.constant(1.0))
        ops.scaled_add_(s["w"], s["m"], b=-0.1)

    def step(state: State, grad: np.ndarray, _i: int) -> None:
        state["t"] = 3
        state["m"] = np.mean([grad * k for k in range(3)], 0)
        state["w"] = state["w"] - 0.1 * state["m"]

    start, grads = data("ffff")
    assert_equal_states(train(start, build, grads), simulate(start, step, grads))


def test_an_optimizer_in_a_loop_takes_its_state_by_reference() -> None:
    def body(
        w: popxl.TensorByRef, m: popxl.TensorByRef, v: popxl.TensorByRef, t: popxl.TensorByRef, grad: Tensor
    ) -> None:
        s = {"w": w, "m": m, "v": v, "t": t}
        with popxl.in_sequence():
            adam_moments(s, grad)
            ops.scaled_add_(w, adam_updater(**adam_arguments(s)), b=-0.1)

    def build(s: Variables, grad: Tensor) -> None:
        inputs = (*(s[name] for name in "wmvt"), grad)
        ops.repeat(popxl.gcg().ir.create_graph(body, *inputs), 4, *inputs)

    def step(state: State, grad: np.ndarray, i: int) -> None:
        for k in range(4):
            state["w"] = state["w"] - 0.1 * adam_direction(state, grad, 4 * (i - 1) + k + 1)

    start, grads = data("ffff", steps=2)
    assert_equal_states(train(start, build, grads), simulate(start, step, grads))
