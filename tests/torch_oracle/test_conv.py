"""Convolutions against PyTorch, over configurations drawn at random: values and gradients.

PyTorch pads both ends alike, so uneven padding is put around its input first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from op_gradients import values_and_gradients

import popxl
from popxl import ops

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
COUNTS = {1: 8, 2: 10, 3: 4}
PER_AXIS = ("size", "kernel", "stride", "dilation", "before", "after", "extra")


@dataclass(frozen=True)
class Case:
    """One configuration; tuples have a number for each spatial axis."""

    n: int
    groups: int
    samples: int
    ins: int
    outs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    extra: tuple[int, ...]

    @property
    def padding(self) -> tuple[int, ...]:
        return (*self.before, *self.after)

    def torch_padding(self, after: tuple[int, ...]) -> tuple[int, ...]:
        """As `F.pad` takes it: from the last axis to the first."""
        return tuple(p for pair in reversed(list(zip(self.before, after, strict=True))) for p in pair)


def draw(n: int, number: int, *, transposed: bool) -> Case:
    rng = np.random.default_rng([n, number, transposed])
    limits = {
        "size": (1, 8 - n),
        "kernel": (1, 4),
        "stride": (1, 4),
        "dilation": (1, 4),
        "before": (0, 6),
        "after": (0, 6),
        "extra": (0, 4),
    }
    while True:
        groups = int(rng.integers(1, 4))
        axes = {name: tuple(int(v) for v in rng.integers(*limits[name], n)) for name in PER_AXIS}
        outer = (int(v) for v in rng.integers(1, 3, 3))
        case = Case(n, groups, *outer, **axes)
        if transposed:
            # PyTorch takes one padding and less extra than the stride.
            fits = all(
                e < s and s * (d - 1) + k + e - b - a > 0
                for d, k, s, b, a, e in zip(
                    case.size, case.kernel, case.stride, case.before, case.after, case.extra, strict=True
                )
            )
        else:
            fits = all(
                d + b + a >= g * (k - 1) + 1
                for d, k, g, b, a in zip(case.size, case.kernel, case.dilation, case.before, case.after, strict=True)
            )
        if fits:
            return case


def operands(case: Case, *, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    t = rng.normal(size=(case.samples, case.groups * case.ins, *case.size))
    outer = (case.groups * case.ins, case.outs) if transposed else (case.groups * case.outs, case.ins)
    return t, rng.normal(size=(*outer, *case.kernel))


def cases(*, transposed: bool) -> list[Any]:
    return [
        pytest.param(draw(n, number, transposed=transposed), id=f"{n}d-{number}")
        for n, count in COUNTS.items()
        for number in range(count)
    ]


# XLA has other code for float32 than for float64.
TOLERANCES = [pytest.param(np.float64, 1e-12, id="float64"), pytest.param(np.float32, 2e-5, id="float32")]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("case", cases(transposed=False))
def test_conv_has_the_values_and_gradients_of_torch(case: Case, dtype: Any, tolerance: float) -> None:
    arrays = [a.astype(dtype) for a in operands(case, transposed=False)]
    t, weight = (torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays)
    expected = CONV[case.n](
        F.pad(t, case.torch_padding(case.after)),
        weight,
        stride=case.stride,
        dilation=case.dilation,
        groups=case.groups,
    )
    g = np.random.default_rng(7).normal(size=tuple(expected.shape)).astype(dtype)
    expected.backward(torch.tensor(g.astype(np.float64)))

    def convolve(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        return ops.conv(t, weight, case.stride, case.padding, case.dilation, case.groups)

    (actual,), grads = values_and_gradients(convolve, arrays, {0: g}, (0, 1))
    assert t.grad is not None
    assert weight.grad is not None
    for ours, theirs in zip((actual, *grads), (expected.detach(), t.grad, weight.grad), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=tolerance, atol=tolerance * 10)


# PyTorch's word on its own speed.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("pad_type", ["same", "valid"])
@pytest.mark.parametrize("case", cases(transposed=False))
def test_same_upper_and_valid_are_the_paddings_of_torch(case: Case, pad_type: str) -> None:
    # PyTorch has "same" for a stride of 1 only, and puts an odd element at the end, as "same_upper" does.
    stride = (1,) * case.n if pad_type == "same" else case.stride
    t, weight = operands(case, transposed=False)
    if pad_type == "valid":
        t = np.pad(t, [(0, 0), (0, 0), *zip(case.before, case.after, strict=True)])
    expected = CONV[case.n](torch.tensor(t), torch.tensor(weight), None, stride, pad_type, case.dilation, case.groups)

    def convolve(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        ours = "same_upper" if pad_type == "same" else "valid"
        return ops.conv(t, weight, stride, case.padding, case.dilation, case.groups, ours)

    (actual,), _ = values_and_gradients(convolve, (t, weight), {})
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("case", cases(transposed=True))
def test_conv_transpose_has_the_values_of_torch(case: Case, dtype: Any, tolerance: float) -> None:
    arrays = [a.astype(dtype) for a in operands(case, transposed=True)]
    t, weight = (torch.tensor(a.astype(np.float64)) for a in arrays)
    whole = CONV_TRANSPOSE[case.n](t, weight, stride=case.stride, groups=case.groups, output_padding=case.extra)
    # Negative padding crops.
    expected = F.pad(whole, [-p for p in case.torch_padding(case.after)])

    def convolve(t: popxl.Tensor, weight: popxl.Tensor) -> popxl.Tensor:
        return ops.conv_transpose(t, weight, case.stride, case.padding, groups=case.groups, output_padding=case.extra)

    (actual,), _ = values_and_gradients(convolve, arrays, {})
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, expected.numpy(), rtol=tolerance, atol=tolerance * 10)
