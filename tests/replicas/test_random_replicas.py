"""Random programs of several replicas do what the model of spec ``remote-memory.md`` §1 says."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from replica_programs import Case, cases, check

QUICK = settings(
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),  # explaining takes minutes here
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.timeout(300)
@given(case=cases())
@settings(QUICK, max_examples=60)
def test_random_replicas_do_what_the_model_says(case: Case) -> None:
    check(case, "ram", Path())


@pytest.mark.timeout(300)
@given(case=cases())
@settings(QUICK, max_examples=50)
def test_random_replicas_do_what_the_model_says_in_files(case: Case) -> None:
    with tempfile.TemporaryDirectory() as directory:
        check(case, "file", Path(directory))


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@given(case=cases())
@settings(QUICK, max_examples=3000, derandomize=False, print_blob=True)
def test_many_random_replicas_do_what_the_model_says(case: Case) -> None:
    check(case, "ram", Path())
    with tempfile.TemporaryDirectory() as directory:
        check(case, "file", Path(directory))
