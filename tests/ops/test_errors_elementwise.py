"""What elementwise ops refuse, and in which words (spec ops-math.md §1.1-§1.3, §3, §4, §7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError

UNARY = [
    ops.exp,
    ops.exp_,
    ops.gelu,
    ops.gelu_,
    ops.geluerf,
    ops.geluerf_,
    ops.identity,
    ops.io_tile_copy,
    ops.log,
    ops.logical_not,
    ops.negate,
    ops.relu,
    ops.relu_,
    ops.sqrt,
    ops.tanh,
    lambda t: ops.increment_mod(t, 1, 2),
    lambda t: ops.increment_mod_(t, 1, 2),
    lambda t: ops.cast(t, popxl.float16),
    lambda t: ops.ipu_copy(t, 1, 0),
    lambda t: ops.pow(t, 2),
]
FLOAT_ONLY = [ops.exp, ops.exp_, ops.gelu, ops.gelu_, ops.geluerf, ops.log, ops.relu, ops.relu_, ops.sqrt, ops.tanh]
ARITHMETIC = [ops.add, ops.add_, ops.sub, ops.mul, ops.div, ops.fmod]
BINARY = [*ARITHMETIC, ops.equal, ops.greater]
LOGICAL = [ops.logical_and, ops.logical_or]


@pytest.fixture(autouse=True)
def graph() -> Iterator[None]:
    with popxl.Ir().main_graph:
        yield


def of_shape(*shape: int, dtype: Any = np.float32) -> popxl.Tensor:
    return popxl.variable(np.ones(shape, dtype))


# Arguments


@pytest.mark.parametrize("function", UNARY)
def test_a_number_is_no_tensor(function: Callable[..., Any]) -> None:
    with pytest.raises(PopxlTypeError, match=r"^The input `t` is not a Tensor"):
        function(1.0)


@pytest.mark.parametrize("function", [*BINARY, *LOGICAL])
def test_numbers_are_no_operands(function: Callable[..., Any]) -> None:
    first, second = ("input", "other") if function is ops.greater else ("lhs", "rhs")
    with pytest.raises(PopxlTypeError, match=rf"^The input `{first}` is not a Tensor"):
        function(1.0, of_shape())
    with pytest.raises(PopxlTypeError, match=rf"^The input `{second}` is not a Tensor"):
        function(of_shape(), np.float32(1))


@pytest.mark.parametrize("position", range(3))
def test_where_takes_tensors_only(position: int) -> None:
    arguments: list[Any] = [of_shape(dtype=bool), of_shape(), of_shape()]
    arguments[position] = True
    with pytest.raises(PopxlTypeError, match=rf"^The input `{['condition', 'lhs', 'rhs'][position]}` is not a Tensor"):
        ops.where(*arguments)


@pytest.mark.parametrize("function", UNARY)
def test_tensors_of_other_graphs_are_refused(function: Callable[..., Any]) -> None:
    t = of_shape(2)
    with (
        t.ir.create_empty_graph(),
        pytest.raises(PopxlValueError, match=r"^The input tensor `t` is not in the current"),
    ):
        function(t)


@pytest.mark.parametrize("function", [*BINARY, *LOGICAL])
def test_operands_of_other_graphs_are_refused(function: Callable[..., Any]) -> None:
    t = of_shape(2)
    name = "input" if function is ops.greater else "lhs"
    with (
        t.ir.create_empty_graph(),
        pytest.raises(PopxlValueError, match=rf"^The input tensor `{name}` is not in the current"),
    ):
        function(t, t)


@pytest.mark.parametrize("function", [*BINARY, *LOGICAL])
def test_operands_on_two_ipus_are_refused(function: Callable[..., Any]) -> None:
    a = ops.identity(of_shape())
    with popxl.ipu(1):
        b = ops.identity(of_shape())
    with pytest.raises(PopxlValueError, match="are located on different IPUs: 0 != 1"):
        function(a, b)


@pytest.mark.parametrize("function", [*BINARY, *LOGICAL])
def test_operands_on_two_tile_sets_are_refused(function: Callable[..., Any]) -> None:
    a = ops.identity(of_shape())
    with popxl.io_tiles():
        b = ops.identity(of_shape())
    with pytest.raises(PopxlValueError, match="are located on different tile sets: compute != io"):
        function(a, b)


@pytest.mark.parametrize("function", LOGICAL)
@pytest.mark.parametrize(("where", "what"), [(popxl.ipu(1), "IPUs"), (popxl.io_tiles(), "tile sets")])
def test_a_cast_does_not_hide_where_numbers_are(function: Callable[..., Any], where: Any, what: str) -> None:
    a = ops.identity(of_shape())
    b = where(ops.identity)(of_shape())
    with pytest.raises(PopxlValueError, match=f"are located on different {what}"):
        function(a, b)


@pytest.mark.parametrize("function", LOGICAL)
@pytest.mark.parametrize("other", [(3,), "float8"])
def test_a_refused_logical_op_adds_no_cast(function: Callable[..., Any], other: Any) -> None:
    a = of_shape(2)
    b = popxl.variable(np.ones(2), popxl.float8_143) if other == "float8" else of_shape(*other)
    with pytest.raises(CoreError):
        function(a, b)
    assert a.graph.ops == ()


# Shapes and dtypes


@pytest.mark.parametrize("function", [*BINARY, *LOGICAL])
def test_shapes_that_do_not_broadcast_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^np broadcasting failed.*frames \[2, 3\] and \[2\] are not aligned"):
        function(of_shape(2, 3), of_shape(2))


@pytest.mark.parametrize("function", [*BINARY, *LOGICAL])
@pytest.mark.parametrize("shape", [(1,), (2,)])
def test_a_dimension_of_0_never_broadcasts(function: Callable[..., Any], shape: tuple[int]) -> None:
    with pytest.raises(CoreError, match=r"^np broadcasting failed"):
        function(of_shape(0), of_shape(*shape))


@pytest.mark.parametrize("function", BINARY)
@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("int32", "float32"), ("int32", "uint32")])
def test_dtypes_are_never_promoted(function: Callable[..., Any], dtypes: tuple[str, str]) -> None:
    a, b = (of_shape(2, dtype=d) for d in dtypes)
    with pytest.raises(CoreError, match=r"^np broadcasting failed.*incompatible types"):
        function(a, b)


@pytest.mark.parametrize(("half", "scale"), [((2,), (2,)), ((), (2,)), ((2,), (1, 2))])
def test_mul_mixes_dtypes_only_where_float32_has_one_element(half: tuple[int, ...], scale: tuple[int, ...]) -> None:
    with pytest.raises(CoreError, match="incompatible types"):
        ops.mul(of_shape(*half, dtype=np.float16), of_shape(*scale))


def test_mul_does_not_scale_float32_by_float16() -> None:
    with pytest.raises(CoreError, match="incompatible types"):
        ops.mul(of_shape(3), of_shape(1, dtype=np.float16))


def test_add_in_place_cannot_enlarge_its_argument() -> None:
    with pytest.raises(
        CoreError, match=r"AddLhsInplace cannot change shape .* float32\[3\] would become float32\[2, 3\]"
    ):
        ops.add_(of_shape(3), of_shape(2, 3))


def test_where_needs_equal_dtypes() -> None:
    with pytest.raises(CoreError, match="incompatible types float32, int32"):
        ops.where(of_shape(dtype=bool), of_shape(), of_shape(dtype=np.int32))


def test_where_broadcasts_all_three() -> None:
    with pytest.raises(CoreError, match=r"^np broadcasting failed"):
        ops.where(of_shape(2, dtype=bool), of_shape(3), of_shape())


def test_where_refuses_a_float8_condition() -> None:
    condition = popxl.variable(np.ones(2), popxl.float8_143)
    with pytest.raises(CoreError, match="`condition`"):
        ops.where(condition, of_shape(2), of_shape(2))


@pytest.mark.parametrize("function", FLOAT_ONLY)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_functions_of_floats_refuse_other_dtypes(function: Callable[..., Any], dtype: Any) -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.* of `t`"):
        function(of_shape(2, dtype=dtype))


def test_negate_refuses_unsigned_integers() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*uint32 of `t`"):
        ops.negate(of_shape(2, dtype=np.uint32))


@pytest.mark.parametrize("function", [*ARITHMETIC, ops.greater])
def test_arithmetic_refuses_bool(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*bool of `(lhs|input)`"):
        function(of_shape(dtype=bool), of_shape(dtype=bool))


@pytest.mark.parametrize("function", [*BINARY, *LOGICAL])
def test_no_op_on_two_tensors_takes_float8(function: Callable[..., Any]) -> None:
    t = popxl.variable(np.ones(2), popxl.float8_152)
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*float8_152"):
        function(t, t)


# Increment and cast


@pytest.mark.parametrize("function", [ops.increment_mod, ops.increment_mod_])
def test_an_integer_modulus_must_not_be_cut_off_to_0(function: Callable[..., Any]) -> None:
    with pytest.raises(PopxlValueError, match=r"^The modulus 0\.5 of increment_mod is 0 as int32"):
        function(of_shape(2, dtype=np.int32), 1, 0.5)


def test_an_integer_increment_must_be_finite() -> None:
    with pytest.raises(PopxlValueError, match="by increment inf"):
        ops.increment_mod(of_shape(2, dtype=np.int32), float("inf"), 2)


def test_increment_mod_refuses_bool() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype"):
        ops.increment_mod(of_shape(2, dtype=bool), 1, 2)


@pytest.mark.parametrize("dtype", [popxl.float8_143, popxl.float8_152, popxl.complex64])
def test_cast_refuses_targets_before_it_looks_at_its_tensor(dtype: popxl.dtype) -> None:
    with pytest.raises(PopxlTypeError, match=rf"^Data type popxl\.dtypes\.{dtype.name} not supported for"):
        ops.cast("no tensor", dtype)


def test_cast_refuses_float8_sources() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*float8_143 of `t`"):
        ops.cast(popxl.variable(np.ones(2), popxl.float8_143), popxl.float32)


def test_a_refused_where_adds_no_op() -> None:
    condition, lhs = popxl.constant([1, 0]), popxl.constant([1.0, 2.0, 3.0])
    with pytest.raises(CoreError, match="np broadcasting failed"):
        ops.where(condition, lhs, lhs)
    assert popxl.gcg().ops == ()
