"""What elementwise ops refuse, and in which words (spec ops-math.md §1.1-§1.3, §3, §4, §7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError

UNARY = {
    ops.abs: "x",
    ops.ceil: "t",
    ops.clip: "t",
    ops.cos: "input",
    ops.exp: "t",
    ops.exp_: "t",
    ops.floor: "t",
    ops.gelu: "t",
    ops.gelu_: "t",
    ops.geluerf: "t",
    ops.geluerf_: "t",
    ops.identity: "t",
    ops.io_tile_copy: "t",
    ops.isfinite: "t",
    ops.isinf: "t",
    ops.isnan: "t",
    ops.log: "t",
    ops.log2: "t",
    ops.logical_not: "t",
    ops.maximum: "ts_0",
    ops.negate: "t",
    ops.relu: "t",
    ops.relu_: "t",
    ops.sign: "t",
    ops.sin: "input",
    ops.sqrt: "t",
    ops.swish: "t",
    ops.swish_: "t",
    ops.tanh: "t",
    partial(ops.increment_mod, increment=1, modulus=2): "t",
    partial(ops.increment_mod_, increment=1, modulus=2): "t",
    partial(ops.cast, data_type=popxl.float16): "t",
    partial(ops.ipu_copy, destination=1, source=0): "t",
    partial(ops.pow, e=2): "t",
}
"""Functions of one tensor, and what errors call it."""
FLOAT_ONLY = [
    ops.ceil,
    ops.clip,
    ops.cos,
    ops.exp,
    ops.exp_,
    ops.floor,
    ops.gelu,
    ops.gelu_,
    ops.geluerf,
    ops.geluerf_,
    ops.isfinite,
    ops.isinf,
    ops.isnan,
    ops.log,
    ops.log2,
    ops.maximum,
    ops.relu,
    ops.relu_,
    ops.sin,
    ops.sqrt,
    ops.swish,
    ops.swish_,
    ops.tanh,
]
ARITHMETIC = [ops.add, ops.add_, ops.sub, ops.mul, ops.div, ops.fmod]
OPERANDS = {
    **dict.fromkeys([*ARITHMETIC, ops.equal], ("lhs", "rhs")),
    ops.greater: ("input", "other"),
    ops.maximum: ("ts_0", "ts_1"),
    ops.scaled_add: ("X", "Y"),
    ops.scaled_add_: ("X", "Y"),
    ops.logical_and: ("lhs", "rhs"),
    ops.logical_or: ("lhs", "rhs"),
}
"""Functions of two tensors, and what errors call them."""
BINARY = [*ARITHMETIC, ops.equal, ops.greater]
LOGICAL = [ops.logical_and, ops.logical_or]
SCALED = [ops.scaled_add, ops.scaled_add_]


@pytest.fixture(autouse=True)
def graph() -> Iterator[None]:
    with popxl.Ir().main_graph:
        yield


def of_shape(*shape: int, dtype: Any = np.float32) -> popxl.Tensor:
    return popxl.variable(np.ones(shape, dtype))


# Arguments


@pytest.mark.parametrize("function", UNARY)
def test_a_number_is_no_tensor(function: Callable[..., Any]) -> None:
    with pytest.raises(PopxlTypeError, match=rf"^The input `{UNARY[function]}` is not a Tensor"):
        function(1.0)


@pytest.mark.parametrize("function", OPERANDS)
def test_numbers_are_no_operands(function: Callable[..., Any]) -> None:
    first, second = OPERANDS[function]
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
        pytest.raises(PopxlValueError, match=rf"^The input tensor `{UNARY[function]}` is not in the current"),
    ):
        function(t)


@pytest.mark.parametrize("function", OPERANDS)
def test_operands_of_other_graphs_are_refused(function: Callable[..., Any]) -> None:
    t = of_shape(2)
    with (
        t.ir.create_empty_graph(),
        pytest.raises(PopxlValueError, match=rf"^The input tensor `{OPERANDS[function][0]}` is not in the current"),
    ):
        function(t, t)


@pytest.mark.parametrize("function", OPERANDS)
def test_operands_on_two_ipus_are_refused(function: Callable[..., Any]) -> None:
    a = ops.identity(of_shape())
    with popxl.ipu(1):
        b = ops.identity(of_shape())
    with pytest.raises(PopxlValueError, match="are located on different IPUs: 0 != 1"):
        function(a, b)


@pytest.mark.parametrize("function", OPERANDS)
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


@pytest.mark.parametrize("function", [*BINARY, *LOGICAL, ops.maximum])
def test_shapes_that_do_not_broadcast_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^np broadcasting failed.*frames \[2, 3\] and \[2\] are not aligned"):
        function(of_shape(2, 3), of_shape(2))


@pytest.mark.parametrize("function", [*BINARY, *LOGICAL, ops.maximum])
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
    with pytest.raises(CoreError, match=rf"^Unsupported dtype.* of `{UNARY[function]}`"):
        function(of_shape(2, dtype=dtype))
    assert popxl.gcg().ops == ()


def test_negate_refuses_unsigned_integers() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*uint32 of `t`"):
        ops.negate(of_shape(2, dtype=np.uint32))


@pytest.mark.parametrize("function", [*ARITHMETIC, ops.greater])
def test_arithmetic_refuses_bool(function: Callable[..., Any]) -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*bool of `(lhs|input)`"):
        function(of_shape(dtype=bool), of_shape(dtype=bool))


@pytest.mark.parametrize("function", OPERANDS)
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


@pytest.mark.parametrize("function", [ops.increment_mod, ops.increment_mod_])
@pytest.mark.parametrize("dtype", [popxl.bool, popxl.float8_143])
def test_increment_mod_refuses_what_is_no_number(function: Callable[..., Any], dtype: popxl.dtype) -> None:
    with pytest.raises(CoreError, match=rf"^Unsupported DataType popxl\.dtypes\.{dtype.name} of `t`"):
        function(popxl.variable(np.ones(2), dtype), 1, 2)


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


# Magnitude, sign and bounds


@pytest.mark.parametrize("function", [ops.abs, ops.sign])
@pytest.mark.parametrize("dtype", [popxl.bool, popxl.float8_143, popxl.complex64])
def test_magnitude_and_sign_are_of_numbers(function: Callable[..., Any], dtype: popxl.dtype) -> None:
    with pytest.raises(CoreError, match=rf"^Unsupported dtype.*{dtype.name} of `{UNARY[function]}`"):
        function(popxl.variable(np.ones(2), dtype))


@pytest.mark.parametrize("bound", ["min", "max"])
@pytest.mark.parametrize("value", [None, "0", [1.0]])
def test_bounds_are_numbers(bound: str, value: Any) -> None:
    with pytest.raises(PopxlTypeError, match=rf"^The bound `{bound}` of clip is .*, which is no number"):
        ops.clip(of_shape(2), **{bound: value})


def test_bounds_are_no_tensors() -> None:
    with pytest.raises(PopxlTypeError, match=r"^The bound `max` of clip is Variable"):
        ops.clip(of_shape(2), 0, of_shape())


# Maximum


def test_maximum_needs_a_tensor() -> None:
    with pytest.raises(PopxlValueError, match="at least one tensor"):
        ops.maximum()


def test_maximum_needs_equal_dtypes() -> None:
    with pytest.raises(CoreError, match=r"^Inputs to maximum do not all the same type.* float32, float16\."):
        ops.maximum(of_shape(2), of_shape(2), of_shape(2, dtype=np.float16))


def test_maximum_names_the_tensor_that_it_cannot_take() -> None:
    with pytest.raises(CoreError, match=r"^Unsupported dtype.*int32 of `ts_1`"):
        ops.maximum(of_shape(2), of_shape(2, dtype=np.int32))


# Scaled sums


@pytest.mark.parametrize("function", SCALED)
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2), ()])
def test_a_scaled_sum_does_not_broadcast(function: Callable[..., Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(CoreError, match=r"^The shapes of `X` and `Y` differ: \[2\] and"):
        function(of_shape(2), of_shape(*shape))


@pytest.mark.parametrize("function", SCALED)
@pytest.mark.parametrize("scale", ["a", "b"])
@pytest.mark.parametrize("shape", [(2,), (0,)])
def test_a_scale_has_one_element(function: Callable[..., Any], scale: str, shape: tuple[int]) -> None:
    with pytest.raises(CoreError, match=rf"^The scale `{scale}` has {shape[0]} elements"):
        function(of_shape(2), of_shape(2), **{scale: of_shape(*shape)})


@pytest.mark.parametrize("function", SCALED)
@pytest.mark.parametrize("scale", ["a", "b"])
def test_a_scale_is_a_number_or_a_tensor(function: Callable[..., Any], scale: str) -> None:
    with pytest.raises(PopxlTypeError, match=rf"^The scale `{scale}` is '2', which is neither"):
        function(of_shape(2), of_shape(2), **{scale: "2"})


@pytest.mark.parametrize("argument", ["X", "Y", "a", "b"])
def test_a_scaled_sum_is_of_floats(argument: str) -> None:
    tensors = {name: of_shape(1) for name in ("X", "Y", "a", "b")} | {argument: of_shape(1, dtype=np.int32)}
    with pytest.raises(CoreError, match=rf"^Unsupported dtype.*int32 of `{argument}`"):
        ops.scaled_add(**tensors)
