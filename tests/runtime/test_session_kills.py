"""A session that is killed at any instant: the next one goes on from its last commit, rows and variables alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from killed_work import Training
from kills import kill_at_random_instants


def check(directory: Path, reported: int) -> int:
    training = Training()
    with training.session(directory) as session:
        number = int(session.get_tensor_data(training.step))
        assert number in (reported, reported + 1)
        # Step n adds n twice.
        added = number * (number + 1)
        for k, row in enumerate(training.rows):
            np.testing.assert_array_equal(session.get_tensor_data(row), training.start(k) + added)
    return number


@pytest.mark.parametrize("times", [3, pytest.param(100, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])])
def test_killed_session_leaves_its_last_commit_bit_for_bit(tmp_path: Path, times: int) -> None:
    rows = tmp_path / "rows"
    kill_at_random_instants("train", rows, lambda reported: check(rows, reported), times=times, seed=times, span_s=0.3)
