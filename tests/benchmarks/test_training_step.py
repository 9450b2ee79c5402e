"""What `benchmarks/training_step.py` compares, for a tiny model. Times are not judged here."""

from __future__ import annotations

import numpy as np
import pytest
import training_step

SIZES = training_step.Sizes(layers=2, width=32, heads=2, batch=2, tokens=4)
STEPS = 3


@pytest.fixture(scope="module")
def losses() -> dict[str, list[float]]:
    steps = {name: make(SIZES) for name, make in training_step.SIDES.items()}
    return {name: [step() for _ in range(STEPS)] for name, step in steps.items()}


@pytest.mark.parametrize("side", training_step.SIDES)
def test_side_computes_the_losses_that_popxl_does(side: str, losses: dict[str, list[float]]) -> None:
    np.testing.assert_allclose(losses[side], losses["popxl"], rtol=1e-5)


def test_loss_changes_from_step_to_step(losses: dict[str, list[float]]) -> None:
    assert len(set(losses["popxl"])) == STEPS
