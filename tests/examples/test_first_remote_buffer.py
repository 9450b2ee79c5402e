"""examples/first_remote_buffer.py, against the numbers of spec ``remote-memory.md`` §9, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

EXPECTED = """\
offset after the loop: 4
total of the rows: [10. 10.]
row 0 is now: [2. 2.]
row 1 is now: [4. 4.]
row 2 is now: [6. 6.]
row 3 is now: [8. 8.]
"""


@pytest.mark.parametrize("tier", ["ram", "file"])
def test_loop_adds_the_rows_and_stores_them_doubled(
    tier: str, first_remote_buffer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first_remote_buffer.main("ram" if tier == "ram" else f"file:{tmp_path / 'rows'}")
    assert capsys.readouterr().out == EXPECTED
