"""The arguments of pooling, and where its windows lie over all axes of a tensor (spec ``ops-nn.md`` §2)."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from popxl.errors import CoreError, PopxlKeyError, PopxlTypeError
from popxl.ops._windows import PAD_TYPES, PadType, extent, place_windows


def checked_arguments(
    kernel_size: Iterable[int],
    stride: Iterable[int] | None,
    padding: Iterable[int] | None,
    out_pads: Iterable[int] | None,
    dilation: Iterable[int] | None,
    in_dilations: Iterable[int] | None,
    auto_pad: str | None,
    ceil_mode: bool,
) -> dict[str, Any]:
    """Check the arguments of a pooling op and fill them up.

    Returns:
        The op's attributes.

    Raises:
        CoreError: (a `RuntimeError`) if a tuple is too long or has numbers that mean nothing.
        PopxlKeyError: (a `KeyError`) if `auto_pad` is not known.
        PopxlTypeError: (a `TypeError`) if an argument is no sequence of ints.
    """
    pad_type = auto_pad or "not_set"
    if pad_type not in PAD_TYPES:
        raise PopxlKeyError(f"auto_pad is {auto_pad!r}.", hint=f"use one of {', '.join(PAD_TYPES)}")
    kernel = _numbers("kernel_size", kernel_size, least=1)
    n = len(kernel)
    if any(_numbers("out_pads", out_pads)):
        raise CoreError(
            f"out_pads are {tuple(out_pads or ())}, which is not supported.",
            hint="pad the result with popxl.ops.concat",
        )
    return {
        "kernel_size": kernel,
        "stride": _numbers("stride", stride, n, 1),
        "padding": _numbers("padding", padding, 2 * n),
        "dilation": _numbers("dilation", dilation, n, 1),
        "in_dilations": _numbers("in_dilations", in_dilations, n, 1),
        "auto_pad": pad_type,
        "ceil_mode": bool(ceil_mode),
    }


def _numbers(argument: str, values: Iterable[int] | None, count: int | None = None, least: int = 0) -> tuple[int, ...]:
    """Check an argument with a number for each axis, and fill it up with the `least` that they can be."""
    try:
        numbers = tuple(operator.index(v) for v in (() if values is None else values))
    except TypeError as error:
        raise PopxlTypeError(
            f"`{argument}` is {values!r}, not a tuple of ints.", hint="give one int for each spatial axis of t"
        ) from error
    if any(v < least for v in numbers):
        raise CoreError(f"`{argument}` is {numbers}, with a number below {least}.", hint=f"use {least} or more")
    if count is None:
        return numbers
    if len(numbers) > count:
        raise CoreError(
            f"Unexpected number of {argument} parameters: {len(numbers)} in {numbers}, not {count}.",
            hint="kernel_size has one int for each spatial axis; padding needs two for each",
        )
    return numbers + (least,) * (count - len(numbers))


@dataclass(frozen=True, slots=True)
class Layout:
    """The windows over all axes, the first two of which have windows of one element."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    in_dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    """Windows along each axis."""

    def holders(self, axis: int, size: int) -> list[tuple[Any, Any]]:
        """Which windows hold each of the `size` elements of an axis.

        Returns:
            As often as windows overlap: for each element, the number of a window, and whether it holds the element.
        """
        kernel, stride, dilation = self.kernel[axis], self.stride[axis], self.dilation[axis]
        places = self.pads[axis][0] + np.arange(size) * self.in_dilation[axis]
        found: list[tuple[Any, Any]] = []
        for back in range(-(-extent(kernel, dilation) // stride)):
            number, offset = places // stride - back, places % stride + back * stride
            holds = (offset < extent(kernel, dilation)) & (offset % dilation == 0)
            holds &= (number >= 0) & (number < self.counts[axis])
            if holds.any():
                found.append((np.where(holds, number, 0).astype(np.int32), holds))
        return found

    def elements(self, shape: tuple[int, ...]) -> Any:
        """How many elements of the tensor, and not of the padding, each window has; broadcasts to the result."""
        total: Any = np.ones((), np.float32)
        for axis, size in enumerate(shape):
            gap, first = self.in_dilation[axis], -self.pads[axis][0]
            starts = np.arange(self.counts[axis])[:, None] * self.stride[axis] + first
            places = starts + np.arange(self.kernel[axis]) * self.dilation[axis]
            inside = (places >= 0) & (places < extent(size, gap)) & (places % gap == 0)
            total = total[..., None] * inside.sum(axis=1, dtype=np.float32)
        return total


def lay_out(
    shape: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    in_dilations: tuple[int, ...],
    auto_pad: PadType,
    ceil_mode: bool,
) -> Layout:
    """Place the windows over a tensor of the given shape; the other arguments are an op's attributes.

    Raises:
        CoreError: (a `RuntimeError`) if no window fits along an axis.
    """
    n, batch = len(kernel_size), shape[:2]
    windows = [
        place_windows(
            extent(size, in_dilations[i]) if size else 0,
            kernel_size[i],
            stride=stride[i],
            before=padding[i],
            after=padding[n + i],
            dilation=dilation[i],
            pad_type=auto_pad,
            ceil_mode=ceil_mode,
        )
        for i, size in enumerate(shape[2:])
    ]
    return Layout(
        (1, 1, *kernel_size),
        (1, 1, *stride),
        (1, 1, *dilation),
        (1, 1, *in_dilations),
        ((0, 0), (0, 0), *((w.before, w.after) for w in windows)),
        (*batch, *(w.count for w in windows)),
    )
