"""Slice updates that compilers get wrong: an update that reads what it overwrites, and starts out of range.

XLA has had wrong answers for both (issues 49176 and 49121). Each test compares a compiled program, with donated
memory, with NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import lax

import popxl
from popxl import ops
from popxl.ops._define import registry

LENGTHS = [2, 7, 64, 1000, 100_000]
SLICE_UPDATE = registry["DynamicUpdate"].definition.lower
DYNAMIC_SLICE = registry["DynamicSlice"].definition.lower
PUT_SLICE = registry["SliceInplace"].definition.put

Array = Any


def update(x: Array, part: Array, *starts: Any) -> Array:
    """What `dynamic_update_` does, at `starts`."""
    assert SLICE_UPDATE is not None
    axes = tuple(range(len(starts)))
    return SLICE_UPDATE(x, jnp.stack([jnp.int32(s) for s in starts]), part, axes, part.shape, no_overlap=False)


def region(x: Array, sizes: tuple[int, ...], *starts: Any) -> Array:
    """What `dynamic_slice` does, at `starts`."""
    assert DYNAMIC_SLICE is not None
    axes = tuple(range(len(starts)))
    return DYNAMIC_SLICE(x, jnp.stack([jnp.int32(s) for s in starts]), axes, sizes, no_overlap=False)


def put(x: Array, part: Array, start: int, step: int = 1) -> Array:
    """What a write through `slice_` does, from `start`."""
    assert PUT_SLICE is not None
    stop = start + step * part.shape[0]
    return PUT_SLICE(part, x, (start,), (stop,), (step,), (0,))[0]


def donated(function: Callable[..., Array], x: np.ndarray, *arguments: Any) -> np.ndarray:
    """Run `function` compiled, with the memory of `x` given away."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function, donate_argnums=0)(jnp.array(x), *arguments))


def compiled(function: Callable[..., Array], *arguments: Any) -> np.ndarray:
    """Run `function` compiled."""
    with jax.enable_x64(True):
        return np.asarray(jax.jit(function)(*arguments))


def vector(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)


def moved(x: np.ndarray, target: slice, part: np.ndarray) -> np.ndarray:
    result = x.copy()
    result[target] = part
    return result


# An update that reads what it overwrites


@pytest.mark.parametrize("n", LENGTHS)
def test_jax_itself_moves_elements_up_by_one(n: int) -> None:
    x = vector(n)
    got = donated(lambda x: x.at[1:].set(x[:-1]), x)
    np.testing.assert_array_equal(got, np.concatenate([x[:1], x[:-1]]))


@pytest.mark.parametrize("n", LENGTHS)
def test_elements_move_up_by_one(n: int) -> None:
    x = vector(n)
    expected = np.concatenate([x[:1], x[:-1]])
    np.testing.assert_array_equal(donated(lambda x: update(x, x[:-1], 1), x), expected)
    np.testing.assert_array_equal(donated(lambda x: put(x, x[:-1], 1), x), expected)


@pytest.mark.parametrize("n", LENGTHS)
def test_elements_move_down_by_one(n: int) -> None:
    x = vector(n)
    expected = np.concatenate([x[1:], x[-1:]])
    np.testing.assert_array_equal(donated(lambda x: update(x, x[1:], 0), x), expected)
    np.testing.assert_array_equal(donated(lambda x: put(x, x[1:], 0), x), expected)


@pytest.mark.parametrize("n", LENGTHS)
def test_a_vector_is_reversed_in_place(n: int) -> None:
    x = vector(n)
    np.testing.assert_array_equal(donated(lambda x: update(x, x[::-1], 0), x), x[::-1])
    np.testing.assert_array_equal(donated(lambda x: put(x, x, n - 1, -1), x), x[::-1])


@pytest.mark.parametrize("n", LENGTHS)
def test_a_computed_part_overwrites_what_it_was_computed_from(n: int) -> None:
    x, half = vector(n), n // 2
    expected = moved(x, np.s_[n // 4 : n // 4 + half], x[:half][::-1] * 2 + x[half])
    got = donated(lambda x: update(x, x[:half][::-1] * 2 + x[half], n // 4), x)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("n", LENGTHS)
def test_a_region_read_at_run_time_overwrites_itself_shifted(n: int) -> None:
    x, half = vector(n), n // 2

    def shift(x: Array, start: Array) -> Array:
        return update(x, region(x, (half,), start) + 1, start + 1)

    for start in (0, n // 3):
        expected = moved(x, np.s_[start + 1 : start + 1 + half], x[start : start + half] + 1)
        np.testing.assert_array_equal(donated(shift, x, np.int32(start)), expected)


@pytest.mark.parametrize("n", LENGTHS[1:])
def test_a_loop_moves_elements_again_and_again(n: int) -> None:
    x = vector(n)
    got = donated(lambda x: lax.fori_loop(0, 3, lambda i, x: update(x, x[:-1], 1) + i, x), x)
    expected = x
    for i in range(3):
        expected = np.concatenate([expected[:1], expected[:-1]]) + np.float32(i)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("n", LENGTHS[1:])
def test_the_old_value_can_still_be_read_after_the_update(n: int) -> None:
    x = vector(n)
    got = donated(lambda x: update(x, x[:-1], 1) + x, x)
    np.testing.assert_array_equal(got, np.concatenate([x[:1], x[:-1]]) + x)


def test_replicas_move_their_own_elements() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    starts = np.array([0, 1, 9], np.int32)
    got = donated(jax.vmap(lambda x, start: update(x, x[:2], start)), x, starts)
    np.testing.assert_array_equal(got, [[0, 1, 2, 3], [4, 4, 5, 7], [8, 9, 8, 9]])


Move = tuple[int, int, int, int, str]


@st.composite
def moves(draw: st.DrawFn) -> tuple[tuple[int, int], list[Move]]:
    shape = draw(st.sampled_from([(1, 5), (4, 4), (7, 3), (40, 30)]))
    steps: list[Move] = []
    for _ in range(draw(st.integers(1, 3))):
        rows, columns = draw(st.integers(1, shape[0])), draw(st.integers(1, shape[1]))
        source, target = (draw(st.integers(0, shape[0] - rows)) for _ in range(2))
        steps.append((rows, columns, source, target, draw(st.sampled_from(["copy", "flip", "roll", "sum"]))))
    return shape, steps


def transformed(xp: Any, part: Array, kind: str) -> Array:
    match kind:
        case "flip":
            return part[::-1, ::-1]
        case "roll":
            return xp.roll(part, 1, 0) + xp.roll(part, 1, 1)
        case "sum":
            return part + part.sum(0, keepdims=True)
        case _:
            return part


@settings(max_examples=30)
@given(moves())
def test_any_moves_one_after_the_other_agree_with_numpy(drawn: tuple[tuple[int, int], list[Move]]) -> None:
    shape, steps = drawn
    x = (np.arange(shape[0] * shape[1]) % 251).astype(np.float64).reshape(shape)

    def run(x: Array, sources: Array, targets: Array) -> Array:
        for i, (rows, columns, _, _, kind) in enumerate(steps):
            part = region(x, (rows, columns), sources[i], 0)
            x = update(x, transformed(jnp, part, kind), targets[i], shape[1] - columns)
        return x

    expected = x.copy()
    for rows, columns, source, target, kind in steps:
        part = expected[source : source + rows, :columns].copy()
        expected[target : target + rows, shape[1] - columns :] = transformed(np, part, kind)
    sources, targets = (np.array([step[k] for step in steps], np.int32) for k in (2, 3))
    np.testing.assert_array_equal(donated(run, x, sources, targets), expected)


# Starts at the edges and beyond


STARTS = [-(2**31), -5, -1, 0, 1, 6, 7, 8, 10, 11, 2**31 - 1]


def inside(start: int, n: int, size: int) -> int:
    return min(max(start, 0), n - size)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("folded", [True, False], ids=["constant", "run time"])
def test_a_region_starts_at_the_nearest_place_inside(start: int, folded: bool) -> None:
    x, first = vector(10), inside(start, 10, 3)
    if folded:
        got = compiled(lambda x: region(x, (3,), start), x)
    else:
        got = compiled(lambda x, s: region(x, (3,), s), x, np.int32(start))
    np.testing.assert_array_equal(got, x[first : first + 3])


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("folded", [True, False], ids=["constant", "run time"])
def test_an_update_starts_at_the_nearest_place_inside(start: int, folded: bool) -> None:
    x, first = vector(10), inside(start, 10, 3)
    part = np.array([-1, -2, -3], np.float32)
    expected = moved(x, np.s_[first : first + 3], part)
    if folded:
        got = donated(lambda x: update(x, part, start), x)
    else:
        got = donated(lambda x, s: update(x, part, s), x, np.int32(start))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64], ids=str)
def test_an_index_of_any_integer_dtype_reaches_far_elements(dtype: Any) -> None:
    assert DYNAMIC_SLICE is not None
    largest = min(int(np.iinfo(dtype).max), 998)
    index = np.array([largest], dtype)
    got = compiled(partial(DYNAMIC_SLICE, axes=(0,), sizes=(2,), no_overlap=True), vector(1000), index)
    np.testing.assert_array_equal(got, [largest, largest + 1])


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64], ids=str)
def test_an_index_beyond_32_signed_bits_means_the_end(dtype: Any) -> None:
    assert DYNAMIC_SLICE is not None
    index = np.array([2**32 - 1], dtype)
    got = compiled(partial(DYNAMIC_SLICE, axes=(0,), sizes=(2,), no_overlap=True), vector(10), index)
    np.testing.assert_array_equal(got, [8, 9])


# Through a session, whose variables are donated


def test_a_program_moves_the_elements_of_a_variable_run_after_run() -> None:
    x = vector(1000)
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(x)
        ops.dynamic_update_(v, popxl.constant([1]), v[:-1], [0], [999], False)
    with popxl.Session(ir) as session:
        session.run()
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(v), np.concatenate([x[:1], x[:1], x[:1], x[1:-2]]))


def test_a_loop_of_a_program_moves_elements_through_views() -> None:
    def shift(t: popxl.TensorByRef) -> None:
        ops.var_updates.copy_var_update_(ops.slice_(t, 1), ops.slice(t, 0, -1))

    x = vector(1000)
    ir = popxl.Ir()
    with ir.main_graph:
        v = popxl.variable(x)
        ops.repeat(ir.create_graph(shift, v), 3, v)
    with popxl.Session(ir) as session:
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(v)[:5], [0, 0, 0, 0, 1])
