"""What `benchmarks/dispatch.py` counts, with few steps. Times are not judged here."""

from __future__ import annotations

from collections import Counter

import dispatch
import numpy as np
import pytest

import popxl

COUNT = 7


@pytest.mark.parametrize("step", dispatch.STEPS, ids=lambda step: step.name)
def test_a_program_has_the_steps_that_its_row_names(step: dispatch.Step) -> None:
    once, twice = (Counter(dispatch.step_names(popxl.Session(dispatch.unrolled(step, n)))) for n in (COUNT, 2 * COUNT))
    assert twice - once == Counter(dict.fromkeys(step.adds, COUNT))


def test_the_loop_is_driven_by_the_host() -> None:
    names = dispatch.step_names(popxl.Session(dispatch.looped(COUNT)))
    assert names.count("Loop") == 1


def test_the_loop_loads_once_an_iteration() -> None:
    with popxl.Session(dispatch.looped(COUNT)) as session:
        session.run()
        assert session.streaming_memory.counters.loads == COUNT


def test_the_called_graph_is_an_executable_of_its_own() -> None:
    (call,) = (step for step in dispatch.STEPS if "Call" in step.adds)
    with popxl.Session(dispatch.unrolled(call, COUNT)) as session:
        assert session.executable_count == 2
        (out,) = session.run().values()
        np.testing.assert_array_equal(out, np.full(dispatch.ELEMENTS, 2.0 ** (COUNT * dispatch.BODY_OPS)))


def test_it_runs_and_reports_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch.main(["--count=3", "--rounds=2"]) == 0
    out = capsys.readouterr().out
    for words in (*(step.name for step in dispatch.STEPS), dispatch.LOOP, "bare call, compiled", "Not measured"):
        assert words in out
