"""The examples as modules."""

from __future__ import annotations

from types import ModuleType

import pytest
from _examples import import_example


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
