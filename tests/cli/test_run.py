"""``popxl run``: processes, their words and environment, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from popxl.cli.main import main

COMMAND = [str(Path(sys.executable).with_name("popxl")), "run"]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "my program.py"


def run(program: Path, source: str, *words: str, processes: int = 2) -> int:
    """The status of the command, called in this process."""
    program.write_text("import os, pathlib, signal, sys, time\nme = int(os.environ['POPXL_PROCESS_ID'])\n" + source)
    return main(["run", "-n", str(processes), *words])


def reports(directory: Path) -> list[str]:
    return [path.read_text() for path in sorted(directory.glob("report*"))]


REPORT = """
found = sys.argv[2:], __name__, __file__ == sys.argv[0], sys.path[0]
pathlib.Path(sys.argv[1], f'report{me}').write_text(repr(found))
"""


def test_each_process_runs_the_program_with_its_arguments(program: Path, tmp_path: Path) -> None:
    words = ["-n", "5", "--replicas", "--help", "a b", ""]
    assert run(program, REPORT, str(program), str(tmp_path), *words, processes=3) == 0
    assert reports(tmp_path) == [repr((words, "__main__", True, str(tmp_path)))] * 3


@pytest.mark.parametrize(("replicas", "local"), [([], "1"), (["--replicas", "6"], "3")])
def test_each_process_is_told_of_its_job(program: Path, tmp_path: Path, replicas: list[str], local: str) -> None:
    source = """
pathlib.Path(sys.argv[1], f'report{me}').write_text(
    ' '.join(os.environ['POPXL_' + name] for name in ('PROCESS_COUNT', 'PROCESS_ID', 'LOCAL_REPLICAS', 'COORDINATOR')))
"""
    assert run(program, source, *replicas, str(program), str(tmp_path)) == 0
    (*first, where), (*second, other) = (report.split() for report in reports(tmp_path))
    assert (first, second) == (["2", "0", local], ["2", "1", local])
    assert where == other
    assert where.startswith("localhost:")


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(7)", 7),
        ("sys.exit('a reason')", 1),
        ("sys.exit()", 0),
        ("raise ValueError('a reason')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("os.abort()", 134),
        ("os._exit(200)", 200),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_status_is_that_of_the_process_that_fails(program: Path, end: str, status: int, which: int) -> None:
    assert run(program, f"if me == {which}: {end}", str(program)) == status


def test_others_are_ended_when_one_process_fails(program: Path, tmp_path: Path) -> None:
    source = """
if me == 1:
    while not pathlib.Path(sys.argv[1], 'waits').exists(): time.sleep(0.01)
    sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1], 'ended').touch(), sys.exit(0)))
pathlib.Path(sys.argv[1], 'waits').touch()
time.sleep(1000)
"""
    assert run(program, source, str(program), str(tmp_path)) == 3
    assert (tmp_path / "ended").exists()


def test_process_that_does_not_end_when_told_to_is_killed(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("popxl.cli.run._GRACE_S", 0.1)
    source = """
if me == 1:
    while not pathlib.Path(sys.argv[1], 'report0').exists(): time.sleep(0.01)
    sys.exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
temporary = pathlib.Path(sys.argv[1], 'temporary')
temporary.write_text(str(os.getpid()))
temporary.rename(pathlib.Path(sys.argv[1], 'report0'))
time.sleep(1000)
"""
    assert run(program, source, str(program), str(tmp_path)) == 3
    with pytest.raises(ProcessLookupError):
        os.kill(int(reports(tmp_path)[0]), 0)


def test_command_waits_for_the_last_process(program: Path, tmp_path: Path) -> None:
    source = "time.sleep(0.3 * me)" + REPORT
    assert run(program, source, str(program), str(tmp_path), processes=3) == 0
    assert len(reports(tmp_path)) == 3


def test_program_that_is_not_there_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-n", "2", str(tmp_path / "none.py")]) == 1
    assert "none.py" in capfd.readouterr().err


def test_traceback_starts_with_the_program(program: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        run(program, "def f():\n    raise KeyError('k') from ValueError('cause')\nf()", str(program), processes=1) == 1
    )
    err = capfd.readouterr().err
    assert err.endswith("KeyError: 'k'\n")
    assert "ValueError: cause" in err
    assert err.count("File ") == err.count(f'File "{program}"') == 2


def test_program_of_one_process_is_run_too(program: Path, tmp_path: Path) -> None:
    assert run(program, REPORT, str(program), str(tmp_path), processes=1) == 0
    assert len(reports(tmp_path)) == 1


# Signals


@pytest.fixture
def waiting(program: Path, tmp_path: Path) -> Generator[subprocess.Popen[bytes]]:
    """A job of two processes that wait, in a process group of its own."""
    program.write_text("import os\nos.write(1, b'%d\\n' % os.getpid())\nimport time\ntime.sleep(1000)\n")
    job = subprocess.Popen(
        [*COMMAND, "-n", "2", str(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    yield job
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_all_processes(waiting: subprocess.Popen[bytes], number: signal.Signals) -> None:
    assert waiting.stdout is not None
    pids = [int(waiting.stdout.readline()) for _ in range(2)]
    waiting.send_signal(number)
    assert waiting.wait(60) == 128 + number
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_interrupt_of_a_terminal_reaches_the_whole_group(waiting: subprocess.Popen[bytes]) -> None:
    assert waiting.stdout is not None
    pids = [int(waiting.stdout.readline()) for _ in range(2)]
    os.killpg(waiting.pid, signal.SIGINT)
    assert waiting.wait(60) == 130
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_handlers_of_signals_are_put_back(program: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert run(program, "pass", str(program)) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# Words


def test_replicas_that_do_not_divide_are_refused(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(program, "", "--replicas", "5", str(program)) == 1
    assert capsys.readouterr().err == (
        "popxl: 5 replicas cannot be divided over 2 processes. Hint: make --replicas a multiple of --processes\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "0", "p.py"], "'0' is not a number of at least 1"),
        (["-n", "two", "p.py"], "'two' is not a number of at least 1"),
        (["-n", "2", "--replicas", "-1", "p.py"], "'-1' is not a number of at least 1"),
        (["-n", "2", "--replicas", "1.5", "p.py"], "'1.5' is not a number of at least 1"),
        (["p.py"], "the following arguments are required: -n/--processes"),
        (["-n", "2"], "the following arguments are required: PROGRAM.py"),
    ],
)
def test_wrong_words_are_explained_in_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", *words])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_help_explains_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for word in ("-n N, --processes N", "--replicas R", "PROGRAM.py", 'popxl.Ir("popdist")'):
        assert word in out
