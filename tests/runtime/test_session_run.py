"""Running: streams as queues, amounts of data, validation, outputs (session.md §3, §5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.streams import DeviceToHostStream, HostToDeviceStream

Inputs = Mapping[HostToDeviceStream, Any]


class Double:
    """``y = 2 * x``, for ``transfers`` items in a loop."""

    def __init__(self, transfers: int = 1, shape: tuple[int, ...] = (2,), loops: int | None = None) -> None:
        self.ir = popxl.Ir()
        self.ir.num_host_transfers = transfers
        with self.ir.main_graph:
            self.x = popxl.h2d_stream(shape, popxl.float32, "x")
            self.y = popxl.d2h_stream(shape, popxl.float32, "y")
            graph = self.ir.create_graph(lambda: ops.host_store(self.y, ops.host_load(self.x) * 2))
            ops.repeat(graph, transfers if loops is None else loops)
        self.session = popxl.Session(self.ir)


def floats(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


# Worked examples


def test_worked_example_of_weights() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        a = popxl.variable(3, popxl.int32)
        o = popxl.d2h_stream((), popxl.int32)
        ops.host_store(o, a + 1)
    with popxl.Session(ir) as session:
        assert session.run()[o] == 4
        assert session.get_tensor_data(a) == 3
        session.write_variable_data(a, np.array(5, np.int32))
        assert session.get_tensor_data(a) == 5
        assert session.run()[o] == 6


def test_worked_example_of_a_loop() -> None:
    ir = popxl.Ir()
    ir.num_host_transfers = 8
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(2, 2)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    with ir.main_graph:
        x_h2d = popxl.h2d_stream((2, 2), popxl.float32)
        y_d2h = popxl.d2h_stream((2, 2), popxl.float32)
        weight, bias = popxl.variable(w), popxl.variable(b)

        def body(weight: popxl.Tensor, bias: popxl.Tensor) -> None:
            ops.host_store(y_d2h, ops.host_load(x_h2d) @ weight + bias)

        ops.repeat(ir.create_graph(body, weight, bias), 8, weight, bias)
    x = rng.normal(size=(8, 2, 2)).astype(np.float32)
    with popxl.Session(ir) as session:
        y = session.run({x_h2d: x})[y_d2h]
    np.testing.assert_allclose(y, [i @ w.astype(float) + b for i in x.astype(float)], rtol=1e-5, atol=1e-6)


# Streams are queues


def test_each_execution_takes_and_gives_the_next_item() -> None:
    program = Double(3)
    with program.session as session:
        assert session.run({program.x: floats(3, 2)})[program.y].tolist() == [[0, 2], [4, 6], [8, 10]]


def test_each_run_starts_at_the_first_item() -> None:
    program = Double(2)
    with program.session as session:
        for _ in range(3):
            assert session.run({program.x: floats(2, 2)})[program.y].tolist() == [[0, 2], [4, 6]]


def test_ops_share_the_queue_of_their_stream() -> None:
    ir = popxl.Ir()
    ir.num_host_transfers = 4
    with ir.main_graph:
        x, y = popxl.h2d_stream((), popxl.int32), popxl.d2h_stream((), popxl.int32)
        first = ops.host_load(x)
        graph = ir.create_graph(lambda: ops.host_load(x))
        (second,) = ops.call(graph)
        (third,) = ops.call(graph)
        last = ops.host_load(x)
        for t in (last, third, second, first):
            ops.host_store(y, t)
    with popxl.Session(ir) as session:
        assert session.run({x: np.array([1, 2, 3, 4], np.int32)})[y].tolist() == [4, 3, 2, 1]


def test_two_loads_of_a_stream_in_a_loop_take_two_items_each_time() -> None:
    steps = 3
    ir = popxl.Ir()
    ir.num_host_transfers = 2 * steps
    with ir.main_graph:
        a, e = popxl.h2d_stream((), popxl.int32), popxl.h2d_stream((), popxl.int32)
        out = popxl.d2h_stream((3,), popxl.int32)

        def body() -> None:
            one, two, three = ops.host_load(e), ops.host_load(a), ops.host_load(e)
            ops.host_store(out, ops.concat([t.reshape((1,)) for t in (one, two, three)]))

        ops.repeat(ir.create_graph(body), steps)
    with popxl.Session(ir) as session:
        outputs = session.create_host_outputs()
        outputs[out][...] = -1
        inputs = {a: np.arange(100, 106, dtype=np.int32), e: np.arange(6, dtype=np.int32)}
        session.run_with_outputs(inputs, outputs)
    assert outputs[out][:steps].tolist() == [[0, 100, 1], [2, 101, 3], [4, 102, 5]]
    assert (outputs[out][steps:] == -1).all()


def test_load_that_nothing_uses_still_takes_its_item() -> None:
    ir = popxl.Ir()
    ir.num_host_transfers = 2
    with ir.main_graph:
        x, y = popxl.h2d_stream((), popxl.int32), popxl.d2h_stream((), popxl.int32)
        ops.host_load(x)
        ops.host_store(y, ops.host_load(x))
    with popxl.Session(ir) as session:
        assert session.run({x: np.array([1, 2], np.int32)})[y][0] == 2


def test_loop_of_no_iterations_transfers_nothing() -> None:
    program = Double(2, loops=0)
    with program.session as session:
        outputs = {program.y: np.full((2, 2), 7, np.float32)}
        session.run_with_outputs({program.x: floats(2, 2)}, outputs)
    assert (outputs[program.y] == 7).all()


@pytest.mark.parametrize("side", [True, False])
def test_only_the_branch_taken_transfers(side: bool) -> None:
    ir = popxl.Ir()
    ir.num_host_transfers = 2
    with ir.main_graph:
        x, y = popxl.h2d_stream((), popxl.int32), popxl.d2h_stream((), popxl.int32)
        c = popxl.h2d_stream((), popxl.bool)

        def take() -> popxl.Tensor:
            t = ops.host_load(x)
            ops.host_store(y, t + 10)
            return t

        def leave() -> popxl.Tensor:
            return popxl.constant(-5, popxl.int32)

        (t,) = ops.conditional(ops.host_load(c), ir.create_graph(take), ir.create_graph(leave))
        ops.host_store(y, t)
    with popxl.Session(ir) as session:
        outputs = {y: np.zeros(2, np.int32)}
        session.run_with_outputs({x: np.array([1, 2], np.int32), c: np.array([side, side])}, outputs)
    assert outputs[y].tolist() == ([11, 1] if side else [-5, 0])


def test_stored_value_is_the_one_of_that_moment() -> None:
    ir = popxl.Ir()
    ir.num_host_transfers = 3
    with ir.main_graph:
        v = popxl.variable([1, 2], popxl.int32)
        y = popxl.d2h_stream((2,), popxl.int32)
        for _ in range(3):
            ops.host_store(y, v)
            v += 1
    with popxl.Session(ir) as session:
        assert session.run()[y].tolist() == [[1, 2], [2, 3], [3, 4]]
        assert session.run()[y].tolist() == [[4, 5], [5, 6], [6, 7]]


def test_loaded_item_changed_in_place_leaves_the_users_array() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x, y = popxl.h2d_stream((64,), popxl.float32), popxl.d2h_stream((64,), popxl.float32)
        t = ops.host_load(x)
        t += 1
        ops.host_store(y, t)
    given = floats(64)
    with popxl.Session(ir) as session:
        assert session.run({x: given})[y].tolist() == (floats(64) + 1).tolist()
    assert given.tolist() == floats(64).tolist()


def test_outputs_of_a_run_are_its_own() -> None:
    program = Double()
    with program.session as session:
        first = session.run({program.x: np.array([1, 2], np.float32)})[program.y]
        second = session.run({program.x: np.array([3, 4], np.float32)})[program.y]
    assert first.tolist() == [2, 4]
    assert second.tolist() == [6, 8]


# Amount of data


def test_more_items_than_needed_are_left_over() -> None:
    program = Double(2)
    with program.session as session:
        assert session.run({program.x: floats(5, 2)})[program.y].tolist() == [[0, 2], [4, 6]]


def test_exhausted_input_names_stream_numbers_and_line() -> None:
    program = Double(2, loops=3)
    with program.session as session:
        with pytest.raises(RuntimeError, match="Unable to fetch input") as caught:
            session.run({program.x: floats(2, 2)})
        message = str(caught.value)
        assert "stream x has 2 item(s)" in message
        assert "execution 3" in message
        assert __file__ in message
        assert "num_host_transfers" in message


def test_exhausted_output_is_a_runtime_error() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        y = popxl.d2h_stream((), popxl.float32, "y")
        for _ in range(2):
            ops.host_store(y, popxl.constant(1.0))
    with (
        popxl.Session(ir) as session,
        pytest.raises(RuntimeError, match=r"Unable to store output.*stream y has 1 item"),
    ):
        session.run()


def test_session_goes_on_after_an_exhausted_stream() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(np.zeros(3, np.float32))
        x, out = popxl.h2d_stream((), popxl.bool), popxl.d2h_stream((3,), popxl.float32)
        v += 1
        ops.host_store(out, v)

        def again() -> popxl.Tensor:
            ops.host_store(out, popxl.constant(np.zeros(3, np.float32)))
            return popxl.constant(0.0)

        ops.conditional(ops.host_load(x), ir.create_graph(again), ir.create_graph(lambda: popxl.constant(1.0)))
        v += 1
    with popxl.Session(ir) as session:
        assert session.run({x: False})[out].tolist() == [1, 1, 1]
        with pytest.raises(RuntimeError, match="Unable to store output"):
            session.run({x: True})
        assert session.get_tensor_data(v).tolist() == [3, 3, 3]
        assert session.run({x: False})[out].tolist() == [4, 4, 4]


# Outputs


@pytest.mark.parametrize(("transfers", "shape"), [(1, (2,)), (3, (2,)), (1, ()), (3, ())])
def test_host_outputs_have_full_shape_and_dtype(transfers: int, shape: tuple[int, ...]) -> None:
    program = Double(transfers, shape)
    outputs = program.session.create_host_outputs()
    assert set(outputs) == {program.y}
    assert outputs[program.y].shape == ((transfers, *shape) if transfers > 1 else shape)
    assert outputs[program.y].dtype == np.float32


def test_given_arrays_are_filled_in_place() -> None:
    program = Double(2)
    array = np.zeros((2, 2), np.float32)
    with program.session as session:
        assert session.run_with_outputs({program.x: floats(2, 2)}, {program.y: array}) is None
    assert array.tolist() == [[0, 2], [4, 6]]


def test_given_array_with_more_items_keeps_the_rest() -> None:
    program = Double(2)
    array = np.full((4, 2), 9, np.float32)
    with program.session as session:
        session.run_with_outputs({program.x: floats(2, 2)}, {program.y: array})
    assert array.tolist() == [[0, 2], [4, 6], [9, 9], [9, 9]]


def read_only() -> np.ndarray:
    array = np.zeros((2, 2), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (np.zeros((2, 3), np.float32), ValueError, "^Shape mismatch for"),
        (np.zeros((1, 2), np.float32), ValueError, "is not large enough"),
        (np.zeros((2, 2), np.float64), TypeError, "^Type discrepancy for tensor y.*float64.*float32"),
        (np.zeros((2, 2), np.int32), TypeError, "^Type discrepancy for tensor y.*int32.*float32"),
        (np.zeros((2, 2), np.float32).T[::-1], RuntimeError, "not C-contiguous"),
        (read_only(), RuntimeError, "read-only"),
        ([[0.0, 0.0], [0.0, 0.0]], TypeError, "is a list, not an array"),
    ],
)
def test_unfit_output_is_refused_before_anything_runs(output: Any, error: type[Exception], message: str) -> None:
    program = Double(2)
    with program.session as session, pytest.raises(error, match=message):
        session.run_with_outputs({program.x: floats(2, 2)}, {program.y: output})
    if isinstance(output, np.ndarray):
        assert not output.any()


# Validation


def sum_of_two() -> tuple[popxl.Session, HostToDeviceStream, HostToDeviceStream, DeviceToHostStream]:
    ir = popxl.Ir()
    with ir.main_graph:
        a, b = popxl.h2d_stream((2,), popxl.float32, "a"), popxl.h2d_stream((2,), popxl.float32, "b")
        popxl.h2d_stream((2,), popxl.float32, "unused")
        y = popxl.d2h_stream((2,), popxl.float32, "y")
        ops.host_store(y, ops.host_load(a) + ops.host_load(b))
    return popxl.Session(ir), a, b, y


def test_expected_inputs_are_the_streams_that_are_loaded() -> None:
    session, a, b, _ = sum_of_two()
    assert set(session.expected_inputs()) == {a, b}


def test_expected_inputs_leave_out_graphs_that_nothing_calls() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        a, b = popxl.h2d_stream((), popxl.float32), popxl.h2d_stream((), popxl.float32)
        ir.create_graph(lambda: ops.host_load(a))
        ops.host_load(b)
    session = popxl.Session(ir)
    assert set(session.expected_inputs()) == {b}
    with session:
        session.run({b: 1.0})


@pytest.mark.parametrize(
    "choose",
    [
        lambda a, b, y: None,
        lambda a, b, y: {},
        lambda a, b, y: {a: 0},
        lambda a, b, y: {a: 0, b: 0, y: 0},
        lambda a, b, y: {a: 0, y: 0},
        lambda a, b, y: {a: 0, b: 0, "c": 0},
        lambda a, b, y: {a.tensor: 0, b: 0},
    ],
)
def test_inputs_must_be_exactly_the_expected_streams(choose: Callable[..., Any]) -> None:
    session, a, b, y = sum_of_two()
    inputs = choose(a, b, y)
    with session, pytest.raises(ValueError, match=r"^Unexpected/Missing input\."):
        session.run(inputs and {s: np.zeros(2, np.float32) for s in inputs})


def test_outputs_must_be_exactly_the_expected_streams() -> None:
    session, a, b, y = sum_of_two()
    inputs = {a: [1.0, 2.0], b: [3.0, 4.0]}
    array = np.zeros(2, np.float32)
    with session:
        for outputs in (None, {}, {a: array}, {y: array, a: array}):
            with pytest.raises(ValueError, match=r"^Unexpected/Missing output\."):
                session.run_with_outputs(inputs, outputs)
        session.run_with_outputs(inputs, {y: array})
    assert array.tolist() == [4, 6]


def test_inputs_are_judged_before_outputs() -> None:
    session, *_ = sum_of_two()
    with session, pytest.raises(ValueError, match="input"):
        session.run_with_outputs()


@pytest.mark.parametrize("given", [np.zeros((3, 2)), np.zeros(()), np.zeros((2, 1)), 0.0])
def test_input_of_wrong_shape_is_a_value_error(given: Any) -> None:
    session, a, b, _ = sum_of_two()
    with session, pytest.raises(ValueError, match=r"^Shape mismatch for.*Tensor.b "):
        session.run({a: np.zeros(2), b: given})


@pytest.mark.parametrize("given", [np.zeros(2, np.int32), np.zeros(2, np.float16), [1, 2], np.zeros(2, bool)])
def test_input_of_wrong_dtype_is_a_type_error(given: Any) -> None:
    session, a, b, _ = sum_of_two()
    with session, pytest.raises(TypeError, match=r"^Type discrepancy for tensor b"):
        session.run({a: np.zeros(2), b: given})


def test_refused_run_does_not_touch_what_get_tensor_data_knows() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v, x = popxl.variable(1.0), popxl.h2d_stream((), popxl.float32)
        v += ops.host_load(x)
    with popxl.Session(ir) as session:
        with pytest.raises(ValueError, match="Missing"):
            session.run()
        assert v.in_sync_with_ipu
        session.run({x: 1.0})
        assert not v.in_sync_with_ipu


# Conversion of inputs


@pytest.mark.parametrize(
    "given",
    [
        [1.0, 2.0],
        (1.0, 2.0),
        np.array([1.0, 2.0]),
        np.array([1.0, 2.0], np.float32),
        np.array([[2.0, 1.0]])[0, ::-1],
        (float(i) for i in (1, 2)),
    ],
)
def test_inputs_may_be_anything_with_the_right_numbers(given: Any) -> None:
    program = Double()
    with program.session as session:
        assert session.run({program.x: given})[program.y].tolist() == [2, 4]


def test_input_for_one_element_may_be_a_number() -> None:
    program = Double(shape=(1,))
    with program.session as session:
        assert session.run({program.x: 3.0})[program.y].tolist() == [6]


def test_64_bit_input_is_refused_when_it_must_not_be_downcast() -> None:
    program = Double()
    with program.session as session:
        with pytest.raises(TypeError, match=r"float64.*float32"):
            session.run({program.x: np.array([1.0, 2.0])}, downcast_inputs=False)
        outputs = session.run({program.x: np.array([1, 2], np.float32)}, downcast_inputs=False)
    assert outputs[program.y].tolist() == [2, 4]


@pytest.mark.parametrize("downcast", [True, False])
def test_int64_input_becomes_int32_in_any_case(downcast: bool) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x, y = popxl.h2d_stream((2,), popxl.int32), popxl.d2h_stream((2,), popxl.int32)
        ops.host_store(y, ops.host_load(x) + 1)
    with popxl.Session(ir) as session:
        assert session.run({x: np.array([1, -3], np.int64)}, downcast_inputs=downcast)[y].tolist() == [2, -2]


def test_input_may_be_changed_after_the_run() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((4,), popxl.float32)
        x, y = popxl.h2d_stream((4,), popxl.float32), popxl.d2h_stream((4,), popxl.float32)
        ops.host_store(y, ops.remote_load(buffer, 0))
        ops.remote_store(buffer, 0, ops.host_load(x))
    given = floats(4)
    with popxl.Session(ir) as session:
        session.run({x: given})
        given[:] = -1
        assert session.run({x: given})[y].tolist() == [0, 1, 2, 3]


# What other code relies on


def test_helpers_of_the_reference_tell_the_shapes() -> None:
    program = Double(3)
    session = program.session
    assert session._extra_input_dims == (3,)
    assert session._full_input_shape((5, 6)) == (3, 5, 6)
    assert session._expected_outputs() == {program.y}
    session._verify_io_shape(program.x, floats(3, 2))
    with pytest.raises(ValueError, match="Shape mismatch"):
        session._verify_io_shape(program.x, floats(3, 3))


# Printing


def test_print_writes_title_and_value_at_each_execution(capfd: pytest.CaptureFixture[str]) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable([1, 2], popxl.int32)
        y = popxl.d2h_stream((2,), popxl.int32)
        printed = ops.print_tensor(v, "the title", separator=";", open_bracket="<", close_bracket=">")
        v += 1
        ops.host_store(y, printed)
    with popxl.Session(ir) as session:
        assert session.run()[y].tolist() == [1, 2]
        assert session.run()[y].tolist() == [2, 3]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.split() == ["the", "title", "<1;2>", "the", "title", "<2;3>"]
