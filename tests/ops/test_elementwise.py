"""What samples cannot show: names, what a call adds to its graph, and examples worked by hand in the spec."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops


def run(build: Any) -> np.ndarray:
    """Run a program whose only output is what `build` returns."""
    ir = popxl.Ir()
    with ir.main_graph:
        out = build()
        stream = popxl.d2h_stream(out.shape, out.dtype)
        ops.host_store(stream, out)
    with popxl.Session(ir) as session:
        return session.run()[stream]


def types(ir: popxl.Ir) -> list[str]:
    return [op.type for op in ir.main_graph.ops]


# Examples of the spec


def test_increment_mod_has_the_sign_of_the_dividend() -> None:
    np.testing.assert_array_equal(run(lambda: ops.increment_mod(popxl.variable([-8]), 1, 5)), [-2])


def test_division_of_integers_rounds_down() -> None:
    quotient = run(lambda: ops.div(popxl.variable([-7, 7, -7]), popxl.variable([2, 2, -2])))
    np.testing.assert_array_equal(quotient, [-4, 3, 3])


def test_group_norm_of_two_groups() -> None:
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    out = run(
        lambda: ops.group_norm(
            popxl.variable(np.array([[1, 3, 5, 9]], np.float32)), popxl.variable(ones), popxl.variable(zeros), 2, 1e-9
        )
    )
    np.testing.assert_allclose(out, [[-1, 1, -1, 1]], rtol=1e-6)


def test_layer_norm_normalises_everything_but_the_first_axis() -> None:
    t = np.arange(12, dtype=np.float32).reshape(2, 3, 2) ** 2
    weight, bias = np.array([1, 2, -1], np.float32), np.array([0, 1, 2], np.float32)
    out = run(lambda: ops.layer_norm(*(popxl.variable(a) for a in (t, weight, bias))))
    rows = t.reshape(2, 6).astype(np.float64)
    normal = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(out, normal.reshape(2, 3, 2) * weight[:, None] + bias[:, None], rtol=1e-5, atol=1e-6)


def test_softmax_sums_to_1_over_all_axes_from_the_given_one() -> None:
    out = run(lambda: ops.softmax(popxl.variable(np.array([[[1, 2], [3, 4]]], np.float32)), 1))
    np.testing.assert_allclose(out, [[[0.0321, 0.0871], [0.2369, 0.6439]]], atol=5e-5)


def test_float16_times_a_float32_number_stays_float16() -> None:
    half, scale = np.array([1.5, -2.0], np.float16), np.float32(3.0004)
    for operands in ((half, scale), (scale, half)):
        out = run(lambda operands=operands: ops.mul(*(popxl.variable(a) for a in operands)))
        assert out.dtype == np.float16
        np.testing.assert_array_equal(out, (half.astype(np.float32) * scale).astype(np.float16))


# In place


def test_an_op_in_place_keeps_a_variable_s_new_value_across_runs() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable(np.array([1.0, -2.0], np.float32))
        ops.add_(x, popxl.constant(np.array([10.0, 20.0], np.float32)))
    with popxl.Session(ir) as session:
        session.run()
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(x), [21.0, 38.0])


@pytest.mark.parametrize("function", [ops.relu_, ops.exp_, ops.gelu_, ops.geluerf_])
def test_an_op_in_place_leaves_a_constant_as_it_is(function: Any) -> None:
    value = np.array([-1.0, 0.5], np.float32)
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x = popxl.constant(value)
        out = function(x)
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in (out, x)]
        for stream, t in zip(streams, (out, x), strict=True):
            ops.host_store(stream, t)
    with popxl.Session(ir) as session:
        stored = session.run()
    np.testing.assert_array_equal(stored[streams[1]], value)
    assert not np.array_equal(stored[streams[0]], value)


# What calls add


def test_an_op_needs_a_graph() -> None:
    with popxl.Ir().main_graph:
        t = popxl.variable(1.0)
    with pytest.raises(RuntimeError, match=r"^Trying to access a graph, but no graph has been selected"):
        ops.exp(t)


def test_rename_is_identity() -> None:
    assert ops.rename is ops.identity


@pytest.mark.parametrize(("name", "expected"), [(None, "identity_x"), ("y", "y")])
def test_identity_names_its_copy(name: str | None, expected: str) -> None:
    with popxl.Ir().main_graph:
        assert ops.identity(popxl.variable(1.0, name="x"), name).name == expected


def test_a_cast_is_named_after_its_argument_and_dtype() -> None:
    with popxl.Ir().main_graph:
        assert ops.cast(popxl.variable(1.0, name="x"), popxl.half).name == "x_float16"


def test_a_cast_to_the_same_dtype_is_still_an_op() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        ops.cast(popxl.variable(1.0), popxl.float32)
    assert types(ir) == ["Cast"]


def test_where_casts_a_condition_of_numbers() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        ops.where(popxl.variable([0, 2]), popxl.variable([1.0, 2.0]), popxl.variable(0.0))
    assert types(ir) == ["Cast", "Where"]


def test_layer_norm_is_one_op_with_three_outputs() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        t = popxl.variable(np.ones((5, 4, 3), np.float32))
        vector = popxl.variable(np.ones(4, np.float32))
        ops.group_norm(t, vector, vector, 2)
    (op,) = ir.main_graph.ops
    assert op.type == "GroupNormalization"
    assert [t.shape for t in op.outputs] == [(5, 4, 3), (10,), (10,)]


def test_matmul_keeps_its_hints() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        a = popxl.variable(np.ones((2, 2), np.float32))
        out = ops.matmul(a, a, 0.25, popxl.float16, popxl.half)
    (op,) = ir.main_graph.ops
    assert dict(op.attributes) == {
        "available_memory_proportion": 0.25,
        "output_type": popxl.float16,
        "partials_type": popxl.float16,
    }
    assert out.dtype == popxl.float16


def test_partials_are_float32_unless_told_otherwise() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        a = popxl.variable(np.ones((2, 2), np.float32))
        ops.matmul(a, a)
    assert ir.main_graph.ops[0].attributes["partials_type"] == popxl.float32


@pytest.mark.parametrize("axis", [1, [1], (1,), np.int64(1), iter([1])])
def test_axes_are_an_integer_or_any_iterable_of_them(axis: Any) -> None:
    with popxl.Ir().main_graph:
        assert ops.sum(popxl.variable(np.ones((2, 3), np.float32)), axis).shape == (2,)
