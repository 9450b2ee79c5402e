"""What `benchmarks/replicas.py` compares: tiny programs of one replica and of several. Times are not judged here."""

from __future__ import annotations

import numpy as np
import pytest
from streamed_stack import Sizes

import popxl
import replicas
from popxl import ops


def sizes(batch: int) -> Sizes:
    return Sizes(layers=2, batch=batch, width=16, heads=2, hidden=64, tokens=4)


def test_all_programs_train_alike() -> None:
    losses = []
    for count, is_sharded in ((1, False), (4, False), (4, True)):
        side = replicas.start(sizes(4 // count), count, is_sharded)
        for _ in range(3):
            side.run()
        side.session.__exit__(None, None, None)
        losses.append(side.losses)
    assert losses[0] == sorted(losses[0], reverse=True)
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-4)


def test_losses_of_the_same_samples_must_be_equal() -> None:
    with popxl.Session(addition()) as session:
        sides = {(way, 2, 1): replicas.Side(session, session.wait, [1.0], samples=2) for way in replicas.WAYS}
    replicas.check_losses(sides)
    sides["equal", 2, 1].losses[0] = 1.1
    with pytest.raises(AssertionError, match="programs of the same samples"):
        replicas.check_losses(sides)


def addition() -> popxl.Ir:
    ir = popxl.Ir()
    with ir.main_graph:
        ops.add(popxl.constant(1.0), popxl.constant(2.0))
    return ir


@pytest.mark.parametrize("count", [1, 8])
def test_weights_are_held_once(count: int) -> None:
    assert replicas.resident(count, 32) == (4 * 32 * 32 * 4, 4 * 32 * 32 * 4)


def test_a_sharded_variable_is_held_once() -> None:
    assert replicas.sharded(8, 32) == (4096, 4096, 4096)


def test_it_runs_and_prints_both_comparisons(capsys: pytest.CaptureFixture[str]) -> None:
    replicas.main(["--rounds=1", "--layers=1", "--width=64", "--tokens=4", "--replicas=1,2"])
    out = capsys.readouterr().out
    for words in ("same total", "same each", "sharded", "weights on the device, 2 replicas over 1", "Target"):
        assert words in out
