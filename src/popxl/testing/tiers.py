"""The conformance suite of Streaming Memory tiers: inherit :class:`TierTests` to test a tier of your own.

What a tier can do besides has suites of its own: ``popxl.testing.tier_transfers`` for an asynchronous one, and
``popxl.testing.tier_commits`` for one that commits.

Needs pytest and hypothesis. For readable failures put ``pytest.register_assert_rewrite("popxl.testing.tiers")`` into
your ``conftest.py``.
"""

# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

import importlib
import itertools
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from popxl.errors import (
    PopxlError,
    PopxlKeyError,
    PopxlTypeError,
    PopxlValueError,
    RemoteOffsetError,
    StreamingMemoryError,
)
from popxl.runtime.streaming import BufferSpec, ImmutableArray, Tier
from popxl.runtime.streaming.tier import STORAGE_DTYPES

__all__ = ["TierTests", "assert_row", "assert_rows", "fill", "sample", "zeros"]

DTYPES = sorted(STORAGE_DTYPES)
SHAPES = [(), (1,), (0,), (3, 0, 2), (7,), (2, 3, 5), (1024,), (1025,)]

# Neighbours of many kinds, ids neither sorted nor without gaps.
BUFFERS = (
    BufferSpec(5, (3,), np.dtype("float32"), entries=4),
    BufferSpec(1, (3,), np.dtype("float32"), entries=4),
    BufferSpec(2, (), np.dtype("bool"), entries=1),
    BufferSpec(9, (2, 0), np.dtype("int8"), entries=2),
    BufferSpec(7, (1500,), np.dtype("complex64"), entries=3),
)


def sample(spec: BufferSpec, seed: int) -> npt.NDArray[Any]:
    """An entry of arbitrary bits, the same for the same seed; among floats also NaNs of every kind.

    Example:
        >>> sample(BufferSpec(1, (2, 3), np.dtype("int8"), entries=1), seed=0).shape
        (2, 3)
    """
    rng = np.random.default_rng(seed)
    if spec.dtype == np.bool_:  # the one dtype of which not every bit pattern is a value
        return np.asarray(rng.integers(0, 2, spec.shape), np.bool_)
    raw = np.frombuffer(rng.bytes(spec.entry_bytes), np.uint8)
    return raw.view(spec.dtype).reshape(spec.shape)


def assert_row(found: ImmutableArray, expected: npt.NDArray[Any]) -> None:
    """``found`` has the shape, dtype and bits of ``expected``; NaN equals NaN, and 0 is not -0."""
    assert tuple(found.shape) == expected.shape
    assert found.dtype == expected.dtype
    # Compared before the assertion: pytest would explain at length, byte by byte, how two rows differ.
    equal = np.asarray(found).tobytes() == expected.tobytes()
    assert equal, f"a row of {expected.nbytes} bytes has other bits than expected"


def _jax_numpy() -> ModuleType:
    """Imported when used: the suite collects without starting JAX."""
    return importlib.import_module("jax.numpy")


def zeros(spec: BufferSpec) -> npt.NDArray[Any]:
    """What an entry reads as that was never written."""
    return np.zeros(spec.shape, spec.dtype)


def fill(tier: Tier) -> dict[tuple[int, int], npt.NDArray[Any]]:
    """Open ``BUFFERS`` and write a value of its own to every row."""
    tier.open(BUFFERS)
    rows: dict[tuple[int, int], npt.NDArray[Any]] = {}
    for spec in BUFFERS:
        for entry in range(spec.entries):
            rows[spec.buffer_id, entry] = sample(spec, seed=100 * spec.buffer_id + entry)
            tier.store(spec.buffer_id, entry, rows[spec.buffer_id, entry])
    return rows


def assert_rows(tier: Tier, rows: dict[tuple[int, int], npt.NDArray[Any]]) -> None:
    """The tier has ``rows``, by buffer id and entry."""
    for (buffer_id, entry), expected in rows.items():
        assert_row(tier.load(buffer_id, entry), expected)


class TierTests:
    """What every tier must do. Inherit it in a class whose name starts with ``Test`` and say how a tier is made.

    Example:
        >>> from popxl.runtime.streaming import RamTier
        >>> class TestRamTier(TierTests):
        ...     def make_tier(self, directory):
        ...         return RamTier()
    """

    def make_tier(self, directory: Path) -> Tier:
        """A tier that is not open yet.

        Args:
            directory: A path of this test's own where nothing is yet. Two tiers made with the same directory must
                share the storage, if the tier has any outside itself.
        """
        raise NotImplementedError

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """The place that the tier of this test may use."""
        return tmp_path / "tier"

    @pytest.fixture
    def tier(self, directory: Path) -> Generator[Tier]:
        """A tier that is not open yet; closed after the test."""
        tier = self.make_tier(directory)
        yield tier
        tier.close()

    # ------------------------------------------------------------ values

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_stored_value_reads_back(self, tier: Tier, dtype: str, shape: tuple[int, ...]) -> None:
        spec = BufferSpec(1, shape, np.dtype(dtype), entries=2)
        tier.open([spec])
        value = sample(spec, seed=1)
        tier.store(1, 1, value)
        assert_row(tier.load(1, 1), value)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_row_is_zeros_after_open(self, tier: Tier, dtype: str, shape: tuple[int, ...]) -> None:
        spec = BufferSpec(1, shape, np.dtype(dtype), entries=3)
        tier.open([spec])
        for entry in range(3):
            assert_row(tier.load(1, entry), zeros(spec))

    def test_large_entry_reads_back(self, tier: Tier) -> None:
        spec = BufferSpec(1, (9_000_001,), np.dtype("uint8"), entries=2)
        tier.open([spec])
        value = sample(spec, seed=2)
        tier.store(1, 1, value)
        assert_row(tier.load(1, 1), value)
        assert_row(tier.load(1, 0), zeros(spec))

    def test_last_of_many_entries_reads_back(self, tier: Tier) -> None:
        spec = BufferSpec(1, (2,), np.dtype("int32"), entries=100_000)
        tier.open([spec])
        value = sample(spec, seed=3)
        tier.store(1, 99_999, value)
        assert_row(tier.load(1, 99_999), value)
        assert_row(tier.load(1, 99_998), zeros(spec))

    def test_jax_array_reads_back(self, tier: Tier) -> None:
        jnp = _jax_numpy()
        spec = BufferSpec(1, (4, 5), np.dtype("float32"), entries=1)
        tier.open([spec])
        tier.store(1, 0, jnp.arange(20, dtype=jnp.float32).reshape(4, 5))
        assert_row(tier.load(1, 0), np.arange(20, dtype=np.float32).reshape(4, 5))

    def test_jax_computes_with_what_was_loaded(self, tier: Tier) -> None:
        jnp = _jax_numpy()
        tier.open([BufferSpec(1, (3,), np.dtype("float32"), entries=1)])
        tier.store(1, 0, np.array([1, 2, 3], np.float32))
        assert_row(jnp.asarray(tier.load(1, 0)) * 2, np.array([2, 4, 6], np.float32))

    def test_value_that_is_not_contiguous_reads_back(self, tier: Tier) -> None:
        tier.open([BufferSpec(1, (5, 4), np.dtype("int64"), entries=1)])
        value = np.arange(20).reshape(4, 5).T
        tier.store(1, 0, value)
        assert_row(tier.load(1, 0), np.ascontiguousarray(value))

    def test_view_into_a_larger_array_reads_back(self, tier: Tier) -> None:
        tier.open([BufferSpec(1, (2,), np.dtype("int16"), entries=1)])
        tier.store(1, 0, np.arange(1000, dtype=np.int16)[500:502])
        assert_row(tier.load(1, 0), np.array([500, 501], np.int16))

    def test_last_of_several_stores_wins(self, tier: Tier) -> None:
        spec = BUFFERS[0]
        tier.open(BUFFERS)
        for seed in range(5):
            tier.store(spec.buffer_id, 2, sample(spec, seed))
        assert_row(tier.load(spec.buffer_id, 2), sample(spec, seed=4))

    def test_rows_and_buffers_are_independent(self, tier: Tier) -> None:
        assert_rows(tier, fill(tier))

    def test_loads_of_one_row_agree(self, tier: Tier) -> None:
        rows = fill(tier)
        first, second = tier.load(7, 1), tier.load(7, 1)
        assert_row(first, rows[7, 1])
        assert_row(second, rows[7, 1])

    def test_entry_may_be_a_numpy_integer(self, tier: Tier) -> None:
        rows = fill(tier)
        assert_row(tier.load(5, np.uint32(3)), rows[5, 3])  # pyright: ignore[reportArgumentType]

    # ------------------------------------------------------------ a loaded value belongs to its holder

    def test_loaded_value_outlives_a_later_store(self, tier: Tier) -> None:
        rows = fill(tier)
        held = {key: tier.load(*key) for key in rows}
        for spec in BUFFERS:
            for entry in range(spec.entries):
                tier.store(spec.buffer_id, entry, sample(spec, seed=1000 + entry))
        for key, value in held.items():
            assert_row(value, rows[key])

    def test_loaded_zeros_outlive_a_later_store(self, tier: Tier) -> None:
        spec = BUFFERS[-1]
        tier.open(BUFFERS)
        held = tier.load(spec.buffer_id, 0)
        tier.store(spec.buffer_id, 0, sample(spec, seed=4))
        assert_row(held, zeros(spec))

    def test_loaded_value_outlives_close_and_a_new_open(self, tier: Tier) -> None:
        rows = fill(tier)
        held = {key: tier.load(*key) for key in rows}
        tier.close()
        for key, value in held.items():
            assert_row(value, rows[key])
        tier.open(BUFFERS)
        for key, value in held.items():
            assert_row(value, rows[key])

    # ------------------------------------------------------------ refusals change nothing

    @pytest.mark.parametrize("entry", [-1, 4, 2**32 - 1, 2**70])
    def test_load_out_of_range_is_refused(self, tier: Tier, entry: int) -> None:
        rows = fill(tier)
        with pytest.raises(RemoteOffsetError, match=rf"Entry {entry} .*buffer 5 with 4 entries"):
            tier.load(5, entry)
        assert_rows(tier, rows)

    @pytest.mark.parametrize("entry", [-1, 4, 2**32 - 1, 2**70])
    def test_store_out_of_range_is_refused(self, tier: Tier, entry: int) -> None:
        rows = fill(tier)
        with pytest.raises(RemoteOffsetError, match=rf"Entry {entry} .*buffer 5 with 4 entries"):
            tier.store(5, entry, np.ones(3, np.float32))
        assert_rows(tier, rows)

    @pytest.mark.parametrize("entry", [0.0, None, "0"], ids=repr)
    def test_entry_that_is_no_integer_is_refused(self, tier: Tier, entry: Any) -> None:
        fill(tier)
        with pytest.raises(PopxlTypeError, match="is not an integer"):
            tier.load(5, entry)

    @pytest.mark.parametrize("shape", [(), (4,), (1, 3), (3, 1), (0,)], ids=str)
    def test_value_of_another_shape_is_refused(self, tier: Tier, shape: tuple[int, ...]) -> None:
        rows = fill(tier)
        with pytest.raises(PopxlValueError, match="buffer 5, entry 2 of 4"):
            tier.store(5, 2, np.ones(shape, np.float32))
        assert_rows(tier, rows)

    @pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint32", ">f4", "object"])
    def test_value_of_another_dtype_is_refused(self, tier: Tier, dtype: str) -> None:
        rows = fill(tier)
        with pytest.raises(PopxlValueError, match="buffer 5, entry 2 of 4"):
            tier.store(5, 2, np.ones(3, dtype))
        assert_rows(tier, rows)

    def test_value_that_is_no_array_is_refused(self, tier: Tier) -> None:
        rows = fill(tier)
        with pytest.raises(PopxlTypeError, match="buffer 5, entry 2"):
            tier.store(5, 2, [1.0, 2.0, 3.0])  # pyright: ignore[reportArgumentType]
        assert_rows(tier, rows)

    def test_unknown_buffer_is_refused(self, tier: Tier) -> None:
        tier.open(BUFFERS)
        with pytest.raises(PopxlKeyError, match="no remote buffer 6"):
            tier.load(6, 0)
        with pytest.raises(PopxlKeyError, match="no remote buffer 6"):
            tier.store(6, 0, np.ones(3, np.float32))

    # ------------------------------------------------------------ opening and closing

    def test_tier_without_buffers_opens(self, tier: Tier) -> None:
        tier.open([])

    def test_rows_are_zeros_after_the_tier_is_opened_again(self, tier: Tier) -> None:
        fill(tier)
        tier.close()
        tier.open(BUFFERS)
        for spec in BUFFERS:
            for entry in range(spec.entries):
                assert_row(tier.load(spec.buffer_id, entry), zeros(spec))

    def test_rows_are_zeros_for_another_tier_at_the_same_place(self, tier: Tier, directory: Path) -> None:
        fill(tier)
        tier.close()
        other = self.make_tier(directory)
        other.open(BUFFERS)
        try:
            assert_row(other.load(7, 1), zeros(BUFFERS[-1]))
        finally:
            other.close()

    def test_second_open_is_refused_and_loses_nothing(self, tier: Tier) -> None:
        rows = fill(tier)
        with pytest.raises(StreamingMemoryError, match="already serves an open session"):
            tier.open(BUFFERS)
        assert_rows(tier, rows)

    def test_two_buffers_of_one_id_are_refused(self, tier: Tier) -> None:
        with pytest.raises(PopxlValueError, match="id 5"):
            tier.open([BUFFERS[0], BUFFERS[0]])
        tier.open(BUFFERS)

    def test_close_can_be_called_again(self, tier: Tier) -> None:
        fill(tier)
        tier.close()
        tier.close()

    def test_close_without_open_does_nothing(self, tier: Tier) -> None:
        tier.close()

    @pytest.mark.parametrize("opened_before", [False, True])
    def test_closed_tier_refuses_loads_and_stores(self, tier: Tier, opened_before: bool) -> None:
        if opened_before:
            tier.open(BUFFERS)
            tier.close()
        with pytest.raises(StreamingMemoryError, match="is not open"):
            tier.load(5, 0)
        with pytest.raises(StreamingMemoryError, match="is not open"):
            tier.store(5, 0, np.ones(3, np.float32))

    # ------------------------------------------------------------ what a tier tells of itself

    def test_counters_count_transfers_and_their_bytes(self, tier: Tier) -> None:
        tier.open(BUFFERS)
        tier.store(5, 0, np.ones(3, np.float32))
        tier.load(5, 0)
        tier.load(2, 0)
        counters = tier.counters
        assert (counters.stores, counters.bytes_stored, counters.loads, counters.bytes_loaded) == (1, 12, 2, 13)

    def test_refused_transfers_are_not_counted(self, tier: Tier) -> None:
        tier.open(BUFFERS)
        with pytest.raises(PopxlError):
            tier.load(5, 4)
        with pytest.raises(PopxlError):
            tier.store(5, 0, np.ones(3))
        assert tier.counters.loads == tier.counters.stores == 0

    def test_repr_is_one_line(self, tier: Tier) -> None:
        assert repr(tier)
        assert "\n" not in repr(tier)

    # ------------------------------------------------------------ everything at once

    def test_any_history_reads_like_a_dict_of_arrays(self, tmp_path: Path) -> None:
        suite = self
        numbers = itertools.count()

        class Machine(_TierMachine):
            def make_tier(self) -> Tier:
                return suite.make_tier(tmp_path / f"history-{next(numbers)}")

        run_state_machine_as_test(
            Machine, settings=hypothesis.settings(max_examples=40, stateful_step_count=30, deadline=None)
        )


_buffers = st.sampled_from(BUFFERS)
_rows = st.sampled_from([(spec, entry) for spec in BUFFERS for entry in range(spec.entries)])
_seeds = st.integers(0, 2**32 - 1)


class _TierMachine(RuleBasedStateMachine):
    """Random loads, stores, refusals and reopenings of a tier next to a dict that cannot be wrong."""

    def make_tier(self) -> Tier:
        """A tier at a place of its own."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.tier = self.make_tier()
        self.tier.open(BUFFERS)
        self.rows: dict[tuple[int, int], npt.NDArray[Any]] = {}
        self.held: list[tuple[ImmutableArray, npt.NDArray[Any]]] = []

    @rule(row=_rows, seed=_seeds)
    def store(self, row: tuple[BufferSpec, int], seed: int) -> None:
        spec, entry = row
        self.rows[spec.buffer_id, entry] = sample(spec, seed)
        self.tier.store(spec.buffer_id, entry, self.rows[spec.buffer_id, entry])

    @rule(row=_rows)
    def load(self, row: tuple[BufferSpec, int]) -> None:
        spec, entry = row
        expected = self.rows.get((spec.buffer_id, entry), zeros(spec))
        found = self.tier.load(spec.buffer_id, entry)
        assert_row(found, expected)
        self.held.append((found, expected))

    @rule(row=_rows, seed=_seeds)
    def load_and_overwrite(self, row: tuple[BufferSpec, int], seed: int) -> None:
        self.load(row)
        self.store(row, seed)

    @rule(spec=_buffers, beyond=st.sampled_from([-1, 0, 1, 2**40]))
    def out_of_range_is_refused(self, spec: BufferSpec, beyond: int) -> None:
        entry = beyond if beyond < 0 else spec.entries + beyond
        with pytest.raises(RemoteOffsetError):
            self.tier.load(spec.buffer_id, entry)
        with pytest.raises(RemoteOffsetError):
            self.tier.store(spec.buffer_id, entry, sample(spec, seed=entry % 7))

    @rule(source=_buffers, goal=_buffers)
    def copy_first_row(self, source: BufferSpec, goal: BufferSpec) -> None:
        """A loaded array is stored as it is: a tier that keeps references now holds one array twice."""
        value = self.tier.load(source.buffer_id, 0)
        if (source.shape, source.dtype) == (goal.shape, goal.dtype):
            last = goal.entries - 1
            self.tier.store(goal.buffer_id, last, value)
            self.rows[goal.buffer_id, last] = self.rows.get((source.buffer_id, 0), zeros(source))

    @rule(spec=_buffers)
    def store_of_another_shape_is_refused(self, spec: BufferSpec) -> None:
        with pytest.raises(PopxlValueError):
            self.tier.store(spec.buffer_id, 0, np.ones((*spec.shape, 2), spec.dtype))

    @rule()
    def every_row_reads_back(self) -> None:
        for spec in BUFFERS:
            for entry in range(spec.entries):
                expected = self.rows.get((spec.buffer_id, entry), zeros(spec))
                assert_row(self.tier.load(spec.buffer_id, entry), expected)

    @rule(keep=st.integers(0, len(BUFFERS)))
    def reopen(self, keep: int) -> None:
        self.tier.close()
        self.tier.open(BUFFERS)
        self.rows = {}
        self.held = self.held[:keep]

    @invariant()
    def held_arrays_are_unchanged(self) -> None:
        for found, expected in self.held[-10:]:
            assert_row(found, expected)

    def teardown(self) -> None:
        self.tier.close()
