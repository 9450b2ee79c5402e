"""What the processes of a job say to each other, apart from collectives of the program."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from popxl.errors import DeviceError
from popxl.job import Job
from popxl.ops._jax import jax


@final
class Peers:
    """The other processes of a job. All of them make the same calls in the same order.

    Args:
        job: The job, which this process has joined.
    """

    def __init__(self, job: Job) -> None:
        self.count = job.process_count
        self.index = job.process_id

    def gather(self, *numbers: int) -> list[tuple[int, ...]]:
        """Give the others some numbers, and return those of all processes, once all have given theirs."""
        from jax.experimental.multihost_utils import process_allgather

        # One more than asked for: JAX waits for nobody where there is nothing to give.
        given: Any = np.asarray((*numbers, 0), np.int64)
        with jax.enable_x64(True):
            found: Any = process_allgather(given)
        return [tuple(int(n) for n in row[:-1]) for row in np.asarray(found).reshape(self.count, len(given))]


def join(job: Job) -> Peers | None:
    """Let this process take part in its job; None for a job of one process.

    Raises:
        DeviceError: (a `RuntimeError`) if the others cannot be reached, or JAX was started before.
    """
    if job.process_count == 1:
        return None
    if not jax.distributed.is_initialized():
        try:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            # It would take SIGTERM as a piece of news, and the process would live on.
            jax.config.update("jax_enable_preemption_service", False)
            host = job.coordinator.rpartition(":")[0]
            jax.distributed.initialize(
                job.coordinator,
                job.process_count,
                job.process_id,
                # The job says it all; other launchers' variables do not count.
                cluster_detection_method="deactivate",
                # A job of one machine is nobody else's business.
                coordinator_bind_address=job.coordinator if host in ("localhost", "127.0.0.1") else None,
            )
        except RuntimeError as error:
            raise DeviceError(
                f"Process {job.process_id} of {job.process_count} cannot join its job at {job.coordinator}: {error}",
                hint="make the popxl.Session before anything else uses JAX's devices, and start all processes",
            ) from error
    return Peers(job)
