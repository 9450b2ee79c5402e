"""Gradients that many ops share."""

from __future__ import annotations

from typing import Any

from popxl.op import Gradient


def unbroadcast(grad: Any, shape: tuple[int, ...]) -> Any:
    """Sum a gradient over the axes along which `shape` was stretched to the shape of `grad`.

    Widen float16 first (`at_least_float32`): the sum is made in the dtype of `grad`.
    """
    lead = grad.ndim - len(shape)
    stretched = [lead + i for i, n in enumerate(shape) if n == 1 and grad.shape[lead + i] != 1]
    axes = (*range(lead), *stretched)
    return grad.sum(axes).reshape(shape) if axes else grad


def no_gradient_of(type: str) -> Gradient:
    """Return the gradient of comparisons and logical ops: there is none, and asking for it is an error."""
    return Gradient(refusal=f"PopART does not have a valid grad op corresponding to {type}.")
