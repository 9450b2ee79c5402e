"""Where windows lie along an axis: sizes and paddings of convolution and pooling (spec ``ops-nn.md`` §1.1, §1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from popxl.errors import CoreError

PadType: TypeAlias = Literal["not_set", "same_upper", "same_lower", "valid"]
"""How an axis is padded.

``"not_set"``: as given. ``"valid"``: not at all. ``"same_upper"``, ``"same_lower"``: so that there are
``ceil(size / stride)`` windows; an odd element is added at the end or at the start.
"""

PAD_TYPES: tuple[PadType, ...] = ("not_set", "same_upper", "same_lower", "valid")


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows along one axis.

    Window i starts at element ``i * stride - before``; what lies outside the axis is padding.

    Attributes:
        count: Number of windows, which is the size of the result.
        before: Elements of padding before the axis.
        after: Elements of padding after it; with a stride, the last windows may leave some unused.
    """

    count: int
    before: int
    after: int


def extent(kernel: int, dilation: int = 1) -> int:
    """Return how many elements a window spans: a dilated one leaves ``dilation - 1`` out between any two."""
    return dilation * (kernel - 1) + 1


def place_windows(
    size: int,
    kernel: int,
    *,
    stride: int = 1,
    before: int = 0,
    after: int = 0,
    dilation: int = 1,
    pad_type: PadType = "not_set",
    ceil_mode: bool = False,
) -> Windows:
    """Place windows along one axis.

    With ``"valid"`` and ``"same_*"`` the paddings that are passed do not count, and a dilated window counts with
    all that it spans.

    Args:
        size: Elements of the axis.
        kernel: Elements that one window takes.
        stride: From one window to the next; at least 1.
        before: Padding before the axis, for ``"not_set"``.
        after: Padding after the axis, for ``"not_set"``.
        dilation: From one element of a window to the next; at least 1.
        pad_type: How to pad.
        ceil_mode: Whether, with ``"not_set"``, a last window that fits in part only counts; the padding after the
            axis grows to hold it.

    Returns:
        The number of windows, and the padding.

    Raises:
        CoreError: (a `RuntimeError`) if no window fits.

    Example:
        >>> place_windows(5, 2, stride=2)
        Windows(count=2, before=0, after=0)
        >>> place_windows(5, 2, stride=2, ceil_mode=True)
        Windows(count=3, before=0, after=1)
        >>> place_windows(5, 4, stride=2, pad_type="same_upper")
        Windows(count=3, before=1, after=2)
    """
    span = extent(kernel, dilation)
    if pad_type in ("same_upper", "same_lower"):
        count = -(-size // stride)
        total = max((count - 1) * stride + span - size, 0)
        less, more = total // 2, total - total // 2
        return Windows(count, less, more) if pad_type == "same_upper" else Windows(count, more, less)
    if pad_type == "valid":
        before = after = 0
    room = size + before + after - span
    steps = -(-room // stride) if ceil_mode and pad_type == "not_set" else room // stride
    # Rounding down, a window that misses by less than a stride leaves 0 windows; it does not fit either.
    if steps < 0:
        raise CoreError(
            f"A window that spans {span} does not fit into {size} elements with padding ({before}, {after}).",
            hint="make the kernel or the dilation smaller, or pad more",
        )
    return Windows(steps + 1, before, max(after, steps * stride + span - size - before) if ceil_mode else after)
