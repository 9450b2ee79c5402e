"""Memory over time as a picture: what was predicted, and what was measured, on one axis."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from popxl.errors import PopxlError
from popxl.plan.memory import Figures
from popxl.runtime.events import Event

from .recording import Recording, bytes_under_way

_MIB = 2**20
Points = Sequence[tuple[float, float]]


def draw_timeline(
    recording: Recording, figures: Figures, path: str | Path, predicted: Sequence[tuple[float, int]] = ()
) -> None:
    """Draw the memory of recorded runs.

    Args:
        recording: What was seen.
        figures: Whose peak of device memory is drawn.
        path: The picture; its suffix says which kind, such as ``.png`` or ``.svg``.
        predicted: Device memory over one run: seconds from its begin, and bytes.

    Raises:
        PopxlError: Nothing was recorded, or matplotlib is not installed.
    """
    if not recording.runs:
        raise PopxlError(
            "There is no run to draw.", hint="record some: `with session.trace(): session.run(...)`, then ask again"
        )
    pyplot = _pyplot()
    start_s = recording.runs[0].begin_s
    figure, axis = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    moments, values = _under_way(recording.of("load"), start_s)
    axis.fill_between(
        moments, values, step="post", alpha=0.35, linewidth=0, color="tab:green", label="rows being loaded"
    )
    moments, values = _under_way(recording.of("store"), start_s)
    axis.fill_between(
        moments, values, step="post", alpha=0.35, linewidth=0, color="tab:orange", label="rows being stored"
    )
    base = min((n for _, n in recording.memory), default=0)
    measured = [(t - start_s, (n - base) / _MIB) for t, n in recording.memory]
    if measured:
        axis.plot(*zip(*measured, strict=True), color="black", linewidth=1, label="process, measured (above its least)")
    for i, run in enumerate(recording.runs):
        axis.axvline(run.begin_s - start_s, color="0.85", linewidth=0.8, zorder=0)
        if predicted:
            points = [(run.begin_s - start_s + t, n / _MIB) for t, n in predicted]
            axis.step(
                *zip(*points, strict=True), where="post", color="tab:blue", linewidth=1,
                label="device, predicted" if i == 0 else None,
            )  # fmt: skip
    peak = figures.device.peak_bytes / _MIB
    axis.axhline(
        peak, color="tab:blue", linestyle="--", linewidth=1, label=f"device at the peak, predicted ({peak:.1f} MiB)"
    )
    axis.set(xlabel="seconds since the first run began", ylabel="MiB", ylim=(0, None), title="Memory over time")
    axis.set_xlim(0, recording.runs[-1].end_s - start_s)
    axis.grid(axis="y", color="0.93")
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _under_way(events: Sequence[Event], start_s: float) -> tuple[list[float], list[float]]:
    """Bytes under way, in MiB, from each moment at which they change."""
    points = bytes_under_way(events)
    return [0.0, *(s - start_s for s, _ in points)], [0.0, *(n / _MIB for _, n in points)]


def _pyplot() -> Any:
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise PopxlError(
            "matplotlib draws the picture, and it is not installed.", hint='pip install "openpopxl[plot]"'
        ) from error
    matplotlib.use("agg", force=False)
    return importlib.import_module("matplotlib.pyplot")
