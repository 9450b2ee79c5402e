"""The host streams of one run: items in, items out, by number of execution (spec ``session.md`` §3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from popxl.errors import StreamExhaustedError
from popxl.op import Op
from popxl.runtime.streaming.alloc import aligned_copy
from popxl.streams import Stream

Array = Any
#: Outputs are fetched from the device in batches of about this many bytes, so that a store does not wait.
_BATCH_BYTES = 64 << 20


class HostStreams:
    """The FIFOs of one run.

    Args:
        inputs: For each input stream, an array with one item per execution in front.
        outputs: For each output stream, an array to fill, with one item per execution in front.
    """

    def __init__(self, inputs: Mapping[Stream, np.ndarray[Any, Any]], outputs: Mapping[Stream, np.ndarray[Any, Any]]):
        self._inputs = inputs
        self._outputs = outputs
        self._positions: dict[Stream, int] = {}
        self._pending: list[tuple[np.ndarray[Any, Any], Array]] = []
        self._pending_bytes = 0

    def item(self, stream: Stream, position: int) -> np.ndarray[Any, Any]:
        """The item of an input stream that its load number `position` will get.

        Raises:
            IndexError: There are not so many.
        """
        return self._inputs[stream][position]

    def load(self, op: Op) -> np.ndarray[Any, Any]:
        """Return a copy of the next item of the op's stream: what the run keeps of it is not the user's to change."""
        stream: Stream = op.attributes["stream"]
        return aligned_copy(self._next(op, stream, self._inputs[stream], "fetch input"))

    def store(self, op: Op, value: Array) -> None:
        """Append an item to the op's stream."""
        stream: Stream = op.attributes["stream"]
        self._pending.append((self._next(op, stream, self._outputs[stream], "store output"), value))
        self._pending_bytes += stream.dtype.nbytes * value.size
        if self._pending_bytes > _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Fill the output arrays with everything stored so far."""
        for target, value in self._pending:
            target[...] = np.asarray(value)
        self._pending.clear()
        self._pending_bytes = 0

    def _next(self, op: Op, stream: Stream, items: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
        position = self._positions.get(stream, 0)
        if position >= len(items):
            raise StreamExhaustedError(
                f"Unable to {what} data from IStepIO: stream {stream.tensor_id} has {len(items)} item(s) per run, and "
                f"this is execution {position + 1}.",
                where=op.where,
                hint="set ir.num_host_transfers to the number of executions per run before making the Session",
            )
        self._positions[stream] = position + 1
        return items[position : position + 1].reshape(items.shape[1:])
