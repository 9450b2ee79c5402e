"""What random ops draw: its definition, its distribution, and what it does not depend on (spec ops-nn.md §5)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from declared import assert_same_bits, store
from op_gradients import gradients, values
from scipy import stats

import popxl
from popxl import dtypes, ops
from popxl.ops import randoms
from popxl.ops._threefry import Stream, bits_on_host, draw_bits, threefry
from popxl.ops.random_seed import create_random_seed
from popxl.tensor import Tensor

SEED = np.array([3324115917, 383329928], np.uint32)
SEEDS = [np.array(s, np.uint32) for s in ([0, 0], [0, 1], [1, 0], [7, 2**32 - 1])]
COUNT = 200_000
FLOATS = [popxl.float16, popxl.float32]


def one(call: Callable[..., Tensor], *arrays: Any) -> np.ndarray:
    """The value of one op, as a session computes it."""
    (found,) = values(call, *arrays)
    return found


@cache
def uniform(seed: int, shape: tuple[int, ...] = (COUNT,), **how: Any) -> np.ndarray:
    return one(lambda s: ops.random_uniform(s, shape, **how), np.array([0, seed], np.uint32))


@cache
def normal(seed: int, shape: tuple[int, ...] = (COUNT,), **how: Any) -> np.ndarray:
    return one(lambda s: ops.random_normal(s, shape, **how), np.array([0, seed], np.uint32))


def dropped(t: Any, seed: Any = SEED, p: float = 0.3) -> np.ndarray:
    return one(lambda t, s: ops.dropout(t, s, p), t, seed)


# The generator


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_generator_gives_the_known_answers_of_its_authors(
    key: tuple[int, int], counter: tuple[int, int], expected: tuple[int, int]
) -> None:
    x, y = threefry(key, *(np.array([word], np.uint32) for word in counter))
    assert (x[0], y[0]) == expected


def drawn(seed: Any, shape: tuple[int, ...]) -> Any:
    return draw_bits(seed, Stream.DROPOUT, shape)


def drawn_in_a_loop(seed: Any, shape: tuple[int, ...]) -> Any:
    def body(_i: Any, bits: Any) -> Any:
        return bits ^ drawn(seed, shape)

    return jax.lax.fori_loop(0, 3, body, jnp.zeros(shape, jnp.uint32))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (4, 3), (2, 0, 3), (33, 65)], ids=str)
@pytest.mark.parametrize("seed", SEEDS, ids=lambda s: str(s.tolist()))
@pytest.mark.parametrize(
    "draw",
    [drawn, jax.jit(drawn, static_argnums=1), jax.jit(drawn_in_a_loop, static_argnums=1)],
    ids=["eagerly", "jitted", "in a loop"],
)
def test_the_bits_are_those_of_the_definition(
    draw: Callable[..., Any], seed: np.ndarray, shape: tuple[int, ...]
) -> None:
    with jax.enable_x64(True):
        bits = np.asarray(draw(seed, shape))
    assert_same_bits(bits, bits_on_host(seed, Stream.DROPOUT, shape))


def test_the_bits_do_not_depend_on_the_settings_of_jax() -> None:
    expected = bits_on_host(SEED, Stream.DROPOUT, (7, 3))
    with jax.threefry_partitionable(False):
        assert_same_bits(np.asarray(jax.jit(partial(drawn, shape=(7, 3)))(SEED)), expected)
    with jax.default_prng_impl("rbg"):
        assert_same_bits(np.asarray(drawn(SEED, (7, 3))), expected)


SHARDED_DRAW = """
import jax, numpy as np
from functools import partial
from popxl.ops._threefry import Stream, draw_bits
jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.sharding.Mesh(np.array(jax.devices("cpu")), ("replicas",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("replicas"))
draw = partial(draw_bits, stream=Stream.DROPOUT, shape=(8, 3))
bits = jax.jit(draw, out_shardings=sharding)(np.array([5, 6], np.uint32))
print(len(bits.addressable_shards), np.asarray(bits).tolist())
"""


def test_the_bits_are_the_same_drawn_by_several_devices() -> None:
    # In a process of its own, since the number of devices cannot change.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHARDED_DRAW], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"4 {bits_on_host([5, 6], Stream.DROPOUT, (8, 3)).tolist()}"


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    assert_same_bits(uniform(1)[:100], uniform(1, (100,)))


def test_streams_have_different_numbers() -> None:
    assert len({stream.value for stream in Stream}) == len(Stream.__members__)


# Uniform


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-0.1, 0.7), (100.0, 101.0)])
def test_uniform_numbers_are_distributed_so(low: float, high: float) -> None:
    found = uniform(2, low=low, high=high).astype(np.float64)
    assert stats.kstest(found, stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert abs(found.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * COUNT)
    np.testing.assert_allclose(found.var(), (high - low) ** 2 / 12, rtol=0.01)


def test_uniform_float16_numbers_are_distributed_so() -> None:
    found = uniform(3, (2000,), dtype=popxl.float16).astype(np.float64)
    assert stats.kstest(found, "uniform").pvalue > 0.01


HARD_RANGES = [
    (0.0, 1.0, popxl.float16),
    (1.0, 1.01, popxl.float16),
    (0.1, 0.3, popxl.float16),
    (-65504.0, 65504.0, popxl.float16),
    (2047.0, 2049.0, popxl.float16),
    (0.1, 0.3, popxl.float32),
    (16777214.0, 16777217.0, popxl.float32),
    (-3e38, 3e38, popxl.float32),
    (1.0, 1.0 + 2.0**-22, popxl.float32),
]


@pytest.mark.parametrize(("low", "high", "dtype"), HARD_RANGES, ids=str)
def test_uniform_numbers_are_at_least_low_and_less_than_high(low: float, high: float, dtype: popxl.dtype) -> None:
    found = uniform(4, low=low, high=high, dtype=dtype).astype(np.float64)
    assert low <= found.min()
    assert found.max() < high


@pytest.mark.parametrize(("low", "high", "dtype"), HARD_RANGES, ids=str)
@pytest.mark.parametrize("bits", [0, 2**32 - 1])
def test_the_extreme_bits_give_numbers_in_the_range(
    low: float, high: float, dtype: popxl.dtype, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(randoms, "draw_bits", lambda *_: jnp.full((), bits, jnp.uint32))
    with jax.enable_x64(True):
        lower: Any = randoms.RANDOM_UNIFORM.definition.lower
        found = float(jax.jit(partial(lower, shape=(), low=low, high=high, dtype=dtype))(SEED))
    assert low <= found < high
    # What is left to the bound is less than the step between two draws, or between two numbers of this dtype.
    missing, step = (found - low, (high - low) * 2.0**-24) if bits == 0 else (high - found, (high - low) * 2.0**-23)
    assert missing <= max(step, abs(float(np.nextafter(dtype.storage.type(found), dtype.storage.type(0))) - found) * 2)


def test_a_narrow_range_gives_each_number_in_it() -> None:
    found = np.unique(uniform(5, low=1.0, high=1.01, dtype=popxl.float16))
    np.testing.assert_array_equal(found, 1 + np.arange(11) / 1024)


@pytest.mark.parametrize(
    ("low", "high", "dtype"), [(2.5, 2.5, popxl.float32), (1.0002, 1.0003, popxl.float16), (0.1, 0.1, popxl.float16)]
)
def test_a_range_without_numbers_gives_the_one_nearest_to_low(low: float, high: float, dtype: popxl.dtype) -> None:
    found = uniform(6, (10,), low=low, high=high, dtype=dtype)
    np.testing.assert_array_equal(found, np.full(10, low, dtype.as_numpy()))


# Normal


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-3.0, 0.02), (100.0, 5.0)])
def test_normal_numbers_are_distributed_so(mean: float, std: float) -> None:
    found = normal(2, mean=mean, std=std).astype(np.float64)
    assert stats.kstest(found, stats.norm(mean, std).cdf).pvalue > 0.01
    assert abs(found.mean() - mean) < 4 * std / np.sqrt(COUNT)
    np.testing.assert_allclose(found.var(), std**2, rtol=0.02)


def test_normal_numbers_have_the_tails_of_the_distribution() -> None:
    found = normal(3, (1_000_000,)).astype(np.float64)
    assert abs(stats.skew(found)) < 0.02
    assert abs(stats.kurtosis(found)) < 0.05
    # 2700 of a million are expected beyond three standard deviations, with a deviation of 52.
    assert abs(np.count_nonzero(np.abs(found) > 3) - 2700) < 210


def test_normal_float16_numbers_are_the_float32_numbers_rounded() -> None:
    assert_same_bits(normal(4, dtype=popxl.float16), normal(4).astype(np.float16))


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize(("bits", "sign"), [(0, -1), (2**32 - 1, 1)])
def test_the_extreme_bits_give_finite_normal_numbers(
    bits: int, sign: int, dtype: popxl.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(randoms, "draw_bits", lambda *_: jnp.full((), bits, jnp.uint32))
    with jax.enable_x64(True):
        lower: Any = randoms.RANDOM_NORMAL.definition.lower
        found = float(jax.jit(partial(lower, shape=(), mean=0.0, std=1.0, dtype=dtype))(SEED))
    np.testing.assert_allclose(found, sign * stats.norm.isf(2.0**-25), rtol=1e-3)


# Seeds


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


INDEPENDENT = 5 / np.sqrt(COUNT)
"""Five standard deviations of the correlation of unrelated draws."""


@pytest.mark.parametrize("function", [ops.random_uniform, ops.random_normal])
@pytest.mark.parametrize("other", [[0, 1], [1, 0], [0, 2**31], [2**31, 0]], ids=str)
def test_draws_of_different_seeds_are_unrelated(function: Callable[..., Tensor], other: list[int]) -> None:
    a, b = (one(lambda s: function(s, (COUNT,)), np.array(seed, np.uint32)) for seed in ([0, 0], other))
    assert abs(correlation(a, b)) < INDEPENDENT


def test_neighbouring_numbers_of_a_draw_are_unrelated() -> None:
    for lag in (1, 2, 256):
        assert abs(correlation(uniform(7)[lag:], uniform(7)[:-lag])) < INDEPENDENT


def split(seed: Any, n: int = 2) -> list[np.ndarray]:
    return values(lambda s: ops.split_random_seed(s, n), seed)


def test_draws_of_split_seeds_and_of_their_seed_are_unrelated() -> None:
    draws = [one(lambda s: ops.random_uniform(s, (COUNT,)), s) for s in (SEED, *split(SEED, 3))]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(correlation(a, b)) < INDEPENDENT


def test_draws_of_different_ops_with_one_seed_are_unrelated() -> None:
    ones = np.ones(COUNT, np.float32)
    draws = [
        one(lambda s: ops.random_uniform(s, (COUNT,)), SEED),
        one(lambda s: ops.random_normal(s, (COUNT,)), SEED),
        dropped(ones),
        one(lambda t, s: ops.shaped_dropout(t, s, (COUNT,), 0.3), ones, SEED),
    ]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(correlation(a, b)) < INDEPENDENT


@pytest.mark.parametrize("seed", SEEDS, ids=lambda s: str(s.tolist()))
def test_split_seeds_keep_the_high_word_and_differ_in_the_low_one(seed: np.ndarray) -> None:
    found = split(seed, 5)
    assert {int(s[0]) for s in found} == {int(seed[0])}
    assert len({int(s[1]) for s in (seed, *found)}) == 6


def test_a_split_seed_does_not_depend_on_how_many_there_are() -> None:
    for a, b in zip(split(SEED, 2), split(SEED, 4), strict=False):
        assert_same_bits(a, b)


def test_splitting_into_none_gives_none() -> None:
    with popxl.Ir().main_graph:
        assert ops.split_random_seed(popxl.constant([0, 1], popxl.uint32), 0) == ()


def test_split_seeds_are_spread_over_all_numbers() -> None:
    low_words = np.array([bits_on_host([0, i], Stream.MODIFY_RANDOM_SEED, ()) for i in range(2000)])
    assert stats.kstest(low_words / 2**32, "uniform").pvalue > 0.01


def test_adding_to_the_low_word_of_a_seed_wraps_around() -> None:
    last, first = np.array([5, 2**32 - 1], np.uint32), np.array([5, 0], np.uint32)
    three, two = (one(create_random_seed, seed, np.uint32(i)) for seed, i in ((last, 3), (first, 2)))
    assert_same_bits(three, two)


def test_arithmetic_on_seeds_makes_seeds() -> None:
    found = one(lambda s: ops.random_uniform(s + 1, (9,)), np.array([3, 2**32 - 1], np.uint32))
    expected = one(lambda s: ops.random_uniform(s, (9,)), np.array([4, 0], np.uint32))
    assert_same_bits(found, expected)


# Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_right_share(p: float) -> None:
    kept = np.count_nonzero(dropped(np.ones(COUNT, np.float32), p=p))
    assert abs(kept - COUNT * (1 - p)) < 4 * np.sqrt(COUNT * p * (1 - p))


def test_dropout_with_rate_0_is_the_identity() -> None:
    t = np.linspace(-2, 2, 1001, dtype=np.float32)
    assert_same_bits(dropped(t, p=0.0), t)


def test_what_dropout_keeps_is_divided_once() -> None:
    t = np.linspace(1, 2, 1001, dtype=np.float32)
    found = dropped(t, p=0.3)
    kept = found != 0
    np.testing.assert_array_equal(found[kept], t[kept] / np.float32(0.7))


def test_dropout_draws_one_mask_whatever_the_dtype() -> None:
    masks = [dropped(np.ones(1000, dtype)) != 0 for dtype in (np.float16, np.float32, np.float64)]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_what_is_dropped_is_0_even_if_it_was_not_finite() -> None:
    mask = dropped(np.ones(1000, np.float32)) != 0
    found = dropped(np.full(1000, np.inf, np.float32))
    np.testing.assert_array_equal(found, np.where(mask, np.inf, 0))


def test_the_mask_of_shaped_dropout_is_broadcast() -> None:
    t = np.arange(1, 601, dtype=np.float32).reshape(20, 30)
    found = one(lambda t, s: ops.shaped_dropout(t, s, (20, 1), 0.5), t, SEED)
    kept = found[:, :1] != 0
    assert 0 < np.count_nonzero(kept) < 20
    np.testing.assert_array_equal(found, np.where(kept, t / np.float32(0.5), 0))


DROPOUTS: dict[str, Callable[..., Tensor]] = {
    "dropout": lambda t, s: ops.dropout(t, s, 0.3),
    "shaped_dropout": lambda t, s: ops.shaped_dropout(t, s, (1, 50), 0.3),
}


@pytest.mark.parametrize("name", DROPOUTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_gradient_of_dropout_has_the_same_mask(name: str, dtype: Any) -> None:
    t, g = np.ones((20, 50), dtype), np.linspace(1, 2, 1000).astype(dtype).reshape(20, 50)
    value = one(DROPOUTS[name], t, SEED)
    (grad,) = gradients(DROPOUTS[name], (t, SEED), g, [0])
    np.testing.assert_array_equal(grad, one(DROPOUTS[name], g, SEED))
    np.testing.assert_array_equal(grad != 0, value != 0)


# What draws do not depend on


def test_a_seed_gives_the_same_draws_wherever_and_whenever_it_is_used() -> None:
    ir = popxl.Ir()
    seed_spec = popxl.TensorSpec((2,), popxl.uint32)
    with ir.main_graph:
        seed = popxl.variable(SEED)

        def draw(s: Tensor) -> tuple[Tensor, ...]:
            ops.random_normal(s, (99,))
            return (ops.random_uniform(s, (31, 7)),)

        def again(_before: Tensor, s: Tensor) -> Tensor:
            return ops.random_uniform(s, (31, 7))

        graph, loop = (
            ir.create_graph(draw, seed_spec),
            ir.create_graph(again, popxl.constant(np.zeros((31, 7), "f")), seed),
        )
        other = ir.create_graph(lambda s: ops.random_uniform(s + 1, (31, 7)), seed_spec)
        found = [
            ops.random_uniform(seed, (31, 7)),
            *ops.call(graph, seed),
            *ops.repeat(loop, 3, popxl.constant(np.zeros((31, 7), "f")), seed),
            *ops.conditional(popxl.constant(True), graph, other, [seed], [seed]),
            *ops.conditional(popxl.constant(False), other, graph, [seed], [seed]),
            ops.random_uniform(seed, (31, 7)),
        ]
        streams = [store(t) for t in found]
    with popxl.Session(ir) as session:
        runs = [session.run(), session.run()]
    for run in runs:
        for stream in streams:
            assert_same_bits(run[stream], runs[0][streams[0]])


def test_two_seeds_of_a_stream_give_different_masks_in_one_run() -> None:
    ir = popxl.Ir()
    ir.num_host_transfers = 2
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((2,), popxl.uint32)
        ones = popxl.variable(np.ones(100, np.float32))
        first, second = (store(ops.dropout(ones, ops.host_load(stream), 0.5)) for _ in range(2))
    with popxl.Session(ir) as session:
        found = session.run({stream: np.stack(SEEDS[:2])})
    assert not np.array_equal(found[first], found[second])


# Graphs


def new_ops(call: Callable[[Tensor, Tensor], Any]) -> tuple[list[str], int]:
    """The types of the ops that a call adds, and how many tensors."""
    with popxl.Ir().main_graph as graph:
        t, seed = popxl.variable(np.ones((4, 2), np.float32)), popxl.variable(SEED)
        count = len(graph.tensors)
        call(t, seed)
        return [op.type for op in graph.ops], len(graph.tensors) - count


@pytest.mark.parametrize(
    ("call", "types", "tensors"),
    [
        (lambda t, s: ops.dropout(t, s, 0.1), ["Dropout"], 1),
        (lambda t, s: ops.shaped_dropout(t, s, (4, 1), 0.1), ["ShapedDropout"], 1),
        (lambda _, s: ops.random_uniform(s, (2,)), ["RandomUniform"], 1),
        (lambda _, s: ops.random_normal(s, (2,)), ["RandomNormal"], 1),
        (lambda _, s: ops.split_random_seed(s), ["ModifyRandomSeed"] * 2, 4),
        (lambda _, s: ops.split_random_seed(s, 5), ["ModifyRandomSeed"] * 5, 10),
    ],
)
def test_random_ops_add_so_much_to_the_graph(call: Callable[..., Any], types: list[str], tensors: int) -> None:
    assert new_ops(call) == (types, tensors)


@pytest.mark.parametrize("function", [ops.random_uniform, ops.random_normal])
def test_random_numbers_are_float32_if_no_dtype_is_given(function: Callable[..., Tensor]) -> None:
    with popxl.Ir().main_graph:
        seed = popxl.variable(SEED)
        no_dtype: Any = None
        found = [function(seed, (2,)).dtype, function(seed, (2,), dtype=no_dtype).dtype]
    assert found == [dtypes.float32, dtypes.float32]
