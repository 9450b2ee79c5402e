"""Scales that are known when a program runs only: out of range, they stop the run where they are used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError

KIND = popxl.float8_143


def cast(t: popxl.Tensor, log2_scale: popxl.Tensor) -> popxl.Tensor:
    return ops.pow2scale_cast_to_fp8(t, log2_scale, KIND)


def numbers() -> popxl.Tensor:
    return popxl.variable(np.ones(3, np.float32), name="x")


def stored(t: popxl.Tensor) -> popxl.DeviceToHostStream:
    stream = popxl.d2h_stream(t.shape, t.dtype)
    ops.host_store(stream, t)
    return stream


def program(value: int) -> tuple[popxl.Ir, popxl.tensor.Variable]:
    """A cast with a scale that is a variable."""
    ir = popxl.Ir()
    with ir.main_graph:
        log2_scale = popxl.variable(value, popxl.int32, name="scale")
        stored(cast(numbers(), log2_scale))
    return ir, log2_scale


@pytest.mark.parametrize("value", [-33, 32, 40, -(2**31)])
def test_a_scale_out_of_range_stops_the_run(value: int) -> None:
    ir, _ = program(value)
    with popxl.Session(ir) as session, pytest.raises(CoreError, match=rf"is {value}, outside the range \[-32, 32\)"):
        session.run()


@pytest.mark.parametrize("value", [-32, 31])
def test_the_first_and_last_scales_are_taken(value: int) -> None:
    ir, _ = program(value)
    with popxl.Session(ir) as session:
        (codes,) = session.run().values()
    assert codes.view(np.uint8).tolist() == [0 if value < 0 else 0x80] * 3


def test_the_error_names_the_function_the_argument_and_the_line() -> None:
    ir, _ = program(99)
    with popxl.Session(ir) as session, pytest.raises(CoreError) as caught:
        session.run()
    text = str(caught.value)
    assert text.startswith("`log2_scale` of popxl.ops.pow2scale_cast_to_fp8 is 99, outside the range [-32, 32).")
    assert re.search(rf"Where: CheckInRange in .*made at .*{Path(__file__).name}:\d+", text)
    assert "Hint: pass -32 to 31" in text


def test_the_next_run_can_have_a_scale_in_range() -> None:
    ir, log2_scale = program(99)
    with popxl.Session(ir) as session:
        with pytest.raises(CoreError):
            session.run()
        session.write_variable_data(log2_scale, np.int32(1))
        (codes,) = session.run().values()
    assert codes.view(np.uint8).tolist() == [0x48] * 3


def test_a_computed_scale_is_checked() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        half = popxl.variable(16, popxl.int32)
        stored(cast(numbers(), half + half))
    with popxl.Session(ir) as session, pytest.raises(CoreError, match="is 32, outside"):
        session.run()


def test_a_scale_of_the_host_is_checked_without_waiting_for_the_device() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        stream = popxl.h2d_stream((), popxl.int32)
        stored(cast(numbers(), ops.host_load(stream) + popxl.constant(1, popxl.int32)))
    with popxl.Session(ir) as session:
        lines = str(session.plan).splitlines()
        (evaluated,) = [line.strip().split(" ")[0] for line in lines if "on host Add" in line]
        assert f"  check {evaluated}" in lines
        session.run({stream: np.int32(30)})
        with pytest.raises(CoreError, match="is 32, outside"):
            session.run({stream: np.int32(31)})


def test_a_check_does_not_split_what_is_compiled_together() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        log2_scale, x = popxl.variable(1, popxl.int32), numbers()
        y = ops.pow2scale_cast_from_fp8(cast(x + x, log2_scale), log2_scale, popxl.float32)
        stored(y + x)
    with popxl.Session(ir) as session:
        text = str(session.plan)
    assert text.count("compute(") == 1
    assert text.count("check %") == 2


def test_a_run_stops_before_what_comes_after_the_check(capsys: pytest.CaptureFixture[str]) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = numbers()
        ops.print_tensor(x, title="before")
        cast(x, popxl.variable(50, popxl.int32))
        ops.print_tensor(x, title="after")
    with popxl.Session(ir) as session, pytest.raises(CoreError):
        session.run()
    printed = capsys.readouterr().err
    assert "before" in printed
    assert "after" not in printed


def test_a_scale_is_checked_though_nobody_wants_the_result() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        cast(numbers(), popxl.variable(50, popxl.int32))
    with popxl.Session(ir) as session, pytest.raises(CoreError):
        session.run()


def test_a_constant_passed_to_a_graph_is_checked_there() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x, log2_scale = numbers(), popxl.constant(50, popxl.int32)
        graph = ir.create_graph(cast, x, log2_scale)
        (out,) = ops.call(graph, x, log2_scale)
        stored(out)
    with popxl.Session(ir) as session, pytest.raises(CoreError, match="is 50, outside"):
        session.run()


def test_a_loop_stops_in_the_iteration_with_a_scale_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    ir = popxl.Ir()

    def body(log2_scale: popxl.Tensor, x: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        ops.print_tensor(log2_scale, title="scale")
        return log2_scale + popxl.constant(1, popxl.int32), ops.pow2scale_cast_from_fp8(
            cast(x, log2_scale), popxl.constant(0, popxl.int32), popxl.float32
        )

    with ir.main_graph, popxl.in_sequence():
        log2_scale, x = popxl.variable(30, popxl.int32), numbers()
        graph = ir.create_graph(body, log2_scale, x)
        ops.repeat(graph, 5, log2_scale, x)
    with popxl.Session(ir) as session, pytest.raises(CoreError, match="is 32, outside"):
        session.run()
    assert capsys.readouterr().err.split() == ["scale", "30", "scale", "31", "scale", "32"]


def test_the_branch_that_is_not_taken_is_not_checked() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x, log2_scale = numbers(), popxl.variable(50, popxl.int32)

        def careless(x: popxl.Tensor, log2_scale: popxl.Tensor) -> popxl.Tensor:
            return cast(x, log2_scale)

        def careful(x: popxl.Tensor, log2_scale: popxl.Tensor) -> popxl.Tensor:
            return cast(x, log2_scale - popxl.constant(30, popxl.int32))

        graphs = [ir.create_graph(f, x, log2_scale) for f in (careless, careful)]
        taken = popxl.variable(False, popxl.bool)
        (out,) = ops.conditional(taken, *graphs, (x, log2_scale), (x, log2_scale))
        stored(out)
    with popxl.Session(ir) as session:
        session.run()
        session.write_variable_data(taken, np.bool_(True))
        with pytest.raises(CoreError, match="is 50, outside"):
            session.run()
