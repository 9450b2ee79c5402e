"""Random programs give what their instructions say, in every run and on every tier."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from program_runs import assert_equal, run_machine, run_popxl
from random_programs import Program, programs

SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


@given(programs())
@settings(SLOW, max_examples=60)
def test_random_programs_do_what_their_instructions_say(program: Program) -> None:
    assert_equal(run_popxl(program), run_machine(program))


@given(programs())
@settings(SLOW, max_examples=2000)
@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_many_random_programs_do_what_their_instructions_say(program: Program) -> None:
    assert_equal(run_popxl(program), run_machine(program))


@given(program=programs())
@settings(SLOW, max_examples=6)
def test_results_are_the_same_in_every_run_and_on_every_tier(
    program: Program, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = run_popxl(program)
    assert_equal(run_popxl(program), first)
    directory: Path = tmp_path_factory.mktemp("rows")
    assert_equal(run_popxl(program, f"file:{directory}"), first)
