"""Convolution (spec ``ops-nn.md`` §1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError
from popxl.fp8_utils import host_pow2scale_cast_to_fp8
from popxl.op import Gradient, ShapeDtype
from popxl.ops._conv import (
    Ints,
    check_at_least,
    check_groups,
    check_images,
    check_same_dtype,
    checked_pad_type,
    convolve,
    eighths,
    hints,
    integers,
    operands,
    precision_of,
)
from popxl.ops._define import FLOAT8, FLOATS, Sample, define, sample
from popxl.ops._float8 import (
    check_float8_operands,
    check_log2_scale,
    check_no_float8_operands,
    check_scale_when_run,
    host_values,
    scaled,
    values,
)
from popxl.ops._jax import jnp, lax
from popxl.ops._windows import PadType, Windows, extent, place_windows
from popxl.ops.transposed_conv import conv_transpose, conv_transpose_pow2scaled
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

__all__ = ["PadType", "conv", "conv_pow2scaled", "conv_transpose", "conv_transpose_pow2scaled"]


def conv(
    t: Tensor,
    weight: Tensor,
    stride: tuple[int, ...] | None = (1, 1),
    padding: tuple[int, ...] | None = (0, 0, 0, 0),
    dilation: tuple[int, ...] | None = (1, 1),
    groups: int | None = 1,
    pad_type: PadType | None = "not_set",
    available_memory_proportions: list[float] | None = None,
    partials_types: list[str] | None = None,
    enable_conv_dithering: list[int] | None = None,
) -> Tensor:
    """Slide kernels over the spatial axes of `t` and sum the products with what they cover.

    Kernels are not flipped, and there is no bias. Padding is zeros. Float16 is accumulated in float32 and rounded
    once; products of float32 are computed in full float32 on every device.

    The defaults are those of two spatial axes: for one or three pass `stride`, `padding` and `dilation`, or ``()``.

    Args:
        t: Shape ``(samples, channels, *spatial)``, with one spatial axis or more; a float dtype.
        weight: Shape ``(out_channels, channels / groups, *kernel)``, the same dtype.
        stride: Elements from one window to the next, one number for each spatial axis; ``()`` or None for ones.
        padding: Elements of padding before each spatial axis, **then** after each; ``()`` or None for zeros. With
            a negative number that many elements of `t` do not count.
        dilation: From one element of a window to the next, one number for each spatial axis; ``()`` or None for
            ones.
        groups: In how many groups of neighbours the channels are: output channels see those of their group only.
        pad_type: ``"not_set"`` for `padding`; else `padding` does not count, and it is ``"valid"`` for none,
            ``"same_upper"`` or ``"same_lower"`` for as much as gives ``ceil(size / stride)`` windows, where an odd
            element is added at the end or at the start.
        available_memory_proportions: An IPU hint, kept on the op and without effect, as are the next two.
        partials_types: An IPU hint.
        enable_conv_dithering: An IPU hint.

    Returns:
        A tensor of shape ``(samples, out_channels, *windows)`` and the same dtype.

    Raises:
        PopxlValueError: (a `ValueError`) for another `pad_type`.
        CoreError: (a `RuntimeError`) if dtypes differ or are not supported, shapes or channels do not fit, a tuple
            has another length or numbers that mean nothing, or no window fits.

    Example:
        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     image = popxl.constant(np.ones((1, 3, 32, 32), np.float32))
        ...     kernels = popxl.constant(np.ones((8, 3, 5, 5), np.float32))
        ...     ops.conv(image, kernels, stride=(2, 2), padding=(2, 2, 2, 2))
        Tensor[conv_out popxl.dtypes.float32 (1, 8, 16, 16)]
    """
    check_in_graph(get_current_graph(), t=t, weight=weight)
    geometry = _geometry(t, stride, padding, dilation, groups, pad_type)
    check_no_float8_operands("Conv", "conv_pow2scaled", t=t, weight=weight)
    ipu_hints = hints(available_memory_proportions, partials_types, enable_conv_dithering)
    return CONV.emit({"t": t, "weight": weight}, "conv_out", **geometry, **ipu_hints)[0]


def conv_pow2scaled(
    t: Tensor,
    weight: Tensor,
    log2_scale: Tensor,
    stride: tuple[int, ...] | None = (1, 1),
    padding: tuple[int, ...] | None = (0, 0, 0, 0),
    dilation: tuple[int, ...] | None = (1, 1),
    groups: int | None = 1,
    pad_type: PadType | None = "not_set",
    available_memory_proportions: list[float] | None = None,
    enable_conv_dithering: list[int] | None = None,
) -> Tensor:
    """Convolve float8 tensors, as `conv` does, and multiply by ``2**log2_scale``.

    Products are accumulated in float32, scaled there, and rounded to float16 once.

    Args:
        t: Shape ``(samples, channels, *spatial)``; ``float8_143`` or ``float8_152``.
        weight: Shape ``(out_channels, channels / groups, *kernel)``; either float8 type.
        log2_scale: An int32 scalar in [-32, 32).
        stride: As for `conv`, like the rest.
        padding: Before each spatial axis, then after each.
        dilation: From one element of a window to the next.
        groups: Groups of channels.
        pad_type: Where the padding comes from.
        available_memory_proportions: An IPU hint, kept on the op and without effect.
        enable_conv_dithering: An IPU hint.

    Returns:
        A float16 tensor of shape ``(samples, out_channels, *windows)``.

    Raises:
        PopxlTypeError: (a `TypeError`) if an operand is not float8, or `log2_scale` is not int32.
        PopxlValueError: (a `ValueError`) if `log2_scale` is no scalar, or for another `pad_type`.
        CoreError: (a `RuntimeError`) as `conv`, and if a constant `log2_scale` is out of range. Any other
            `log2_scale` raises it when it is out of range in a run.
    """
    check_float8_operands("conv", t=t, weight=weight)
    check_log2_scale(log2_scale, "conv_pow2scaled")
    (out,) = CONV_POW2SCALED.emit(
        {"t": t, "weight": weight, "log2_scale": log2_scale},
        "conv_pow2scaled_out",
        **_geometry(t, stride, padding, dilation, groups, pad_type),
        kinds=(t.dtype, weight.dtype),
        **hints(available_memory_proportions, None, enable_conv_dithering),
    )
    check_scale_when_run(log2_scale, "conv_pow2scaled")
    return out


# Rules


def _geometry(
    t: Tensor,
    stride: Iterable[int] | None,
    padding: Iterable[int] | None,
    dilation: Iterable[int] | None,
    groups: int | None,
    pad_type: PadType | None,
) -> dict[str, Any]:
    """Where the windows are, as attributes of an op."""
    n = max(t.rank - 2, 0)
    return {
        "stride": integers("stride", stride) or (1,) * n,
        "padding": integers("padding", padding) or (0,) * (2 * n),
        "dilation": integers("dilation", dilation) or (1,) * n,
        "groups": 1 if groups is None else groups,
        "pad_type": checked_pad_type(pad_type),
    }


def _check(
    t: ShapeDtype, weight: ShapeDtype, stride: Ints, padding: Ints, dilation: Ints, groups: int, **_rest: Any
) -> None:
    n = check_images("Conv", t, weight)
    for name, argument, numbers, count in (
        ("stride", "stride", stride, n),
        ("pad", "padding", padding, 2 * n),
        ("dilation", "dilation", dilation, n),
    ):
        if len(numbers) != count:
            raise CoreError(
                f"Unexpected number of {name} parameters: `{argument}` of Conv is {list(numbers)}, but {n} spatial "
                f"axes need {count} numbers.",
                hint=f"pass {count} numbers; the default is for two spatial axes",
            )
    check_at_least("Conv", 1, stride=stride, dilation=dilation)
    check_groups("Conv", groups)
    channels, (out_channels, channels_of_group) = t.shape[1], weight.shape[:2]
    if channels != channels_of_group * groups or out_channels % groups:
        raise CoreError(
            f"Invalid value for group ({groups}): `t` {list(t.shape)} has {channels} channels, `weight` "
            f"{list(weight.shape)} takes {channels_of_group} in each group and gives {out_channels} in all.",
            hint="weight has the shape (out_channels, channels / groups, *kernel)",
        )


def _windows(
    spatial: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, pad_type: PadType, **_rest: Any
) -> list[Windows]:
    """The windows along each spatial axis."""
    n = len(spatial)
    return [
        place_windows(
            spatial[i],
            kernel[i],
            stride=stride[i],
            before=padding[i],
            after=padding[n + i],
            dilation=dilation[i],
            pad_type=pad_type,
        )
        for i in range(n)
    ]


def _rule(t: ShapeDtype, weight: ShapeDtype, **attributes: Any) -> ShapeDtype:
    check_same_dtype("Conv", t, weight)
    return ShapeDtype(_shape(t, weight, **attributes), t.dtype)


def _pow2scaled_rule(t: ShapeDtype, weight: ShapeDtype, log2_scale: ShapeDtype, **attributes: Any) -> ShapeDtype:
    return ShapeDtype(_shape(t, weight, **attributes), dtypes.float16)


def _shape(t: ShapeDtype, weight: ShapeDtype, **attributes: Any) -> tuple[int, ...]:
    _check(t, weight, **attributes)
    windows = _windows(t.shape[2:], weight.shape[2:], **attributes)
    return (t.shape[0], weight.shape[0], *(w.count for w in windows))


# Lowerings


def _unrounded(
    t: Any, weight: Any, precision: Any, stride: Ints, dilation: Ints, groups: int, **attributes: Any
) -> Any:
    spatial, kernel = t.shape[2:], weight.shape[2:]
    windows = _windows(spatial, kernel, stride, dilation=dilation, **attributes)
    if any(w.count == 0 for w in windows):
        return jnp.zeros((len(t), len(weight), *(w.count for w in windows)), t.dtype)
    # XLA computes convolutions wrongly on CPUs when it has to crop, in gradients too: there it crops what no window
    # sees, and padding that a window lies in as a whole.
    edges, paddings = [(0, 0, 0), (0, 0, 0)], list[tuple[int, int]]()
    for w, size, elements, step, gap in zip(windows, spatial, kernel, stride, dilation, strict=True):
        span = extent(elements, gap)
        seen = w.before, (w.count - 1) * step + span - size - w.before
        before, after = (min(max(p, 0), span - 1) for p in seen)
        paddings.append((before, after))
        edges.append((seen[0] - before, seen[1] - after, 0))
    return convolve(
        lax.pad(t, np.zeros((), t.dtype), edges) if any(map(any, edges)) else t,
        weight,
        paddings,
        precision,
        window_strides=stride,
        rhs_dilation=dilation,
        feature_group_count=groups,
    )


def _conv(t: Any, weight: Any, **attributes: Any) -> Any:
    return _unrounded(t, weight, precision_of(t.dtype), **attributes).astype(t.dtype)


def _conv_pow2scaled(
    t: Any, weight: Any, log2_scale: Any, kinds: tuple[dtypes.dtype, dtypes.dtype], **attributes: Any
) -> Any:
    # No precision: TF32 holds float8 exactly.
    unscaled = _unrounded(values(t, kinds[0]), values(weight, kinds[1]), None, **attributes)
    return scaled(unscaled, log2_scale).astype(jnp.float16)


# Oracles


def _oracle(
    t: Any,
    weight: Any,
    stride: Ints | None = (1, 1),
    padding: Ints | None = (0, 0, 0, 0),
    dilation: Ints | None = (1, 1),
    groups: int | None = 1,
    pad_type: str = "not_set",
    *_hints: object,
    **_more_hints: object,
) -> Any:
    """Multiply each kernel with each window, found one by one."""
    n: int = t.ndim - 2
    kernel: Ints = weight.shape[2:]
    steps, gaps = stride or (1,) * n, dilation or (1,) * n
    pads = (padding if pad_type == "not_set" and padding else None) or (0,) * (2 * n)
    counts: list[int] = []
    firsts: list[int] = []
    for i, size in enumerate(t.shape[2:]):
        beyond = gaps[i] * (kernel[i] - 1)
        if pad_type.startswith("same"):
            count = int(np.ceil(size / steps[i]))
            total = max(0, (count - 1) * steps[i] + beyond + 1 - size)
            first = int(np.floor(total / 2) if pad_type == "same_upper" else np.ceil(total / 2))
        else:
            first, last = pads[i], pads[n + i]
            count = len(range(-first, size + last - beyond, steps[i]))
        counts.append(count)
        firsts.append(-first)
    result = np.zeros((len(t), len(weight), *counts))
    outs, ins = len(weight) // (groups or 1), weight.shape[1]
    for m, window, k in product(range(len(weight)), np.ndindex(*counts), np.ndindex(*kernel)):
        place = tuple(firsts[i] + window[i] * steps[i] + k[i] * gaps[i] for i in range(n))
        if all(0 <= p < size for p, size in zip(place, t.shape[2:], strict=True)):
            group = m // outs
            seen = t[(slice(None), slice(group * ins, (group + 1) * ins), *place)]
            result[(slice(None), m, *window)] += seen @ weight[(m, slice(None), *k)]
    return result


def _pow2scaled_oracle(t: Any, weight: Any, log2_scale: Any, *args: Any, **kwargs: Any) -> Any:
    return np.ldexp(_oracle(host_values(t), host_values(weight), *args, **kwargs), int(log2_scale))


# Samples


def _samples() -> Sequence[Sample]:
    line = operands(np.float32, (2, 3, 7), (4, 3, 3))
    image = operands(np.float32, (2, 4, 5, 6), (6, 2, 3, 2))
    cube = operands(np.float32, (1, 2, 3, 4, 3), (2, 2, 2, 1, 3))
    half = operands(np.float16, (1, 2, 4, 4), (2, 2, 3, 3))
    # 4096 ones: float16 sums stick at 2048.
    ones = np.ones((1, 64, 8, 8), np.float16)
    return (
        sample(*half[:1], half[1], tolerance=1e-3),
        sample(ones, ones.copy(), tolerance=0, smooth=False),
        sample(*line, (), (), ()),
        sample(*line, (2,), (1, 2), (1,)),
        sample(*line, (3,), (0, 1), (2,)),
        # Less than nothing around it: the first element does not count.
        sample(*line, (1,), (-1, 1), (1,)),
        # Windows with nothing but padding, and elements that no window sees.
        sample(*line, (1,), (5, 4), (1,)),
        sample(*line, (5,), (0, 1), (1,)),
        sample(*line, (1,), (-2, 6), (2,)),
        sample(*line, (2,), (5, 5), (2,), pad_type="same_upper"),
        sample(*line, (2,), (5, 5), (2,), pad_type="valid"),
        # More from one window to the next than a window has.
        sample(line[0], line[1][:, :, :2].copy(), (3,), (), (), pad_type="same_lower"),
        sample(*image, groups=2),
        sample(*image, (2, 1), (0, 1, 2, 3), (2, 3), 2),
        sample(*image, (2, 3), groups=2, pad_type="same_upper"),
        sample(*image, (1, 2), dilation=(2, 1), groups=2, pad_type="same_lower"),
        # As many groups as channels.
        sample(image[0], eighths(8, 1, 2, 2).astype(np.float32), padding=(1, 1, 0, 0), groups=4),
        sample(*cube, (1, 2, 1), (1, 0, 1, 0, 1, 1), (1, 1, 1)),
        sample(*operands(np.float64, (1, 2, 4, 4), (2, 2, 3, 3)), None, None, None, None, tolerance=1e-15),
        sample(np.array([[[1.0, np.nan, 2.0, np.inf, -1.0]]], np.float32), np.ones((1, 1, 2), np.float32), (), (), ()),
        sample(np.zeros((0, 3, 7), np.float32), line[1], (1,), (1, 1), (1,)),
        sample(np.zeros((2, 0, 7), np.float32), np.zeros((4, 0, 3), np.float32), (1,), (1, 1), (1,)),
        sample(np.zeros((2, 3, 0), np.float32), line[1], (2,), (2, 2), (1,)),
        sample(np.zeros((2, 3, 0), np.float32), line[1], (2,), (), (1,), pad_type="same_upper"),
    )


CONV = define(
    "Conv",
    conv,
    lower=_conv,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_oracle,
    samples=_samples,
    differences="`None` means the default of one or zero for each axis; `valid` and `same_*` take the dilation into "
    "account, `valid` does not pad, and padding is never negative there; windows that do not fit, and channels that do "
    "not divide evenly, are an error when the op is made",
)


def _pow2scaled_samples() -> Sequence[Sample]:
    def codes(array: Any, kind: dtypes.dtype) -> Any:
        return host_pow2scale_cast_to_fp8(array, kind)

    image, kernels = eighths(2, 4, 5, 6), eighths(6, 2, 3, 2, seed=1)
    largest = codes(np.full((1, 1, 4), 57344.0), dtypes.float8_152)
    both = [(codes(image, a), codes(kernels, b)) for a in FLOAT8 for b in FLOAT8]
    nan = np.array([[[0x80, 0x40, 0x38]]], np.uint8).view(dtypes.float8_143.as_numpy())
    return (
        *(sample(*pair, np.int32(1), groups=2, tolerance=1e-3) for pair in both),
        sample(*both[1], np.int32(-4), (2, 1), (0, 1, 2, 3), (2, 3), 2, tolerance=1e-3),
        sample(*both[2], np.int32(0), (2, 2), groups=2, pad_type="same_lower", tolerance=1e-3),
        # The sum is 2**33.6: float16 has it only when it is scaled.
        sample(largest, largest, np.int32(-32), (), (), (), tolerance=1e-3),
        sample(largest, largest, np.int32(31), (), (), (), tolerance=0),
        sample(nan, codes(np.ones((1, 1, 1)), dtypes.float8_143), np.int32(0), (), (), (), tolerance=0),
    )


CONV_POW2SCALED = define(
    "ConvPow2Scaled",
    conv_pow2scaled,
    lower=_conv_pow2scaled,
    rule=_pow2scaled_rule,
    dtypes={"t": FLOAT8, "weight": FLOAT8, "log2_scale": (dtypes.int32,)},
    oracle=_pow2scaled_oracle,
    samples=_pow2scaled_samples,
    gradient=Gradient(refusal="Using a scaled convolution in a backwards pass is not supported."),
    differences="as `conv`; adds a CheckInRange op to the graph, unless log2_scale is a constant, which is checked "
    "when the op is made; the check cannot be turned off",
    reference_type="Conv",
)
