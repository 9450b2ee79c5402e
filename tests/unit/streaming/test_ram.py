from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, RamTier
from popxl.testing.tiers import TierTests, assert_row

FLOATS = BufferSpec(1, (4,), np.dtype("float32"), entries=3)


class TestRamTier(TierTests):
    def make_tier(self, directory: Path) -> RamTier:
        return RamTier()


def opened(*specs: BufferSpec) -> RamTier:
    tier = RamTier()
    tier.open(specs or [FLOATS])
    return tier


def kept(value: Any) -> bool:
    """Whether the tier holds the stored object itself."""
    tier = opened(BufferSpec(1, value.shape, value.dtype, entries=1))
    tier.store(1, 0, value)
    return tier.load(1, 0) is value


def test_numpy_array_is_kept_by_reference() -> None:
    assert kept(np.ones(4, np.float32))


def test_jax_array_is_kept_by_reference() -> None:
    assert kept(jnp.ones(4, jnp.float32))


def test_view_of_half_of_its_memory_is_kept_by_reference() -> None:
    assert kept(np.ones(8, np.float32)[4:])


def test_reshaped_array_is_kept_by_reference() -> None:
    assert kept(np.ones(8, np.float32).reshape(2, 4))


def test_numpy_view_of_a_jax_array_is_kept_by_reference() -> None:
    assert kept(np.asarray(jnp.ones(4, jnp.float32)))


def test_empty_array_is_kept_by_reference() -> None:
    assert kept(np.ones((3, 0), np.float32))


def test_small_view_is_copied_so_that_its_base_can_be_freed() -> None:
    assert not kept(np.ones(9, np.float32)[:4])


def test_small_view_through_several_views_is_copied() -> None:
    assert not kept(np.ones((3, 4), np.float32)[1:].reshape(8)[:4])


def test_small_part_of_foreign_memory_is_copied() -> None:
    with mmap.mmap(-1, 4096) as memory:
        assert not kept(np.frombuffer(memory, np.float32, count=4))


def test_array_that_is_not_contiguous_is_copied() -> None:
    assert not kept(np.ones((4, 3), np.float32).T)


def test_memory_mapped_file_is_copied(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "weights", np.float32, "w+", shape=(4,))
    tier = opened()
    tier.store(1, 0, mapped[:])
    mapped[:] = 7
    assert_row(tier.load(1, 0), np.zeros(4, np.float32))


def test_copy_is_read_only_and_aligned_for_jax() -> None:
    tier = opened()
    tier.store(1, 0, np.ones(9, np.float32)[:4])
    row = np.asarray(tier.load(1, 0))
    assert not row.flags.writeable
    assert row.ctypes.data % 64 == 0


def test_rows_never_written_are_one_read_only_array() -> None:
    tier = opened()
    row = np.asarray(tier.load(1, 0))
    assert tier.load(1, 0) is tier.load(1, 2)
    assert not row.flags.writeable
    assert row.ctypes.data % 64 == 0


def test_close_lets_go_of_the_rows() -> None:
    tier = opened()
    tier.store(1, 0, np.ones(4, np.float32))
    tier.close()
    tier.open([FLOATS])
    assert_row(tier.load(1, 0), np.zeros(4, np.float32))


@pytest.mark.parametrize("elements", [2**58, 2**62, 2**80])
def test_entry_larger_than_memory_is_an_error_with_the_size(elements: int) -> None:
    tier = opened(BufferSpec(1, (elements,), np.dtype("float32"), entries=1))
    with pytest.raises(StreamingMemoryError, match=f"{4 * elements} bytes"):
        tier.load(1, 0)


def test_load_costs_no_copy() -> None:
    assert RamTier().capabilities.zero_copy_load
