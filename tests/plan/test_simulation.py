"""Simulated runs, against times that are worked out by hand: three layers, a row of 4 MiB each."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import popxl
from popxl import ops
from popxl.plan import GraphPlan, plan_program
from popxl.plan.simulation import Channel, Costs, Line, SegmentCost, simulate
from popxl.plan.steps import Compute, called_plans

ROW = 4 << 20
ELEMENTS = ROW // 4
MANY = 1 << 30


@dataclass(frozen=True)
class Limits:
    pool_bytes: int = MANY
    cache_bytes: int = 0
    write_bytes: int = MANY
    slack_bytes: int | None = None


def layers(count: int = 3, *, has_stores: bool = False) -> GraphPlan:
    """Layer i: load row i, compute with it, and perhaps store row i."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((ELEMENTS,), popxl.float32, count)
        out = popxl.d2h_stream((ELEMENTS,), popxl.float32)
        x = popxl.variable(0.0)
        for i in range(count):
            x = ops.remote_load(buffer, i) + x
            if has_stores:
                ops.remote_store(buffer, i, x)
        ops.host_store(out, x)
    return plan_program(ir)


def loop(count: int, *, has_stores: bool = False) -> GraphPlan:
    """The same as a loop."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((ELEMENTS,), popxl.float32, count)
        x = ops.remote_load(buffer, 0)

        def layer(x: popxl.Tensor, i: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            x = x + ops.remote_load(buffer, i)
            if has_stores:
                ops.remote_store(buffer, i, x)
            return x, i + 1

        i = popxl.constant(0, popxl.uint32)
        x, _ = ops.repeat(ir.create_graph(layer, x, i), count, x, i)
        ops.host_store(popxl.d2h_stream((ELEMENTS,), popxl.float32), x)
    return plan_program(ir)


def costs(plan: GraphPlan, compute_s: float, load_s: float | None = None, store_s: float = 0.0, **others) -> Costs:
    """So many seconds for each computation, and for each row."""
    keys, stack, seen = set(), [plan], set()
    while stack:
        p = stack.pop()
        if id(p) not in seen:
            seen.add(id(p))
            keys |= {step.segment.key for step in p.steps if isinstance(step, Compute)}
            stack += [body for step in p.steps for body in called_plans(step)]
    segments = dict.fromkeys(keys, SegmentCost(compute_s=compute_s, new_bytes=ROW))
    if load_s is None:
        return Costs(segments, **others)
    contention = others.pop("contention", Line())
    read = Channel(Line(0.0, load_s / ROW), contention=contention)
    return Costs(segments, read, Channel(Line(0.0, store_s / ROW)), **others)


@pytest.mark.parametrize(
    ("pool_bytes", "compute_s", "load_s", "step_s", "bound"),
    [
        (MANY, 3.0, 1.0, 1.0 + 9.0, "compute"),  # after the first row, compute alone
        (MANY, 1.0, 3.0, 9.0 + 1.0, "loads and stores"),  # after the last row, one computation
        (MANY, 2.0, 2.0, 2.0 + 6.0, "compute"),
        # With memory for one row, the third is read when the second has been used, from 7 on.
        (ROW, 3.0, 1.0, 11.0, "compute"),
        (ROW, 1.0, 3.0, 10.0, "loads and stores"),
        (ROW, 2.0, 2.0, 8.0, "compute"),
    ],
)
def test_of_loads_and_compute_the_slower_one_hides_the_other(pool_bytes, compute_s, load_s, step_s, bound):
    plan = layers()
    found = simulate(plan, costs(plan, compute_s, load_s), Limits(pool_bytes))
    assert (found.step_s, found.bound) == (pytest.approx(step_s), bound)
    assert found.bound_s == 3 * max(compute_s, load_s)
    assert (found.compute_s, found.load_s) == (pytest.approx(3 * compute_s), pytest.approx(3 * load_s))
    assert found.load_bytes == 3 * ROW


def test_rows_in_memory_take_no_time():
    plan = layers(has_stores=True)
    found = simulate(plan, costs(plan, 2.0), Limits())
    assert (found.step_s, found.load_bytes, found.store_bytes) == (pytest.approx(6.0), 3 * ROW, 3 * ROW)


def test_stores_wait_for_the_disk_behind_loads():
    # Rows arrive at 1, 2, 3; values are there at 2, 3, 4; the disk writes from 3 on.
    plan = layers(has_stores=True)
    found = simulate(plan, costs(plan, 1.0, 1.0, 1.0), Limits())
    assert found.step_s == pytest.approx(6.0)
    assert (found.store_s, found.store_bytes) == (pytest.approx(3.0), 3 * ROW)


def test_without_room_to_write_each_store_is_waited_for():
    # Value k is there at 2 + k at the earliest; store k + 1 begins once store k is written: 3, 6, 9, and then 12.
    plan = layers(has_stores=True)
    found = simulate(plan, costs(plan, 1.0, 1.0, 3.0), Limits(write_bytes=0))
    assert found.step_s == pytest.approx(12.0)
    assert found.stalls["store"] > 0


def test_what_compute_loses_to_the_disk():
    # From 1 to 3 the disk reads, and the device computes at half its speed: of nine seconds one is done by then.
    plan = layers()
    found = simulate(plan, costs(plan, 3.0, 1.0, contention=Line(0.0, 0.5 / ROW)), Limits())
    assert found.step_s == pytest.approx(11.0)
    assert found.bound_s == 9.0


def test_a_kept_row_is_not_read_again():
    plan = layers()
    found = simulate(plan, costs(plan, 1.0, 3.0), Limits(cache_bytes=2 * ROW))
    assert (found.load_bytes, found.step_s) == (ROW, pytest.approx(4.0))


def test_the_thread_of_the_run_bounds_many_small_steps():
    plan = loop(50)
    found = simulate(plan, costs(plan, 1e-6, step_s=1e-3), Limits())
    assert found.bound == "host"
    assert found.step_s == pytest.approx(found.host_s, rel=1e-3)


def test_an_inline_computation_holds_up_the_thread():
    plan = layers()
    segments = {key: SegmentCost(compute_s=2.0, is_inline=True) for key in costs(plan, 0.0).segments}
    found = simulate(plan, Costs(segments, step_s=1.0), Limits())
    assert found.step_s == pytest.approx(6.0 + len(plan.steps))


def test_whoever_waits_goes_on_a_moment_later():
    # Rows arrive at 2, 4, 6 s; each time the thread goes on half a second later, and the device computes for 1 s;
    # the result is ready at 7.5 s, and known half a second later.
    plan = layers()
    assert simulate(plan, costs(plan, 1.0, 2.0), Limits()).step_s == pytest.approx(7.0)
    assert simulate(plan, costs(plan, 1.0, 2.0, wake_s=0.5), Limits()).step_s == pytest.approx(8.0)


def test_what_the_thread_does_takes_from_the_device():
    # A second for each step; from the first computation on the device has half its speed while the thread is busy.
    plan = layers()
    before = next(i for i, step in enumerate(plan.steps) if isinstance(step, Compute)) + 1
    found = simulate(plan, costs(plan, 10.0, step_s=1.0, host_loss=0.5), Limits())
    assert found.step_s == pytest.approx(before + 30.0 + 0.5 * (len(plan.steps) - before))


@pytest.mark.parametrize("has_stores", [False, True])
def test_a_long_loop_is_extrapolated(has_stores):
    plan = loop(400, has_stores=has_stores)
    times = costs(plan, 1.0, 0.7, 0.2, step_s=1e-3)
    limits = Limits(4 * ROW, 0, 4 * ROW, 8 * ROW)
    whole, part = simulate(plan, times, limits, max_steps=10**6), simulate(plan, times, limits, max_steps=200)
    assert (whole.is_extrapolated, part.is_extrapolated) == (False, True)
    assert part.step_s == pytest.approx(whole.step_s, rel=0.01)
    assert part.load_bytes == pytest.approx(whole.load_bytes, rel=0.01)


def test_memory_over_time_reaches_the_peak():
    plan = layers()
    found = simulate(plan, costs(plan, 1.0, 1.0), Limits())
    moments = [s for s, _ in found.timeline]
    assert moments == sorted(moments)
    assert moments[-1] == pytest.approx(found.step_s)
    # At the end of the run the last sum is still there, and at the peak a row, a sum, and the next one.
    assert 3 * ROW <= max(n for _, n in found.timeline) <= 5 * ROW + 64


def test_a_prediction_prints_its_bound_and_its_step():
    plan = layers()
    text = str(simulate(plan, costs(plan, 3.0, 1.0), Limits()))
    assert "bound: compute, 9.00 s, 90% of the step" in text
    assert "predicted step: 10.0 s" in text
