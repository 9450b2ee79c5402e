"""What a program sees before it has built anything: `import popxl` itself."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files


def run_python(code: str) -> str:
    """Output of code in a new interpreter, in which nothing is imported yet and warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_does_not_import_jax() -> None:
    loaded = run_python("import sys, popxl; print([m for m in sys.modules if m.split('.')[0] in ('jax', 'jaxlib')])")
    assert loaded == "[]"


def test_import_of_ops_starts_no_jax_backend() -> None:
    # A backend that starts on import would take memory on every GPU of the machine, and a change of jax.config
    # that a program makes after its imports would come too late.
    code = """
import popxl, popxl.ops
import jax
jax.config.update("jax_num_cpu_devices", 3)
print(jax.device_count("cpu"))
"""
    assert run_python(code) == "3"


def test_import_prints_nothing() -> None:
    assert run_python("import popxl") == ""


def test_package_declares_its_types() -> None:
    assert files("popxl").joinpath("py.typed").is_file()
