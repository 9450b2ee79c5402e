"""Gradients of softmax and group normalisation: what they need, and float16 (spec ops-nn.md §3.2, §4.1, §9)."""

from __future__ import annotations

import numpy as np
import pytest
from op_gradients import values_and_gradients

import popxl
from popxl import ops
from popxl.errors import CoreError
from popxl.ops._gradient import add_gradient_op, needed_tensors

RNG = np.random.default_rng(5)


def of_shape(*shape: int, dtype: popxl.dtypes.dtype = popxl.float32) -> popxl.Tensor:
    return popxl.variable(np.ones(shape), dtype)


def test_the_gradient_of_softmax_needs_its_output_only() -> None:
    with popxl.Ir().main_graph:
        op = ops.softmax(of_shape(2, 3), -1).producer
        assert op is not None
        assert needed_tensors(op, [0], [0]) == op.outputs


@pytest.mark.parametrize("dtype", [popxl.float32, popxl.float64])
def test_the_gradient_of_a_norm_needs_input_weight_and_statistics(dtype: popxl.dtypes.dtype) -> None:
    with popxl.Ir().main_graph:
        op = ops.layer_norm(of_shape(2, 3, dtype=dtype), of_shape(3, dtype=dtype), of_shape(3, dtype=dtype)).producer
        assert op is not None
        t, weight, _ = op.inputs
        _, mean, inv_std = op.outputs
        assert needed_tensors(op, [0], [0]) == (t, weight, mean, inv_std)
        assert needed_tensors(op, [0], [1]) == (t, mean, inv_std)
        assert needed_tensors(op, [0], [2]) == ()


def test_the_gradient_of_a_float16_norm_needs_no_statistics_since_they_are_rounded() -> None:
    with popxl.Ir().main_graph:
        vectors = [of_shape(3, dtype=popxl.float16) for _ in range(2)]
        op = ops.layer_norm(of_shape(2, 3, dtype=popxl.float16), *vectors).producer
        assert op is not None
        assert needed_tensors(op, [0], [0, 1, 2]) == op.inputs[:2]


def test_the_gradient_of_a_float16_norm_is_right_far_from_zero() -> None:
    # Elements differ from their mean, 500, by a few float16 steps: a rounded mean would spoil them.
    x = (500 + RNG.integers(-4, 5, (2, 64)) / 2).astype(np.float16)
    weight, g = RNG.normal(size=64).astype(np.float16), RNG.normal(size=(2, 64)).astype(np.float16)
    _, (found,) = values_and_gradients(ops.layer_norm, [x, weight, np.zeros(64, np.float16)], {0: g}, [0])

    centred = x.astype(np.float64) - x.astype(np.float64).mean(1, keepdims=True)
    inv_std = 1 / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    normal, g_normal = centred * inv_std, g.astype(np.float64) * weight
    along = (g_normal * normal).mean(1, keepdims=True)
    expected = inv_std * (g_normal - g_normal.mean(1, keepdims=True) - normal * along)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2e-3, atol=2e-3)


def test_equal_elements_have_a_finite_gradient() -> None:
    x = np.full((1, 4), 3, np.float32)
    ones = np.ones(4, np.float32)
    _, (found,) = values_and_gradients(ops.layer_norm, [x, ones, ones], {0: np.array([[1, 2, 3, 6]], np.float32)}, [0])
    # 1 / sqrt(eps), times what is left of the gradient without its mean.
    np.testing.assert_allclose(found, 1e-5**-0.5 * np.array([[-2, -1, 0, 3]]), rtol=1e-5, atol=1e-4)


def test_a_softmax_gradient_stays_finite_for_large_scores() -> None:
    x, g = np.array([[1e4, 0, -1e4]], np.float32), np.array([[1, 2, 3]], np.float32)
    _, (found,) = values_and_gradients(lambda t: ops.softmax(t, -1), [x], {0: g}, [0])
    assert found.tolist() == [[0, 0, 0]]


def test_a_long_float16_softmax_gradient_is_accumulated_in_float32() -> None:
    # Every probability is 1/4096; the mean of the gradients is 1, and a float16 sum would lose it.
    g = np.where(np.arange(4096) % 2, 0, 2).astype(np.float16)[None]
    _, (found,) = values_and_gradients(lambda t: ops.softmax(t, -1), [np.zeros((1, 4096), np.float16)], {0: g}, [0])
    np.testing.assert_allclose(found, np.where(np.arange(4096) % 2, -1, 1)[None] / 4096, rtol=1e-3)


def test_batch_norm_adds_one_op_and_one_tensor() -> None:
    with popxl.Ir().main_graph as graph:
        tensors = [of_shape(2, 3, 4), *(of_shape(3) for _ in range(4))]
        before = len(graph.tensors)
        ops.batch_norm_inference(*tensors)
        assert [op.type for op in graph.ops] == ["BatchNormalization"]
        assert len(graph.tensors) == before + 1


def test_asking_for_a_gradient_of_batch_norm_is_an_error() -> None:
    with popxl.Ir().main_graph as graph:
        y = ops.batch_norm_inference(of_shape(2, 3, 4), *(of_shape(3) for _ in range(4)))
        assert y.producer is not None
        with pytest.raises(CoreError, match=r"^BatchNorm Op .*inference mode(?s:.*)detach"):
            add_gradient_op(y.producer, {0: of_shape(2, 3, 4)}, [0])
        assert len(graph.ops) == 1


def test_float32_statistics_of_a_float16_batch_norm_add_no_cast() -> None:
    with popxl.Ir().main_graph as graph:
        half = [of_shape(3, dtype=popxl.float16) for _ in range(2)]
        y = ops.batch_norm_inference(of_shape(2, 3, 4, dtype=popxl.float16), *half, of_shape(3), of_shape(3))
        assert (y.dtype, len(graph.ops)) == (popxl.float16, 1)
