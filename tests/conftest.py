"""Settings of every test: what pytest itself needs stands in pyproject.toml."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: a slow example on a busy machine is not a wrong answer. In CI the same examples every time, so that a
# change is judged by what it did; elsewhere new ones each run.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")
