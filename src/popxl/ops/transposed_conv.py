"""Transposed convolution (spec ``ops-nn.md`` §1.4, §1.5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError
from popxl.fp8_utils import host_pow2scale_cast_to_fp8
from popxl.op import ShapeDtype
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
from popxl.ops._jax import jnp
from popxl.ops._windows import PadType
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


def conv_transpose(
    t: Tensor,
    weight: Tensor,
    stride: tuple[int, ...] | None = (1, 1),
    padding: tuple[int, ...] | None = (0, 0, 0, 0),
    dilation: tuple[int, ...] | None = (1, 1),
    groups: int | None = 1,
    pad_type: PadType | None = "not_set",
    output_padding: tuple[int, ...] | None = (),
    output_shape: tuple[int, ...] | None = (),
    available_memory_proportions: list[float] | None = None,
    partials_types: list[str] | None = None,
    enable_conv_dithering: list[int] | None = None,
) -> Tensor:
    """Add up kernels: each element of `t` times a kernel, `stride` apart. Then crop.

    That is the transpose of a convolution. Float16 is accumulated in float32 and rounded once; products of float32
    are computed in full float32 on every device. There is no gradient.

    Along an axis of n elements the sum has ``stride * (n - 1) + kernel`` elements. Tuples may be shorter or longer
    than needed: what is missing is the default, what is too much is left out.

    Args:
        t: Shape ``(samples, channels, *spatial)``, with one spatial axis or more; a float dtype.
        weight: Shape ``(channels, out_channels / groups, *kernel)``, the same dtype.
        stride: Elements from one kernel to the next, for each spatial axis.
        padding: How many elements to crop at the start of each spatial axis, **then** at the end of each.
        dilation: Must be ones.
        groups: In how many groups of neighbours the channels are.
        pad_type: No effect without `output_shape`. With it, ``"same_upper"`` crops an odd element at the start,
            ``"same_lower"`` and ``"not_set"`` at the end.
        output_padding: How many elements to crop less at the end of each spatial axis; zeros beyond the sum.
        output_shape: Sizes of the spatial axes of the result, or of all of its axes. `padding` does not count then.
        available_memory_proportions: An IPU hint, kept on the op and without effect, as are the next two.
        partials_types: An IPU hint.
        enable_conv_dithering: An IPU hint.

    Returns:
        A tensor of shape ``(samples, out_channels, *spatial)`` and the same dtype.

    Raises:
        PopxlValueError: (a `ValueError`) for another `pad_type`.
        CoreError: (a `RuntimeError`) if dtypes differ or are not supported, shapes or channels do not fit, a tuple
            has numbers that mean nothing, or nothing is left of an axis.

    Example:
        >>> import numpy as np
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     image = popxl.constant(np.ones((1, 8, 16, 16), np.float32))
        ...     kernels = popxl.constant(np.ones((8, 3, 2, 2), np.float32))
        ...     ops.conv_transpose(image, kernels, stride=(2, 2))
        Tensor[conv_transpose_out popxl.dtypes.float32 (1, 3, 32, 32)]
    """
    check_in_graph(get_current_graph(), t=t, weight=weight)
    geometry = _geometry(t, stride, padding, dilation, groups, pad_type, output_padding, output_shape)
    check_no_float8_operands("ConvTranspose", "conv_transpose_pow2scaled", t=t, weight=weight)
    ipu_hints = hints(available_memory_proportions, partials_types, enable_conv_dithering)
    return CONV_TRANSPOSE.emit({"t": t, "weight": weight}, "conv_transpose_out", **geometry, **ipu_hints)[0]


def conv_transpose_pow2scaled(
    t: Tensor,
    weight: Tensor,
    log2_scale: Tensor,
    stride: tuple[int, ...] | None = (1, 1),
    padding: tuple[int, ...] | None = (0, 0, 0, 0),
    dilation: tuple[int, ...] | None = (1, 1),
    groups: int | None = 1,
    pad_type: PadType | None = "not_set",
    output_padding: tuple[int, ...] | None = (),
    output_shape: tuple[int, ...] | None = (),
    available_memory_proportions: list[float] | None = None,
    enable_conv_dithering: list[int] | None = None,
) -> Tensor:
    """Convolve float8 tensors, transposed, as `conv_transpose` does, and multiply by ``2**log2_scale``.

    Products are accumulated in float32, scaled there, and rounded to float16 once. There is no gradient.

    Args:
        t: Shape ``(samples, channels, *spatial)``; ``float8_143`` or ``float8_152``.
        weight: Shape ``(channels, out_channels / groups, *kernel)``; either float8 type.
        log2_scale: An int32 scalar in [-32, 32).
        stride: As for `conv_transpose`, like the rest.
        padding: How many elements to crop at the start of each spatial axis, then at the end of each.
        dilation: Must be ones.
        groups: Groups of channels.
        pad_type: Where an odd element is cropped.
        output_padding: How many elements to crop less at the end of each spatial axis.
        output_shape: Sizes of the result.
        available_memory_proportions: An IPU hint, kept on the op and without effect.
        enable_conv_dithering: An IPU hint.

    Returns:
        A float16 tensor of shape ``(samples, out_channels, *spatial)``.

    Raises:
        PopxlTypeError: (a `TypeError`) if an operand is not float8, or `log2_scale` is not int32.
        PopxlValueError: (a `ValueError`) if `log2_scale` is no scalar, or for another `pad_type`.
        CoreError: (a `RuntimeError`) as `conv_transpose`, and if a constant `log2_scale` is out of range. Any other
            `log2_scale` raises it when it is out of range in a run.
    """
    check_float8_operands("conv", t=t, weight=weight)
    check_log2_scale(log2_scale, "conv_transpose_pow2scaled")
    (out,) = CONV_TRANSPOSE_POW2SCALED.emit(
        {"t": t, "weight": weight, "log2_scale": log2_scale},
        "conv_transpose_pow2scaled_out",
        **_geometry(t, stride, padding, dilation, groups, pad_type, output_padding, output_shape),
        kinds=(t.dtype, weight.dtype),
        **hints(available_memory_proportions, None, enable_conv_dithering),
    )
    check_scale_when_run(log2_scale, "conv_transpose_pow2scaled")
    return out


# Rules


def _geometry(
    t: Tensor,
    stride: Iterable[int] | None,
    padding: Iterable[int] | None,
    dilation: Iterable[int] | None,
    groups: int | None,
    pad_type: PadType | None,
    output_padding: Iterable[int] | None,
    output_shape: Iterable[int] | None,
) -> dict[str, Any]:
    """Where kernels are added and what is cropped, as attributes of an op."""
    n = max(t.rank - 2, 0)
    gaps = integers("dilation", dilation)
    if any(d != 1 for d in gaps):
        raise CoreError(
            f"Non default value for dilations is not supported. `dilation` of ConvTranspose is {list(gaps)}.",
            hint="put zeros between the elements of weight instead",
        )
    return {
        "stride": _fitted(integers("stride", stride), n, 1),
        "padding": _fitted(integers("padding", padding), 2 * n, 0),
        "dilation": (1,) * n,
        "groups": 1 if groups is None else groups,
        "pad_type": checked_pad_type(pad_type),
        "output_padding": _fitted(integers("output_padding", output_padding), n, 0),
        "output_shape": integers("output_shape", output_shape),
    }


def _fitted(numbers: Ints, count: int, missing: int) -> Ints:
    return (numbers + (missing,) * count)[:count]


def _check(t: ShapeDtype, weight: ShapeDtype, stride: Ints, groups: int, output_padding: Ints, **_rest: Any) -> None:
    check_images("ConvTranspose", t, weight)
    check_at_least("ConvTranspose", 1, stride=stride)
    check_at_least("ConvTranspose", 0, output_padding=output_padding)
    check_groups("ConvTranspose", groups)
    shapes = f"`t` {list(t.shape)} and `weight` {list(weight.shape)}"
    if t.shape[1] != weight.shape[0]:
        raise CoreError(
            f"Unexpected number of channels in the input tensor: {t.shape[1]}, but {weight.shape[0]} in the weight: "
            f"{shapes} of ConvTranspose.",
            hint="weight has the shape (channels, out_channels / groups, *kernel)",
        )
    if t.shape[1] % groups:
        raise CoreError(
            f"Invalid value for group ({groups}): it does not divide the {t.shape[1]} channels of {shapes} of "
            "ConvTranspose.",
            hint="groups must be a divisor of t.shape[1]",
        )
    if 0 in t.shape[2:]:
        raise CoreError(
            f"ConvTranspose needs elements on each spatial axis, not {shapes}.", hint="no spatial axis may be 0"
        )


def _crops(
    spatial: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    pad_type: PadType,
    output_padding: Ints,
    output_shape: Ints,
    **_rest: Any,
) -> list[tuple[int, int]]:
    """How much to crop at the start and the end of each spatial axis; negative to extend."""
    n = len(spatial)
    if not output_shape:
        return [(padding[i], padding[n + i] - output_padding[i]) for i in range(n)]
    if pad_type == "valid":
        raise CoreError(
            f"`VALID` type for auto_pad is not supported together with output_shape, which is {list(output_shape)}.",
            hint='use pad_type="not_set", "same_upper" or "same_lower"',
        )
    crops: list[tuple[int, int]] = []
    for i, wanted in enumerate(output_shape[-n:]):
        total = stride[i] * (spatial[i] - 1) + kernel[i] - wanted
        with_end = total + output_padding[i]
        start = -(-with_end // 2) if pad_type == "same_upper" else with_end // 2
        crops.append((start, total - start))
    return crops


def _rule(t: ShapeDtype, weight: ShapeDtype, **attributes: Any) -> ShapeDtype:
    check_same_dtype("ConvTranspose", t, weight)
    return ShapeDtype(_shape(t, weight, **attributes), t.dtype)


def _pow2scaled_rule(t: ShapeDtype, weight: ShapeDtype, log2_scale: ShapeDtype, **attributes: Any) -> ShapeDtype:
    return ShapeDtype(_shape(t, weight, **attributes), dtypes.float16)


def _shape(t: ShapeDtype, weight: ShapeDtype, stride: Ints, groups: int, output_shape: Ints, **attributes: Any) -> Ints:
    _check(t, weight, stride, groups, **attributes)
    spatial, kernel = t.shape[2:], weight.shape[2:]
    outer = t.shape[0], weight.shape[1] * groups
    n = len(spatial)
    if len(output_shape) not in (0, n, n + 2) or (len(output_shape) == n + 2 and output_shape[:2] != outer):
        raise CoreError(
            f"`output_shape` of ConvTranspose is {list(output_shape)}, which does not fit `t` {list(t.shape)} and "
            f"`weight` {list(weight.shape)}.",
            hint=f"give the sizes of the {n} spatial axes, or ({outer[0]}, {outer[1]}) and these",
        )
    crops = _crops(spatial, kernel, stride, output_shape=output_shape, **attributes)
    sizes = tuple(stride[i] * (spatial[i] - 1) + kernel[i] - start - end for i, (start, end) in enumerate(crops))
    if any(size < 1 for size in sizes):
        raise CoreError(
            f"ConvTranspose of `t` {list(t.shape)} and `weight` {list(weight.shape)} would have spatial axes of "
            f"{list(sizes)}.",
            hint="make `padding` smaller",
        )
    return (*outer, *sizes)


# Lowerings


def _unrounded(t: Any, weight: Any, precision: Any, stride: Ints, groups: int, **attributes: Any) -> Any:
    kernel = weight.shape[2:]
    paddings = [
        (kernel[i] - 1 - start, kernel[i] - 1 - end)
        for i, (start, end) in enumerate(_crops(t.shape[2:], kernel, stride, **attributes))
    ]
    # A convolution of `t` with zeros between its elements: with the kernels turned round, and with their two axes
    # of channels swapped inside each group.
    grouped = weight.reshape(groups, t.shape[1] // groups, *weight.shape[1:])
    turned = jnp.flip(jnp.swapaxes(grouped, 1, 2), tuple(range(3, grouped.ndim)))
    result = convolve(
        t,
        turned.reshape(groups * weight.shape[1], t.shape[1] // groups, *kernel),
        [(max(before, 0), max(after, 0)) for before, after in paddings],
        precision,
        window_strides=(1,) * len(kernel),
        lhs_dilation=stride,
        feature_group_count=groups,
    )
    # XLA computes convolutions wrongly on CPUs when it has to crop.
    sizes: tuple[int, ...] = result.shape[2:]
    kept = (slice(max(-before, 0), size + min(after, 0)) for (before, after), size in zip(paddings, sizes, strict=True))
    return result[(..., *kept)]


def _conv_transpose(t: Any, weight: Any, **attributes: Any) -> Any:
    return _unrounded(t, weight, precision_of(t.dtype), **attributes).astype(t.dtype)


def _conv_transpose_pow2scaled(
    t: Any, weight: Any, log2_scale: Any, kinds: tuple[dtypes.dtype, dtypes.dtype], **attributes: Any
) -> Any:
    # No precision: TF32 holds float8 exactly.
    unscaled = _unrounded(values(t, kinds[0]), values(weight, kinds[1]), None, **attributes)
    return scaled(unscaled, log2_scale).astype(jnp.float16)


# Oracles


def _oracle(
    t: Any,
    weight: Any,
    stride: Ints = (),
    padding: Ints = (),
    dilation: Ints = (),
    groups: int = 1,
    pad_type: str = "not_set",
    output_padding: Ints = (),
    output_shape: Ints = (),
    **_hints: object,
) -> Any:
    """Add the kernels one by one, far from the edges of an array of zeros, and cut out the result."""
    n, far = t.ndim - 2, 40
    steps = [*(stride or ()), *[1] * n][:n]
    crops = [*(padding or ()), *[0] * 2 * n][: 2 * n]
    extra = [*(output_padding or ()), *[0] * n][:n]
    full = [steps[i] * (t.shape[2 + i] - 1) + weight.shape[2 + i] for i in range(n)]
    total = np.zeros((len(t), weight.shape[1] * groups, *(size + 2 * far for size in full)))
    outs, ins = weight.shape[1], t.shape[1] // groups
    for place in np.ndindex(*t.shape[2:]):
        spots = [slice(far + p * s, far + p * s + k) for p, s, k in zip(place, steps, weight.shape[2:], strict=True)]
        for c in range(t.shape[1]):
            out = slice(c // ins * outs, (c // ins + 1) * outs)
            given = t[(slice(None), c, *place)].reshape(-1, *[1] * (n + 1))
            total[(slice(None), out, *spots)] += given * weight[c]
    wanted = list(output_shape or ())[-n:]
    cut: list[slice] = []
    for i in range(n):
        if wanted:
            half = (full[i] + extra[i] - wanted[i]) / 2
            start = far + int(np.ceil(half) if pad_type == "same_upper" else np.floor(half))
            cut.append(slice(start, start + wanted[i]))
        else:
            cut.append(slice(far + crops[i], far + full[i] + extra[i] - crops[n + i]))
    return total[(slice(None), slice(None), *cut)]


def _pow2scaled_oracle(t: Any, weight: Any, log2_scale: Any, *args: Any, **kwargs: Any) -> Any:
    return np.ldexp(_oracle(host_values(t), host_values(weight), *args, **kwargs), int(log2_scale))


# Samples


def _samples() -> Sequence[Sample]:
    line = operands(np.float32, (2, 3, 4), (3, 2, 3))
    image = operands(np.float32, (2, 4, 3, 2), (4, 3, 2, 3))
    cube = operands(np.float32, (1, 2, 2, 3, 2), (2, 1, 2, 1, 3))
    # 4096 ones: float16 sums stick at 2048.
    ones = np.ones((1, 4096, 2), np.float16)
    both: dict[str, Any] = {"output_padding": (1,), "output_shape": (10,)}
    return (
        sample(*operands(np.float16, (1, 2, 3, 3), (2, 2, 2, 2)), tolerance=1e-3),
        sample(ones, np.ones((4096, 1, 1), np.float16), tolerance=0),
        sample(*line),
        sample(*line, (2,), (1, 2)),
        sample(*line, (4,), output_padding=(3,)),
        # More is cropped than a kernel has.
        sample(*line, (2,), (4, 3), pad_type="valid"),
        sample(*line, (1,), (3, 0)),
        sample(*line, (2,), (-1, -2)),
        *(sample(*line, (3,), output_shape=(9,), pad_type=p) for p in ("not_set", "same_upper", "same_lower")),
        sample(*line, (3,), (5, 5), pad_type="same_upper", **both),
        sample(*line, (3,), output_shape=(2, 2, 15), pad_type="same_upper"),
        sample(*image, (2, 1), (0, 1, 1, 0), groups=2),
        sample(*image, (3, 2), groups=4, output_padding=(1, 1)),
        sample(*image, (1, 2), output_shape=(3, 4), pad_type="same_lower"),
        sample(*cube, (1, 2, 3), (0, 0, 1, 1), output_padding=(0, 1), pad_type="same_upper"),
        sample(*operands(np.float64, (1, 2, 3, 3), (2, 2, 2, 2)), None, None, None, tolerance=1e-15),
        sample(np.zeros((0, 3, 4), np.float32), line[1]),
        sample(np.zeros((2, 0, 4), np.float32), np.zeros((0, 2, 3), np.float32)),
    )


CONV_TRANSPOSE = define(
    "ConvTranspose",
    conv_transpose,
    lower=_conv_transpose,
    rule=_rule,
    dtypes=FLOATS,
    oracle=_oracle,
    samples=_samples,
    gradient=None,
    differences="`output_shape` works for any number of spatial axes, with `output_padding`, and with all axes given; "
    "it stays one op",
)


def _pow2scaled_samples() -> Sequence[Sample]:
    def codes(array: Any, kind: dtypes.dtype) -> Any:
        return host_pow2scale_cast_to_fp8(array, kind)

    image, kernels = eighths(2, 4, 3, 2), eighths(4, 3, 2, 3, seed=1)
    largest = codes(np.full((1, 1, 4), 57344.0), dtypes.float8_152)
    both = [(codes(image, a), codes(kernels, b)) for a in FLOAT8 for b in FLOAT8]
    return (
        *(sample(*pair, np.int32(1), (2, 1), groups=2, tolerance=1e-3) for pair in both),
        sample(*both[1], np.int32(-4), (2, 1), (0, 1, 1, 0), output_padding=(1, 0), tolerance=1e-3),
        sample(*both[2], np.int32(0), (2, 2), pad_type="same_upper", output_shape=(5, 4), tolerance=1e-3),
        # The sums are up to 2**33.6: float16 has them only when they are scaled.
        sample(largest, largest, np.int32(-32), tolerance=1e-3),
        sample(largest, largest, np.int32(31), tolerance=0),
    )


CONV_TRANSPOSE_POW2SCALED = define(
    "ConvTransposePow2Scaled",
    conv_transpose_pow2scaled,
    lower=_conv_transpose_pow2scaled,
    rule=_pow2scaled_rule,
    dtypes={"t": FLOAT8, "weight": FLOAT8, "log2_scale": (dtypes.int32,)},
    oracle=_pow2scaled_oracle,
    samples=_pow2scaled_samples,
    gradient=None,
    differences="as `conv_transpose`; adds a CheckInRange op to the graph, unless log2_scale is a constant, which is "
    "checked when the op is made; the check cannot be turned off",
    reference_type="ConvTranspose",
)
