"""Pooling (spec ``ops-nn.md`` §2)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Literal

import numpy as np

from popxl.errors import CoreError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import at_least_float32, jax, jnp, lax
from popxl.ops._pooling_windows import Layout, checked_arguments, lay_out
from popxl.ops._windows import PadType
from popxl.tensor import Tensor


def average_pool(
    t: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    padding: tuple[int, ...] | None = None,
    out_pads: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    in_dilations: tuple[int, ...] | None = None,
    auto_pad: PadType | None = "not_set",
    ceil_mode: bool = False,
) -> Tensor:
    """Average the elements of each window.

    Padding does not count: what is summed is divided by the number of elements of `t` in the window. The average
    of a window without any is 0. Float16 is summed and divided in float32.

    Args:
        t: Shape ``(samples, channels, *spatial)`` with at least one spatial axis; a float dtype.
        kernel_size: Elements of a window, one number for each spatial axis.
        stride: From one window to the next, for each spatial axis. Missing numbers are 1, **not** the kernel size.
        padding: Padding before each spatial axis, then padding after each. Missing numbers are 0.
        out_pads: Must be zeros.
        dilation: From one element of a window to the next, for each spatial axis. Missing numbers are 1.
        in_dilations: From one element of `t` to the next, with padding between them, for each spatial axis.
            Missing numbers are 1.
        auto_pad: ``"not_set"`` (or None) for `padding`; else `padding` does not count, and it is ``"valid"`` for
            none, ``"same_upper"`` or ``"same_lower"`` for as much as gives ``ceil(size / stride)`` windows.
        ceil_mode: Whether, with `padding`, a last window counts that goes beyond the padding, even one that
            starts in it.

    Returns:
        A tensor of shape ``(samples, channels, *windows)`` and the dtype of `t`.

    Raises:
        CoreError: (a `RuntimeError`) if `kernel_size` or another tuple does not fit `t` or has numbers that mean
            nothing, if no window fits, or if `out_pads` are not zero.
        PopxlKeyError: (a `KeyError`) if `auto_pad` is another string.

    Example:
        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     x = popxl.constant(np.ones((1, 3, 8, 8), np.float32))
        ...     ops.average_pool(x, kernel_size=(2, 2), stride=(2, 2)).shape
        (1, 3, 4, 4)
    """
    attributes = checked_arguments(kernel_size, stride, padding, out_pads, dilation, in_dilations, auto_pad, ceil_mode)
    return AVERAGE_POOL.emit({"t": t}, "average_pool_out", **attributes)[0]


def max_pool(
    t: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    padding: tuple[int, ...] | None = None,
    out_pads: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    in_dilations: tuple[int, ...] | None = None,
    auto_pad: PadType | None = "not_set",
    ceil_mode: bool = False,
    storage_order: Literal["row", "column"] = "row",
) -> Tensor:
    """Take the largest element of each window; NaN if there is one.

    Padding is minus infinity, which is the result of a window without elements of `t`. The gradient goes in full
    to each element that equals the result.

    Args:
        t: As for `average_pool`, like the arguments that follow.
        kernel_size: Elements of a window, one number for each spatial axis.
        stride: From one window to the next. Missing numbers are 1, **not** the kernel size.
        padding: Padding before each spatial axis, then padding after each.
        out_pads: Must be zeros.
        dilation: From one element of a window to the next.
        in_dilations: From one element of `t` to the next.
        auto_pad: How to pad.
        ceil_mode: Whether a last window counts that goes beyond the padding.
        storage_order: No effect; ``"column"`` is not supported.

    Returns:
        A tensor of shape ``(samples, channels, *windows)`` and the dtype of `t`.

    Raises:
        CoreError: (a `RuntimeError`) as for `average_pool`, and if `storage_order` is ``"column"``.
        PopxlKeyError: (a `KeyError`) if `auto_pad` is another string.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     x = popxl.constant([[[1.0, 2.0, 3.0, 4.0]]])
        ...     ops.max_pool(x, (2,), stride=(3,)).shape, ops.max_pool(x, (2,), stride=(3,), ceil_mode=True).shape
        ((1, 1, 1), (1, 1, 2))
    """
    if storage_order == "column":
        raise CoreError(
            "storage_order != 0, not supported: it is 'column'.", hint="leave storage_order out; it has no effect"
        )
    attributes = checked_arguments(kernel_size, stride, padding, out_pads, dilation, in_dilations, auto_pad, ceil_mode)
    return MAX_POOL.emit({"t": t}, "max_pool_out", **attributes)[0]


def _rule(t: ShapeDtype, kernel_size: tuple[int, ...], **how: Any) -> ShapeDtype:
    if not kernel_size or len(kernel_size) != len(t.shape) - 2:
        raise CoreError(
            f"invalid kernel_shape, not same rank as the spatial axes: kernel_size is {kernel_size} "
            f"and t has the shape {list(t.shape)}.",
            hint="axis 0 counts samples, axis 1 channels; kernel_size has one int for each axis after them",
        )
    return ShapeDtype(lay_out(t.shape, kernel_size, **how).counts, t.dtype)


def _reduce_windows(t: Any, layout: Layout, initial: Any, combine: Any) -> Any:
    return lax.reduce_window(
        t,
        np.array(initial, t.dtype),
        combine,
        layout.kernel,
        layout.stride,
        layout.pads,
        base_dilation=layout.in_dilation,
        window_dilation=layout.dilation,
    )


# Averages


def _average_pool(t: Any, **how: Any) -> Any:
    layout = lay_out(t.shape, **how)
    if not t.size or not prod(layout.counts):
        return jnp.zeros(layout.counts, t.dtype)
    total = _reduce_windows(at_least_float32(t), layout, 0, lax.add)
    # Where there is no element the sum is 0, and so must be the average.
    return (total / np.maximum(layout.elements(t.shape), 1).astype(total.dtype)).astype(t.dtype)


def _windows_oracle(t: Any, reduce: Callable[[Any], Any], kernel_size: Sequence[int], *given: Any, **named: Any) -> Any:
    """Reduce the elements of each window, found one by one."""
    names = ("stride", "padding", "out_pads", "dilation", "in_dilations", "auto_pad", "ceil_mode")
    how = {**dict(zip(names, given, strict=False)), **named}
    n, sizes = len(kernel_size), t.shape[2:]

    def filled(name: str, count: int, value: int) -> list[int]:
        numbers = list(how.get(name) or ())
        return numbers + [value] * (count - len(numbers))

    stride, dilation, gaps = (filled(name, n, 1) for name in ("stride", "dilation", "in_dilations"))
    pads, pad_type = filled("padding", 2 * n, 0), how.get("auto_pad") or "not_set"
    counts: list[int] = []
    firsts: list[int] = []
    for i in range(n):
        size, span = gaps[i] * (sizes[i] - 1) + 1, dilation[i] * (kernel_size[i] - 1) + 1
        if pad_type.startswith("same"):
            count = int(np.ceil(size / stride[i]))
            total = max(0, (count - 1) * stride[i] + span - size)
            first = -int(np.floor(total / 2) if pad_type == "same_upper" else np.ceil(total / 2))
        else:
            before, after = (0, 0) if pad_type == "valid" else (pads[i], pads[n + i])
            steps = (size + before + after - span) / stride[i]
            rounded = np.ceil(steps) if how.get("ceil_mode") and pad_type == "not_set" else np.floor(steps)
            count, first = int(rounded) + 1, -before
        counts.append(count)
        firsts.append(first)
    result = np.empty((*t.shape[:2], *counts))
    for window in np.ndindex(*counts):
        inside: list[tuple[int, ...]] = []
        for k in np.ndindex(*kernel_size):
            place = [firsts[i] + window[i] * stride[i] + k[i] * dilation[i] for i in range(n)]
            index = tuple(p // gap for p, gap in zip(place, gaps, strict=True))
            if all(p % gap == 0 and 0 <= j < size for p, j, gap, size in zip(place, index, gaps, sizes, strict=True)):
                inside.append(index)
        for sample_and_channel in np.ndindex(*t.shape[:2]):
            result[(*sample_and_channel, *window)] = reduce(np.array([t[(*sample_and_channel, *i)] for i in inside]))
    return result


def _average_oracle(t: Any, *args: Any, **kwargs: Any) -> Any:
    return _windows_oracle(t, lambda elements: elements.mean() if elements.size else 0.0, *args, **kwargs)


def _samples(*, of_nothing_finite: bool = True) -> Sequence[Sample]:
    line = np.array([[[1.5, -2.0, 0.5, 3.0, 0.25, -1.0, 0.75]]], np.float32)
    # All elements differ by more than the gradient test's step, so that each window has one largest.
    image = (np.random.default_rng(3).permutation(2 * 3 * 6 * 5).reshape(2, 3, 6, 5) / 16 - 5).astype(np.float32)
    cube = image.reshape(1, 3, 3, 5, 4)
    half, double = image.astype(np.float16), image.astype(np.float64)
    return (
        sample(line, (2,)),
        sample(line, (2,), (3,), ceil_mode=True),
        sample(line, (3,), stride=(2,), padding=(1, 1)),
        sample(line, (3,), stride=(4,), padding=(2,), auto_pad="same_lower"),
        sample(image, (2, 2), (2, 2)),
        sample(image, (3, 2), (2,), (1, 0, 1, 1)),
        # The last window of the ceil mode starts in the padding, and has no element.
        sample(line, (2,), (4,), (1, 2), ceil_mode=True, smooth=of_nothing_finite),
        sample(image, (3, 3), (2, 1), (2, 2, 2, 2), auto_pad="valid"),
        sample(image, (3, 4), (2, 3), auto_pad="same_upper"),
        sample(image, (4, 3), (3, 2), auto_pad="same_lower", ceil_mode=True),
        sample(image, (2, 3), dilation=(3, 2)),
        sample(image, (2, 2), dilation=(2, 3), auto_pad="same_upper"),
        sample(image, (2, 3), (1, 2), (1, 1, 0, 2), in_dilations=(2, 3)),
        sample(image, (6, 5), auto_pad=None),
        sample(cube, (2, 3, 2), (1, 2, 2), (0, 1, 0, 1, 1)),
        sample(half, (3, 3), padding=(1, 1, 1, 1), tolerance=1e-3),
        sample(half, (2, 2), (2, 2), tolerance=1e-3),
        # Sums of thousands of float16 lose everything unless they are accumulated in float32.
        sample(np.full((1, 1, 64, 64), 7.3, np.float16), (64, 64), tolerance=1e-3, smooth=False),
        sample(double, (3, 3), (2, 2), padding=(1, 1, 1, 1), tolerance=1e-15),
        sample(np.array([[[1.0, np.nan, 2.0, -np.inf, np.inf]]], np.float32), (2,)),
        sample(np.zeros((0, 2, 4), np.float32), (3,)),
        sample(np.zeros((2, 0, 4, 4), np.float32), (3, 2)),
        sample(np.zeros((2, 3, 0), np.float32), (2,), padding=(1, 2)),
    )


AVERAGE_POOL = define(
    "AveragePool",
    average_pool,
    lower=_average_pool,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_average_oracle,
    samples=_samples,
    differences=(
        "`dilation` and `in_dilations` work; `out_pads` other than 0 are an error at once; windows without elements "
        'have the average 0; `"same_*"` and `"valid"` count a dilated window with all that it spans; the gradient '
        "needs no forward tensor"
    ),
)

# Largest elements


def _max_pool(t: Any, **how: Any) -> Any:
    layout = lay_out(t.shape, **how)
    if not t.size or not prod(layout.counts):
        return jnp.full(layout.counts, -np.inf, t.dtype)
    return _reduce_windows(t, layout, -np.inf, lax.max)


def _max_pool_gradient(grads: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], **how: Any) -> list[Any]:
    (t,), (y,), g = inputs, outputs, at_least_float32(grads[0])
    layout = lay_out(t.shape, **how)
    total = jnp.zeros(t.shape, g.dtype)
    ways = list(itertools.product(*(layout.holders(axis, t.shape[axis]) for axis in range(2, t.ndim))))
    if not t.size or not y.size or not ways:
        return [total]

    def add_windows(total: Any, way: Any) -> tuple[Any, None]:
        """Add what each element gets from one of the windows that hold it."""
        largest, given, holds = y, g, True
        for axis, (numbers, holds_here) in enumerate(way, 2):
            largest, given = (jnp.take(a, numbers, axis=axis, mode="clip") for a in (largest, given))
            holds = holds & holds_here.reshape((-1,) + (1,) * (t.ndim - 1 - axis))
        return total + jnp.where(holds & (t == largest), given, 0), None

    return [lax.scan(add_windows, total, jax.tree.map(lambda *each: np.stack(each), *ways))[0]]


def _max_oracle(t: Any, *args: Any, **kwargs: Any) -> Any:
    return _windows_oracle(t, lambda elements: np.max(elements, initial=-np.inf), *args, **kwargs)


MAX_POOL = define(
    "MaxPool",
    max_pool,
    lower=_max_pool,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_max_oracle,
    samples=lambda: _samples(of_nothing_finite=False),
    gradient=Gradient(_max_pool_gradient),
    differences=(
        "`dilation` and `in_dilations` work; `out_pads` other than 0 are an error at once; windows without elements "
        'give minus infinity; `"same_*"` and `"valid"` count a dilated window with all that it spans'
    ),
)
