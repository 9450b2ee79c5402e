"""Casts to and from float8, and products of float8 matrices, for every code and scale (spec ops-math.md §7, §9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from declared import store

import popxl
from popxl import ops
from popxl.fp8_utils import host_pow2scale_cast_from_fp8, host_pow2scale_cast_to_fp8
from popxl.ops._gradient import needed_tensors

KINDS = [popxl.float8_143, popxl.float8_152]
SCALES = range(-32, 32)
CODES = np.arange(256, dtype=np.uint8)
HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)

# By the table of the spec: mantissa bits, exponent bias.
LAYOUT = {popxl.float8_143: (3, 8), popxl.float8_152: (2, 16)}

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)


def value_of(code: int, kind: popxl.dtype) -> float:
    """The value of a code, read off its bits."""
    bits, bias = LAYOUT[kind]
    if code == 0x80:
        return float("nan")
    exponent, mantissa = (code & 0x7F) >> bits, code % 2**bits
    magnitude = (mantissa / 2**bits + (exponent > 0)) * 2.0 ** (max(exponent, 1) - bias)
    return -magnitude if code & 0x80 else magnitude


def results(build: Callable[[], list[popxl.Tensor]]) -> list[np.ndarray]:
    """The values of tensors made in a main graph."""
    ir = popxl.Ir()
    with ir.main_graph:
        streams = [store(t) for t in build()]
    with popxl.Session(ir) as session:
        found = session.run()
    return [found[s] for s in streams]


def scale(value: int) -> popxl.Tensor:
    return popxl.constant(value, popxl.int32)


def to_fp8(numbers: Any, kind: popxl.dtype, log2_scale: int = 0) -> list[int]:
    def build() -> list[popxl.Tensor]:
        t = popxl.variable(numbers, popxl.dtype.as_dtype(np.asarray(numbers).dtype))
        return [ops.pow2scale_cast_to_fp8(t, scale(log2_scale), kind)]

    (codes,) = results(build)
    assert codes.dtype == kind.as_numpy()
    return codes.view(np.uint8).tolist()


def near_ties(kind: popxl.dtype, dtype: Any) -> np.ndarray:
    """The numbers halfway between neighbouring values, the numbers next to them, and the values, of both signs."""
    positive = np.array([value_of(code, kind) for code in range(128)])
    above = np.append(positive[1:], 2 * positive[-1] - positive[-2])
    ties = ((positive + above) / 2).astype(dtype)
    parts = [ties, np.nextafter(ties, dtype(0)), np.nextafter(ties, dtype(np.inf)), positive.astype(dtype)]
    return np.concatenate([*parts, *(-p for p in parts)])


# Casts


@each_kind
@pytest.mark.parametrize("target", [popxl.float16, popxl.float32], ids=lambda d: d.name)
def test_every_code_has_the_value_that_its_bits_say(kind: popxl.dtype, target: popxl.dtype) -> None:
    def build() -> list[popxl.Tensor]:
        return [ops.pow2scale_cast_from_fp8(popxl.variable(CODES.view(kind.as_numpy()), kind), scale(0), target)]

    (values,) = results(build)
    assert values.dtype == target.as_numpy()
    np.testing.assert_array_equal(values.astype(np.float64), [value_of(int(code), kind) for code in CODES])


@each_kind
@pytest.mark.parametrize("through", [popxl.float16, popxl.float32], ids=lambda d: d.name)
def test_every_code_comes_back_with_the_negated_scale(kind: popxl.dtype, through: popxl.dtype) -> None:
    # Those that float16 holds in full.
    scales = range(-6, 1) if through == popxl.float16 else range(-31, 32)

    def build() -> list[popxl.Tensor]:
        t = popxl.variable(CODES.view(kind.as_numpy()), kind)
        wide = [ops.pow2scale_cast_from_fp8(t, scale(s), through) for s in scales]
        return [ops.pow2scale_cast_to_fp8(w, scale(-s), kind) for w, s in zip(wide, scales, strict=True)]

    for codes in results(build):
        np.testing.assert_array_equal(codes.view(np.uint8), CODES)


@each_kind
@pytest.mark.parametrize("target", [popxl.float16, popxl.float32], ids=lambda d: d.name)
def test_every_scale_from_float8_is_that_of_the_host(kind: popxl.dtype, target: popxl.dtype) -> None:
    codes = CODES.view(kind.as_numpy())

    def build() -> list[popxl.Tensor]:
        t = popxl.variable(codes, kind)
        return [ops.pow2scale_cast_from_fp8(t, scale(s), target) for s in SCALES]

    for s, values in zip(SCALES, results(build), strict=True):
        expected = host_pow2scale_cast_from_fp8(codes, target, s)
        np.testing.assert_array_equal(values, expected, err_msg=f"scale {s}")


@each_kind
def test_every_float16_is_cast_as_on_the_host(kind: popxl.dtype) -> None:
    scales = (-32, -9, -1, 0, 1, 8, 31)

    def build() -> list[popxl.Tensor]:
        t = popxl.variable(HALVES)
        return [ops.pow2scale_cast_to_fp8(t, scale(s), kind) for s in scales]

    for s, codes in zip(scales, results(build), strict=True):
        expected = host_pow2scale_cast_to_fp8(HALVES, kind, s)
        np.testing.assert_array_equal(codes.view(np.uint8), expected.view(np.uint8), err_msg=f"scale {s}")


@each_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_scale_to_float8_rounds_once_as_on_the_host(kind: popxl.dtype, dtype: Any) -> None:
    edges = near_ties(kind, dtype)
    limits = np.array([np.finfo(dtype).max, np.finfo(dtype).tiny, np.inf, -np.inf, np.nan], dtype)
    # What float32 and float64 hold besides: the scale moves some of them next to ties.
    spread = np.random.default_rng(0).lognormal(0, 9, 400).astype(dtype)
    numbers = np.concatenate([edges, limits, -limits[:2], spread, -spread])

    def build() -> list[popxl.Tensor]:
        made: list[popxl.Tensor] = []
        for s in SCALES:
            unscaled = popxl.variable(np.ldexp(edges, -s), popxl.dtype.as_dtype(np.dtype(dtype)))
            made.append(ops.pow2scale_cast_to_fp8(unscaled, scale(s), kind))
        t = popxl.variable(numbers, popxl.dtype.as_dtype(np.dtype(dtype)))
        return [*made, *(ops.pow2scale_cast_to_fp8(t, scale(s), kind) for s in SCALES)]

    found = [codes.view(np.uint8) for codes in results(build)]
    ties = host_pow2scale_cast_to_fp8(edges, kind).view(np.uint8)
    for s, at_ties, at_numbers in zip(SCALES, found[:64], found[64:], strict=True):
        np.testing.assert_array_equal(at_ties, ties, err_msg=f"scale {s}")
        expected = host_pow2scale_cast_to_fp8(numbers, kind, s).view(np.uint8)
        np.testing.assert_array_equal(at_numbers, expected, err_msg=f"scale {s}")


@pytest.mark.parametrize(
    ("kind", "numbers", "codes"),
    [
        (popxl.float8_143, [1.0, -1.0, 240.0, 300.0], [0x40, 0xC0, 0x7F, 0x80]),
        (popxl.float8_152, [1.0, 57344.0, 1e5], [0x40, 0x7F, 0x80]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_of_the_specification(kind: popxl.dtype, numbers: list[float], codes: list[int], dtype: Any) -> None:
    assert to_fp8(np.array(numbers, dtype), kind) == codes


@pytest.mark.parametrize(
    ("number", "log2_scale", "code"), [(0.75, 0, 0b00111100), (0.75, -2, 0b00101100), (0.75, 1, 0b01000100)]
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_scale_multiplies_before_the_cast(number: float, log2_scale: int, code: int, dtype: Any) -> None:
    assert to_fp8(np.array(number, dtype), popxl.float8_143, log2_scale) == code


@each_kind
def test_minus_zero_and_infinities_have_no_codes_of_their_own(kind: popxl.dtype) -> None:
    assert to_fp8(np.array([-0.0, np.inf, -np.inf, np.nan], np.float32), kind) == [0, 0x80, 0x80, 0x80]


def test_rounding_is_to_nearest_with_ties_to_even() -> None:
    # Neighbours of 1 are 1/8 apart; 248 is halfway to what comes after 240, which is out of range.
    numbers = [1.0625, 1.1875, 1.0625 + 2.0**-23, 247.99, 248.0]
    assert to_fp8(np.array(numbers, np.float32), popxl.float8_143) == [0x40, 0x42, 0x41, 0x7F, 0x80]


def test_a_scale_can_be_computed_in_the_run() -> None:
    def build() -> list[popxl.Tensor]:
        t, s = popxl.variable(np.array([3.0], np.float32)), popxl.variable(1, popxl.int32)
        return [ops.pow2scale_cast_to_fp8(t, s + s, popxl.float8_143)]

    (codes,) = results(build)
    assert value_of(int(codes.view(np.uint8)[0]), popxl.float8_143) == 12


# Products


@pytest.mark.parametrize("rhs_kind", KINDS, ids=lambda k: k.name)
@pytest.mark.parametrize("lhs_kind", KINDS, ids=lambda k: k.name)
def test_each_pair_of_float8_types_can_be_multiplied(lhs_kind: popxl.dtype, rhs_kind: popxl.dtype) -> None:
    def build() -> list[popxl.Tensor]:
        lhs = popxl.variable(np.array([[1.0, 2.0]]), lhs_kind)
        rhs = popxl.variable(np.array([[3.0], [-0.25]]), rhs_kind)
        return [ops.matmul_pow2scaled(lhs, rhs, scale(2))]

    (product,) = results(build)
    assert (product.tolist(), product.dtype) == ([[10.0]], np.float16)


def test_a_product_is_scaled_before_it_is_rounded_to_float16() -> None:
    def build() -> list[popxl.Tensor]:
        large = popxl.variable(np.full((1, 2), 57344.0), popxl.float8_152)
        return [ops.matmul_pow2scaled(large, large.T, scale(s)) for s in (0, -20)]

    unscaled, product = results(build)
    assert (unscaled.item(), product.item()) == (np.inf, 2 * 57344**2 / 2**20)


def test_float8_products_are_accumulated_in_float32() -> None:
    def build() -> list[popxl.Tensor]:
        ones = popxl.variable(np.ones(4096), popxl.float8_143)
        return [ops.matmul_pow2scaled(ones, ones, scale(0))]

    assert results(build)[0].item() == 4096


# The ops


def scaled_ops() -> dict[str, Callable[[], popxl.Tensor]]:
    """Each op of this file, for a scale that is not known before the run."""

    def t(dtype: popxl.dtype) -> popxl.Tensor:
        return popxl.variable(np.ones((2, 2)), dtype, name="x")

    def s() -> popxl.Tensor:
        return popxl.variable(0, popxl.int32, name="s")

    kind = popxl.float8_143
    return {
        "pow2scale_cast_to_fp8": lambda: ops.pow2scale_cast_to_fp8(t(popxl.float32), s(), kind),
        "pow2scale_cast_from_fp8": lambda: ops.pow2scale_cast_from_fp8(t(kind), s(), popxl.float16),
        "matmul_pow2scaled": lambda: ops.matmul_pow2scaled(t(kind), t(kind), s(), 0.5),
    }


NAMES = {
    "pow2scale_cast_to_fp8": "x_float8_143",
    "pow2scale_cast_from_fp8": "x_float16",
    "matmul_pow2scaled": "matmul_pow2scaled_out",
}


@pytest.mark.parametrize("function", NAMES)
def test_the_result_is_the_only_new_tensor_and_has_the_name_of_the_specification(function: str) -> None:
    with popxl.Ir().main_graph as graph:
        out = scaled_ops()[function]()
        made = [t for op in graph.ops for t in op.outputs]
    assert (made, out.name) == ([out], NAMES[function])


def test_a_scaled_product_has_the_type_of_an_unscaled_one() -> None:
    with popxl.Ir().main_graph:
        op = scaled_ops()["matmul_pow2scaled"]().producer
    assert op.opType() == "MatMul"


def test_the_hint_of_a_product_is_kept() -> None:
    with popxl.Ir().main_graph:
        op = scaled_ops()["matmul_pow2scaled"]().producer
    assert op.attributes["available_memory_proportion"] == 0.5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("pow2scale_cast_to_fp8", "Floating point 8 is not supported for training."),
        ("pow2scale_cast_from_fp8", "Floating point 8 is not supported for training."),
        ("matmul_pow2scaled", "Using a scaled matmul in a backwards pass"),
    ],
)
def test_a_backwards_pass_is_refused(function: str, message: str) -> None:
    with popxl.Ir().main_graph:
        op = scaled_ops()[function]().producer
        with pytest.raises(popxl.errors.CoreError, match=f"^{message}"):
            needed_tensors(op, [0], [0])
