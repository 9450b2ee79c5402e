"""Every dtype keeps its bits on the way through streams, variables and remote buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.dtypes import ALL_DTYPES


def every_kind_of_number(dtype: Any) -> np.ndarray:
    """Shape (2, 4): the extremes, and what a detour through another dtype would lose."""
    host = dtype.as_numpy()
    if dtype == popxl.bool:
        return np.array([[0, 1, 1, 0], [1, 0, 0, 1]], bool)
    if host.names:  # float8
        return np.array([[0, 1, 0x7F, 0x80], [0xFF, 0x42, 0xAB, 0x3C]], np.uint8).view(host)
    if dtype.is_int:
        info = np.iinfo(host)
        return np.array([[info.min, info.max, info.max - 1, 0], [1, 2, 3, info.min + 1]], host)
    info = np.finfo(host)
    numbers = np.array([[info.min, info.max, info.tiny, 1 + info.eps], [np.inf, -np.inf, np.nan, -0.0]], info.dtype)
    if not dtype.is_complex:
        return numbers
    both = np.empty((2, 4), host)
    both.real, both.imag = numbers, numbers[::-1]
    return both


def bits(array: Any) -> list[int]:
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8).tolist()


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: d.name)
def test_streams_keep_every_bit(dtype: Any) -> None:
    ir = popxl.Ir()
    ir.num_host_transfers = 2
    with ir.main_graph:
        x, y = popxl.h2d_stream((4,), dtype), popxl.d2h_stream((4,), dtype)
        for _ in range(2):
            ops.host_store(y, ops.host_load(x))
    data = every_kind_of_number(dtype)
    with popxl.Session(ir) as session:
        result = session.run({x: data})[y]
    assert result.dtype == data.dtype
    assert bits(result) == bits(data)


@pytest.mark.parametrize("remote", [False, True], ids=["device", "remote"])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: d.name)
def test_variables_keep_every_bit(dtype: Any, remote: bool, memory: str) -> None:
    data = every_kind_of_number(dtype)
    ir = popxl.Ir()
    with ir.main_graph:
        y = popxl.d2h_stream((2, 4), dtype)
        if remote:
            buffer = popxl.remote_buffer((2, 4), dtype, 1)
            v = popxl.remote_variable(data, buffer, 0, dtype)
            value = ops.remote_load(buffer, 0)
        else:
            v = value = popxl.variable(data, dtype)
        ops.host_store(y, value)
    session = popxl.Session(ir, streaming_memory=memory)
    with session:
        result = session.run()[y]
    for array in (result, session.get_tensor_data(v)):
        assert array.dtype == data.dtype
        assert bits(array) == bits(data)
    other = np.ascontiguousarray(data[::-1])
    with session:
        session.write_variable_data(v, other)
        assert bits(session.run()[y]) == bits(other)
    assert bits(session.get_tensor_data(v)) == bits(other)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: d.name)
def test_rows_keep_every_bit(dtype: Any, memory: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2, 4), dtype, 3)
        x, y = popxl.h2d_stream((2, 4), dtype), popxl.d2h_stream((2, 4), dtype)
        ops.remote_store(buffer, 2, ops.host_load(x))
        ops.host_store(y, ops.remote_load(buffer, 2))
    data = every_kind_of_number(dtype)
    with popxl.Session(ir, streaming_memory=memory) as session:
        assert bits(session.run({x: data})[y]) == bits(data)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: d.name)
def test_constants_keep_every_bit(dtype: Any, memory: str) -> None:
    data = every_kind_of_number(dtype)
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2, 4), dtype, 1)
        c, y = popxl.constant(data, dtype), popxl.d2h_stream((2, 4), dtype)
        ops.remote_store(buffer, 0, c)
        ops.host_store(y, ops.remote_load(buffer, 0))
    with popxl.Session(ir, streaming_memory=memory) as session:
        assert bits(session.run()[y]) == bits(data)
        assert bits(session.get_tensor_data(c)) == bits(data)


@pytest.mark.parametrize("dtype", [popxl.int64, popxl.uint64, popxl.float64], ids=lambda d: d.name)
def test_64_bit_numbers_are_computed_with_64_bits(dtype: Any, memory: str) -> None:
    start = 2**53 - 2 if dtype == popxl.float64 else 2**62 - 2
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((), dtype, 1)
        v = popxl.variable(start, dtype)
        v += 1
        ops.remote_store(buffer, 0, v)
        y = popxl.d2h_stream((), dtype)
        ops.host_store(y, ops.remote_load(buffer, 0) + 1)
    with popxl.Session(ir, streaming_memory=memory) as session:
        assert int(session.run()[y]) == start + 2
        assert int(session.get_tensor_data(v)) == start + 1


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,), (1, 1, 1), (3, 1, 2)])
def test_every_shape_passes(shape: tuple[int, ...], memory: str) -> None:
    ir = popxl.Ir()
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with ir.main_graph:
        buffer = popxl.remote_buffer(shape, popxl.float32, 2)
        remote = popxl.remote_variable(data, buffer, 1)
        v = popxl.variable(data)
        x, y = popxl.h2d_stream(shape, popxl.float32), popxl.d2h_stream(shape, popxl.float32)
        row = ops.remote_load(buffer, 1)
        ops.remote_store(buffer, 0, ops.host_load(x))
        ops.remote_load_(buffer, 0, v)
        ops.remote_store(buffer, 1, v)
        ops.host_store(y, row)
    with popxl.Session(ir, streaming_memory=memory) as session:
        np.testing.assert_array_equal(session.run({x: data + 5})[y], data)
        np.testing.assert_array_equal(session.get_tensor_data(v), data + 5)
        np.testing.assert_array_equal(session.get_tensor_data(remote), data + 5)


def test_one_long_vector_of_one_row_passes(memory: str) -> None:
    n = 100_003
    ir = popxl.Ir()
    data = np.random.default_rng(0).normal(size=n).astype(np.float32)
    with ir.main_graph:
        buffer = popxl.remote_buffer((n,), popxl.float32, 2)
        v = popxl.remote_variable(data, buffer, 1)
        ops.remote_store(buffer, 1, ops.remote_load(buffer, 1) * 2)
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(v), data * 2)
