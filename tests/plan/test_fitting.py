"""What is said to make a program fit does: the claim is compared with the program that was changed."""

from __future__ import annotations

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import OutOfMemoryError
from popxl.plan import plan_program
from popxl.plan.fitting import changes
from popxl.plan.memory import check_fits, device_footprint
from popxl.plan.shards import state_tensors

WIDTH = 64
BYTES = 4 * WIDTH * WIDTH


def chain(count: int, remote: tuple[int, ...] = (), *, is_updated: bool = False) -> popxl.Ir:
    """A chain of products; the weights `remote` are loaded where they are used, and stored if they are updated."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = ops.host_load(popxl.h2d_stream((1, WIDTH), popxl.float32))
        out = popxl.d2h_stream((1, WIDTH), popxl.float32)
        buffer = popxl.remote_buffer((WIDTH, WIDTH), popxl.float32, count)

        def layer(x: popxl.Tensor, w: popxl.Tensor) -> popxl.Tensor:
            for _ in range(20):  # too long to become a part of the main graph's code
                x = ops.tanh(x)
            return x @ w

        graph = None
        for i in range(count):
            data = np.zeros((WIDTH, WIDTH), np.float32)
            if i in remote:
                popxl.remote_variable(data, buffer, i)
                w = ops.remote_load(buffer, i)
            else:
                w = popxl.variable(data, name=f"w{i}")
            graph = ir.create_graph(layer, x, w) if graph is None else graph
            (x,) = ops.call(graph, x, w)
            if is_updated and i in remote:
                ops.remote_store(buffer, i, w + 0.5)
            elif is_updated:
                w += 0.5
        ops.host_store(out, x)
    return ir


def peak(ir: popxl.Ir) -> int:
    return device_footprint(plan_program(ir), lambda _: 0, state_tensors(ir.main_graph)).peak_bytes


def found(ir: popxl.Ir):
    return changes(plan_program(ir), lambda _: 0, state_tensors(ir.main_graph))


@pytest.mark.parametrize("is_updated", [False, True])
def test_the_peak_of_streaming_all_is_that_of_the_program_that_does(is_updated):
    claimed = found(chain(4, is_updated=is_updated))[-1]
    real = peak(chain(4, (0, 1, 2, 3), is_updated=is_updated))
    assert real <= claimed.peak_bytes <= real + BYTES // 10
    assert claimed.peak_bytes < peak(chain(4, is_updated=is_updated)) - BYTES


def test_one_streamed_variable_does_not_lower_a_peak_at_which_it_is_used():
    ir = chain(2)
    whole = peak(ir)
    first, second, both = found(ir)
    assert first.peak_bytes == second.peak_bytes == whole
    assert whole - BYTES - WIDTH * 8 <= both.peak_bytes <= whole - BYTES + WIDTH * 8


@pytest.mark.parametrize(("budget", "is_enough"), [(2 * BYTES, True), (BYTES // 2, False)])
def test_the_hint_names_what_is_enough_or_says_that_nothing_is(budget, is_enough):
    ir = chain(4)
    with pytest.raises(OutOfMemoryError) as caught:
        popxl.Session(ir, device_memory=budget)
    hint = caught.value.hint or ""
    assert "make all 4 variables remote ones" in hint
    assert hint.startswith("no variable that is streamed is enough") is not is_enough
    assert (peak(chain(4, (0, 1, 2, 3))) <= budget) is is_enough


def test_a_program_that_fits_is_asked_for_no_change():
    ir = chain(1)

    def fail():
        raise AssertionError("not wanted")

    check_fits(device_footprint(plan_program(ir), lambda _: 0), peak(ir), fail)
