"""The worked examples in two processes: the same numbers as in one."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from jobs import run_job
from random_collectives import COUNT, FLOATS, OPS, results
from replica_runs import run_replicas

# A job imports JAX in each process, and machines may be busy.
pytestmark = pytest.mark.timeout(600)

PROGRAM = Path(__file__).with_name("worked_examples.py")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[int, str, dict[str, np.ndarray]]]:
    """Status, words and results of a job of two processes with two devices each."""
    directory = tmp_path_factory.mktemp("job")
    status, words = run_job(PROGRAM, str(directory), log=directory / "log", devices=2)
    with np.load(directory / "results.npz") as found:
        yield status, words, dict(found)


@pytest.fixture(scope="module")
def of_one_process() -> dict[str, np.ndarray]:
    return results(run_replicas)


def test_worked_examples_give_their_numbers_in_two_processes(job: tuple[int, str, dict[str, np.ndarray]]) -> None:
    status, words, _ = job
    assert status == 0, words
    assert words.count(" examples\n") == 2, words


def test_collectives_of_integers_are_those_of_one_process(
    job: tuple[int, str, dict[str, np.ndarray]], of_one_process: dict[str, np.ndarray]
) -> None:
    for name, expected in of_one_process.items():
        if name.startswith("int32"):
            np.testing.assert_array_equal(job[2][name], expected, name, strict=True)


def test_collectives_of_floats_are_those_of_one_process_but_for_the_order_of_sums(
    job: tuple[int, str, dict[str, np.ndarray]], of_one_process: dict[str, np.ndarray]
) -> None:
    assert len(of_one_process) == len(job[2]) == 2 * 2 * (2 * len(OPS) + 1)
    # An ulp of the largest number that a sum or a product comes across, for each member.
    largest = np.abs(FLOATS).max() ** COUNT
    for name, value in of_one_process.items():
        if name.startswith("float32"):
            np.testing.assert_allclose(job[2][name], value, rtol=0, atol=COUNT * np.spacing(largest), err_msg=name)
