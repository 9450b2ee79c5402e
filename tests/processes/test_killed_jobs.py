"""A job of which a process is killed at any instant: started again, it goes on from the last commit of all."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from jobs import RunningJob

PROGRAM = Path(__file__).with_name("training.py")
LINE = re.compile(r"> (?P<process>\d+) (?P<pid>\d+) (?P<what>\w+) ?(?P<step>\d*) ?(?P<generation>\d*)$")
ENDLESS = 1_000_000


@dataclass(frozen=True)
class Report:
    """A line of a process."""

    process: int
    pid: int
    what: str
    step: int
    generation: int


def reports(job: RunningJob, for_s: float | None = None) -> Iterator[Report]:
    for line in job.lines() if for_s is None else job.lines(for_s):
        if found := LINE.search(line):
            process, pid, what, step, generation = found.groups()
            yield Report(int(process), int(pid), what, int(step or 0), int(generation or 0))


class Training:
    """A training that is started again and again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.reached = 0
        # Of each generation. A number may be left out: that of a commit that was cut off.
        self.steps = {0: 0}

    def begin(self, last: int = ENDLESS) -> RunningJob:
        return RunningJob(
            PROGRAM, str(self.directory / "rows"), str(last), str(self.directory / "result.npz"), log=self.log
        )

    def check(self, found: list[Report]) -> None:
        """All processes start where the last commit is: one that some process reported, or had no time to."""
        starts = {(report.step, report.generation) for report in found if report.what == "starts"}
        assert len(starts) <= 1, starts
        for step, generation in starts:
            assert step in (self.reached, self.reached + 1), (starts, self.reached)
            assert self.steps.setdefault(generation, step) == step, "the generation is of another step"
            assert generation == max(self.steps)
        for report in found:
            if report.what == "commits":
                assert self.steps.setdefault(report.generation, report.step) == report.step, found
        self.reached = self.steps[max(self.steps)]
        assert list(self.steps.values()) == list(range(self.reached + 1)), "a step was made twice, or never"

    def kill(self, chance: random.Random, *, after_commits: int) -> None:
        """Kill one of the processes, some time after it has begun or has made so many commits."""
        with self.begin() as job:
            victim = chance.randrange(2)
            found: list[Report] = []
            for report in reports(job):
                found.append(report)
                own = [each for each in found if each.process == victim]
                if len(own) == after_commits + (2 if after_commits else 1):
                    break
            else:
                raise AssertionError(f"the job ended by itself: {found}\n{self.log.read_text()}")
            found += reports(job, chance.uniform(0.0, 0.03 if after_commits else 5.0))
            pid = next(each.pid for each in found if each.process == victim)
            os.kill(pid, signal.SIGKILL)
            found += reports(job)
            assert job.status() == 128 + signal.SIGKILL, self.log.read_text()
        self.check(found)

    def finish(self, last: int) -> dict[str, np.ndarray]:
        """Train up to a step; the weights and the state of the optimizer."""
        with self.begin(last) as job:
            found = list(reports(job))
            assert job.status() == 0, self.log.read_text()
        self.check(found)
        assert self.reached == last
        with np.load(self.directory / "result.npz") as result:
            return dict(result)


@pytest.mark.parametrize(
    ("times", "early"),
    [
        pytest.param(3, 0, marks=pytest.mark.timeout(600)),
        pytest.param(50, 8, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)]),
    ],
)
def test_job_of_which_processes_are_killed_ends_with_the_weights_of_one_that_is_not(
    tmp_path: Path, times: int, early: int
) -> None:
    chance = random.Random(times)
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    killed = Training(tmp_path / "killed")
    for number in range(times):
        killed.kill(chance, after_commits=0 if number < early else chance.randint(1, 4))
    assert killed.reached >= times - early
    found = killed.finish(killed.reached + 2)
    expected = Training(tmp_path / "whole").finish(killed.reached)
    assert found["step"] == killed.reached
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, name, strict=True)
    assert all(np.abs(value).max() > 0 for value in found.values())
