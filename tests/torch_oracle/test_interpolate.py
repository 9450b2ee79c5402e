"""Resizing against PyTorch, where the modes coincide, in float64: values and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from op_gradients import values_and_gradients

from popxl import ops

RNG = np.random.default_rng(6)
DATA = {1: RNG.normal(size=(2, 3, 9)), 2: RNG.normal(size=(2, 2, 6, 5)), 3: RNG.normal(size=(1, 2, 4, 6, 2))}
FACTORS = [(2.0, 3.0, 1.5), (0.5, 2.0, 4.0), (0.75, 0.34, 0.5), (1.3, 2.7, 3.1)]
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def assert_agrees(rank: int, factors: tuple[float, ...], ours: tuple[Any, ...], **torch_how: Any) -> None:
    factors = factors[:rank]
    t = torch.tensor(DATA[rank], requires_grad=True)
    expected = F.interpolate(t, scale_factor=factors, **torch_how)
    g = np.random.default_rng(7).normal(size=tuple(expected.shape))
    expected.backward(torch.tensor(g))
    (value,), (grad,) = values_and_gradients(
        lambda x: ops.interpolate(x, (1.0, 1.0, *factors), *ours), [DATA[rank]], {0: g}, [0]
    )
    assert t.grad is not None
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(grad, t.grad.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rank", DATA)
@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_floor_of_asymmetric_coordinates_is_nearest(rank: int, factors: tuple[float, ...]) -> None:
    assert_agrees(rank, factors, ("nearest", "floor", "asymmetric"), mode="nearest")


@pytest.mark.parametrize("rank", DATA)
@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_rounding_of_half_pixels_is_nearest_exact(rank: int, factors: tuple[float, ...]) -> None:
    assert_agrees(rank, factors, ("nearest", "round_prefer_ceil", "half_pixel"), mode="nearest-exact")


@pytest.mark.parametrize("rank", DATA)
@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_linear(rank: int, factors: tuple[float, ...]) -> None:
    assert_agrees(rank, factors, ("linear",), mode=LINEAR[rank], align_corners=False)


@pytest.mark.parametrize("rank", DATA)
def test_linear_with_aligned_corners(rank: int) -> None:
    # PyTorch divides by the new length less 1, which is rounded down; so the factors are such that nothing is.
    ours = ("linear", "floor", "align_corners")
    assert_agrees(rank, (3.0, 2.0, 1.5), ours, mode=LINEAR[rank], align_corners=True)


@pytest.mark.parametrize("factors", FACTORS, ids=str)
def test_cubic(factors: tuple[float, ...]) -> None:
    assert_agrees(2, factors, ("cubic",), mode="bicubic", align_corners=False)


def test_cubic_with_aligned_corners() -> None:
    ours = ("cubic", "floor", "align_corners")
    assert_agrees(2, (1.5, 3.0), ours, mode="bicubic", align_corners=True)
