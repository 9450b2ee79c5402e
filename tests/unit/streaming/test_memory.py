from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popxl.errors import PopxlTypeError, PopxlValueError, StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, FileTier, RamTier, StreamingMemory

SPEC = BufferSpec(1, (2,), np.dtype("float32"), entries=2)


def test_ram_is_a_ram_tier() -> None:
    assert isinstance(StreamingMemory("ram").tier, RamTier)


def test_file_is_a_file_tier_in_that_directory(tmp_path: Path) -> None:
    tier = StreamingMemory(f"file:{tmp_path}/a:b").tier
    assert isinstance(tier, FileTier)
    assert tier.directory == tmp_path / "a:b"


def test_tier_of_the_user_is_used_as_it_is() -> None:
    tier = RamTier()
    assert StreamingMemory(tier=tier).tier is tier


@pytest.mark.parametrize("spec", ["", "RAM", "ram:", "ram:4", "file", "file:", "File:x", "disk:x", "/tmp", " ram"])
def test_unknown_spec_lists_what_is_accepted(spec: str) -> None:
    with pytest.raises(PopxlValueError, match="Unknown Streaming Memory") as caught:
        StreamingMemory(spec)
    assert repr(spec) in str(caught.value)
    assert '"ram"' in str(caught.value)
    assert '"file:DIR"' in str(caught.value)


@pytest.mark.parametrize("arguments", [{}, {"spec": "ram", "tier": RamTier()}, {"spec": 3}, {"tier": "ram"}], ids=str)
def test_arguments_that_name_no_single_tier_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(PopxlTypeError):
        StreamingMemory(**arguments)


def test_from_spec_keeps_an_object() -> None:
    memory = StreamingMemory("ram")
    assert StreamingMemory.from_spec(memory) is memory


def test_from_spec_reads_text() -> None:
    assert isinstance(StreamingMemory.from_spec("ram").tier, RamTier)


@pytest.mark.parametrize("spec", [3, Path("/tmp"), RamTier()], ids=str)
def test_from_spec_refuses_other_types(spec: Any) -> None:
    with pytest.raises(PopxlTypeError, match=type(spec).__name__):
        StreamingMemory.from_spec(spec)


@pytest.mark.parametrize("value", [None, ""])
def test_default_is_ram(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("POPXL_STREAMING_MEMORY", raising=False)
    if value is not None:
        monkeypatch.setenv("POPXL_STREAMING_MEMORY", value)
    assert isinstance(StreamingMemory.from_spec(None).tier, RamTier)


def test_environment_chooses_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POPXL_STREAMING_MEMORY", f"file:{tmp_path}")
    assert repr(StreamingMemory.from_spec(None)) == f"StreamingMemory(FileTier('{tmp_path}'))"


def test_environment_does_not_overrule_a_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPXL_STREAMING_MEMORY", "file:/nowhere")
    assert isinstance(StreamingMemory.from_spec("ram").tier, RamTier)


def test_wrong_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPXL_STREAMING_MEMORY", "tape")
    with pytest.raises(PopxlValueError, match=r"'tape'.*\n.*Where: environment variable POPXL_STREAMING"):
        StreamingMemory.from_spec(None)


def test_counters_are_those_of_the_tier() -> None:
    memory = StreamingMemory("ram")
    memory.tier.open([SPEC])
    memory.tier.load(1, 0)
    assert (memory.counters.loads, memory.counters.bytes_loaded) == (1, 8)


def test_one_object_serves_one_session_after_another_but_not_two_at_once() -> None:
    memory = StreamingMemory("ram")
    memory.tier.open([SPEC])
    with pytest.raises(StreamingMemoryError, match="already serves an open session"):
        memory.tier.open([SPEC])
    memory.tier.close()
    memory.tier.open([SPEC])
