"""What float8 ops refuse (spec ops-math.md §1.1, §7, §9): type and start of each error, and which comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlError, PopxlTypeError, PopxlValueError

KIND = popxl.float8_143


@pytest.fixture(autouse=True)
def graph() -> Iterator[popxl.Graph]:
    with popxl.Ir().main_graph as graph:
        yield graph


def of(dtype: popxl.dtype, *shape: int) -> popxl.Tensor:
    return popxl.constant(np.ones(shape), dtype, name="x")


def scale(value: Any = 0, dtype: popxl.dtype = popxl.int32) -> popxl.Tensor:
    return popxl.variable(value, dtype, name="s")


def to_fp8(log2_scale: Any) -> popxl.Tensor:
    return ops.pow2scale_cast_to_fp8(of(popxl.float32, 2), log2_scale, KIND)


def from_fp8(log2_scale: Any) -> popxl.Tensor:
    return ops.pow2scale_cast_from_fp8(of(KIND, 2), log2_scale, popxl.float16)


def matmul(log2_scale: Any) -> popxl.Tensor:
    return ops.matmul_pow2scaled(of(KIND, 2, 2), of(KIND, 2, 2), log2_scale)


CALLS = {"pow2scale_cast_to_fp8": to_fp8, "pow2scale_cast_from_fp8": from_fp8, "matmul_pow2scaled": matmul}

each_op = pytest.mark.parametrize("name", CALLS)


def refused(kind: type[PopxlError], match: str, call: Callable[[], Any]) -> None:
    """Check that `call` raises, has a hint, and adds no op."""
    before = len(popxl.gcg().ops)
    with pytest.raises(kind, match=match) as caught:
        call()
    assert caught.value.hint
    assert len(popxl.gcg().ops) == before


# Scales


@each_op
@pytest.mark.parametrize("shape", [(1,), (2, 2)])
def test_a_scale_is_a_scalar(name: str, shape: tuple[int, ...]) -> None:
    wrong = scale(np.zeros(shape, np.int32))
    refused(PopxlValueError, r"^Log2 scale argument must be a scalar tensor", lambda: CALLS[name](wrong))


@each_op
@pytest.mark.parametrize("dtype", [popxl.int8, popxl.uint32, popxl.int64, popxl.float32])
def test_a_scale_is_int32(name: str, dtype: popxl.dtype) -> None:
    wrong = scale(0, dtype)
    refused(PopxlTypeError, r"^Log2 scale tensor must be of type popxl\.int32", lambda: CALLS[name](wrong))


@each_op
def test_the_rank_of_a_scale_is_checked_before_its_dtype(name: str) -> None:
    refused(PopxlValueError, r"^Log2 scale argument", lambda: CALLS[name](scale([0.0], popxl.float32)))


@each_op
@pytest.mark.parametrize("value", [-33, 32, 2**31 - 1])
def test_a_constant_scale_is_in_range(name: str, value: int) -> None:
    refused(
        CoreError,
        rf"^`log2_scale` of popxl\.ops\.{name} is {value}, outside the range \[-32, 32\)",
        lambda: CALLS[name](popxl.constant(value, popxl.int32)),
    )


@each_op
@pytest.mark.parametrize("value", [-32, 31])
def test_the_first_and_last_constant_scales_are_taken(name: str, value: int) -> None:
    out = CALLS[name](popxl.constant(value, popxl.int32))
    assert [op.type for op in popxl.gcg().ops] == [out.producer.type]


@each_op
def test_a_scale_is_a_tensor(name: str) -> None:
    refused(PopxlTypeError, r"^The input `log2_scale` is not a Tensor", lambda: CALLS[name](0))


@each_op
def test_a_scale_is_of_the_current_graph(name: str) -> None:
    outer = scale()

    def inner(_: popxl.Tensor) -> None:
        match = r"^The input tensor `log2_scale` is not in the current Graph"
        refused(PopxlValueError, match, lambda: CALLS[name](outer))

    popxl.gcg().ir.create_graph(inner, popxl.TensorSpec((), popxl.int32))


# Casts


@pytest.mark.parametrize("data_type", [popxl.float16, popxl.float32, popxl.int8, popxl.uint8])
def test_a_cast_to_float8_has_a_float8_type(data_type: popxl.dtype) -> None:
    refused(
        PopxlTypeError,
        rf"^Data type popxl\.dtypes\.{data_type.name} not supported",
        lambda: ops.pow2scale_cast_to_fp8(of(popxl.float32, 2), scale([0.0], popxl.float32), data_type),
    )


@pytest.mark.parametrize("data_type", [popxl.float64, popxl.float8_143, popxl.float8_152, popxl.int32])
def test_a_cast_from_float8_is_to_float16_or_float32(data_type: popxl.dtype) -> None:
    refused(
        PopxlTypeError,
        rf"^Data type popxl\.dtypes\.{data_type.name} not supported",
        lambda: ops.pow2scale_cast_from_fp8(of(KIND, 2), scale([0.0], popxl.float32), data_type),
    )


@pytest.mark.parametrize("dtype", [popxl.int32, popxl.bool, popxl.float8_152])
def test_a_cast_to_float8_is_from_a_float(dtype: popxl.dtype) -> None:
    t = popxl.variable(np.ones(2, dtype.storage).view(dtype.as_numpy()), dtype)
    refused(
        CoreError,
        rf"^Unsupported dtype .*{dtype.name} of `t`",
        lambda: ops.pow2scale_cast_to_fp8(t, scale(), KIND),
    )


@pytest.mark.parametrize("dtype", [popxl.float16, popxl.uint8])
def test_a_cast_from_float8_is_from_float8(dtype: popxl.dtype) -> None:
    refused(
        CoreError,
        r"^Casting from FLOAT8 is only supported for ",
        lambda: ops.pow2scale_cast_from_fp8(of(dtype, 2), scale(), popxl.float32),
    )


def test_a_scale_is_checked_before_what_is_cast() -> None:
    refused(
        PopxlTypeError,
        r"^Log2 scale tensor",
        lambda: ops.pow2scale_cast_from_fp8(of(popxl.float16, 2), scale(0, popxl.int8), popxl.float32),
    )


@pytest.mark.parametrize("function", [ops.pow2scale_cast_to_fp8, ops.pow2scale_cast_from_fp8])
def test_what_is_cast_is_a_tensor(function: Callable[..., Any]) -> None:
    data_type = KIND if function is ops.pow2scale_cast_to_fp8 else popxl.float16
    refused(PopxlTypeError, r"^The input `t` is not a Tensor", lambda: function(1.0, scale(), data_type))


# Products


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", [popxl.float16, popxl.uint8])
def test_operands_of_a_scaled_product_are_float8(which: int, dtype: popxl.dtype) -> None:
    operands = [of(KIND, 2, 2), of(KIND, 2, 2)]
    operands[which] = of(dtype, 2, 2)
    name = ("lhs", "rhs")[which]
    refused(
        PopxlTypeError,
        rf"^Scaled matmul operands must be of dtype .*`{name}` .* is {dtype.name}",
        lambda: ops.matmul_pow2scaled(*operands, scale([0.0], popxl.float32)),
    )


@pytest.mark.parametrize(
    ("lhs", "rhs", "match"),
    [
        ((2, 3), (2, 3), r"^MatMul contracting dimensions unequal"),
        ((2, 1, 2), (3, 2, 1), r"^np broadcasting failed"),
        ((), (2, 2), r"^MatMul doesn't support scalar tensor"),
    ],
)
def test_the_shapes_of_a_scaled_product_fit(lhs: tuple[int, ...], rhs: tuple[int, ...], match: str) -> None:
    refused(CoreError, match, lambda: ops.matmul_pow2scaled(of(KIND, *lhs), of(KIND, *rhs), scale()))


def test_the_hint_of_a_scaled_product_is_a_number() -> None:
    operands = of(KIND, 2, 2), of(KIND, 2, 2)
    refused(
        PopxlTypeError,
        r"^available_memory_proportion is 'much'",
        lambda: ops.matmul_pow2scaled(*operands, scale(), "much"),
    )


def test_operands_of_a_scaled_product_are_tensors() -> None:
    refused(PopxlTypeError, r"^The input `rhs` is not a Tensor", lambda: ops.matmul_pow2scaled(of(KIND, 2), 1, scale()))
