"""What a process learns of its job from the environment."""

from __future__ import annotations

import pytest

from popxl.errors import PopxlError
from popxl.job import Job

LAUNCHED = {
    "POPXL_PROCESS_COUNT": "4",
    "POPXL_PROCESS_ID": "3",
    "POPXL_COORDINATOR": "node1:5000",
    "POPXL_LOCAL_REPLICAS": "2",
}


def test_process_that_nobody_launched_is_a_job_of_one_replica() -> None:
    assert Job.from_environment({"HOME": "/"}) == Job(1, 0, "", 1)


def test_launched_process_is_what_the_launcher_says() -> None:
    assert Job.from_environment(LAUNCHED) == Job(4, 3, "node1:5000", 2)


def test_one_process_needs_no_coordinator() -> None:
    job = Job.from_environment({"POPXL_PROCESS_COUNT": "1", "POPXL_LOCAL_REPLICAS": "8"})
    assert (job.process_count, job.local_replicas) == (1, 8)


def test_environment_of_this_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert Job.from_environment() == Job(4, 3, "node1:5000", 2)


@pytest.mark.parametrize("name", ["POPXL_PROCESS_COUNT", "POPXL_PROCESS_ID", "POPXL_LOCAL_REPLICAS"])
@pytest.mark.parametrize("text", ["", "-1", "two", "1.0", " 1", "1e3", "+1"])
def test_what_is_no_number_is_refused(name: str, text: str) -> None:
    with pytest.raises(
        ValueError, match=rf"The environment variable {name} is .*{text.strip().replace('+', '.')}"
    ) as caught:
        Job.from_environment({**LAUNCHED, name: text})
    assert isinstance(caught.value, PopxlError)
    assert "Hint: set it to a number of at least" in str(caught.value)


@pytest.mark.parametrize("name", ["POPXL_PROCESS_COUNT", "POPXL_LOCAL_REPLICAS"])
def test_none_of_what_there_must_be_one_of_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is '0'"):
        Job.from_environment({**LAUNCHED, name: "0"})


@pytest.mark.parametrize("process_id", ["4", "5"])
def test_process_beyond_the_last_is_refused(process_id: str) -> None:
    with pytest.raises(ValueError, match=f"POPXL_PROCESS_ID is {process_id}, and there are 4 processes"):
        Job.from_environment({**LAUNCHED, "POPXL_PROCESS_ID": process_id})


@pytest.mark.parametrize("coordinator", [None, "", "node1"])
def test_several_processes_need_a_coordinator(coordinator: str | None) -> None:
    environment = {name: value for name, value in LAUNCHED.items() if name != "POPXL_COORDINATOR"}
    if coordinator is not None:
        environment["POPXL_COORDINATOR"] = coordinator
    with pytest.raises(ValueError, match=r"POPXL_COORDINATOR is .*, where the processes should find process 0"):
        Job.from_environment(environment)


def test_program_that_asks_for_its_job_has_the_replicas_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    import popxl

    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    ir = popxl.Ir("popdist")
    assert (ir.replication_factor, ir.instance_replication_factor) == (8, 2)
    # Another program in the same process does not take part.
    assert popxl.Ir(3).instance_replication_factor == 3
