"""What a process that is killed while it writes leaves: its last commit, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed_work import KILLED, is_written, value
from kills import Nursery, kill_at_random_instants

from popxl.runtime.streaming import FileTier
from popxl.testing.tiers import assert_row, zeros


def check_generation(directory: Path, reported: int) -> int:
    """What is there is one commit, whole: the last that was reported or one that there was no time to report."""
    tier = FileTier(directory, reopen=True)
    tier.open(KILLED)
    number = tier.generation
    assert number in (reported, reported + 1)
    for spec in KILLED:
        for entry in range(spec.entries):
            writer = max((each for each in range(number - 2, number + 1) if is_written(entry, each)), default=0)
            expected = value(spec, entry, writer) if writer > 0 and spec.is_persistent else zeros(spec)
            assert_row(tier.load(spec.buffer_id, entry), expected)
    tier.close()
    return number


def kill(directory: Path, *, times: int, seed: int) -> None:
    def check(reported: int) -> int:
        return check_generation(directory, reported)

    kill_at_random_instants("write_to_tier", directory, check, times=times, seed=seed, span_s=0.2)


def test_killed_process_leaves_its_last_commit_bit_for_bit(tmp_path: Path) -> None:
    kill(tmp_path / "rows", times=50, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_process_that_is_killed_a_thousand_times_leaves_its_last_commit_each_time(tmp_path: Path) -> None:
    kill(tmp_path / "rows", times=1000, seed=2)


# Faults are seen


def test_a_row_of_another_generation_is_noticed(tmp_path: Path) -> None:
    with Nursery("write_to_tier", tmp_path / "rows") as nursery:
        numbers = nursery.kill_one(0.0, after_report=True)
    number = check_generation(tmp_path / "rows", numbers[-1])
    tier = FileTier(tmp_path / "rows", reopen=True)
    tier.open(KILLED)
    tier.store(1, 0, value(KILLED[0], 0, number + 1_000_000))
    tier.commit()
    tier.close()
    with pytest.raises(AssertionError, match="other bits than expected"):
        check_generation(tmp_path / "rows", number + 1)


def test_a_process_that_fails_instead_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("no directory")
    with Nursery("write_to_tier", tmp_path / "rows") as nursery, pytest.raises(AssertionError, match="failed"):
        nursery.kill_one(0.0, after_report=True)
