"""OpenPopXL: Graphcore's PopXL programming model on CPUs and GPUs, with Streaming Memory in RAM and files.

Build a program inside ``with popxl.Ir().main_graph:``, then run it with a `popxl.Session`. Importing this
package starts no JAX backend, and each part of it is imported when it is first used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import lazy_loader  # pyright: ignore[reportMissingTypeStubs]

__version__ = "0.1.0"

# `__init__.pyi` lists the names. From 0.6 on lazy_loader keeps an import of the module popxl.remote_buffer from
# taking the place of the function.
_listed, _, __all__ = cast(
    "tuple[Callable[[str], Any], object, list[str]]", lazy_loader.attach_stub(__name__, __file__)
)
__all__ += ["__version__"]

# Not reached by a mere `popxl.NAME`: a program that wants one imports it.
_APART = ("cli", "testing")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _listed(name)
    # The other modules, popxl.dtypes for example.
    if name.isidentifier() and not name.startswith("_") and name not in _APART:
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
