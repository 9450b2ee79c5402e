"""What the tests of the IR share: a fresh program, and a way to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.context import Context, get_current_context

Evaluate = Callable[..., list[np.ndarray[Any, Any]]]


@pytest.fixture(autouse=True)
def _context_is_left_as_it_was() -> Iterator[None]:
    yield
    assert get_current_context() == Context()


@pytest.fixture
def ir() -> popxl.Ir:
    return popxl.Ir()


@pytest.fixture
def main(ir: popxl.Ir) -> Iterator[popxl.Graph]:
    """The main graph, current during the test."""
    with ir.main_graph:
        yield ir.main_graph


@pytest.fixture
def evaluate() -> Evaluate:
    """Run the current program and return the values of tensors of its main graph."""

    def run(*tensors: popxl.Tensor) -> list[np.ndarray[Any, Any]]:
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in tensors]
        for stream, t in zip(streams, tensors, strict=True):
            ops.host_store(stream, t)
        with popxl.Session(popxl.gir()) as session:
            outputs = session.run()
        return [outputs[stream] for stream in streams]

    return run
