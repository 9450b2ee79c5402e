from __future__ import annotations

from pathlib import Path

import pytest

from popxl.plan import program as plan_program


@pytest.fixture(params=["ram", "file"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of Streaming Memory, as a session takes it."""
    return "ram" if request.param == "ram" else f"file:{tmp_path / 'rows'}"


@pytest.fixture(params=["compiled", "driven by the host"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compile called graphs into the ones around them, or let the host run each as a plan of its own."""
    if request.param != "compiled":
        monkeypatch.setattr(plan_program, "SMALL_GRAPH_OPS", -1)
        monkeypatch.setattr(plan_program, "SMALL_LOOP_OPS", -1)
    return request.param
