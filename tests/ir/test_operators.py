"""Operators of tensors (spec tensors-dtypes.md §5.3)."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError
from popxl.tensor import Constant

# Exact in float32, and so are all results.
A = np.array([1.5, -2.0, 4.0], np.float32)
B = np.array([0.5, 8.0, -0.25], np.float32)

ARITHMETIC = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv}


@pytest.mark.parametrize(("type", "function"), ARITHMETIC.items())
def test_two_tensors(main: popxl.Graph, evaluate: Any, type: str, function: Any) -> None:
    a, b = popxl.variable(A), popxl.variable(B)
    result = function(a, b)
    assert result.producer.type == type
    np.testing.assert_array_equal(evaluate(result)[0], function(A, B))


@pytest.mark.parametrize(("type", "function"), ARITHMETIC.items())
@pytest.mark.parametrize("other", [2, 0.5, [0.5, 8.0, -0.25], B], ids=["int", "float", "list", "array"])
def test_host_data_on_either_side_become_a_constant(
    main: popxl.Graph, evaluate: Any, type: str, function: Any, other: Any
) -> None:
    a = popxl.variable(A)
    right, left = function(a, other), function(other, a)
    for result, place in ((right, 1), (left, 0)):
        constant = result.producer.inputs[place]
        assert (result.producer.type, constant.__class__, constant.dtype) == (type, Constant, popxl.float32)
    values = evaluate(right, left)
    np.testing.assert_array_equal(values[0], function(A, np.asarray(other, np.float32)))
    np.testing.assert_array_equal(values[1], function(np.asarray(other, np.float32), A))


@pytest.mark.parametrize("other", [2, -0.75, [0.5, 8.0, -0.25], B], ids=["int", "float", "list", "array"])
def test_remainder_on_either_side_has_the_sign_of_the_dividend(main: popxl.Graph, evaluate: Any, other: Any) -> None:
    a = popxl.variable(A)
    right, left = a % other, other % a
    assert (right.producer.type, left.producer.type) == ("Fmod", "Fmod")
    values = evaluate(right, left)
    np.testing.assert_array_equal(values[0], np.fmod(A, np.asarray(other, np.float32)))
    np.testing.assert_array_equal(values[1], np.fmod(np.asarray(other, np.float32), A))


@pytest.mark.parametrize("other", [2, 2.0, np.array([2.0, 3.0, -1.0])], ids=["int", "float", "array"])
def test_power_of_a_tensor(main: popxl.Graph, evaluate: Any, other: Any) -> None:
    power = popxl.variable(A) ** other
    assert power.producer.type == "Pow"
    np.testing.assert_allclose(evaluate(power)[0], A.astype(np.float64) ** other, rtol=1e-6)


@pytest.mark.parametrize("other", [4.0, [4.0, 1.0, 0.25], np.array(4.0)], ids=["float", "list", "array"])
def test_power_to_a_tensor(main: popxl.Graph, evaluate: Any, other: Any) -> None:
    power = other ** popxl.variable(A)
    assert power.dtype == popxl.float32
    np.testing.assert_allclose(evaluate(power)[0], np.asarray(other) ** A.astype(np.float64), rtol=1e-6)


def test_powers_of_integers_stay_integers(main: popxl.Graph, evaluate: Any) -> None:
    t = popxl.variable([1, 2, 3])
    values = evaluate(t**2, 2**t, t**t)
    assert [v.dtype for v in values] == [np.int32] * 3
    assert [v.tolist() for v in values] == [[1, 4, 9], [2, 4, 8], [1, 4, 27]]


@pytest.mark.parametrize(
    "power",
    [
        pytest.param(lambda a: 2**a, id="int to floats"),
        pytest.param(lambda a: a ** np.array([1, 2, 3]), id="floats to an array of ints"),
        pytest.param(lambda a: ops.cast(a, popxl.int32) ** 0.5, id="integers to a float"),
        pytest.param(lambda a: 2.0 ** ops.cast(a, popxl.float16), id="float to float16"),
    ],
)
def test_bases_and_arrays_keep_their_own_dtype_in_a_power(main: popxl.Graph, power: Any) -> None:
    with pytest.raises(CoreError, match="incompatible types"):
        power(popxl.variable(A))


@pytest.mark.parametrize("other", [True, 2, 0.0, [True, False, True], np.array([0, 3, 0])], ids=repr)
@pytest.mark.parametrize(
    ("type", "function", "expected"), [("And", operator.and_, np.logical_and), ("Or", operator.or_, np.logical_or)]
)
def test_logic_on_either_side(
    main: popxl.Graph, evaluate: Any, type: str, function: Any, expected: Any, other: Any
) -> None:
    truths = np.array([True, False, False])
    t = popxl.variable(truths)
    right, left = function(t, other), function(other, t)
    assert [r.producer.type for r in (right, left)] == [type] * 2
    for value in evaluate(right, left):
        np.testing.assert_array_equal(value, expected(truths, other))


@pytest.mark.parametrize("function", [operator.and_, operator.or_])
def test_logic_on_numbers_is_not_bitwise(main: popxl.Graph, evaluate: Any, function: Any) -> None:
    result = function(popxl.variable([1, 1, 0]), 2)
    assert result.dtype == popxl.bool
    assert evaluate(result)[0].tolist() == [True, True, function is operator.or_]


def test_inversion_is_logical(main: popxl.Graph, evaluate: Any) -> None:
    values = evaluate(~popxl.variable([True, False]), ~popxl.variable([0, 5]))
    assert [v.tolist() for v in values] == [[False, True], [True, False]]


def test_matmul_on_either_side(main: popxl.Graph, evaluate: Any) -> None:
    square = np.array([[1.0, 2.0], [4.0, 8.0]], np.float32)
    other = np.array([[0.5, -1.0], [3.0, 2.0]], np.float32)
    x = popxl.variable(square)
    results = evaluate(x @ popxl.variable(other), x @ other, other @ x)
    for result, expected in zip(results, (square @ other, square @ other, other @ square), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_negation(main: popxl.Graph, evaluate: Any) -> None:
    np.testing.assert_array_equal(evaluate(-popxl.variable(A))[0], -A)


@pytest.mark.parametrize(
    "array", [np.float32(2.0), np.ones(3, np.float32), np.ones((), np.float32), np.ones(3, np.float64)]
)
def test_numpy_on_the_left_gives_way(main: popxl.Graph, array: Any) -> None:
    result = array * popxl.variable(A)
    assert isinstance(result, popxl.Tensor)
    assert result.dtype == popxl.float32


# Operands


def test_operand_takes_the_dtype_of_the_tensor(main: popxl.Graph, evaluate: Any) -> None:
    result = popxl.variable([1, 2]) + 1.5
    assert result.dtype == popxl.int32
    np.testing.assert_array_equal(evaluate(result)[0], [2, 3])


def test_operand_is_a_constant_of_the_current_graph(ir: popxl.Ir) -> None:
    graph = ir.create_graph(lambda x: x + 1.0, popxl.TensorSpec((), popxl.float32))
    assert [c.name for c in graph.constants] == ["t"]
    assert ir.main_graph.constants == ()


def test_operand_without_elements_raises(main: popxl.Graph) -> None:
    a = popxl.variable(A)
    for empty in ([], (), np.zeros((0, 3))):
        with pytest.raises(ValueError, match="0 elements"):
            a + empty
        with pytest.raises(ValueError, match="0 elements"):
            empty * a
        with pytest.raises(ValueError, match="0 elements"):
            a**empty
        with pytest.raises(ValueError, match="0 elements"):
            empty**a


def test_augmenting_an_empty_list_with_a_tensor_raises(main: popxl.Graph) -> None:
    tensors: Any = []
    with pytest.raises(ValueError, match="0 elements"):
        tensors += popxl.variable(A)


def test_augmenting_a_list_of_numbers_adds(main: popxl.Graph, evaluate: Any) -> None:
    numbers: Any = [1.0, 2.0, 3.0]
    numbers += popxl.variable(A)
    np.testing.assert_array_equal(evaluate(numbers)[0], A + np.array([1.0, 2.0, 3.0]))


def test_int_literal_is_no_operand_of_a_float8_tensor(main: popxl.Graph) -> None:
    x = popxl.variable(np.float32([1.0]), popxl.float8_143)
    with pytest.raises(TypeError):
        x + 1


def test_operand_of_another_graph_raises(ir: popxl.Ir, main: popxl.Graph) -> None:
    x = popxl.variable(A)
    with pytest.raises(ValueError, match="is not in the current Graph"):
        ir.create_graph(lambda y: y + x, x)


# In place


def test_augmented_add_is_in_place_and_keeps_the_object(main: popxl.Graph, evaluate: Any) -> None:
    a = before = popxl.variable(A)
    view = a.reshape_((3, 1))
    a += B
    assert a is before
    values = evaluate(a, view)
    np.testing.assert_array_equal(values[0], A + B)
    np.testing.assert_array_equal(values[1], (A + B).reshape(3, 1))


@pytest.mark.parametrize("function", [operator.isub, operator.imul, operator.itruediv])
def test_other_augmented_forms_make_a_new_tensor(main: popxl.Graph, evaluate: Any, function: Any) -> None:
    a = popxl.variable(A)
    result = function(a, B)
    assert result is not a
    values = evaluate(a, result)
    np.testing.assert_array_equal(values[0], A)
    np.testing.assert_array_equal(values[1], function(A.copy(), B))


# Identity


def test_equality_is_identity_and_a_bool(main: popxl.Graph) -> None:
    a, b = popxl.variable(A), popxl.variable(A)
    assert (a == a) is True
    assert (a == b) is False
    assert (a != b) is True


@pytest.mark.parametrize("other", [None, 1.0, "t", A])
def test_equality_with_another_type_is_false(main: popxl.Graph, other: Any) -> None:
    assert (popxl.variable(A, name="t") == other) is False


def test_equal_tensors_have_equal_hashes(main: popxl.Graph) -> None:
    a = popxl.variable(A, name="a")
    assert hash(a) == hash(main.get_tensor("a"))
    assert a in {a}


# What a tensor is not


def test_length_is_the_first_dimension(main: popxl.Graph) -> None:
    assert len(popxl.variable(np.zeros((4, 2), np.float32))) == 4


def test_scalar_has_no_length(main: popxl.Graph) -> None:
    with pytest.raises(ValueError, match="is a scalar"):
        len(popxl.variable(1.0))


def test_truth_follows_the_length(main: popxl.Graph) -> None:
    assert bool(popxl.variable(np.zeros(2, np.float32))) is True
    assert bool(popxl.variable(np.zeros((0, 2), np.float32))) is False
    with pytest.raises(ValueError, match="is a scalar"):
        bool(popxl.variable(1.0))


def test_tensor_is_not_iterable(main: popxl.Graph) -> None:
    a = popxl.variable(A)
    with pytest.raises(TypeError):
        iter(a)
    with pytest.raises(TypeError):
        list(a)
    assert not isinstance(a, Iterable)


def test_in_raises(main: popxl.Graph) -> None:
    with pytest.raises(TypeError, match="Cannot use `in`"):
        1.0 in popxl.variable(A)  # noqa: B015 - the test is the comparison


@pytest.mark.parametrize("function", [operator.lt, operator.ge, operator.floordiv, operator.lshift, operator.xor])
def test_other_operators_are_not_provided(main: popxl.Graph, function: Any) -> None:
    with pytest.raises(TypeError):
        function(popxl.variable(A), popxl.variable(B))
