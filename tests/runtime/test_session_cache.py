"""``POPXL_CACHE_DIR``: later sessions load what earlier ones compiled (session.md §6)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

import popxl

HIT, REQUEST = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/compile_requests_use_cache"

PROGRAM = """
import jax, numpy as np, popxl
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
ir = popxl.Ir()
with ir.main_graph:
    v = popxl.variable(np.arange(5, dtype=np.float32))
    v += 17
session = popxl.Session(ir)
print(events.count("/jax/compilation_cache/compile_requests_use_cache"))
print(events.count("/jax/compilation_cache/cache_hits"))
with session:
    session.run()
print(session.get_tensor_data(v).tolist())
"""


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Collect JAX's own events."""
    events: list[str] = []

    def listen(event: str, **_: object) -> None:
        events.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_listener(listen)


def grow(start: float, step: float = 1.0) -> tuple[popxl.Ir, popxl.Tensor]:
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(np.full(7, start, np.float32))
        v += step
    return ir, v


def compile_and_run(start: float, step: float = 1.0) -> tuple[int, int]:
    """Return how often the session asked the cache, and how often it found something; checks the result."""
    ir, v = grow(start, step)
    with recorded() as events:
        session = popxl.Session(ir)
    with session:
        session.run()
    assert session.get_tensor_data(v).tolist() == [start + step] * 7
    return events.count(REQUEST), events.count(HIT)


def programs(directory: Path) -> list[Path]:
    return [p for p in directory.iterdir() if p.name.endswith("-cache")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setenv("POPXL_CACHE_DIR", str(directory))
    return directory


def test_first_session_compiles_and_the_next_one_loads(cache: Path) -> None:
    assert compile_and_run(1.0) == (1, 0)
    assert len(programs(cache)) == 1
    assert compile_and_run(1.0) == (1, 1)
    assert len(programs(cache)) == 1


def test_values_of_variables_are_not_part_of_the_cache(cache: Path) -> None:
    compile_and_run(1.0)
    assert compile_and_run(50.0) == (1, 1)


def test_another_program_is_compiled(cache: Path) -> None:
    compile_and_run(1.0)
    assert compile_and_run(1.0, step=2.0) == (1, 0)
    assert len(programs(cache)) == 2


def test_writing_variables_works_with_a_loaded_program(cache: Path) -> None:
    compile_and_run(1.0)
    ir, v = grow(1.0)
    with popxl.Session(ir) as session:
        session.write_variable_data(v, np.full(7, 9, np.float32))
        session.run()
        assert session.get_tensor_data(v).tolist() == [10] * 7
    assert len(programs(cache)) == 1


def test_later_process_loads_what_an_earlier_one_compiled(cache: Path) -> None:
    results = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            check=True,
            capture_output=True,
            text=True,
            env=dict(os.environ),
            timeout=100,
        ).stdout.split("\n")
        for _ in range(2)
    ]
    assert results[0][:2] == ["1", "0"]
    assert results[1][:2] == ["1", "1"]
    assert results[0][2] == results[1][2] == "[17.0, 18.0, 19.0, 20.0, 21.0]"
    assert len(programs(cache)) == 1


def test_each_directory_gets_its_own_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        monkeypatch.setenv("POPXL_CACHE_DIR", str(tmp_path / name))
        assert compile_and_run(1.0) == (1, 0)
        assert len(programs(tmp_path / name)) == 1


def test_nothing_is_kept_once_the_variable_is_unset(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_and_run(1.0)
    monkeypatch.delenv("POPXL_CACHE_DIR")
    assert compile_and_run(1.0, step=3.0)[1] == 0
    assert len(programs(cache)) == 1


def test_cache_is_the_one_named_when_the_ir_was_made(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ir, _ = grow(1.0)
    monkeypatch.setenv("POPXL_CACHE_DIR", str(tmp_path / "later"))
    popxl.Session(ir)
    assert len(programs(cache)) == 1
    assert not (tmp_path / "later").exists()


def test_name_of_the_reference_works_too_and_ours_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPART_CACHE_DIR", str(tmp_path / "theirs"))
    compile_and_run(1.0)
    assert len(programs(tmp_path / "theirs")) == 1
    monkeypatch.setenv("POPXL_CACHE_DIR", str(tmp_path / "ours"))
    compile_and_run(1.0, step=4.0)
    assert len(programs(tmp_path / "theirs")) == 1
    assert len(programs(tmp_path / "ours")) == 1


def test_damaged_file_is_compiled_anew(cache: Path) -> None:
    compile_and_run(1.0)
    (program,) = programs(cache)
    program.write_bytes(b"no program")
    with pytest.warns(UserWarning, match="cache"):
        assert compile_and_run(1.0) == (1, 0)


def test_settings_of_jax_stay_as_the_user_made_them(cache: Path) -> None:
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = [getattr(jax.config, name) for name in names]
    compile_and_run(1.0)
    assert [getattr(jax.config, name) for name in names] == before
