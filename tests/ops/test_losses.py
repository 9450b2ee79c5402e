"""Negative log likelihood: worked examples, bounds, ignored and impossible labels (spec ops-nn.md §4.2, §4.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from op_gradients import gradient_of, result_of, values_and_gradients, variable

import popxl
from popxl import ops
from popxl.ops._gradient import differentiable_inputs, needed_tensors
from popxl.tensor import Tensor

F16, F32 = np.float16, np.float32
PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], F32)
LABELS = np.array([0, 2, 1], np.int32)


def nll(t: Tensor, labels: Any, *args: Any, **kwargs: Any) -> Tensor:
    return ops.nll_loss(t, variable(labels), *args, **kwargs)


def loss_and_dx(labels: Any = LABELS, *args: Any, probs: Any = PROBS, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """What `nll_loss_with_softmax_grad` gives."""

    def both(t: Tensor) -> Tensor:
        return ops.nll_loss_with_softmax_grad(t, variable(labels), *args, **kwargs)[0]

    (loss, dx), _ = values_and_gradients(both, [probs], {})
    return loss, dx


# The loss


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, 1.28774),
        ({"reduction": "sum"}, 3.86323),
        ({"ignore_index": 2}, 0.78032),
        ({"reduction": "none"}, [0.35667, 2.30259, 1.20397]),
        ({"reduction": "none", "ignore_index": 2}, [0.35667, 0, 1.20397]),
        ({"reduction": "sum", "ignore_index": 2}, 1.56065),
    ],
)
def test_worked_losses(how: dict[str, Any], expected: Any) -> None:
    np.testing.assert_allclose(result_of(nll, PROBS, LABELS, **how), expected, atol=1e-5)
    np.testing.assert_allclose(loss_and_dx(**how)[0], expected, atol=1e-5)


def test_the_loss_of_logarithms_is_minus_that_of_the_label() -> None:
    found = result_of(nll, np.array([[-0.5, 3.0], [-2.0, -4.0]], F32), [1, 0], reduction="none", log_prob=True)
    assert found.tolist() == [-3, 2]


@pytest.mark.parametrize(("dtype", "least"), [(F16, 6.104e-5), (F32, 1e-7), (np.float64, 1e-7)])
def test_a_probability_counts_as_at_least_a_small_number(dtype: Any, least: float) -> None:
    found = result_of(nll, np.array([[0.0, 1.0]], dtype), [0])
    np.testing.assert_allclose(found, -np.log(least), rtol=1e-3 if dtype is F16 else 1e-6)


@pytest.mark.parametrize("dtype", [F16, F32])
def test_the_loss_with_gradient_adds_to_the_probability_instead(dtype: Any) -> None:
    loss, _ = loss_and_dx([0], probs=np.array([[0.0, 1.0]], dtype))
    np.testing.assert_allclose(loss, -np.log(1e-7), rtol=1e-3 if dtype is F16 else 1e-6)


@pytest.mark.parametrize("label", [-1, 3, 2**31 - 1])
def test_a_label_that_is_no_class_has_the_probability_0(label: int) -> None:
    np.testing.assert_allclose(result_of(nll, PROBS, [label] * 3), -np.log(1e-7), rtol=1e-6)
    assert result_of(nll, np.log(PROBS), [label] * 3, log_prob=True) == 0


def test_a_label_beyond_32_bits_is_no_class() -> None:
    labels = np.array([2**32, 2**32 + 1, -(2**32)])
    np.testing.assert_allclose(result_of(nll, PROBS, labels), -np.log(1e-7), rtol=1e-6)


@pytest.mark.parametrize("ignored", [-1, 1, 250])
def test_the_mean_of_ignored_items_only_is_0(ignored: int) -> None:
    labels = np.full(3, ignored, np.int64)
    assert result_of(nll, PROBS, labels, ignored) == 0
    loss, dx = loss_and_dx(labels, ignore_index=ignored)
    assert (loss, dx.tolist()) == (0, np.zeros((3, 3)).tolist())


def test_an_ignored_nan_stays_away() -> None:
    probs = PROBS.copy()
    probs[1] = np.nan
    assert result_of(nll, probs, LABELS, 2) == pytest.approx(0.78032, abs=1e-5)
    assert np.isfinite(gradient_of(nll, probs, LABELS, 2, g=1)).all()
    assert np.isfinite(loss_and_dx(probs=probs, ignore_index=2)[1]).all()


def test_classes_of_many_item_axes_are_on_the_last() -> None:
    probs, labels = np.stack([PROBS, PROBS[::-1]]), np.stack([LABELS, [2, 1, 0]])
    found = result_of(nll, probs, labels, reduction="none")
    np.testing.assert_allclose(found, -np.log([[0.7, 0.1, 0.3], [0.4, 0.8, 0.7]]), rtol=1e-6)


def test_one_item_may_have_no_axis() -> None:
    np.testing.assert_allclose(result_of(nll, PROBS[1], 2), -np.log(0.1), rtol=1e-6)


def test_a_float16_loss_is_accumulated_in_float32() -> None:
    # 4000 times 0.5: float16 would stop adding at 1024.
    probs = np.full((4000, 1), -0.5, F16)
    assert result_of(nll, probs, np.zeros(4000, np.int32), reduction="sum", log_prob=True) == 2000


# Gradients of the loss


@pytest.mark.parametrize(("reduction", "divisor"), [("mean", 3), ("sum", 1)])
def test_the_gradient_is_that_of_the_labels_probability(reduction: str, divisor: int) -> None:
    found = gradient_of(nll, PROBS, LABELS, reduction=reduction, g=2)
    expected = np.array([[-2 / 0.7, 0, 0], [0, 0, -2 / 0.1], [0, -2 / 0.3, 0]]) / divisor
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_each_item_has_its_own_upstream_gradient() -> None:
    found = gradient_of(nll, PROBS, LABELS, reduction="none", g=[1, -2, 4])
    np.testing.assert_allclose(found, [[-1 / 0.7, 0, 0], [0, 0, 2 / 0.1], [0, -4 / 0.3, 0]], rtol=1e-6)


def test_ignored_items_have_no_gradient_and_do_not_divide() -> None:
    found = gradient_of(nll, PROBS, LABELS, 2, g=1)
    np.testing.assert_allclose(found, [[-0.5 / 0.7, 0, 0], [0, 0, 0], [0, -0.5 / 0.3, 0]], rtol=1e-6)


@pytest.mark.parametrize(("p", "expected"), [(1e-9, -1e9), (1e-12, -1e10), (0.0, -1e10)])
def test_below_its_bound_the_loss_is_flat_but_the_gradient_is_not_0(p: float, expected: float) -> None:
    found = gradient_of(nll, np.array([[p, 1.0]], F32), [0], g=1)
    np.testing.assert_allclose(found, [[expected, 0]], rtol=1e-6)


def test_a_float16_gradient_is_bounded_to_what_float16_holds() -> None:
    found = gradient_of(nll, np.array([[0.0, 1.0]], F16), [0], g=1)
    np.testing.assert_allclose(found, [[-1 / 6.104e-5, 0]], rtol=1e-3)


def test_a_label_that_is_no_class_has_no_gradient() -> None:
    assert not gradient_of(nll, PROBS, np.array([-1, 3, 2**32]), g=1).any()


def test_the_gradient_of_logarithms_is_minus_the_upstream_one() -> None:
    found = gradient_of(nll, np.log(PROBS), LABELS, 1, "none", True, g=[1, 2, 4])
    assert found.tolist() == [[-1, 0, 0], [0, 0, -2], [0, 0, 0]]


def test_only_the_probabilities_have_a_gradient_and_labels_and_probs_are_needed() -> None:
    with popxl.Ir().main_graph:
        op = nll(popxl.variable(PROBS), LABELS).producer
        assert op is not None
        assert differentiable_inputs(op) == (0,)
        assert needed_tensors(op, [0], [0]) == op.inputs


# The gradient that comes with the loss


def test_the_gradient_is_probabilities_minus_labels_over_the_items() -> None:
    _, dx = loss_and_dx()
    np.testing.assert_allclose(dx, [[-0.1, 0.2 / 3, 0.1 / 3], [0.1 / 3, 0.8 / 3, -0.3], [0.1, -0.7 / 3, 0.4 / 3]], 1e-6)


def test_rows_of_ignored_items_are_zero_and_do_not_divide() -> None:
    _, dx = loss_and_dx(ignore_index=2)
    np.testing.assert_allclose(dx, [[-0.15, 0.1, 0.05], [0, 0, 0], [0.15, -0.35, 0.2]], rtol=1e-5)


def test_the_scale_is_of_the_gradient_and_not_of_the_loss() -> None:
    loss, dx = loss_and_dx()
    scaled_loss, scaled_dx = loss_and_dx(LABELS, 8)
    assert scaled_loss == loss
    np.testing.assert_array_equal(scaled_dx, 8 * dx)


def test_each_item_may_have_its_own_scale() -> None:
    with popxl.Ir().main_graph:
        probs, labels = popxl.variable(PROBS), popxl.variable(LABELS)
        scale = popxl.variable(np.array([1, 0, 2], F32))
        loss, dx = ops.nll_loss_with_softmax_grad(probs, labels, scale, reduction="none")
        assert (loss.shape, dx.shape) == ((3,), (3, 3))
    (_, found), _ = values_and_gradients(
        lambda p, y, g: ops.nll_loss_with_softmax_grad(p, y, g, reduction="none")[0], [PROBS, LABELS, [1.0, 0, 2]], {}
    )
    np.testing.assert_allclose(found, [[-0.3, 0.2, 0.1], [0, 0, 0], [0.6, -1.4, 0.8]], rtol=1e-6)


def test_a_float32_scale_may_be_too_large_for_the_float16_it_scales() -> None:
    _, dx = loss_and_dx([0], 1e6, probs=np.array([[1.0, 2**-10]], F16))
    np.testing.assert_allclose(dx, [[0, 1e6 / 1024]], rtol=1e-3)


def test_nothing_is_subtracted_for_a_label_that_is_no_class() -> None:
    _, dx = loss_and_dx([-1, 3, 7], reduction="sum")
    np.testing.assert_array_equal(dx, PROBS)


# What a call adds


def test_the_loss_adds_one_op_and_one_tensor() -> None:
    with popxl.Ir().main_graph as graph:
        probs, labels = popxl.variable(PROBS), popxl.variable(LABELS)
        before = len(graph.tensors)
        ops.nll_loss(probs, labels)
        assert [op.type for op in graph.ops] == ["Nll"]
        assert len(graph.tensors) == before + 1


@pytest.mark.parametrize("is_tensor", [False, True])
def test_the_loss_with_gradient_adds_one_op_two_tensors_and_the_constant_of_a_number(is_tensor: bool) -> None:
    with popxl.Ir().main_graph as graph:
        probs, labels = popxl.variable(PROBS), popxl.variable(LABELS)
        scale = popxl.variable(2.0) if is_tensor else 2.0
        before, constants = len(graph.tensors), len(graph.constants)
        ops.nll_loss_with_softmax_grad(probs, labels, scale)
        assert [op.type for op in graph.ops] == ["NlllWithSoftmaxGradDirect"]
        assert len(graph.tensors) == before + (2 if is_tensor else 3)
        assert len(graph.constants) == constants + (0 if is_tensor else 1)


def test_the_constant_of_a_scale_is_float32_for_float16_too() -> None:
    with popxl.Ir().main_graph as graph:
        ops.nll_loss_with_softmax_grad(popxl.variable(PROBS, popxl.float16), popxl.variable(LABELS), 3)
        assert [(c.dtype, c.shape) for c in graph.constants] == [(popxl.float32, ())]


def test_the_reduction_type_can_be_imported() -> None:
    from popxl.ops.negative_log_likelihood import REDUCTION_TYPE

    assert REDUCTION_TYPE.__args__ == ("mean", "sum", "none")
    assert ops.negative_log_likelihood.REDUCTION_TYPE is REDUCTION_TYPE
