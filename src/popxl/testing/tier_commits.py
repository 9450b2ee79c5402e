"""The conformance suite of tiers that commit, besides that of every tier."""

# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming import BufferSpec, Tier

from .tiers import TierTests, assert_row, assert_rows, sample, zeros

__all__ = ["CommittingTierTests"]

# Two of variables, one of them with a row of several pages, and one of scratch.
VARIABLES = (
    BufferSpec(11, (1500,), np.dtype("float32"), entries=3, names=((0, "w"), (2, "b"))),
    BufferSpec(12, (), np.dtype("int32"), entries=1, names=((0, "step"),)),
    BufferSpec(13, (40,), np.dtype("float32"), entries=3),
)


class CommittingTierTests(TierTests):
    """What a tier with ``capabilities.commits`` and ``capabilities.persistent`` must do besides."""

    def make_tier_again(self, directory: Path) -> Tier:
        """Like `make_tier`, a tier that goes on with what was committed there."""
        raise NotImplementedError

    def test_capability_commits_is_declared(self, tier: Tier) -> None:
        assert tier.capabilities.commits
        assert tier.capabilities.persistent

    def _reopened(self, directory: Path, rows: dict[tuple[int, int], npt.NDArray[Any]], generation: int) -> None:
        """A tier at the same place has ``rows`` and nothing else."""
        tier = self.make_tier_again(directory)
        tier.open(VARIABLES)
        try:
            assert tier.generation == generation
            for spec in VARIABLES:
                for entry in range(spec.entries):
                    expected = rows.get((spec.buffer_id, entry))
                    if expected is None or not spec.is_persistent:
                        expected = zeros(spec)
                    assert_row(tier.load(spec.buffer_id, entry), expected)
                    is_held = spec.is_persistent and (spec.buffer_id, entry) in rows
                    assert tier.holds(spec.buffer_id, entry) == is_held
        finally:
            tier.close()

    def test_committed_rows_are_there_again_and_others_are_zeros(self, tier: Tier, directory: Path) -> None:
        rows = _stored(tier, seed=1)
        assert tier.generation == 0
        assert tier.commit() == tier.generation == 1
        tier.close()
        self._reopened(directory, rows, generation=1)

    def test_rows_that_were_never_committed_are_gone(self, tier: Tier, directory: Path) -> None:
        _stored(tier, seed=1)
        tier.close()
        self._reopened(directory, {}, generation=0)

    def test_stores_after_a_commit_are_gone_without_another(self, tier: Tier, directory: Path) -> None:
        rows = _stored(tier, seed=1)
        tier.commit()
        for seed in (2, 3):
            _store_all(tier, seed)
        tier.close()
        self._reopened(directory, rows, generation=1)

    def test_each_commit_replaces_the_one_before(self, tier: Tier, directory: Path) -> None:
        rows = _stored(tier, seed=1)
        for seed in range(2, 6):
            tier.commit()
            rows = _store_all(tier, seed)
        assert tier.commit() == 5
        tier.close()
        self._reopened(directory, rows, generation=5)

    def test_commit_keeps_rows_that_did_not_change(self, tier: Tier, directory: Path) -> None:
        rows = _stored(tier, seed=1)
        tier.commit()
        rows[11, 1] = sample(VARIABLES[0], seed=99)
        tier.store(11, 1, rows[11, 1])
        tier.commit()
        tier.commit()
        tier.close()
        self._reopened(directory, rows, generation=3)

    def test_roll_back_brings_the_last_commit_back(self, tier: Tier) -> None:
        rows = {key: row for key, row in _stored(tier, seed=1).items() if key[0] != 13}
        tier.commit()
        _store_all(tier, seed=2)
        tier.roll_back()
        assert_rows(tier, rows)
        assert tier.generation == 1

    def test_roll_back_before_the_first_commit_brings_zeros(self, tier: Tier) -> None:
        _stored(tier, seed=1)
        tier.roll_back()
        for spec in VARIABLES[:2]:
            for entry in range(spec.entries):
                assert_row(tier.load(spec.buffer_id, entry), zeros(spec))

    def test_roll_back_leaves_scratch_rows(self, tier: Tier) -> None:
        rows = _stored(tier, seed=1)
        tier.commit()
        tier.roll_back()
        assert_row(tier.load(13, 2), rows[13, 2])

    def test_stores_after_a_roll_back_can_be_committed(self, tier: Tier, directory: Path) -> None:
        _stored(tier, seed=1)
        tier.commit()
        _store_all(tier, seed=2)
        tier.roll_back()
        rows = _store_all(tier, seed=3)
        tier.commit()
        tier.close()
        self._reopened(directory, rows, generation=2)

    def test_fresh_open_reads_zeros_and_leaves_the_commit(self, tier: Tier, directory: Path) -> None:
        rows = _stored(tier, seed=1)
        tier.commit()
        tier.close()
        tier.open(VARIABLES)
        assert tier.generation == 0
        assert not tier.holds(11, 0)
        assert_row(tier.load(11, 0), zeros(VARIABLES[0]))
        _store_all(tier, seed=2)
        tier.roll_back()
        assert_row(tier.load(11, 0), zeros(VARIABLES[0]))
        tier.close()
        self._reopened(directory, rows, generation=1)

    def test_first_commit_of_a_fresh_open_replaces_the_old_one(self, tier: Tier, directory: Path) -> None:
        _stored(tier, seed=1)
        tier.commit()
        tier.close()
        tier.open(VARIABLES)
        row = sample(VARIABLES[0], seed=7)
        tier.store(11, 2, row)
        assert tier.commit() == 2
        tier.close()
        self._reopened(directory, {(11, 2): row}, generation=2)

    def test_scratch_and_unwritten_rows_are_not_held(self, tier: Tier) -> None:
        tier.open(VARIABLES)
        tier.store(13, 0, sample(VARIABLES[2], seed=1))
        tier.store(11, 0, sample(VARIABLES[0], seed=1))
        tier.commit()
        assert [tier.holds(11, 0), tier.holds(11, 1), tier.holds(13, 0)] == [True, False, False]

    def test_closed_tier_refuses_commits(self, tier: Tier) -> None:
        with pytest.raises(StreamingMemoryError, match="is not open"):
            tier.commit()
        with pytest.raises(StreamingMemoryError, match="is not open"):
            tier.roll_back()

    def test_any_history_of_commits_reads_like_three_dicts(self, tmp_path: Path) -> None:
        suite = self
        numbers = itertools.count()

        class Machine(_CommitMachine):
            def __init__(self) -> None:
                self.directory = tmp_path / f"commits{next(numbers)}"
                super().__init__()

            def make_tier(self, *, again: bool) -> Tier:
                return suite.make_tier_again(self.directory) if again else suite.make_tier(self.directory)

        run_state_machine_as_test(  # pyright: ignore[reportUnknownVariableType]
            Machine, settings=hypothesis.settings(max_examples=30, stateful_step_count=30, deadline=None)
        )


def _store_all(tier: Tier, seed: int) -> dict[tuple[int, int], npt.NDArray[Any]]:
    rows = {
        (spec.buffer_id, entry): sample(spec, 1000 * seed + 10 * spec.buffer_id + entry)
        for spec in VARIABLES
        for entry in range(spec.entries)
    }
    for key, row in rows.items():
        tier.store(*key, row)
    return rows


def _stored(tier: Tier, seed: int) -> dict[tuple[int, int], npt.NDArray[Any]]:
    tier.open(VARIABLES)
    return _store_all(tier, seed)


_seeds = st.integers(0, 2**32 - 1)
_variable_rows = st.sampled_from([(spec, entry) for spec in VARIABLES for entry in range(spec.entries)])


class _CommitMachine(RuleBasedStateMachine):
    """Random stores, commits, roll-backs and openings next to dicts: the rows now, at the last commit, and on disk."""

    def make_tier(self, *, again: bool) -> Tier:
        """A tier at this example's place; ``again``: one that goes on from the commit there."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[int, int], npt.NDArray[Any]] = {}
        self.base: dict[tuple[int, int], npt.NDArray[Any]] = {}
        self.on_disk: dict[tuple[int, int], npt.NDArray[Any]] = {}
        self.commits = 0
        self.tier = self.make_tier(again=False)
        self.tier.open(VARIABLES)

    @rule(row=_variable_rows, seed=_seeds)
    def store(self, row: tuple[BufferSpec, int], seed: int) -> None:
        spec, entry = row
        self.rows[spec.buffer_id, entry] = sample(spec, seed)
        self.tier.store(spec.buffer_id, entry, self.rows[spec.buffer_id, entry])

    @rule()
    def commit(self) -> None:
        self.commits += 1
        assert self.tier.commit() == self.commits
        self.base = self.on_disk = _of_variables(self.rows)

    @rule()
    def roll_back(self) -> None:
        self.tier.roll_back()
        self.rows = {key: row for key, row in self.rows.items() if key[0] == 13} | self.base

    @rule(again=st.booleans())
    def open_anew(self, again: bool) -> None:
        self.tier.close()
        self.tier = self.make_tier(again=again)
        self.tier.open(VARIABLES)
        self.base = self.on_disk if again else {}
        self.rows = dict(self.base)

    @invariant()
    def every_row_is_as_it_should_be(self) -> None:
        for spec in VARIABLES:
            for entry in range(spec.entries):
                key = (spec.buffer_id, entry)
                assert_row(self.tier.load(*key), self.rows.get(key, zeros(spec)))
                assert self.tier.holds(*key) == (key in self.base)

    def teardown(self) -> None:
        self.tier.close()


def _of_variables(rows: dict[tuple[int, int], npt.NDArray[Any]]) -> dict[tuple[int, int], npt.NDArray[Any]]:
    return {key: row for key, row in rows.items() if key[0] != 13}
