"""float8 on the host: tensors-dtypes.md section 3. ml_dtypes, which the code does not use, is the oracle."""

from __future__ import annotations

import sys
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from popxl import dtypes
from popxl.dtypes import float8_143, float8_152
from popxl.fp8_utils import (
    host_fp8_mse_scale,
    host_fp8_mse_scale_pb,
    host_pow2scale_cast_from_fp8,
    host_pow2scale_cast_to_fp8,
)

ML_TYPES = {float8_143: ml_dtypes.float8_e4m3fnuz, float8_152: ml_dtypes.float8_e5m2fnuz}
FLOATS = [np.float16, np.float32, np.float64]
LARGEST = {float8_143: 240.0, float8_152: 57344.0}
SMALLEST = {float8_143: 2.0**-10, float8_152: 2.0**-17}
both_kinds = pytest.mark.parametrize("kind", [float8_143, float8_152])


def codes(src, kind, log2_scale=0, nan_on_overflow=True):
    """The raw codes of the cast."""
    result = host_pow2scale_cast_to_fp8(src, kind, log2_scale, nan_on_overflow)
    assert result.dtype == kind.as_numpy()
    return result[kind.name]


def all_codes(kind):
    return np.arange(256, dtype=np.uint8).view(kind.as_numpy())


@pytest.fixture
def torch_tensor(monkeypatch):
    """Makes arrays of a class that stands for torch tensors with a gradient."""
    module = ModuleType("torch")

    class Tensor:
        def __init__(self, array, detached=False):
            self.array, self.detached = array, detached

        def detach(self):
            return Tensor(self.array, detached=True)

        def numpy(self):
            assert self.detached
            return self.array

    module.Tensor = Tensor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", module)
    return Tensor


# ---------------------------------------------------------------- to float8


@pytest.mark.parametrize("numpy_type", FLOATS)
@pytest.mark.parametrize("nan_on_overflow", [True, False])
@pytest.mark.parametrize(
    ("value", "kind", "log2_scale", "code"),
    [
        (0.75, float8_143, 0, 0b00111100),
        (0.75, float8_143, -2, 0b00101100),
        (0.75, float8_143, 1, 0b01000100),
        (0.1875, float8_143, 0, 0b00101100),
        (1.5, float8_143, 0, 0b01000100),
        (0.25, float8_152, 0, 0b00111000),
        (0.25, float8_152, -3, 0b00101100),
    ],
)
def test_codes_are_those_of_the_table(value, kind, log2_scale, code, numpy_type, nan_on_overflow):
    assert codes(np.array([value], numpy_type), kind, log2_scale, nan_on_overflow).tolist() == [code]


@pytest.mark.parametrize(
    ("value", "kind", "numpy_types"), [(250.0, float8_143, FLOATS), (70000.0, float8_152, [np.float32, np.float64])]
)
def test_overflow_saturates_or_becomes_nan(value, kind, numpy_types):
    for numpy_type in numpy_types:
        src = np.array([value, -value], numpy_type)
        assert codes(src, kind, nan_on_overflow=False).tolist() == [0b01111111, 0b11111111]
        assert codes(src, kind, nan_on_overflow=True).tolist() == [0b10000000, 0b10000000]


@both_kinds
@pytest.mark.parametrize("numpy_type", FLOATS)
@pytest.mark.parametrize("nan_on_overflow", [True, False])
def test_infinities_and_nan_become_nan(kind, numpy_type, nan_on_overflow):
    src = np.array([np.inf, -np.inf, np.nan, -np.nan], numpy_type)
    assert codes(src, kind, 0, nan_on_overflow).tolist() == [0x80] * 4


@both_kinds
def test_negative_zero_and_what_rounds_to_it_become_zero(kind):
    tiny = SMALLEST[kind] / 2
    assert codes(np.array([-0.0, -tiny, -tiny / 3, -np.finfo(float).smallest_subnormal]), kind).tolist() == [0] * 4


@both_kinds
def test_every_float16_has_the_code_of_the_oracle(kind):
    src = np.arange(2**16, dtype=np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):
        expected = src.astype(ML_TYPES[kind]).view(np.uint8)
    np.testing.assert_array_equal(codes(src, kind), expected)


@both_kinds
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_float32_has_the_code_of_the_oracle(kind, values):
    src = np.array(values, np.float32)
    np.testing.assert_array_equal(codes(src, kind), src.astype(ML_TYPES[kind]).view(np.uint8))


@both_kinds
def test_ties_go_to_the_even_code_and_their_neighbours_to_the_nearest(kind):
    value = ML_TYPES[kind](0)
    positive = np.arange(128, dtype=np.uint8).view(type(value)).astype(np.float64)
    ties = (positive[1:] + positive[:-1]) / 2
    below = np.arange(127)
    np.testing.assert_array_equal(codes(ties, kind), below + below % 2)
    # Neighbours in float64, which a detour over float32 would round to the tie.
    np.testing.assert_array_equal(codes(np.nextafter(ties, 0), kind), below)
    np.testing.assert_array_equal(codes(np.nextafter(ties, np.inf), kind), below + 1)


@both_kinds
def test_overflow_starts_where_rounding_passes_the_largest_number(kind):
    largest = LARGEST[kind]
    step = largest - float(host_pow2scale_cast_from_fp8(all_codes(kind), dtypes.float64)[0x7E])
    src = np.array([largest + step / 2 * 0.999, largest + step / 2])
    assert codes(src, kind).tolist() == [0x7F, 0x80]


@both_kinds
@pytest.mark.parametrize("log2_scale", [-32, -5, 7, 31])
def test_scale_is_part_of_the_one_rounding(kind, log2_scale):
    src = np.random.default_rng(0).normal(size=1000) * 2.0**-log2_scale
    np.testing.assert_array_equal(codes(src, kind, log2_scale), codes(src * 2.0**log2_scale, kind))


def test_scale_applies_before_the_range_of_float16():
    assert (
        codes(np.array([2.0**-20], np.float16), float8_143, 20).tolist() == codes(np.array([1.0]), float8_143).tolist()
    )
    assert codes(np.array([60000.0], np.float16), float8_143, 31, False).tolist() == [0x7F]
    assert codes(np.array([1e308]), float8_152, 31, False).tolist() == [0x7F]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3), (1, 1)])
def test_shape_is_kept(shape):
    result = host_pow2scale_cast_to_fp8(np.ones(shape, np.float32), float8_143)
    assert isinstance(result, np.ndarray)
    assert result.shape == shape
    assert host_pow2scale_cast_from_fp8(result, dtypes.float16).shape == shape


def test_source_may_be_strided():
    src = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(
        host_pow2scale_cast_from_fp8(host_pow2scale_cast_to_fp8(src, float8_143), dtypes.float32), src
    )


def test_source_may_be_a_list_or_a_number():
    assert codes([[0.75], [1.5]], float8_143).tolist() == [[0b00111100], [0b01000100]]
    assert codes(0.75, float8_143).tolist() == 0b00111100


def test_source_may_be_a_torch_tensor_with_a_gradient(torch_tensor):
    assert codes(torch_tensor(np.array([0.75], np.float32)), float8_143).tolist() == [0b00111100]


@pytest.mark.parametrize(
    "src", [np.array([1]), [1, 2], np.array([True]), np.array([1j]), np.zeros(1, float8_143.as_numpy())]
)
def test_other_sources_raise_runtime_error(src):
    with pytest.raises(RuntimeError, match="is not supported from"):
        host_pow2scale_cast_to_fp8(src, float8_143)


@pytest.mark.parametrize("target", [None, dtypes.float16, dtypes.uint8, "float8_143"])
def test_other_targets_raise_runtime_error(target):
    with pytest.raises(RuntimeError, match="is not a float8 type"):
        host_pow2scale_cast_to_fp8(np.ones(1), target)


@pytest.mark.parametrize("log2_scale", [-33, 32])
def test_scale_out_of_range_raises_runtime_error(log2_scale):
    with pytest.raises(RuntimeError, match=r"outside \[-32, 32\)"):
        host_pow2scale_cast_to_fp8(np.ones(1), float8_143, log2_scale)


# ---------------------------------------------------------------- from float8


@both_kinds
@pytest.mark.parametrize("target", [dtypes.float16, dtypes.float32, dtypes.float64])
def test_every_code_has_the_value_of_the_oracle(kind, target):
    values = host_pow2scale_cast_from_fp8(all_codes(kind), target)
    assert values.dtype == target.as_numpy()
    expected = np.arange(256, dtype=np.uint8).view(ML_TYPES[kind]).astype(target.as_numpy())
    np.testing.assert_array_equal(values, expected)


@both_kinds
def test_range_is_that_of_the_table(kind):
    values = host_pow2scale_cast_from_fp8(all_codes(kind), dtypes.float64)
    assert np.nanmax(values) == LARGEST[kind]
    assert values[values > 0].min() == SMALLEST[kind]
    assert np.flatnonzero(np.isnan(values)).tolist() == [0x80]


@both_kinds
@pytest.mark.parametrize("log2_scale", [-32, -3, 0, 1, 31])
def test_cast_from_undoes_cast_to_with_the_negated_scale(kind, log2_scale):
    values = host_pow2scale_cast_from_fp8(all_codes(kind), dtypes.float64, -log2_scale)
    np.testing.assert_array_equal(codes(values, kind, log2_scale), np.arange(256))


def test_scale_up_beyond_float16_is_infinite():
    src = host_pow2scale_cast_to_fp8(np.array([240.0, -240.0]), float8_143)
    assert host_pow2scale_cast_from_fp8(src, dtypes.float16, 20).tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("src", [np.zeros(1, np.uint8), np.zeros(1, np.float32), [1.0]])
def test_cast_from_other_data_raises_runtime_error(src):
    with pytest.raises(RuntimeError, match="needs codes of a float8 type"):
        host_pow2scale_cast_from_fp8(src, dtypes.float32)


@pytest.mark.parametrize("target", [None, dtypes.int32, float8_143, np.float32])
def test_cast_from_to_other_types_raises_runtime_error(target):
    with pytest.raises(RuntimeError, match=r"Casting from popxl\.dtypes\.float8_143 to"):
        host_pow2scale_cast_from_fp8(all_codes(float8_143), target)


# ---------------------------------------------------------------- choice of a scale


def mse_scale_by_loops(src, mantissa, low, high):
    """The algorithm of section 3, one sum at a time."""
    edges = [2.0 ** (i - 126) for i in range(253)]
    histogram = [0.0] * 254
    for x in np.abs(src.astype(np.float64)).ravel():
        if x < edges[0]:
            histogram[0] += 1
        elif x > edges[252]:
            histogram[253] += 1
        else:
            histogram[int(np.floor(np.log2(x))) + 127] += 1
    histogram = [h / sum(histogram) for h in histogram]
    q = 2.0 ** (-2 * ((23 if src.dtype == np.float32 else 10) - mantissa))
    span, base = high - low + 1, max(0, low - 31 + 126)
    costs = []
    for k in range(63):
        s = base + k
        cost = (edges[0] / 2) ** 2 if s > 0 else 0.0
        cost += sum(edges[i] ** 2 * histogram[i + 1] for i in range(s))
        cost += q * sum(edges[i] ** 2 * histogram[i + 1] for i in range(s, min(s + span, 253)))
        cost += sum((edges[k + span - 1] - edges[i]) ** 2 * histogram[i + 1] for i in range(s + span, 253))
        costs.append(cost)
    best = [k - 31 for k in range(63) if costs[k] == min(costs)]
    return min(costs), -best[len(best) // 2]


@pytest.mark.parametrize(
    ("values", "kind", "scale"),
    [
        ([0.00098, 240], float8_143, 0),
        ([2.0**-17, 57344], float8_152, 0),
        ([1.0], float8_143, -2),
        ([1.0], float8_152, -1),
    ],
)
def test_mse_scale_is_that_of_the_table(values, kind, scale):
    assert host_fp8_mse_scale(np.array(values, np.float32), kind)[1] == scale


@pytest.mark.parametrize(("low", "high", "sign"), [(32, 64, -1), (2.0**-6, 2.0**-5, 1)])
@pytest.mark.parametrize(
    "choose", [lambda x: host_fp8_mse_scale(x, float8_143)[1], lambda x: host_fp8_mse_scale_pb(x, float8_143)]
)
def test_scale_moves_large_numbers_down_and_small_ones_up(choose, low, high, sign):
    src = np.random.default_rng(0).uniform(low, high, 1000).astype(np.float32)
    assert np.sign(choose(src)) == sign


@pytest.mark.parametrize(
    ("kind", "layout"), [(float8_143, (3, -10, 7)), (float8_152, (2, -17, 15)), (None, (3, -10, 7))]
)
@pytest.mark.parametrize("numpy_type", [np.float32, np.float16])
@pytest.mark.parametrize("spread", [0.5, 6, 14])
def test_mse_scale_agrees_with_the_algorithm_in_loops(kind, layout, numpy_type, spread):
    rng = np.random.default_rng(int(spread))
    src = (rng.normal(size=(20, 10)) * 2.0 ** rng.uniform(-spread, spread, (20, 10))).astype(numpy_type)
    cost, scale = host_fp8_mse_scale(src, kind)
    expected_cost, expected_scale = mse_scale_by_loops(src, *layout)
    assert cost == pytest.approx(expected_cost, rel=1e-12)
    assert scale == expected_scale


@pytest.mark.parametrize("value", [2.0**-127, 2.0**-126, 2.0**126, 3e38])
def test_mse_scale_agrees_with_the_algorithm_at_the_ends_of_the_histogram(value):
    src = np.array([value, 1.0], np.float32)
    assert host_fp8_mse_scale(src) == pytest.approx(mse_scale_by_loops(src, 3, -10, 7), rel=1e-12)


def test_mse_scale_returns_python_numbers():
    cost, scale = host_fp8_mse_scale(np.ones(3, np.float16))
    assert (type(cost), type(scale)) == (float, int)


@pytest.mark.parametrize("src", [np.ones(3), np.ones(3, np.int32), [1.0], 1.0])
def test_mse_scale_of_other_data_raises_runtime_error(src):
    with pytest.raises(RuntimeError, match="chosen for float16 and float32"):
        host_fp8_mse_scale(src)


@pytest.mark.parametrize("src", [np.ones(0, np.float32), np.array([np.nan], np.float32)])
def test_mse_scale_without_numbers_raises_runtime_error(src):
    with pytest.raises(RuntimeError, match="no number in the data"):
        host_fp8_mse_scale(src)


@both_kinds
@pytest.mark.parametrize("spread", [1, 5])
def test_mse_scale_pb_has_the_smallest_error_of_all_scales(kind, spread):
    rng = np.random.default_rng(spread)
    src = (rng.normal(size=200) * 2.0 ** rng.uniform(-spread, spread, 200)).astype(np.float32)
    errors = {}
    for scale in range(-31, 32):
        scaled = np.clip(src.astype(np.float64) * 2.0**scale, -LARGEST[kind], LARGEST[kind]).astype(np.float32)
        errors[scale] = np.mean((scaled.astype(ML_TYPES[kind]).astype(np.float64) * 2.0**-scale - src) ** 2)
    assert errors[host_fp8_mse_scale_pb(src, kind)] == pytest.approx(min(errors.values()), rel=1e-9)


@both_kinds
def test_mse_scale_pb_of_exact_numbers_over_the_whole_range_is_zero(kind):
    src = np.array([SMALLEST[kind], LARGEST[kind]], np.float32)
    assert host_fp8_mse_scale_pb(src, kind) == 0


def test_mse_scale_pb_leaves_infinities_and_nan_out():
    src = np.array([2.0**-10, 240, np.inf, -np.inf, np.nan], np.float32)
    assert host_fp8_mse_scale_pb(src, float8_143) == 0


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_mse_scale_pb_stays_in_its_range(value):
    assert -31 <= host_fp8_mse_scale_pb(np.array([value], np.float32), float8_143) <= 31


def test_mse_scale_pb_takes_torch_tensors(torch_tensor):
    src = np.array([2.0**-10, 240.0], np.float32)
    assert host_fp8_mse_scale_pb(torch_tensor(src), float8_143) == 0


@pytest.mark.parametrize("src", [np.ones(3), [1, 2], np.ones(2, np.int8)])
def test_mse_scale_pb_of_other_data_raises_runtime_error(src):
    with pytest.raises(RuntimeError, match="chosen for float16 and float32"):
        host_fp8_mse_scale_pb(src, float8_143)


def test_mse_scale_pb_of_another_type_raises_runtime_error():
    with pytest.raises(RuntimeError, match="is not a float8 type"):
        host_fp8_mse_scale_pb(np.ones(2, np.float32), dtypes.float16)
