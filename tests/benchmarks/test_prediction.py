"""What `benchmarks/prediction.py` compares, with a tiny program. Times are not judged here."""

from __future__ import annotations

import prediction
import pytest


def test_there_are_enough_configurations_and_no_two_alike() -> None:
    assert len({c.name for c in prediction.CONFIGS}) == len(prediction.CONFIGS) >= 20


def test_bytes_of_each_tier_are_those_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = prediction.main(
        ["--quick", "--only", "training, width 64, 2 layers, batch 1, file", "--rounds=1", "--runs=2"]
    )
    assert set(result.n_bytes) == {"loads", "stores", "host", "file", "device"}
    assert result.bytes_error <= prediction.BYTES_LIMIT
    assert len(result.measured_s) == 2
    assert min(result.measured_s) > 0
    out = capsys.readouterr().out
    for words in ("| predicted, ms |", "the largest error of a time", "Target kept: the largest error of bytes"):
        assert words in out
