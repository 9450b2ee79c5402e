"""What processes say to each other, with JAX's part replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from jax.experimental import multihost_utils

from popxl.job import Job
from popxl.runtime.processes import Peers, join


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What this process gave; process 1 of 2 gives one less of each."""
    given: list[Any] = []

    def allgather(array: Any) -> Any:
        given.append(array)
        return np.stack([array, array - 1])

    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    return given


@pytest.mark.parametrize("numbers", [(), (5,), (0, -1, 2**62)])
def test_each_process_learns_the_numbers_of_all(given: list[Any], numbers: tuple[int, ...]) -> None:
    peers = Peers(Job(2, 0, "localhost:1"))
    assert (peers.index, peers.count) == (0, 2)
    assert peers.gather(*numbers) == [numbers, tuple(n - 1 for n in numbers)]


def test_processes_that_have_nothing_to_say_wait_for_each_other_too(given: list[Any]) -> None:
    Peers(Job(2, 0, "localhost:1")).gather()
    # Of an empty array JAX makes a constant.
    assert [array.size > 0 for array in given] == [True]


def test_job_of_one_process_has_no_others() -> None:
    assert join(Job(1, 0, "", 4)) is None
