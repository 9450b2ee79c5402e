"""What processes do that are killed meanwhile, and what each commit of theirs holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.transfer import Transfer

Report = Callable[[int], None]

# Rows of one request and of several, and one buffer that no commit keeps.
KILLED = (
    BufferSpec(1, (300_001,), np.dtype("uint8"), entries=6, names=((0, "small"),)),
    BufferSpec(2, (5_000_000,), np.dtype("uint8"), entries=2, names=((0, "large"),)),
    BufferSpec(3, (5000,), np.dtype("uint8"), entries=2),
)
COUNTS = np.arange(max(spec.entry_bytes for spec in KILLED), dtype=np.uint32)


def is_written(entry: int, number: int) -> bool:
    return (entry + number) % 3 != 0


def value(spec: BufferSpec, entry: int, number: int) -> npt.NDArray[np.uint8]:
    """What a row is as of a generation."""
    start = xxhash.xxh3_64_intdigest(f"{spec.buffer_id} {entry} {number}".encode())
    numbers = COUNTS[: spec.entry_bytes] * np.uint32(start >> 32 | 1)
    return (numbers >> np.uint32(7)).astype(np.uint8)


def write_to_tier(directory: Path, report: Report) -> None:
    """Each generation writes two rows in three, first wrongly and then as they shall be."""
    tier = FileTier(directory, reopen=True)
    tier.open(KILLED)
    while True:
        number = tier.generation + 1
        for salt in (1, 0):
            writes = [
                Transfer(spec, entry, value(spec, entry, number + salt * 1_000_000))
                for spec in KILLED
                for entry in range(spec.entries)
                if is_written(entry, number)
            ]
            tier.start_writes(writes)
            for write in writes:
                write.wait()
        report(tier.commit())


class Training:
    """A program whose step n adds n to streamed rows, twice over, and to a variable on the device."""

    ROWS, WIDTH = 4, 300_000

    def __init__(self) -> None:
        # Imported here: what only moves rows needs no JAX.
        import popxl
        from popxl import ops

        self.ir = popxl.Ir()
        with self.ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((self.WIDTH,), popxl.int32, self.ROWS)
            self.rows = [
                popxl.remote_variable(lambda k=k: self.start(k), buffer, k, name=f"row{k}") for k in range(self.ROWS)
            ]
            self.step = popxl.variable(np.int32(0), name="step")
            self.step += 1
            for _ in range(2):
                for k in range(self.ROWS):
                    ops.remote_store(buffer, k, ops.remote_load(buffer, k) + self.step)

    def start(self, k: int) -> npt.NDArray[np.int32]:
        return np.arange(self.WIDTH, dtype=np.int32) * (k + 1)

    def session(self, directory: Path) -> Any:
        import popxl

        memory = popxl.StreamingMemory(f"file:{directory}", reopen=True)
        return popxl.Session(self.ir, streaming_memory=memory, weights_to_host_on_exit=False)


def train(directory: Path, report: Report) -> None:
    """One commit each step. Reports the step: leaving a session, as tests do, is a commit too."""
    training = Training()
    with training.session(directory) as session:
        number = int(session.get_tensor_data(training.step))
        while True:
            session.run()
            session.commit()
            number += 1
            report(number)
