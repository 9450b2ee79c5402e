"""Settings of every test: what pytest itself needs stands in pyproject.toml."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

# Replicas and IPUs are divided over devices, of which a CPU is one unless this is said before JAX starts.
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

# Where bytecode is not to be written beside its sources, each of the many processes that tests start would compile JAX
# anew, in two seconds: keep it in a folder of its own.
if sys.dont_write_bytecode:
    sys.pycache_prefix = str(Path(__file__).resolve().parent.parent / ".cache" / "bytecode")
    sys.dont_write_bytecode = False
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No deadline: a slow example on a busy machine is not a wrong answer. In CI the same examples every time, so that a
# change is judged by what it did; elsewhere new ones each run.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")
