"""A process that fails while another waits for it ends the job."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import run_job

# A job imports JAX in each process, and machines may be busy.
pytestmark = pytest.mark.timeout(600)

PROGRAM = Path(__file__).with_name("failing.py")


# The process that JAX calls the leader, which the others hear of when it is gone, and one that is not.
@pytest.mark.parametrize(
    ("how", "which", "status", "message"),
    [
        ("raise", 0, 1, "KeyError: 'what this process lacks'"),
        ("damage", 1, 1, "process-1/buffer-1.slab have the checksum"),
        pytest.param("raise", 1, 1, "KeyError: 'what this process lacks'", marks=pytest.mark.nightly),
        pytest.param("damage", 0, 1, "process-0/buffer-1.slab have the checksum", marks=pytest.mark.nightly),
        pytest.param("exit", 0, 7, "", marks=pytest.mark.nightly),
        pytest.param("exit", 1, 7, "", marks=pytest.mark.nightly),
    ],
)
def test_job_ends_with_the_status_of_the_process_that_fails(
    tmp_path: Path, how: str, which: int, status: int, message: str
) -> None:
    found, words = run_job(PROGRAM, how, str(which), str(tmp_path / "rows"), log=tmp_path / "log")
    assert message in words
    assert found == status, words
