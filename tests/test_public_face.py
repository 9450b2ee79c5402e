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


def test_import_of_the_package_loads_none_of_its_parts() -> None:
    code = "import sys, popxl; print([m for m in sys.modules if m == 'numpy' or m.startswith('popxl.')])"
    assert run_python(code) == "[]"


def test_each_module_can_be_the_first_that_is_imported() -> None:
    code = """
import importlib, pkgutil, sys
import numpy, popxl
names = ["popxl." + module.name for module in pkgutil.iter_modules(popxl.__path__)]
for name in names:
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "popxl"]:
        del sys.modules[loaded]
    importlib.import_module(name)
print(len(names) > 20, "jax" in sys.modules)
"""
    assert run_python(code) == "True False"


def test_module_remote_buffer_never_takes_the_place_of_the_function() -> None:
    for first in ("import popxl.remote_buffer", "import popxl; popxl.ops", "from popxl import remote_buffer"):
        assert run_python(f"{first}\nimport popxl; print(type(popxl.remote_buffer).__name__)") == "function"


def test_wrong_name_is_the_usual_attribute_error() -> None:
    code = """
import popxl
for name in ("Sesion", "testing", "ops.add", "_ops"):
    try:
        getattr(popxl, name)
    except AttributeError as error:
        print(error)
"""
    names = ("Sesion", "testing", "ops.add", "_ops")
    assert run_python(code).splitlines() == [f"module 'popxl' has no attribute {name!r}" for name in names]


def test_names_are_listed_before_they_are_used() -> None:
    assert run_python("import popxl; print({'Session', 'ops', 'float32', '__version__'} <= set(dir(popxl)))") == "True"
    assert run_python("from popxl import *; print(Session.__module__, float32)") == "popxl.session popxl.dtypes.float32"


def test_session_imports_nothing_that_draws() -> None:
    code = "import sys, popxl.session; print({'rich', 'matplotlib'} & {name.partition('.')[0] for name in sys.modules})"
    assert run_python(code) == "set()"


def test_package_declares_its_types() -> None:
    assert files("popxl").joinpath("py.typed").is_file()
    assert files("popxl").joinpath("__init__.pyi").is_file()
