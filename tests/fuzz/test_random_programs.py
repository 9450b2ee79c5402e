"""Random programs give what their instructions say, in every run and on every tier."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from program_runs import assert_equal, run_machine, run_popxl
from random_programs import Program, programs
from streaming_ways import Way, run_in_way, ways

SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


@given(programs())
@settings(SLOW, max_examples=40)
def test_random_programs_do_what_their_instructions_say(program: Program) -> None:
    assert_equal(run_popxl(program), run_machine(program))


@given(programs())
@settings(SLOW, max_examples=2000)
@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_many_random_programs_do_what_their_instructions_say(program: Program) -> None:
    assert_equal(run_popxl(program), run_machine(program))


# Streamed in any way


@given(programs(), ways)
@settings(SLOW, max_examples=20)
def test_programs_give_the_same_bits_in_whatever_way_they_are_streamed(program: Program, way: Way) -> None:
    assert_equal(run_in_way(program, way), run_machine(program))


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(4))
def test_many_programs_give_the_same_bits_in_whatever_way_they_are_streamed(part: int) -> None:
    # New ones each night.
    @given(programs(), ways)
    @settings(SLOW, max_examples=250, derandomize=False, print_blob=True)
    def check_each(program: Program, way: Way) -> None:
        assert_equal(run_in_way(program, way), run_machine(program))

    check_each()


@given(program=programs())
@settings(SLOW, max_examples=3)
def test_results_are_the_same_in_every_run_and_on_every_tier(
    program: Program, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = run_popxl(program)
    assert_equal(run_popxl(program), first)
    directory: Path = tmp_path_factory.mktemp("rows")
    assert_equal(run_popxl(program, f"file:{directory}"), first)
