"""``popxl estimate``: how it takes over a program, and what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from popxl import session as session_module
from popxl.cli.main import main

SOURCE = """
import sys
import numpy as np, popxl
from popxl import ops

def data():
    raise AssertionError("the data are wanted")

ir = popxl.Ir()
with ir.main_graph, popxl.in_sequence():
    buffer = popxl.remote_buffer((256, 256), popxl.float32, 4)
    x = popxl.variable(np.zeros((256, 256), np.float32), name="x")
    for i in range(4):
        popxl.remote_variable(data, buffer, i)
        x = ops.tanh(x + ops.remote_load(buffer, i))
    ops.host_store(popxl.d2h_stream((256, 256), popxl.float32), x)
"""
SESSION = """
with popxl.Session(ir, {arguments}) as session:
    open({ran!r}, "w").write("ran")
open({ran!r}, "w").write("ran")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "my program.py"


def write(program: Path, arguments: str = "") -> Path:
    """Make the program; return the file that it writes if it goes on."""
    ran = program.with_name("ran")
    program.write_text(SOURCE + SESSION.format(arguments=arguments, ran=str(ran)))
    return ran


def test_the_program_stops_at_its_session_and_nothing_is_left_behind(program, tmp_path, capsys):
    ran = write(program, f"streaming_memory='file:{tmp_path / 'rows'}'")
    assert main(["estimate", str(program)]) == 0
    out = capsys.readouterr().out
    for words in ("Streaming Memory: 1.00 MiB", "device", "bound: ", "predicted step: ", "free on the disk"):
        assert words in out
    assert not ran.exists()
    assert [path.name for path in tmp_path.iterdir()] == [program.name]
    assert session_module.on_construction is None


def test_the_program_gets_its_words_and_its_folder(program, tmp_path, capsys):
    (tmp_path / "beside_it.py").write_text("NAME = 'found'")
    program.write_text(
        "import sys, beside_it\nprint(sys.argv, __name__, beside_it.NAME)\n" + SOURCE + "popxl.Session(ir)"
    )
    before = list(sys.argv), list(sys.path)
    assert main(["estimate", str(program), "--device", "a b"]) == 0
    assert f"{[str(program), '--device', 'a b']} __main__ found\n" in capsys.readouterr().out
    assert (sys.argv, sys.path) == before


def test_a_program_that_catches_everything_is_stopped_all_the_same(program, capsys):
    source = (
        SOURCE + "try:\n    popxl.Session(ir)\nexcept BaseException:\n    pass\npopxl.Session(ir)\nprint('went on')"
    )
    program.write_text(source)
    assert main(["estimate", str(program)]) == 0
    out = capsys.readouterr().out
    assert out.count("predicted step") == 1
    assert "went on" not in out


def test_a_budget_that_is_too_small_is_told_with_tensors_lines_and_a_change(program, capsys):
    ran = write(program, "device_memory='1GiB'")
    assert main(["estimate", "--device", "500KiB", str(program)]) == 1
    out = capsys.readouterr().out
    for words in ("the budget is 500.00 KiB", "x, a variable", f"{program}:", "Hint: ", "remote_variable"):
        assert words in out
    assert not ran.exists()


def test_the_programs_own_budget_holds_where_none_is_given(program, capsys):
    write(program, "device_memory='300KiB'")
    assert main(["estimate", str(program)]) == 1
    assert "the budget is 300.00 KiB" in capsys.readouterr().out
    assert main(["estimate", "--device", "1GiB", str(program)]) == 0


@pytest.mark.parametrize(("size", "status"), [("1.2MiB", 1), ("1.25MiB", 0)])
def test_files_must_have_room_for_the_rows(size, status, program, tmp_path, capsys):
    write(program)  # four rows, and the variable that a commit stores, of 256 KiB each
    assert main(["estimate", "--file", size, "--directory", str(tmp_path / "rows"), str(program)]) == status
    assert ("The rows take 1.25 MiB (1310720 B) of files" in capsys.readouterr().out) is bool(status)


def test_too_little_host_memory_is_told(program, tmp_path, capsys):
    write(program)
    words = ["estimate", "--host", "200KiB", "--directory", str(tmp_path / "rows"), str(program)]
    assert main(words) == 1
    assert "Streaming Memory may take 200.00 KiB of host memory" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--host", "1MiB"], ["--file", "1MiB"], ["--device", "much"]])
def test_words_that_do_not_go_with_the_program_are_refused(words, program, capsys):
    write(program)
    assert main(["estimate", *words, str(program)]) == 1
    assert "Hint: " in capsys.readouterr().err


def test_without_a_session_the_graphs_are_estimated(program, capsys):
    program.write_text(SOURCE)
    assert main(["estimate", str(program)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ir:\n")
    assert "predicted step" in out


def test_a_program_without_anything_is_an_error(program, capsys):
    program.write_text("x = 1")
    assert main(["estimate", str(program)]) == 1
    assert "made no popxl.Session" in capsys.readouterr().err


def test_an_error_of_the_program_is_its_own(program):
    program.write_text("raise ZeroDivisionError('mine')")
    with pytest.raises(ZeroDivisionError, match="mine"):
        main(["estimate", str(program)])
    assert session_module.on_construction is None
