"""A store that fails before a commit: the tier hears of it, since other processes may wait for its word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming import FileTier


class Recorder:
    """Peers that are this process twice; notes what it says."""

    index, count = 0, 2

    def __init__(self) -> None:
        self.said: list[tuple[int, ...]] = []

    def gather(self, *numbers: int) -> list[tuple[int, ...]]:
        self.said.append(numbers)
        return [numbers, numbers]


def test_a_failed_store_is_told_to_the_peers_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((4,), popxl.float32)
        v = popxl.remote_variable(np.zeros(4, np.float32), buffer)
        ops.remote_store(buffer, 0, ops.remote_load(buffer, 0) + 1)
    tier, peers = FileTier(tmp_path / "rows"), Recorder()
    tier.join(peers)
    with popxl.Session(ir, streaming_memory=popxl.StreamingMemory(tier=tier)) as session:
        first = session.commit()
        honest = tier.start_writes

        def refuse(transfers: Any) -> None:
            raise StreamingMemoryError("The disk is on fire.")

        monkeypatch.setattr(tier, "start_writes", refuse)
        session.run()
        before = len(peers.said)
        with pytest.raises(StreamingMemoryError, match="on fire"):
            session.commit()
        assert peers.said[before:] == [(False,)]
        assert session.generation == first
        monkeypatch.setattr(tier, "start_writes", honest)
        session.run()
        assert session.commit() > first
        assert session.get_tensor_data(v).tolist() == [1.0] * 4
