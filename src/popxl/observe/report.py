"""What a program was predicted to take beside what its runs took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from popxl.plan.costs import Prediction
from popxl.plan.memory import Figures
from popxl.runtime.events import IN_MEMORY
from popxl.units import format_bytes
from popxl.utils import table_to_string

if TYPE_CHECKING:
    from .recording import Recording

_NOTHING = "-"
#: Where the smaller of compute and transfers is less of the time, there is nothing to overlap worth telling.
_LEAST_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of one run: how long it takes, and how long each lane is busy in it.

    Attributes:
        wall_s: Of the run.
        compute_s: In which the device computes.
        load_s: In which at least one row is loaded.
        store_s: In which at least one row is stored.
        host_s: In which the thread of the run is seen to do something; a prediction counts what nobody sees too.
        stalls: In which the thread of the run waits, by cause: a row, a store, a computation, a value.
    """

    wall_s: float
    compute_s: float
    load_s: float
    store_s: float
    host_s: float
    stalls: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Report:
    """Predicted beside measured; ``print`` shows it as tables. `Session.report` makes one.

    Attributes:
        figures: What the program needs, known before it runs.
        predicted: Seconds of one run; None without a prediction.
        measured: Seconds of a mean run; None if none was recorded.
        runs: How many were recorded.
        loaded: Bytes that a mean run read from Streaming Memory, by the number of the buffer.
        in_memory: Bytes that it asked for and that were still in memory, since their store was under way or they had
            been kept; with `loaded` they are what was predicted.
        stored: Bytes that a mean run stored.
        attributed: Share of the wall time in which at least one lane was busy.
        load_or_store_s: Seconds of a mean run in which rows were moved.
        overlap: Of what overlap could have saved, the share that it did: 1 if moving rows cost no time at all, 0 if
            compute and transfers took turns; None where there was nothing to overlap.
        dropped: Events that were not kept; the measured bytes and seconds lack them.
    """

    figures: Figures
    predicted: Seconds | None = None
    measured: Seconds | None = None
    runs: int = 0
    loaded: Mapping[int, float] = field(default_factory=dict[int, float])
    in_memory: Mapping[int, float] = field(default_factory=dict[int, float])
    stored: Mapping[int, float] = field(default_factory=dict[int, float])
    attributed: float | None = None
    load_or_store_s: float = 0.0
    overlap: float | None = None
    dropped: int = 0

    @classmethod
    def of(cls, figures: Figures, recording: Recording | None, prediction: Prediction | None) -> Report:
        """Make the report of what was recorded, if anything was."""
        predicted = None if prediction is None else _predicted(prediction)
        if recording is None or not recording.runs or not recording.wall_s:
            return cls(figures, predicted)
        count, wall_s = len(recording.runs), recording.wall_s
        compute_s, moved_s = recording.busy_s("compute") / count, recording.busy_s("load", "store") / count
        smaller_s = min(compute_s, moved_s)
        has_overlap = smaller_s > _LEAST_SHARE * wall_s / count
        measured = Seconds(
            wall_s / count,
            compute_s,
            recording.busy_s("load") / count,
            recording.busy_s("store") / count,
            recording.busy_s("host") / count,
            {cause: seconds / count for cause, seconds in recording.waits_s().items()},
        )
        return cls(
            figures,
            predicted,
            measured,
            count,
            _moved(recording, "load"),
            _moved(recording, IN_MEMORY),
            _moved(recording, "store"),
            recording.busy_s() / wall_s,
            moved_s,
            max(0.0, compute_s + moved_s - wall_s / count) / smaller_s if has_overlap else None,
            recording.dropped,
        )

    def __str__(self) -> str:
        parts = [self._bytes_text(), self._seconds_text()]
        if self.measured is None:
            parts.append("Nothing was measured: record some runs, `with session.trace(): session.run(...)`.")
        else:
            parts.append(self._summary())
        return "\n".join(parts)

    def _bytes_text(self) -> str:
        rows: list[Sequence[str]] = [
            ("buffer", "loads, predicted", "read", "still in memory", "stores, predicted", "measured")
        ]
        for buffer_id in self.figures.buffer_bytes:
            traffic = self.figures.traffic.get(buffer_id)
            loads, stores = (0, 0) if traffic is None else (traffic.load_bytes, traffic.store_bytes)
            rows.append(
                (
                    str(buffer_id),
                    format_bytes(loads),
                    self._measured_bytes(self.loaded, buffer_id),
                    self._measured_bytes(self.in_memory, buffer_id),
                    format_bytes(stores),
                    self._measured_bytes(self.stored, buffer_id),
                )
            )
        text = f"device memory at the peak: {format_bytes(self.figures.device.peak_bytes)}\n"
        if len(rows) > 1:
            text += f"bytes of one run\n{table_to_string(rows)}"
        return text

    def _measured_bytes(self, moved: Mapping[int, float], buffer_id: int) -> str:
        return _NOTHING if self.measured is None else format_bytes(round(moved.get(buffer_id, 0)))

    def _seconds_text(self) -> str:
        if self.predicted is None and self.measured is None:
            return ""
        rows: list[Sequence[str]] = [("seconds of one run", "predicted", "measured")]
        for name, title in (
            ("wall_s", "wall"),
            ("compute_s", "computing"),
            ("load_s", "loading"),
            ("store_s", "storing"),
            ("host_s", "host, seen"),
        ):
            rows.append((title, _cell(self.predicted, name), _cell(self.measured, name)))
        known = [seconds for seconds in (self.predicted, self.measured) if seconds is not None]
        for cause in sorted({cause for seconds in known for cause in seconds.stalls}):
            cells = (_stall(seconds, cause) for seconds in (self.predicted, self.measured))
            rows.append((f"waiting for {cause}", *cells))
        return table_to_string(rows)

    def _summary(self) -> str:
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        lines = [f"{runs} measured; {self.attributed or 0:.1%} of the time is one lane's or another's"]
        if self.overlap is not None:
            lines[0] += f"; of what overlap could save, it saved {self.overlap:.0%}"
        if self.dropped:
            lines.append(f"{self.dropped} events were not kept: the measured figures lack them")
        return ".\n".join(lines) + "."


def _predicted(prediction: Prediction) -> Seconds:
    p = prediction
    return Seconds(p.step_s, p.compute_s, p.load_s, p.store_s, p.host_s, dict(p.stalls))


def _moved(recording: Recording, kind: str) -> dict[int, float]:
    """Bytes of events of a kind in a mean run, by buffer."""
    total: dict[int, int] = {}
    for event in recording.events:
        if event.kind == kind and event.row is not None:
            buffer_id, _ = event.row
            total[buffer_id] = total.get(buffer_id, 0) + event.n_bytes
    return {buffer_id: n_bytes / len(recording.runs) for buffer_id, n_bytes in total.items()}


def _cell(seconds: Seconds | None, name: str) -> str:
    return _NOTHING if seconds is None else f"{cast('float', getattr(seconds, name)):.4f}"


def _stall(seconds: Seconds | None, cause: str) -> str:
    return _NOTHING if seconds is None else f"{seconds.stalls.get(cause, 0.0):.4f}"
