"""Sizes in bytes, as texts and as numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popxl.errors import PopxlTypeError, PopxlValueError
from popxl.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("123", 123),
        ("123B", 123),
        ("1kB", 1000),
        ("1 KB", 1000),
        ("1KiB", 1024),
        ("512 MB", 512_000_000),
        ("2GiB", 2_147_483_648),
        (" 2 gib ", 2_147_483_648),
        ("1.5GiB", 1_610_612_736),
        (".5 KiB", 512),
        ("3TB", 3_000_000_000_000),
        ("1PiB", 1_125_899_906_842_624),
    ],
)
def test_a_text_is_a_number_and_a_unit(text, expected):
    assert parse_bytes(text) == expected


def test_decimal_fractions_are_exact():
    # As binary floating point, 4.35 * 1000**5 would be 4349999999999999.5.
    assert parse_bytes("4.35 PB") == 4_350_000_000_000_000


def test_a_number_is_bytes():
    assert parse_bytes(123) == 123


def test_none_is_no_limit():
    assert parse_bytes(None) is None


@pytest.mark.parametrize("text", ["", "GiB", "-1 GiB", "1 Gi", "1 GiB/s", "1e9", "2 GiB 3", "1,5 GiB", "٣ GiB", "1\n2"])
def test_other_texts_are_refused_with_what_to_write(text):
    with pytest.raises(PopxlValueError, match=r"(?s)Cannot read .* as a size.*Hint: .*GiB"):
        parse_bytes(text)


def test_a_negative_number_is_refused():
    with pytest.raises(PopxlValueError, match="cannot be negative: -1"):
        parse_bytes(-1)


@pytest.mark.parametrize("value", [1.5, True, [1]])
def test_other_types_are_refused(value):
    with pytest.raises(PopxlTypeError, match=r"Cannot read .* of type"):
        parse_bytes(value)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (2**31, "2.00 GiB"),
        (2**50, "1.00 PiB"),
        (2**62, "4096.00 PiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_sizes_print_in_binary_units(n, expected):
    assert format_bytes(n) == expected


@given(st.integers(0, 2**60))
def test_what_is_printed_reads_as_nearly_the_same(n):
    again = parse_bytes(format_bytes(n))
    assert again is not None
    # Two decimals of at least 1 unit.
    assert abs(again - n) <= 0.005 * max(n, 1) + 1
