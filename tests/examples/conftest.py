"""The examples as modules. They are programs, not a package, so they are imported by their path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def import_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def minilm() -> ModuleType:
    return import_example("minilm_streamed")


@pytest.fixture(scope="session")
def first_remote_buffer() -> ModuleType:
    return import_example("first_remote_buffer")


@pytest.fixture(scope="session")
def digits() -> ModuleType:
    return import_example("digits")


@pytest.fixture(scope="session")
def digits_conv() -> ModuleType:
    return import_example("digits_conv")


@pytest.fixture(scope="session")
def optimisers() -> ModuleType:
    return import_example("optimisers")


@pytest.fixture(scope="session")
def language_model() -> ModuleType:
    return import_example("language_model")


@pytest.fixture(scope="session")
def data_parallel() -> ModuleType:
    return import_example("digits_data_parallel")


@pytest.fixture(scope="session")
def tensor_parallel() -> ModuleType:
    return import_example("tensor_parallel")


@pytest.fixture(scope="session")
def sharded_training() -> ModuleType:
    return import_example("sharded_training")


@pytest.fixture(scope="session")
def train_larger_than_memory() -> ModuleType:
    return import_example("train_larger_than_memory")


@pytest.fixture(autouse=True)
def streaming_memory_is_not_set_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POPXL_STREAMING_MEMORY", raising=False)
