"""What `benchmarks/build_graph.py` counts, with few ops. Times are not judged here."""

from __future__ import annotations

import build_graph
import pytest


def test_the_graph_has_the_ops_and_shapes_that_are_reported() -> None:
    built = build_graph.build(400, 100)
    assert (built.op_count, built.shape_count) == (400, 100)


def test_a_shape_rule_runs_once_for_each_shape() -> None:
    build_graph.infer.cache_clear()
    few = build_graph.build(build_graph.OPS_PER_STEP, build_graph.SHAPES_PER_STEP)
    assert 0 < few.rules_run <= few.op_count
    again = build_graph.build(50 * build_graph.OPS_PER_STEP, build_graph.SHAPES_PER_STEP)
    assert again.op_count == 50 * few.op_count
    assert again.rules_run == 0


def test_it_runs_in_a_fresh_process_and_reports_both_builds(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_graph.main(["--ops=200", "--shapes=20", "--processes=1"]) == 0
    out = capsys.readouterr().out
    assert "200 ops, 20 distinct shapes; fresh processes: 1." in out
    for words in ("cold", "warm", "Not measured"):
        assert words in out
