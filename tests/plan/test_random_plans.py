"""Plans of random programs: they compute what the program says, free each value after its last use, and never use
memory that was freed or donated. Everything here is NumPy and Python; nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from plan_machine import PlanMachine
from program_runs import RUNS, Builder, Results, assert_equal, item, limits, run_machine
from random_programs import Program, programs

from popxl.plan import GraphPlan, plan_program
from popxl.plan.steps import (
    Branch,
    Call,
    Compute,
    Evaluate,
    Free,
    HostLoad,
    HostStore,
    Loop,
    Print,
    RemoteLoad,
    RemoteStore,
    Step,
    called_plans,
)

MANY = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


def run_plan(program: Program) -> Results:
    builder = Builder(program)
    with limits(inline=program.inline):
        plan = plan_program(builder.ir)
    rows = {(builder.buffers[b].remote_buffer_id, e): v.host_value for (b, e), v in builder.rows.items()}
    machine = PlanMachine(plan, rows, {v: v.host_value for v in builder.variables})
    outputs = []
    for run in range(RUNS):
        found = machine.run({stream: item(spec, seed, run) for stream, spec, seed in builder.inputs})
        outputs.append([np.array(found[stream]) for stream in builder.outputs])
    variables = [np.array(machine.variables[v].read()) for v in builder.variables]
    places = {(b, e): (builder.buffers[b].remote_buffer_id, e) for b, e in builder.rows}
    return Results(outputs, variables, {place: machine.rows[key].read() for place, key in places.items()})


def plans(plan: GraphPlan) -> list[GraphPlan]:
    """A plan and those it calls, each once."""
    found: list[GraphPlan] = []
    stack = [plan]
    while stack:
        current = stack.pop()
        if current not in found:
            found.append(current)
            stack += [body for step in current.steps for body in called_plans(step)]
    return found


def slots(step: Step) -> Iterator[int]:
    """The slots that a step reads or writes."""
    match step:
        case Compute():
            yield from (*step.inputs, *step.outputs)
        case Evaluate():
            yield from (*step.inputs, step.output)
        case HostLoad():
            yield step.output
        case HostStore():
            yield step.input
        case Print():
            yield from (step.input, step.output)
        case RemoteLoad():
            yield from (step.offset, step.output)
        case RemoteStore():
            yield from (step.offset, step.input)
        case Call():
            yield from (*step.inputs, *(s for s in step.outputs if s >= 0), *(s for _, s in step.written_back))
        case Loop():
            yield from slots(step.call)
        case Branch():
            yield from (step.condition, *slots(step.then_call), *slots(step.else_call))
        case Free():
            pass


def kept(plan: GraphPlan) -> set[int]:
    """The slots that outlive the steps."""
    fixed = (slot for slot, _ in (*plan.constants, *plan.variables))
    return {*plan.inputs, *plan.outputs, *fixed}


@given(programs())
@settings(MANY, max_examples=200)
def test_plans_compute_what_the_program_says(program: Program) -> None:
    assert_equal(run_plan(program), run_machine(program))


@given(programs())
@settings(MANY, max_examples=10_000)
@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_many_plans_compute_what_the_program_says(program: Program) -> None:
    assert_equal(run_plan(program), run_machine(program))


@given(programs())
@settings(MANY, max_examples=50)
def test_each_value_is_freed_right_after_its_last_use(program: Program) -> None:
    with limits(inline=program.inline):
        plan = plan_program(Builder(program).ir)
    for each in plans(plan):
        for slot in {s for step in each.steps for s in slots(step)} - kept(each):
            last = max(i for i, step in enumerate(each.steps) if slot in slots(step))
            after = each.steps[last + 1] if last + 1 < len(each.steps) else None
            assert isinstance(after, Free)
            assert slot in after.slots
