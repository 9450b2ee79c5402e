"""The examples in the docstrings of the streaming modules run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from popxl.runtime import streaming

MODULES = [f"{streaming.__name__}.{module.name}" for module in pkgutil.iter_modules(streaming.__path__)]


@pytest.mark.parametrize("name", [*MODULES, "popxl.testing.tiers", "popxl.testing.tier_transfers"])
def test_docstring_examples_run(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
