"""The time step of `adam_updater`, `lamb_updater` and `adamax_updater`: the one input that they overwrite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from running import run

import popxl
from popxl import ops
from popxl.errors import CoreError
from popxl.ops import var_updates
from popxl.tensor import Tensor

both_ways = pytest.mark.usefixtures("way")
UPDATERS: dict[str, Callable[..., Tensor]] = {
    "adam": partial(var_updates.adam_updater, beta1=0.9, beta2=0.99, epsilon=0.0),
    "lamb": partial(var_updates.lamb_updater, beta1=0.9, beta2=0.99, epsilon=0.0),
    "adamax": partial(var_updates.adamax_updater, beta1=0.9, epsilon=0.0),
}
each_updater = pytest.mark.parametrize("name", UPDATERS)


def step(time_step: Tensor, name: str = "adam") -> Tensor:
    """A step with the moments m = 0.5, v = 0.25."""
    return UPDATERS[name](popxl.constant([0.5]), popxl.constant([0.25]), time_step=time_step)


def expected(steps: float, name: str = "adam") -> float:
    m, v = 0.5 / (1 - 0.9**steps), 0.25 / (1 - 0.99**steps)
    return m / 0.25 if name == "adamax" else m / v**0.5


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


# One graph


@each_updater
def test_every_run_counts_one_step(name: str, ir: popxl.Ir) -> None:
    with ir.main_graph:
        time_step, stream = popxl.variable(0.0), popxl.d2h_stream((1,), popxl.float32)
        ops.host_store(stream, step(time_step, name))
    with popxl.Session(ir) as session:
        for steps in (1, 2, 3):
            np.testing.assert_allclose(session.run()[stream], [expected(steps, name)], rtol=1e-6)
            assert session.get_tensor_data(time_step) == steps


@each_updater
def test_steps_count_when_nobody_uses_the_result(name: str, ir: popxl.Ir) -> None:
    with ir.main_graph:
        time_step = popxl.variable(3.0)
        step(time_step, name)
    with popxl.Session(ir) as session:
        session.run()
        session.run()
        assert session.get_tensor_data(time_step) == 5


@each_updater
def test_the_op_overwrites_the_time_step_and_makes_a_new_tensor(name: str, ir: popxl.Ir) -> None:
    with ir.main_graph as graph:
        m, v, w, time_step = (popxl.variable(0.5, name=n) for n in ("m", "v", "w", "time_step"))
        x = UPDATERS[name](m, v, w, time_step, weight_decay=0.1)
    (op,) = graph.ops
    assert op.inputs == (m, v, w, time_step)
    assert [op.modifiesIndex(i) for i in range(4)] == [False, False, False, True]
    assert op.written() == (x, time_step)
    assert x.storage is x


def test_the_text_marks_the_time_step_as_overwritten(ir: popxl.Ir) -> None:
    with ir.main_graph:
        m, v, time_step = (popxl.variable(0.5, name=n) for n in ("m", "v", "time_step"))
        UPDATERS["adam"](m, v, time_step=time_step)
    (line,) = [line.strip() for line in str(ir).splitlines() if "AdamUpdater" in line]
    assert line.startswith("adam_updater_out = AdamUpdater(m, v, &time_step)")
    assert line.endswith(" : float32[]")


def test_ops_see_the_time_step_of_their_place_in_the_program() -> None:
    def build(ir: popxl.Ir) -> list[Tensor]:
        time_step = popxl.variable(0.0)
        before = ops.identity(time_step)
        first = step(time_step)
        between = ops.identity(time_step)
        second = step(time_step)
        return [before, between, time_step, first, second]

    before, between, last, first, second = run(build)
    assert (before, between, last) == (0, 1, 2)
    np.testing.assert_allclose([*first, *second], [expected(1), expected(2)], rtol=1e-6)


@pytest.mark.parametrize("dtype", [popxl.float16, popxl.float64, popxl.int32, popxl.uint8, popxl.int64])
def test_a_time_step_keeps_its_dtype(dtype: popxl.dtypes.dtype, ir: popxl.Ir) -> None:
    with ir.main_graph:
        time_step, stream = popxl.variable(4, dtype), popxl.d2h_stream((1,), popxl.float32)
        ops.host_store(stream, step(time_step))
    with popxl.Session(ir) as session:
        np.testing.assert_allclose(session.run()[stream], [expected(5)], rtol=1e-6)
        counted = session.get_tensor_data(time_step)
    assert counted.dtype == dtype.as_numpy()
    assert counted == 5


@each_updater
def test_a_constant_time_step_stays(name: str) -> None:
    def build(ir: popxl.Ir) -> list[Tensor]:
        time_step = popxl.constant(2.0)
        return [step(time_step, name), step(time_step, name), time_step]

    first, second, kept = run(build)
    np.testing.assert_allclose([*first, *second], [expected(3, name)] * 2, rtol=1e-6)
    assert kept == 2


def test_a_time_step_that_is_a_view_is_counted_in_its_place(ir: popxl.Ir) -> None:
    with ir.main_graph:
        time_steps, stream = popxl.variable([10.0, 20.0, 30.0]), popxl.d2h_stream((1,), popxl.float32)
        ops.host_store(stream, step(ops.reshape_(ops.slice_(time_steps, 1, 2), ())))
    with popxl.Session(ir) as session:
        np.testing.assert_allclose(session.run()[stream], [expected(21)], rtol=1e-6)
        np.testing.assert_array_equal(session.get_tensor_data(time_steps), [10, 21, 30])


def test_the_time_step_tells_which_row_is_loaded(ir: popxl.Ir) -> None:
    # The host follows integers that steer transfers; this one is known on the device only.
    with ir.main_graph:
        buffer = popxl.remote_buffer((), popxl.float32, 4)
        for row in range(4):
            ops.remote_store(buffer, row, popxl.constant(10.0 * row))
        time_step, stream = popxl.variable(0, popxl.int32), popxl.d2h_stream((), popxl.float32)
        step(time_step)
        step(time_step)
        ops.host_store(stream, ops.remote_load(buffer, time_step))
    with popxl.Session(ir) as session:
        assert session.run()[stream] == 20


def test_a_time_step_in_streaming_memory_is_stored_back(memory: str, ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((), popxl.float32, 1)
        variable = popxl.remote_variable(5.0, buffer)
        loaded = ops.remote_load(buffer, 0)
        step(loaded)
        ops.remote_store(buffer, 0, loaded)
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
        session.run()
        assert session.get_tensor_data(variable) == 7


# Other graphs


@both_ways
@each_updater
def test_a_time_step_by_reference_counts_every_call(name: str, ir: popxl.Ir) -> None:
    def body(time_step: popxl.TensorByRef) -> Tensor:
        return step(time_step, name)

    with ir.main_graph:
        time_step = popxl.variable(0.0)
        graph = ir.create_graph(body, time_step)
        streams = [popxl.d2h_stream((1,), popxl.float32) for _ in range(2)]
        for stream in streams:
            ops.host_store(stream, *ops.call(graph, time_step))
    with popxl.Session(ir) as session:
        session.run()
        outputs = session.run()
        assert session.get_tensor_data(time_step) == 4
    for stream, steps in zip(streams, (3, 4), strict=True):
        np.testing.assert_allclose(outputs[stream], [expected(steps, name)], rtol=1e-6)


@both_ways
def test_a_time_step_by_value_stays_as_it_was(ir: popxl.Ir) -> None:
    with ir.main_graph:
        time_step, stream = popxl.variable(0.0), popxl.d2h_stream((1,), popxl.float32)
        graph = ir.create_graph(step, time_step)
        ops.call(graph, time_step)
        ops.host_store(stream, *ops.call(graph, time_step))
    with popxl.Session(ir) as session:
        np.testing.assert_allclose(session.run()[stream], [expected(1)], rtol=1e-6)
        assert session.get_tensor_data(time_step) == 0


@both_ways
def test_a_loop_counts_its_iterations_and_others_see_it(ir: popxl.Ir) -> None:
    def body(x: Tensor, time_step: popxl.TensorByRef) -> Tensor:
        return x + step(time_step)

    with ir.main_graph:
        time_step, stream = popxl.variable(0.0), popxl.d2h_stream((1,), popxl.float32)
        x = popxl.constant([0.0])
        graph = ir.create_graph(body, x, time_step)
        ops.host_store(stream, *ops.repeat(graph, 5, x, time_step))
    with popxl.Session(ir) as session:
        np.testing.assert_allclose(session.run()[stream], [sum(map(expected, range(1, 6)))], rtol=1e-5)
        assert session.get_tensor_data(time_step) == 5


@both_ways
def test_a_loop_forgets_a_time_step_by_value(ir: popxl.Ir) -> None:
    with ir.main_graph:
        time_step, stream = popxl.variable(0.0), popxl.d2h_stream((1,), popxl.float32)
        x = popxl.constant([0.0])
        graph = ir.create_graph(lambda x, time_step: x + step(time_step), x, time_step)
        ops.host_store(stream, *ops.repeat(graph, 5, x, time_step))
    with popxl.Session(ir) as session:
        np.testing.assert_allclose(session.run()[stream], [5 * expected(1)], rtol=1e-5)
        assert session.get_tensor_data(time_step) == 0


# Ambiguity


def check(build: Callable[[Tensor], Any]) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        build(popxl.variable(0.0))
    with popxl.Session(ir, check_ambiguity=True):
        pass


def test_a_use_that_is_not_ordered_after_the_step_is_ambiguous() -> None:
    with pytest.raises(CoreError, match="Inplacing ambiguity detected"):
        check(lambda time_step: (step(time_step), ops.identity(time_step)))


def test_a_use_in_sequence_with_the_step_is_not_ambiguous() -> None:
    def build(time_step: Tensor) -> None:
        with popxl.in_sequence():
            step(time_step)
            ops.identity(time_step)

    check(build)
