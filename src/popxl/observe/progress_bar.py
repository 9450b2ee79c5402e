"""How far long work has come, on a terminal; nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, final

from popxl.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from popxl.runtime.streaming import StreamingMemory


_REDRAW_S = 0.1
#: What is done sooner shows nothing of bytes.
_PATIENCE_S = 2.0


class Moves(Protocol):
    """What has moved rows: a `popxl.Session`."""

    @property
    def streaming_memory(self) -> StreamingMemory:
        """Whose counters are read."""
        ...


@final
class Progress:
    """A line on the terminal: the step, steps a second, bytes a second in and out, what the caller says, time left.

    A context manager; made by `progress`.
    """

    def __init__(self, total: int, session: Moves | None, done: int, description: str, console: Console) -> None:
        # Every session imports this module, and few programs show a bar.
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._session = session
        self._begin_s = perf_counter()
        self._steps = 0
        self._moved_before = self._moved()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            # Redrawn at steps: no thread of its own, which would outlive it for a moment.
            auto_refresh=False,
        )
        self._shown_s = self._begin_s
        self._task = self._bar.add_task(description, total=total, completed=done, speed="", facts="")

    def step(self, count: int = 1, **facts: object) -> None:
        """Steps have been done.

        Args:
            count: How many.
            facts: What else to show, such as ``loss=2.5``; of a float four digits.
        """
        self._steps += count
        shown = "  ".join(f"{name} {_short(value)}" for name, value in facts.items())
        self._bar.update(self._task, advance=count, speed=self._speed(), facts=shown)
        if perf_counter() - self._shown_s > _REDRAW_S:
            self._shown_s = perf_counter()
            self._bar.refresh()

    def _speed(self) -> str:
        seconds = max(perf_counter() - self._begin_s, 1e-9)
        rate = self._steps / seconds
        text = f"{rate:.2f} steps/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s a step"
        for name, now, before in zip(("loads", "stores"), self._moved(), self._moved_before, strict=True):
            if now > before:
                text += f"  {name} {(now - before) / seconds / 1e9:.2f} GB/s"
        return text

    def _moved(self) -> tuple[int, int]:
        if self._session is None:
            return 0, 0
        counters = self._session.streaming_memory.counters
        return counters.bytes_loaded, counters.bytes_stored

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self._bar.stop()


def progress(
    total: int,
    session: Moves | None = None,
    *,
    done: int = 0,
    description: str = "training",
    console: Console | None = None,
) -> Progress:
    """Show how far a loop has come, where standard error is a terminal; silent elsewhere. ``NO_COLOR`` is obeyed.

    Args:
        total: Number of steps.
        session: Whose Streaming Memory is watched for bytes loaded and stored.
        done: Steps that were done before.
        description: What is going on.
        console: Where to show it instead.

    Example:
        >>> with progress(3) as bar:
        ...     for loss in (3.0, 2.0, 1.5):
        ...         bar.step(loss=loss)
    """
    from rich.console import Console

    return Progress(total, session, done, description, console or Console(stderr=True))


@final
class ByteProgress:
    """A line on the terminal: bytes that have been moved, bytes a second, time left.

    It comes after two seconds and goes at the end. Where standard error is no terminal nothing is shown; ``NO_COLOR``
    is obeyed. A context manager, which gives what to call with the bytes of each part that is done.

    Args:
        total_bytes: How many there are.
        description: What is going on.
        console: Where to show it instead.

    Example:
        >>> with ByteProgress(3000, "copying") as add:
        ...     for _ in range(3):
        ...         add(1000)
    """

    def __init__(self, total_bytes: int, description: str = "uploading", console: Console | None = None) -> None:
        self._total_bytes, self._description, self._console = total_bytes, description, console
        self._done_bytes = 0
        self._begin_s = perf_counter()
        self._due_s = self._begin_s + _PATIENCE_S
        self._bar: RichProgress | None = None

    def _add(self, n_bytes: int) -> None:
        self._done_bytes += n_bytes
        now_s = perf_counter()
        if now_s < self._due_s or not self._done_bytes:
            return
        self._due_s = now_s + _REDRAW_S
        if self._bar is None:
            self._bar = self._begin()
        rate = self._done_bytes / (now_s - self._begin_s)
        left = timedelta(seconds=round((self._total_bytes - self._done_bytes) / rate))
        done, total, speed = (format_bytes(round(n)) for n in (self._done_bytes, self._total_bytes, rate))
        facts = f"{done} of {total}  {speed}/s  {left} left"
        self._bar.update(self._bar.task_ids[0], completed=self._done_bytes, facts=facts, refresh=True)

    def _begin(self) -> RichProgress:
        # Every session imports this module, and few uploads last.
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        console = self._console or Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[facts]}")
        off = not console.is_terminal
        bar = RichProgress(*columns, console=console, disable=off, auto_refresh=False, transient=True)
        bar.add_task(self._description, total=self._total_bytes, facts="")
        bar.start()
        return bar

    def __enter__(self) -> Callable[[int], None]:
        return self._add

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
