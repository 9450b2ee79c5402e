"""The processes that run one program together, as the launcher describes them to each (spec ``core.md`` §3)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from popxl.errors import PopxlValueError

PROCESS_COUNT = "POPXL_PROCESS_COUNT"
PROCESS_ID = "POPXL_PROCESS_ID"
COORDINATOR = "POPXL_COORDINATOR"
LOCAL_REPLICAS = "POPXL_LOCAL_REPLICAS"


@dataclass(frozen=True, slots=True)
class Job:
    """A job.

    Attributes:
        process_count: Its processes.
        process_id: Number of this one, from 0.
        coordinator: ``host:port`` where process 0 listens for the others.
        local_replicas: Replicas of each process.
    """

    process_count: int = 1
    process_id: int = 0
    coordinator: str = ""
    local_replicas: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Job:
        """Return what the environment says; a process that nobody launched is a job of its own.

        Raises:
            PopxlValueError: (a `ValueError`) if the variables make no sense.

        Example:
            >>> Job.from_environment({"POPXL_PROCESS_COUNT": "2", "POPXL_PROCESS_ID": "1", "POPXL_COORDINATOR": "a:1"})
            Job(process_count=2, process_id=1, coordinator='a:1', local_replicas=1)
        """
        count = _number(environment, PROCESS_COUNT, 1, at_least=1)
        process_id = _number(environment, PROCESS_ID, 0, at_least=0)
        coordinator = environment.get(COORDINATOR, "")
        if process_id >= count:
            raise PopxlValueError(
                f"{PROCESS_ID} is {process_id}, and there are {count} processes ({PROCESS_COUNT}).",
                hint="number the processes from 0",
            )
        if count > 1 and ":" not in coordinator:
            raise PopxlValueError(
                f"{COORDINATOR} is {coordinator!r}, where the processes should find process 0.",
                hint=f"set {COORDINATOR}=host:port, with a free port of the host of process 0",
            )
        return cls(count, process_id, coordinator, _number(environment, LOCAL_REPLICAS, 1, at_least=1))


def _number(environment: Mapping[str, str], name: str, default: int, *, at_least: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal() or int(text) < at_least:
        raise PopxlValueError(
            f"The environment variable {name} is {text!r}.", hint=f"set it to a number of at least {at_least}"
        )
    return int(text)
