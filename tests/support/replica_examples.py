"""Small programs of several replicas with what they must give, and where to run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl.runtime.streaming import StreamingMemory


@dataclass
class Example:
    """A program, its inputs, and what must come out.

    Attributes:
        ir: The program.
        inputs: Arrays of its input streams.
        outputs: What it stores in one run.
        variables: Host values after the runs.
        runs: Number of runs; `outputs` are those of the last.
    """

    ir: popxl.Ir
    inputs: Mapping[Any, Any] = field(default_factory=dict)
    outputs: Mapping[Any, Any] = field(default_factory=dict)
    variables: Mapping[Any, Any] = field(default_factory=dict)
    runs: int = 1


def divisions(replicas: int) -> list[int]:
    """Numbers of devices to try: one for all replicas, one for each, and some for some each. There are eight."""
    fitting = [d for d in range(1, 9) if replicas % d == 0]
    return sorted({fitting[0], fitting[len(fitting) // 2], fitting[-1]})


def places(replicas: int) -> Iterator[Any]:
    """Each kind of Streaming Memory, on one device and on several."""
    for devices in divisions(replicas):
        yield pytest.param("ram", devices, id=f"ram-{devices}")
    for devices in divisions(replicas)[:2]:
        yield pytest.param("file", devices, id=f"file-{devices}")


def on_all(replicas: int) -> pytest.MarkDecorator:
    """Parametrize `tier` and `devices` for a program of so many replicas."""
    return pytest.mark.parametrize(("tier", "devices"), list(places(replicas)))


def session_on(
    ir: popxl.Ir, tier: str, devices: int, directory: Path, *, reopen: bool = False, **options: Any
) -> popxl.Session:
    """A session on so many devices."""
    memory = "ram" if tier == "ram" else StreamingMemory(f"file:{directory / 'rows'}", reopen=reopen)
    return popxl.Session(ir, "cpu", devices=devices, streaming_memory=memory, **options)


def check(make: Callable[[], Example], tier: str, devices: int, directory: Path) -> None:
    """Run an example; its variables are right while attached, after leaving, and in a session that goes on from it."""
    example = make()
    with session_on(example.ir, tier, devices, directory) as session:
        outputs: Any = {}
        for _ in range(example.runs):
            outputs = session.run(example.inputs)
        for stream, expected in example.outputs.items():
            assert_equal(outputs[stream], expected, stream)
        check_variables(session, example.variables)
    check_variables(session, example.variables)
    if tier == "file":
        again = make()
        with session_on(again.ir, tier, devices, directory, reopen=True) as session:
            check_variables(session, again.variables)


def check_variables(session: popxl.Session, expected: Mapping[Any, Any]) -> None:
    """Compare what a session gives for variables."""
    for v, value in expected.items():
        assert_equal(session.get_tensor_data(v), value, v)


def assert_equal(found: Any, expected: Any, what: Any = "") -> None:
    """Same shape and values."""
    wanted = np.asarray(expected)
    assert np.shape(found) == wanted.shape, what
    np.testing.assert_array_equal(found, wanted, str(what))
