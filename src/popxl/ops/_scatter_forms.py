"""Which elements of a scatter correspond to which indices (spec ``ops-math.md`` §8.5-§8.6)."""

from __future__ import annotations

from dataclasses import dataclass

from popxl.errors import CoreError
from popxl.op import ShapeDtype
from popxl.ops._along import Shape, replaced
from popxl.ops.gathers import axis_in_group, check_groups
from popxl.ops.joining import checked_axis

AXIS_ERROR = "ScatterReduceOp::setup axis ="


def check_rank(indices: Shape, expected: int, of: str) -> None:
    """Check that `indices` have the rank of the tensor `of`, or raise a `CoreError`."""
    if len(indices) != expected:
        raise CoreError(
            f"Invalid rank for indices input. `indices` of shape {list(indices)} has rank {len(indices)}, "
            f"`{of}` has rank {expected}.",
            hint=f"reshape `indices` to the rank of `{of}`",
        )


def check_inside(indices: Shape, of: str, shape: Shape, but: int | None = None) -> None:
    """Check that `indices` are no longer than the tensor `of` along any axis `but` one, or raise a `CoreError`."""
    if any(n > m for d, (n, m) in enumerate(zip(indices, shape, strict=True)) if d != but):
        raise CoreError(
            f"Failed to expand 'indices' shape {list(indices)}: it does not fit into `{of}` of shape {list(shape)}.",
            hint=f"cut `indices` to the shape of `{of}`" + ("" if but is None else f", but for axis {but}"),
        )


def check_same_dtype(expected: ShapeDtype, **others: ShapeDtype) -> None:
    """Check that the named tensors have the dtype of the `expected` one, or raise a `CoreError`."""
    for name, other in others.items():
        if other.dtype != expected.dtype:
            raise CoreError(
                f"Scattering {expected.dtype.name} with {other.dtype.name} `{name}` would need a cast.",
                hint=f"cast `{name}` with popxl.ops.cast",
            )


@dataclass(frozen=True, slots=True)
class Form:
    """How the elements of `data` and the places of `indices` correspond.

    Attributes:
        axis: The axis, counted from the front.
        places: Shape of `indices` as places: a length of 1 off the axis may stand for whole slices.
        used: The first elements of `data` along each axis that are used.
        out: Shape of the result.
    """

    axis: int
    places: Shape
    used: Shape
    out: Shape

    @property
    def reached(self) -> Shape:
        """The first elements of the result along each axis, which `used` can go to."""
        return replaced(self.used, self.axis, self.out[self.axis])


def find_form(
    data: Shape,
    indices: Shape,
    initial: Shape | None,
    axis: int,
    axis_size: int | None,
    group_size: int,
    enable_index_broadcast: bool,
) -> Form:
    """Find the form of the indices, or raise a `CoreError`."""
    if group_size == 1:
        where = checked_axis(data, axis, AXIS_ERROR)
    else:
        where = axis_in_group(data, axis, AXIS_ERROR)
        check_groups(group_size, data=data, indices=indices)
        if initial is not None:
            check_groups(group_size, initial_values=initial)
    if enable_index_broadcast:
        places = _broadcast(data, indices, where, first=int(group_size > 1))
        used = data
    else:
        check_rank(indices, len(data), "data")
        check_inside(indices, "data", data)
        places = used = indices
    if initial is None:
        assert axis_size is not None
        if axis_size < 0:
            raise CoreError(f"axis_size is {axis_size}.", hint="it is the length of `axis` in the result: 0 or more")
        return Form(where, places, used, replaced(used, where, axis_size))
    _check_initial(initial, used, where, exact=places != used)
    return Form(where, places, used, initial)


def _broadcast(data: Shape, indices: Shape, axis: int, first: int) -> Shape:
    """The shape of `indices` as places, where they may be a vector; their axes before `first` are groups."""
    rank = len(data)
    if len(indices) > rank:
        check_rank(indices, rank, "data")
    before, own = indices[:first], indices[first:]
    if len(own) == 1:
        own = (1,) * (axis - first) + own
    places = before + own + (1,) * (rank - first - len(own))
    check_inside(places, "data", data)
    vector = all(n == 1 for d, n in enumerate(places) if d >= first and d != axis)
    if places != data and not (vector and places[axis] == data[axis]):
        raise CoreError(
            f"Partial broadcasting of indices is not currently supported. `indices` of shape {list(indices)} are "
            f"neither like `data`, whose shape is {list(data)}, nor a vector as long as its axis {axis}.",
            hint="give an index for each element or for each slice, or pass enable_index_broadcast=False",
        )
    return places


def _check_initial(initial: Shape, used: Shape, axis: int, exact: bool) -> None:
    fits = len(initial) == len(used) and all(
        n == m if exact else n >= m for d, (n, m) in enumerate(zip(initial, used, strict=True)) if d != axis
    )
    if not fits:
        raise CoreError(
            f"`initial_values` of shape {list(initial)} do not fit elements of shape {list(used)} along axis {axis}.",
            hint="only the length along `axis` may differ",
        )
