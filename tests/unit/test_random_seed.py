"""Seeds: session.md section 4."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from popxl.random_seed import MAX_UINT64, create_seeds, two_uint32_to_uint64, uint64_to_two_uint32


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"seed": 42}, [3324115917, 383329928]),
        ({"seed": 42, "replicas": 2}, [[3324115917, 383329928], [1884968545, 2811363265]]),
        ({"seed": 42, "batches_per_step": 2}, [[3324115917, 383329928], [1884968545, 2811363265]]),
        ({"seed": 42, "offset": 1}, [2801604000, 2170349635]),
        ({"seed": 43}, [2801604000, 2170349635]),
    ],
    ids=repr,
)
def test_create_seeds_gives_the_values_of_the_table(arguments, expected):
    seeds = create_seeds(**arguments)
    assert seeds.dtype == np.uint32
    np.testing.assert_array_equal(seeds, np.array(expected, np.uint32))


def test_create_seeds_for_four_replicas_starts_with_the_value_of_the_table():
    seeds = create_seeds(1984, replicas=4)
    assert seeds.shape == (4, 2)
    assert seeds[0].tolist() == [848097428, 1064051492]


@pytest.mark.parametrize(
    ("counts", "shape"),
    [((3, 7, 9), (3, 7, 9, 2)), ((1, 7, 9), (7, 9, 2)), ((3, 1, 9), (3, 9, 2)), ((3, 7, 1), (3, 7, 2))],
)
def test_create_seeds_squeezes_unit_axes(counts, shape):
    assert create_seeds(42, 0, *counts).shape == shape


def test_create_seeds_draws_the_same_sequence_for_every_split():
    np.testing.assert_array_equal(create_seeds(5, 0, 2, 3, 4).reshape(24, 2), create_seeds(5, replicas=24))


@pytest.mark.parametrize("count", ["batches_per_step", "gradient_accumulation_factor", "replicas"])
def test_create_seeds_refuses_a_count_below_one(count):
    with pytest.raises(ValueError, match=f"{count} is 0"):
        create_seeds(1, **{count: 0})


def test_create_seeds_refuses_a_negative_sum():
    with pytest.raises(ValueError, match="seed \\+ offset is -1"):
        create_seeds(1, offset=-2)


@pytest.mark.parametrize(
    ("number", "halves"),
    [
        (0, (0, 0)),
        (1, (0, 1)),
        (2**32, (1, 0)),
        (0x0123456789ABCDEF, (0x01234567, 0x89ABCDEF)),
        (MAX_UINT64, (2**32 - 1,) * 2),
    ],
)
def test_split_gives_high_then_low(number, halves):
    assert uint64_to_two_uint32(number) == halves


@given(st.integers(0, 2**64 - 1))
def test_join_undoes_split(number):
    assert two_uint32_to_uint64(*uint64_to_two_uint32(number)) == number


@pytest.mark.parametrize("number", [-1, 2**64])
def test_split_refuses_what_is_no_uint64(number):
    with pytest.raises(ValueError, match="outside 0 to 18446744073709551615"):
        uint64_to_two_uint32(number)


@pytest.mark.parametrize("halves", [(-1, 0), (0, -1), (2**32, 0), (0, 2**32)])
def test_join_refuses_what_is_no_uint32(halves):
    with pytest.raises(ValueError, match="outside 0 to 4294967295"):
        two_uint32_to_uint64(*halves)
