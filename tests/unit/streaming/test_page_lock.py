"""Page-locked memory, against a driver that only remembers what it was asked."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import pytest

from popxl.runtime.completion import Completion
from popxl.runtime.streaming.blocks import BlockPool, Region
from popxl.runtime.streaming.page_lock import CudaPageLock, find_page_lock
from popxl.runtime.streaming.tier import PAGE_BYTES


class Driver:
    """Stands for libcuda; `failing` names a function that returns an error."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.contexts: list[object] = []
        self.locked: dict[int, int] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.failing:
                return 304
            match name, arguments:
                case "cuCtxPushCurrent_v2", (context,):
                    self.contexts.append(context)
                case "cuCtxPopCurrent_v2", _:
                    self.contexts.pop()
                case "cuMemHostRegister_v2", (address, nbytes, flags):
                    assert self.contexts, "a context must be current"
                    assert flags == 1
                    assert address.value % PAGE_BYTES == 0
                    self.locked[address.value] = nbytes.value
                case "cuMemHostUnregister", (address,):
                    assert self.contexts, "a context must be current"
                    del self.locked[address.value]
                case _:
                    pass
            return 0

        return call


def test_the_memory_of_a_pool_is_locked_as_long_as_it_is_there() -> None:
    driver = Driver()
    pool = BlockPool(8 * PAGE_BYTES, Completion(), CudaPageLock(driver, 0))
    assert not driver.locked
    block = pool.take(PAGE_BYTES)
    assert block is not None
    start = block.raw.ctypes.data
    assert driver.locked == {start: 8 * PAGE_BYTES}
    del pool
    assert driver.locked  # the block is still there
    del block
    assert not driver.locked


def test_memory_is_unlocked_after_the_copies_that_read_it() -> None:
    driver = Driver()
    CudaPageLock(driver, 0)(PAGE_BYTES, PAGE_BYTES)()
    assert driver.calls.index("cuCtxSynchronize") < driver.calls.index("cuMemHostUnregister")


def test_the_current_context_of_the_thread_is_left_as_it_was() -> None:
    driver = Driver()
    unlock = CudaPageLock(driver, 0)(PAGE_BYTES, PAGE_BYTES)
    assert not driver.contexts
    unlock()
    assert not driver.contexts


@pytest.mark.parametrize(
    "failing", ["cuInit", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuMemHostRegister_v2"]
)
def test_memory_that_cannot_be_locked_is_used_as_it_is(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(failing)
    with caplog.at_level(logging.WARNING, logger="popxl"):
        lock = CudaPageLock(driver, 0)
        regions = [Region(PAGE_BYTES, lock) for _ in range(3)]
    regions[0].memory[:1] = b"x"
    del regions
    assert not driver.contexts
    assert "cuMemHostUnregister" not in driver.calls
    assert [failing in record.message for record in caplog.records] == [True]  # said once


def test_a_cpu_needs_no_lock() -> None:
    assert find_page_lock("cpu", 0) is None


def test_a_machine_without_the_driver_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with caplog.at_level(logging.WARNING, logger="popxl"):
        assert find_page_lock("gpu", 0) is None
    assert "libcuda" in caplog.text
