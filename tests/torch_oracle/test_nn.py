"""Pooling, normalisation, softmax and losses against PyTorch, in float64: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from op_gradients import values_and_gradients

import popxl
from popxl import ops

RNG = np.random.default_rng(20)
LINE = RNG.normal(size=(2, 3, 11))
IMAGE = RNG.normal(size=(2, 4, 9, 7))
CUBE = RNG.normal(size=(1, 2, 5, 6, 4))


def assert_agrees(
    function: Callable[..., popxl.Tensor],
    torch_function: Callable[..., torch.Tensor],
    *arrays: Any,
    wrt: int | None = None,
) -> None:
    """Compare the value, and the gradients of the first `wrt` inputs (of all, if None), for a random gradient given."""
    tensors = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    expected = torch_function(*tensors)
    g = np.random.default_rng(7).normal(size=tuple(expected.shape))
    expected.backward(torch.tensor(g))
    numbers = range(len(arrays) if wrt is None else wrt)
    (actual, *_), grads = values_and_gradients(function, arrays, {0: g}, numbers)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-11, atol=1e-12)
    for i, grad in zip(numbers, grads, strict=True):
        assert tensors[i].grad is not None
        np.testing.assert_allclose(grad, tensors[i].grad.numpy(), rtol=1e-10, atol=1e-11)


# Pooling. PyTorch pads both sides alike, and drops a last window of the ceil mode that starts in the padding.

POOLS = [
    (LINE, (3,), (1,), (0,), False),
    (LINE, (4,), (3,), (2,), False),
    (LINE, (2,), (2,), (0,), True),
    (IMAGE, (2, 2), (2, 2), (0, 0), False),
    (IMAGE, (3, 2), (2, 1), (1, 1), False),
    (IMAGE, (3, 3), (2, 2), (1, 1), True),
    (IMAGE, (9, 7), (1, 1), (0, 0), False),
    (IMAGE, (2, 3), (4, 5), (0, 1), False),
    (CUBE, (2, 3, 2), (1, 2, 2), (1, 0, 1), False),
    (CUBE, (3, 2, 2), (2, 2, 3), (0, 1, 0), True),
]
IDS = [f"{x.ndim - 2}d-{kernel}-{stride}-{pad}-{ceil}" for x, kernel, stride, pad, ceil in POOLS]


@pytest.mark.parametrize(("x", "kernel", "stride", "pad", "ceil"), POOLS, ids=IDS)
def test_max_pool(x: Any, kernel: Any, stride: Any, pad: Any, ceil: bool) -> None:
    torch_pool = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[x.ndim]
    assert_agrees(
        lambda t: ops.max_pool(t, kernel, stride, pad + pad, ceil_mode=ceil),
        lambda t: torch_pool(t, kernel, stride, pad, ceil_mode=ceil),
        x,
    )


@pytest.mark.parametrize("dilation", [(2, 1), (1, 3), (3, 2)])
def test_max_pool_with_dilation(dilation: Any) -> None:
    assert_agrees(
        lambda t: ops.max_pool(t, (3, 2), (2, 1), (1, 1, 1, 1), dilation=dilation),
        lambda t: F.max_pool2d(t, (3, 2), (2, 1), (1, 1), dilation=dilation),
        IMAGE,
    )


@pytest.mark.parametrize(("x", "kernel", "stride", "pad", "ceil"), POOLS, ids=IDS)
def test_average_pool(x: Any, kernel: Any, stride: Any, pad: Any, ceil: bool) -> None:
    torch_pool = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}[x.ndim]
    assert_agrees(
        lambda t: ops.average_pool(t, kernel, stride, pad + pad, ceil_mode=ceil),
        lambda t: torch_pool(t, kernel, stride, pad, ceil_mode=ceil, count_include_pad=False),
        x,
    )


# Normalisation


def vectors(count: int, size: int) -> list[Any]:
    return list(np.random.default_rng(size).uniform(0.5, 2, size=(count, size)))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("x", [IMAGE, IMAGE[:, :, 0], IMAGE * 1e3 + 1e5], ids=["image", "line", "far from zero"])
def test_group_norm(x: Any, groups: int) -> None:
    assert_agrees(
        lambda t, w, b: ops.group_norm(t, w, b, groups, 1e-3),
        lambda t, w, b: F.group_norm(t, groups, w, b, 1e-3),
        x,
        *vectors(2, 4),
    )


def test_layer_norm_of_rows() -> None:
    assert_agrees(
        lambda t, w, b: ops.layer_norm(t, w, b),
        lambda t, w, b: F.layer_norm(t, (11,), w, b),
        LINE.reshape(6, 11),
        *vectors(2, 11),
    )


def test_the_gradients_of_the_statistics_of_a_group_norm_count() -> None:
    x, (weight, bias) = IMAGE, vectors(2, 4)
    given = [RNG.normal(size=s) for s in (x.shape, (4,), (4,))]
    t = torch.tensor(x, requires_grad=True)
    rows = t.reshape(4, -1)
    mean, inv_std = rows.mean(1), 1 / torch.sqrt(rows.var(1, correction=0) + 1e-5)
    y = F.group_norm(t, 2, torch.tensor(weight), torch.tensor(bias))
    torch.autograd.backward([y, mean, inv_std], [torch.tensor(g) for g in given])
    outputs, (grad,) = values_and_gradients(
        lambda *ts: ops.group_norm(*ts, num_groups=2), [x, weight, bias], dict(enumerate(given)), [0]
    )
    for actual, expected in zip(outputs, (y, mean, inv_std), strict=True):
        np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-11, atol=1e-12)
    assert t.grad is not None
    np.testing.assert_allclose(grad, t.grad.numpy(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("x", [LINE, IMAGE, CUBE], ids=["1d", "2d", "3d"])
def test_batch_norm_inference(x: Any) -> None:
    mean, *others = vectors(4, x.shape[1])
    scale, bias, var = others
    expected = F.batch_norm(*(torch.tensor(a) for a in (x, mean, var, scale, bias)), eps=0.01)
    (actual,), _ = values_and_gradients(
        lambda *ts: ops.batch_norm_inference(*ts, epsilon=0.01), [x, scale, bias, mean, var], {}
    )
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-12)


# Softmax


@pytest.mark.parametrize("axis", [-1, 3, 2, 1, 0, -3])
def test_softmax_is_over_the_axis_and_all_after_it(axis: int) -> None:
    first = axis % IMAGE.ndim
    assert_agrees(
        lambda t: ops.softmax(t, axis),
        lambda t: F.softmax(t.reshape(*t.shape[:first], -1), -1).reshape(t.shape),
        IMAGE * 3,
    )


# Losses

PROBS = np.exp(IMAGE) / np.exp(IMAGE).sum(-1, keepdims=True)
LABELS = RNG.integers(0, 7, PROBS.shape[:-1])


def torch_nll(log_probs: torch.Tensor, labels: torch.Tensor, **how: Any) -> torch.Tensor:
    loss = F.nll_loss(log_probs.reshape(-1, log_probs.shape[-1]), labels.reshape(-1), **how)
    return loss.reshape(labels.shape) if how["reduction"] == "none" else loss


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [None, 3])
def test_nll_loss(reduction: Any, ignored: int | None) -> None:
    assert_agrees(
        lambda p, labels: ops.nll_loss(p, labels, ignored, reduction),
        lambda p, labels: torch_nll(
            torch.log(p), labels, reduction=reduction, ignore_index=-100 if ignored is None else ignored
        ),
        PROBS,
        LABELS,
        wrt=1,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nll_loss_of_logarithms(reduction: Any) -> None:
    labels = np.where(LABELS == 2, -1, LABELS)
    assert_agrees(
        lambda p, labels: ops.nll_loss(p, labels, -1, reduction, log_prob=True),
        lambda p, labels: torch_nll(p, labels, reduction=reduction, ignore_index=-1),
        np.log(PROBS),
        labels,
        wrt=1,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_that_comes_with_the_loss_is_that_of_the_scores(reduction: Any) -> None:
    x = torch.tensor(IMAGE, requires_grad=True)
    scale = torch.tensor(RNG.normal(size=LABELS.shape if reduction == "none" else ()))
    loss = torch_nll(F.log_softmax(x, -1), torch.tensor(LABELS), reduction=reduction, ignore_index=3)
    loss.backward(scale)
    outputs, _ = values_and_gradients(
        lambda p, labels, g: ops.nll_loss_with_softmax_grad(p, labels, g, 3, reduction)[1],
        [PROBS, LABELS, scale.numpy()],
        {},
    )
    assert x.grad is not None
    # The loss adds 1e-7 to the probability.
    np.testing.assert_allclose(outputs[0], loss.detach().numpy(), rtol=1e-4)
    np.testing.assert_allclose(outputs[1], x.grad.numpy(), rtol=1e-11, atol=1e-13)
