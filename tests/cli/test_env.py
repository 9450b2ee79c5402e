"""``popxl env``: what it tells, what it hides, and that it needs no JAX that works."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from popxl.cli.devices import find_devices
from popxl.cli.env import anonymous, shown


def env(**variables: str) -> str:
    """Output of the command in a process with more variables."""
    done = subprocess.run(
        [sys.executable, "-m", "popxl.cli", "env"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def broken_jax(directory: Path, source: str) -> dict[str, str]:
    """Variables with which Python finds this JAX first."""
    (directory / "jax.py").write_text(source)
    return {"PYTHONPATH": str(directory)}


def test_it_tells_versions_devices_and_variables_without_saying_whose_they_are() -> None:
    out = env(
        HOME="/data/ada",
        LOGNAME="ada",
        POPXL_COORDINATOR="calculus.example:1234",
        POPXL_STREAMING_MEMORY="file:/data/ada/rows",
        JAX_COMPILATION_CACHE_DIR="/scratch/ada/cache",
        JAX_PLATFORMS="cpu",
        JAX_SOME_TOKEN="12345-secret",
        UNRELATED="unrelated",
    )
    lines = out.splitlines()
    assert f"jax: {importlib.metadata.version('jax')}" in lines
    assert f"numpy: {importlib.metadata.version('numpy')}" in lines
    assert any(line.startswith("device: cpu, cpu; memories: ") for line in lines)
    assert "POPXL_COORDINATOR=<host>:1234" in lines
    assert "POPXL_STREAMING_MEMORY=file:~/rows" in lines
    assert "JAX_COMPILATION_CACHE_DIR=/scratch/<user>/cache" in lines
    assert "JAX_PLATFORMS=cpu" in lines
    for hidden in ("ada", "calculus", "12345", "unrelated", "UNRELATED"):
        assert hidden not in out


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise ImportError('libgone.so: no such file')", "devices: none. ImportError: libgone.so: no such file"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "devices: none. JAX ended its process with SIGILL"),
    ],
)
def test_it_works_with_a_jax_that_does_not(tmp_path: Path, source: str, told: str) -> None:
    out = env(**broken_jax(tmp_path, source))
    assert told in out.splitlines()
    assert f"jax: {importlib.metadata.version('jax')}" in out.splitlines()


def test_jax_that_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in broken_jax(tmp_path, "while True: pass").items():
        monkeypatch.setenv(name, value)
    assert find_devices(limit_s=0.2).problem == "JAX did not answer within 0.2 s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--xla_dump_to=/data/ada/dump", "--xla_dump_to=~/dump"),
        ("/data/ada", "~"),
        ("/data/adam/dump", "/data/adam/dump"),
        ("/home/grace/x:/home/grace", "/home/<user>/x:/home/<user>"),
        ("10.1.2.3:80", "<address>:80"),
    ],
)
def test_homes_and_addresses_are_hidden(text: str, expected: str) -> None:
    assert anonymous(text, {"HOME": "/data/ada"}) == expected


def test_home_that_is_the_root_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert anonymous("/data/x", {"HOME": "/"}) == "/data/x"


def test_names_of_user_and_host_are_hidden_as_whole_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "a")
    monkeypatch.setattr("socket.gethostname", lambda: "node7.example.org")
    assert anonymous("/scratch/a/cache node7:1 node7.example.org node70", {}) == (
        "/scratch/<user>/cache <host>:1 <host> node70"
    )


@pytest.mark.parametrize("value", ["", "localhost:1234"])
def test_address_that_tells_nothing_is_shown(value: str) -> None:
    assert shown("POPXL_COORDINATOR", value, {}) == value
