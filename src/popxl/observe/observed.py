"""What a session can be asked to show: the part of `popxl.Session` that reads events and no values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from popxl.observe.recording import Recording
    from popxl.observe.report import Report
    from popxl.plan.costs import Prediction
    from popxl.plan.memory import Figures
    from popxl.runtime.compiled import Compiled
    from popxl.runtime.events import Sink


class Observed(ABC):
    """A session as seen from outside."""

    _recording: Recording | None = None
    _prediction: Prediction | None = None
    _compiled: Compiled

    @abstractmethod
    def _observe(self, sink: Sink | None) -> None:
        """Wait for what is under way; hand each later event to `sink`, in the thread of the run."""

    @abstractmethod
    def _preparation(self) -> Callable[[], object]:
        """Return what checks and prepares the arrays of a run, given some that are zeros."""

    @property
    def figures(self) -> Figures:
        """What the program needs, known before it runs: memory of the device, of Streaming Memory, bytes moved.

        Example:
            >>> import popxl
            >>> from popxl import ops
            >>> ir = popxl.Ir()
            >>> with ir.main_graph, popxl.in_sequence():
            ...     buffer = popxl.remote_buffer((4,), popxl.float32, entries=8)
            ...     ops.remote_store(buffer, 0, ops.remote_load(buffer, 1) + 1.0)
            >>> figures = popxl.Session(ir).figures
            >>> figures.streaming_bytes, figures.load_bytes, figures.store_bytes
            (128, 16, 16)
        """
        return self._compiled.figures

    def trace(self, path: str | Path | None = None) -> Recording:
        """Record what happens from now on.

        Args:
            path: A file for Perfetto (https://ui.perfetto.dev) to write at the end: one track for each of compute,
                loads, stores and host, bytes under way, and arrows from the load of a row to its use. None for no file.

        Returns:
            A context manager. The recording ends with its block, or with the session; afterwards `report` and
            `timeline` show what was measured.

        Example:
            >>> import popxl
            >>> from popxl import ops
            >>> ir = popxl.Ir()
            >>> with ir.main_graph:
            ...     x = popxl.variable([1.0, 2.0])
            ...     y = ops.var_updates.accumulate_(x, x)
            >>> with popxl.Session(ir) as session, session.trace() as seen:
            ...     _ = session.run()
            >>> len(seen.runs), [event.kind for event in seen.of("compute")]
            (1, ['compute'])
        """
        from popxl.observe.recording import Recording

        self._end_recording()
        self._recording = Recording(lambda: self._observe(None), path)
        self._observe(self._recording.add)
        return self._recording

    def estimate(self) -> Prediction:
        """Predict what a run takes: seconds, bytes moved, memory of each tier, what bounds it, and what it waits for.

        The program does not run, and none of its data are touched. Each of its executables is timed on zeros, and for
        ``"file:DIR"`` the disk with rows of the program's sizes, in a file of that directory that has no name; what the
        disk can do is kept there. That takes some seconds. `report` and `timeline` show the prediction afterwards.

        Raises:
            PopxlNotImplementedError: (a `NotImplementedError`) for a program that runs in several processes.
            StreamingMemoryError: The disk cannot be measured.

        Example:
            >>> import popxl
            >>> ir = popxl.Ir()
            >>> with ir.main_graph:
            ...     x = popxl.variable([1.0, 2.0])
            ...     x += 1
            >>> found = popxl.Session(ir).estimate()
            >>> found.tier_bytes["device"], found.step_s > 0
            (8, True)
        """
        from popxl.observe.estimation import estimate

        self._prediction = estimate(self._compiled, self._preparation())
        return self._prediction

    def report(self) -> Report:
        """What was predicted beside what the last recording measured; ``print`` shows it as tables."""
        from popxl.observe.report import Report

        return Report.of(self.figures, self._recording, self._prediction)

    def timeline(self, path: str | Path) -> None:
        """Draw memory over the runs of the last recording: what was predicted and what was measured.

        Args:
            path: The picture; its suffix says which kind, such as ``.png`` or ``.svg``.

        Raises:
            PopxlError: Nothing was recorded, or matplotlib is not installed (``pip install "openpopxl[plot]"``).
        """
        from popxl.errors import PopxlError
        from popxl.observe.timeline import draw_timeline

        if self._recording is None:
            raise PopxlError("Nothing was recorded.", hint="record some runs: `with session.trace(): session.run(...)`")
        predicted = () if self._prediction is None else self._prediction.timeline
        draw_timeline(self._recording, self.figures, path, predicted)

    def _end_recording(self) -> None:
        if self._recording is not None:
            self._recording.end()
