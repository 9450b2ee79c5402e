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


def test_log2_of_powers_of_2() -> None:
    out = run(lambda: ops.log2(popxl.variable(np.array([0.5, 1, 8, 0, -1], np.float32))))
    np.testing.assert_allclose(out, [-1, 0, 3, -np.inf, np.nan], rtol=1e-6)


def test_what_is_finite_is_neither_nan_nor_infinite() -> None:
    out = run(lambda: ops.isfinite(popxl.variable(np.array([0, -65504, np.nan, np.inf, -np.inf], np.float16))))
    np.testing.assert_array_equal(out, [True, True, False, False, False])


def test_clip_with_bounds_in_the_wrong_order_gives_the_upper_one() -> None:
    out = run(lambda: ops.clip(popxl.variable(np.array([0, 1.5, 3], np.float32)), 2, 1))
    np.testing.assert_array_equal(out, [1, 1, 1])


def test_maximum_of_three_broadcasts() -> None:
    column, row = np.array([[1], [3]], np.float32), np.array([0, 2, 4], np.float32)
    out = run(lambda: ops.maximum(*(popxl.variable(a) for a in (column, row, np.float32(1.5)))))
    np.testing.assert_array_equal(out, [[1.5, 2, 4], [3, 3, 4]])


@pytest.mark.parametrize("a", [2, np.array([[2]], np.float32)], ids=["number", "tensor"])
@pytest.mark.parametrize("b", [-0.5, np.float16(-0.5)], ids=["number", "tensor"])
def test_each_scale_of_a_scaled_sum_is_a_number_or_a_tensor(a: Any, b: Any) -> None:
    def build() -> popxl.Tensor:
        x, y = (popxl.variable(np.array(v, np.float32)) for v in ([1, 2], [10, 20]))
        return ops.scaled_add(
            x, y, *(popxl.variable(s) if isinstance(s, np.ndarray | np.generic) else s for s in (a, b))
        )

    np.testing.assert_array_equal(run(build), [-3, -6])


def test_a_scaled_sum_of_float16_is_rounded_once() -> None:
    # 60000 + 60000 is no float16, half of it is.
    x = np.array([60000], np.float16)
    out = run(lambda: ops.scaled_add(popxl.variable(x), popxl.variable(x), 0.5, 0.5))
    assert out.dtype == np.float16
    np.testing.assert_array_equal(out, x)


def test_a_scaled_sum_has_the_dtype_of_its_first_tensor() -> None:
    half, single = np.array([1], np.float16), np.array([3.0004], np.float32)
    for first, second in ((half, single), (single, half)):
        out = run(lambda a=first, b=second: ops.scaled_add(popxl.variable(a), popxl.variable(b)))
        assert out.dtype == first.dtype
        np.testing.assert_allclose(out, [4.0004], rtol=1e-3)


# In place


def test_a_scaled_sum_in_place_keeps_a_variable_s_new_value_across_runs() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable(np.array([1.0, -2.0], np.float32))
        ops.scaled_add_(x, popxl.constant(np.array([10.0, 20.0], np.float32)), b=-0.5)
    with popxl.Session(ir) as session:
        session.run()
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(x), [-9, -22])


def test_an_op_in_place_keeps_a_variable_s_new_value_across_runs() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable(np.array([1.0, -2.0], np.float32))
        ops.add_(x, popxl.constant(np.array([10.0, 20.0], np.float32)))
    with popxl.Session(ir) as session:
        session.run()
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(x), [21.0, 38.0])


@pytest.mark.parametrize("function", [ops.relu_, ops.exp_, ops.gelu_, ops.geluerf_, ops.swish_])
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


def test_second_names() -> None:
    assert (ops.rename, ops.clamp) == (ops.identity, ops.clip)


NAMES = {
    ops.abs: "abs_out",
    ops.ceil: "ceil_out",
    ops.clip: "clip_out",
    ops.cos: "cos_out",
    ops.exp: "exp_out",
    ops.exp_: "exp_inplace_out",
    ops.floor: "floor_out",
    ops.gelu: "gelu_out",
    ops.gelu_: "gelu_inplace_out",
    ops.geluerf: "geluerf_out",
    ops.geluerf_: "geluerf_inplace_out",
    ops.isfinite: "isfinite_out",
    ops.isinf: "isinf_out",
    ops.isnan: "isnan_out",
    ops.log: "log_out",
    ops.log2: "div_out",
    ops.negate: "negate_out",
    ops.relu: "relu_out",
    ops.relu_: "relu_inplace_out",
    ops.sign: "sign_out",
    ops.sin: "sin_out",
    ops.sqrt: "sqrt_out",
    ops.swish: "swish_out",
    ops.swish_: "swish_inplace_out",
    ops.tanh: "tanh_out",
    ops.maximum: "maximum_out",
}
NAMES_OF_PAIRS = {
    ops.add: "add_out",
    ops.add_: "add_lhs_inplace_out",
    ops.sub: "sub_out",
    ops.mul: "mul_out",
    ops.div: "div_out",
    ops.fmod: "fmod_out",
    ops.pow: "pow_out",
    ops.equal: "equal_out",
    ops.greater: "greater_out",
    ops.maximum: "maximum_out",
    ops.scaled_add: "scaled_add_out",
    ops.scaled_add_: "scaled_add__x",
}


@pytest.mark.parametrize("function", NAMES)
def test_names_of_results(function: Any) -> None:
    with popxl.Ir().main_graph:
        assert function(popxl.variable(1.0, name="x")).name == NAMES[function]


@pytest.mark.parametrize("function", NAMES_OF_PAIRS)
def test_names_of_results_of_two_tensors(function: Any) -> None:
    with popxl.Ir().main_graph:
        x, y = (popxl.variable(1.0, name=name) for name in "xy")
        assert function(x, y).name == NAMES_OF_PAIRS[function]


def test_log2_is_a_quotient_of_logarithms() -> None:
    ir = popxl.Ir()
    with ir.main_graph as main:
        ops.log2(popxl.variable(1.0, popxl.float16, name="x"))
    assert types(ir) == ["Log", "Log", "Div"]
    (two,) = main.constants
    assert (two.dtype, two.shape) == (popxl.float16, ())
    assert len(main.tensors) == 5


def test_isfinite_is_made_of_five_ops() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        ops.isfinite(popxl.variable(1.0))
    assert types(ir) == ["IsNaN", "IsInf", "Or", "Not", "Identity"]


def test_maximum_of_one_tensor_is_a_copy() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable(1.0)
        assert ops.maximum(x) != x
    assert types(ir) == ["Max"]


def test_clip_keeps_its_bounds() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        ops.clip(popxl.variable(1.0), max=2)
    assert dict(ir.main_graph.ops[0].attributes) == {"min": -np.inf, "max": 2}


def test_a_scaled_sum_takes_tensors_as_inputs_and_keeps_numbers() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x, y, b = popxl.variable([1.0]), popxl.variable([2.0]), popxl.variable(3.0)
        ops.scaled_add(x, y, 2, b)
    (op,) = ir.main_graph.ops
    assert op.inputs == (x, y, b)
    assert dict(op.attributes) == {"a": 2, "b": None}


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
