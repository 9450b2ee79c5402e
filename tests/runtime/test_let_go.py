"""While a program runs, a value is let go as soon as nothing needs it, also when it was an argument."""

from __future__ import annotations

from typing import ClassVar

import jax
import pytest

import popxl
from popxl import ops
from popxl.plan import program as plan_program
from popxl.runtime.streaming.ram import RamTier
from popxl.runtime.streaming.tier import BufferSpec, Capabilities, ImmutableArray, Tier

SHAPE = (7, 11, 13)  # of the values that are counted


class CountingTier(Tier):
    """Counts the values of shape `SHAPE` on the device at each store, and keeps nothing."""

    capabilities: ClassVar[Capabilities] = RamTier.capabilities

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[int] = []

    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        pass

    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        raise AssertionError("these programs only store")

    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        self.counts.append(sum(a.shape == SHAPE for a in jax.live_arrays()))

    def _detach(self) -> None:
        pass


@pytest.fixture(autouse=True)
def nothing_is_inlined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_program, "SMALL_GRAPH_OPS", -1)
    monkeypatch.setattr(plan_program, "SMALL_LOOP_OPS", -1)


class Program:
    """A program that may store sums of its tensors, at which values are counted."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph:
            self.buffer = popxl.remote_buffer((), popxl.float32)

    def store_sum(self, x: popxl.Tensor) -> None:
        ops.remote_store(self.buffer, 0, ops.sum(x))

    def counts(self) -> list[int]:
        tier = CountingTier()
        with popxl.Session(self.ir, streaming_memory=popxl.StreamingMemory(tier=tier)) as session:
            session.run()
        return tier.counts


@pytest.fixture
def program() -> Program:
    return Program()


def ones() -> popxl.Tensor:
    """Computed, not a variable, so that nothing else holds it."""
    return popxl.variable(1.0) + popxl.constant(0.0) * ops.init(SHAPE, popxl.float32, init_type="zero")


def test_an_argument_of_a_call_is_let_go_after_its_last_use(program: Program) -> None:
    with program.ir.main_graph:
        x = ones()
        ops.call(program.ir.create_graph(program.store_sum, x), x)
    assert program.counts() == [0]


def test_an_argument_that_the_caller_uses_later_stays(program: Program) -> None:
    with program.ir.main_graph:
        x = ones()
        g = program.ir.create_graph(program.store_sum, x)
        ops.call(g, x)
        ops.call(g, x)
    assert program.counts() == [1, 0]


def test_an_argument_of_nested_calls_is_let_go_after_its_last_use(program: Program) -> None:
    with program.ir.main_graph:
        x = ones()
        inner = program.ir.create_graph(program.store_sum, x)
        ops.call(program.ir.create_graph(lambda x: ops.call(inner, x), x), x)
    assert program.counts() == [0]


def test_a_carried_value_is_let_go_after_its_last_use(program: Program) -> None:
    def body(x: popxl.Tensor) -> popxl.Tensor:
        y = x * 2.0
        program.store_sum(y)
        return y

    with program.ir.main_graph:
        x = ones()
        (y,) = ops.repeat(program.ir.create_graph(body, x), 3, x)
        program.store_sum(y)
    assert program.counts() == [1, 1, 1, 0]
