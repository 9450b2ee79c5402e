"""What `benchmarks/digits.py` compares, with few steps. Times are not judged here."""

from __future__ import annotations

import digits
import numpy as np
import pytest

STEPS = 5


@pytest.fixture(scope="module")
def losses() -> dict[str, np.ndarray]:
    batches = digits.Batches.draw(STEPS, 8)
    return digits.first_losses({name: make(batches) for name, make in digits.SIDES.items()})


@pytest.mark.parametrize("side", digits.SIDES)
def test_side_computes_the_losses_that_popxl_does(side: str, losses: dict[str, np.ndarray]) -> None:
    assert losses[side].shape == (STEPS,)
    np.testing.assert_allclose(losses[side], losses["popxl"], rtol=0, atol=1e-5)


def test_other_losses_are_noticed(losses: dict[str, np.ndarray]) -> None:
    assert not digits.differ(losses)
    assert digits.differ({**losses, "jax scan": losses["jax scan"] + 1e-3})


def test_second_round_goes_on_with_the_weights_of_the_first() -> None:
    batches = digits.Batches.draw(STEPS, 8)
    for make in digits.SIDES.values():
        run = make(batches)
        first, second = run(), run()
        assert (second < first).all()


def test_it_runs_and_reports_each_side(capsys: pytest.CaptureFixture[str]) -> None:
    digits.main(["--steps=3", "--batch=4", "--rounds=1", "--profile"])
    out = capsys.readouterr().out
    for words in (*digits.SIDES, "jax.jit's is", "under cProfile"):
        assert words in out
