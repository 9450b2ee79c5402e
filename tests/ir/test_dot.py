"""`Ir.dot_checkpoint` (spec core.md §2)."""

from __future__ import annotations

from pathlib import Path

import pytest

import popxl
from popxl import ops


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POPART_DOT_CHECKS", raising=False)


@pytest.fixture
def program(ir: popxl.Ir) -> popxl.Ir:
    """A main graph with ops that calls one graph, and a graph without ops."""
    with ir.main_graph:
        x = popxl.variable(1.0)
        ir.create_empty_graph("nothing")
        graph = ir.create_graph(lambda x: ops.relu(x), x)
        ops.call(graph, x)
    return ir


def files(directory: Path | None = None) -> list[str]:
    return sorted(p.name for p in (directory or Path.cwd()).glob("*.dot"))


def test_one_file_per_graph_with_ops(program: popxl.Ir) -> None:
    program.dot_checkpoint("Built")
    assert files() == ["Built_1.dot", "Built_r.dot"]


def test_save_dir_is_made_with_its_parents(program: popxl.Ir, tmp_path: Path) -> None:
    program.dot_checkpoint("Built", tmp_path / "a" / "b")
    assert files(tmp_path / "a" / "b") == ["Built_1.dot", "Built_r.dot"]
    assert files() == []


def test_save_dir_may_be_text_and_serves_all_later_checkpoints(program: popxl.Ir, tmp_path: Path) -> None:
    program.dot_checkpoint("One", str(tmp_path / "d"))
    program.dot_checkpoint("Two")
    assert files(tmp_path / "d") == ["One_1.dot", "One_r.dot", "Two_1.dot", "Two_r.dot"]


@pytest.mark.parametrize(
    ("enabled", "expected"),
    [
        ("ALL", ["Built_1.dot", "Built_r.dot"]),
        ("all", ["Built_1.dot", "Built_r.dot"]),
        ("BUILT", ["Built_1.dot", "Built_r.dot"]),
        ("OTHER:BUILT", ["Built_1.dot", "Built_r.dot"]),
        ("OTHER", []),
        ("", []),
    ],
)
def test_environment_says_which_checkpoints_are_written(
    program: popxl.Ir, monkeypatch: pytest.MonkeyPatch, enabled: str, expected: list[str]
) -> None:
    monkeypatch.setenv("POPART_DOT_CHECKS", enabled)
    program.dot_checkpoint("Built")
    assert files() == expected


def test_main_graph_two_checkpoints_and_a_session_give_three_files(
    ir: popxl.Ir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POPART_DOT_CHECKS", "ALL")
    with ir.main_graph:
        ops.init((), popxl.float32)
    ir.dot_checkpoint("One")
    ir.dot_checkpoint("Two")
    popxl.Session(ir)
    assert files() == ["Final_r.dot", "One_r.dot", "Two_r.dot"]


def test_session_writes_final_where_checkpoints_were_asked_for(program: popxl.Ir) -> None:
    program.dot_checkpoint("Built")
    popxl.Session(program)
    assert files() == ["Built_1.dot", "Built_r.dot", "Final_1.dot", "Final_r.dot"]


@pytest.mark.parametrize(("enabled", "count"), [("FINAL", 2), ("ALL", 2), ("BUILT", 0), ("", 0)])
def test_session_writes_final_where_the_environment_enables_it(
    program: popxl.Ir, monkeypatch: pytest.MonkeyPatch, enabled: str, count: int
) -> None:
    monkeypatch.setenv("POPART_DOT_CHECKS", enabled)
    popxl.Session(program)
    assert len(files()) == count


def test_session_alone_writes_nothing(program: popxl.Ir) -> None:
    popxl.Session(program)
    assert files() == []


def test_file_is_a_digraph_with_a_node_per_op_and_an_edge_per_tensor_between_two(ir: popxl.Ir) -> None:
    with ir.main_graph:
        x = popxl.variable(1.0)
        ops.exp(ops.relu(x)) + x
    ir.dot_checkpoint("Built")
    assert Path("Built_r.dot").read_text().splitlines() == [
        'digraph "main" {',
        '  0 [label="Relu"];',
        '  1 [label="Exp"];',
        '  0 -> 1 [label="relu_out"];',
        '  2 [label="Add"];',
        '  1 -> 2 [label="exp_out"];',
        "}",
    ]


def test_quotes_and_backslashes_in_names_are_escaped(ir: popxl.Ir) -> None:
    with ir.main_graph, popxl.name_scope('a"b\\c'):
        ops.exp(ops.relu(popxl.constant(1.0)))
    ir.dot_checkpoint("Built")
    assert r'  0 -> 1 [label="a\"b\\c/relu_out"];' in Path("Built_r.dot").read_text().splitlines()
