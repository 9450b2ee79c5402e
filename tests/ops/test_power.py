"""The exponents of `popxl.ops.pow`, and powers and remainders that the host computes (spec ops-math.md §4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError
from popxl.ops._define import registry

FLOATS = [popxl.float16, popxl.float32, popxl.float64]


@pytest.fixture(autouse=True)
def graph() -> Iterator[None]:
    with popxl.Ir().main_graph:
        yield


def of(dtype: popxl.dtype) -> popxl.Tensor:
    return popxl.variable([2, 3], dtype)


def exponent(t: popxl.Tensor) -> popxl.Tensor:
    """The exponent that the op which made `t` takes."""
    assert t.producer is not None
    return t.producer.inputs[1]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("number", [2, 2.0, np.float64(2.0)], ids=repr)
def test_a_number_takes_the_dtype_of_a_float_tensor(dtype: popxl.dtype, number: Any) -> None:
    assert exponent(ops.pow(of(dtype), number)).dtype == dtype


def test_an_int_is_an_int32_to_an_int32_tensor() -> None:
    assert exponent(ops.pow(of(popxl.int32), 2)).dtype == popxl.int32


@pytest.mark.parametrize(
    ("dtype", "e", "inferred"),
    [
        pytest.param(popxl.int32, 0.5, "float32", id="float to integers"),
        pytest.param(popxl.int16, 2, "int32", id="int to short integers"),
        pytest.param(popxl.uint32, 2, "int32", id="int to unsigned integers"),
        pytest.param(popxl.float32, True, "bool", id="bool"),
        pytest.param(popxl.float32, [2, 3], "int32", id="list of ints"),
        pytest.param(popxl.float32, np.array([2, 3]), "int32", id="array of ints"),
        pytest.param(popxl.float16, np.array(2.0), "float32", id="array of 64-bit floats"),
        pytest.param(popxl.float32, np.float16(2.0), "float16", id="NumPy scalar"),
    ],
)
def test_other_data_keep_their_own_dtype(dtype: popxl.dtype, e: Any, inferred: str) -> None:
    t = of(dtype)
    with pytest.raises(
        CoreError, match=rf"(incompatible types {dtype.name}, {inferred}|dtype popxl.dtypes.{inferred})"
    ):
        ops.pow(t, e)


def test_an_exponent_of_another_graph_is_refused() -> None:
    e = of(popxl.float32)
    with e.ir.create_empty_graph(), pytest.raises(ValueError, match=r"^The input tensor `e` is not in the current"):
        ops.pow(popxl.constant([1.0]), e)


@pytest.mark.parametrize("type", ["Abs", "And", "Fmod", "Not", "Or", "Pow", "Sign"])
def test_the_host_computes_integers_as_the_device_does(type: str) -> None:
    declaration = registry[type]
    host = declaration.definition.host
    assert host is not None
    calls = [one.args for one in declaration.samples() if all(is_of_integers(a) for a in one.args)]
    assert len(calls) > 0
    streams: list[popxl.DeviceToHostStream] = []
    for args in calls:
        out = declaration.function(*(popxl.variable(a, popxl.dtype.as_dtype(a.dtype)) for a in args))
        streams.append(popxl.d2h_stream(out.shape, out.dtype))
        ops.host_store(streams[-1], out)
    with popxl.Session(popxl.gir()) as session:
        stored = session.run()
    for args, stream in zip(calls, streams, strict=True):
        np.testing.assert_array_equal(np.asarray(host(*args)).astype(stored[stream].dtype), stored[stream])


def is_of_integers(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iub"
