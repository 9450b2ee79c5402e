from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["ram", "file"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of Streaming Memory, as a session takes it."""
    return "ram" if request.param == "ram" else f"file:{tmp_path / 'rows'}"
