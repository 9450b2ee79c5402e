"""Reducing elements at places that are known when the program runs (spec ``ops-math.md`` §8.6)."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from popxl.errors import CoreError, PopxlValueError
from popxl.op import Gradient, ShapeDtype
from popxl.ops import _along
from popxl.ops._along import as_places, corner, padded, with_corner
from popxl.ops._define import INTS, NUMBERS, Sample, define, sample
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops._scatter_forms import Form, check_same_dtype, find_form
from popxl.ops.shape import grid
from popxl.ops.utils import checked_memory_hint
from popxl.tensor import Tensor

ScatterReductionType: TypeAlias = Literal["sum", "min", "max", "none"]
"""How elements that go to one place become one."""

_REDUCTIONS = get_args(ScatterReductionType)


def _scatter_reduce_rule(
    data: ShapeDtype, indices: ShapeDtype, *initial: ShapeDtype, reduction: str, **how: Any
) -> ShapeDtype:
    how.pop("available_memory_proportion")
    form = find_form(data.shape, indices.shape, initial[0].shape if initial else None, **how)
    if reduction != "none" and data.dtype not in NUMBERS:
        raise CoreError(
            f"Unsupported dtype {data.dtype.name} of `data` for the {reduction} of a ScatterReduce.",
            hint="cast it first, or use the reduction 'none'",
        )
    if initial:
        check_same_dtype(data, initial_values=initial[0])
    return ShapeDtype(form.out, data.dtype)


def scatter_reduce(
    data: Tensor,
    indices: Tensor,
    reduction: ScatterReductionType,
    initial_values: Tensor | None = None,
    axis: int = 0,
    axis_size: int | None = None,
    enable_index_broadcast: int = True,
    available_memory_proportion: float | None = None,
) -> Tensor:
    """Reduce the elements of `data` that go to the same place along an axis.

    Element p of `data` goes to p with its index as the entry for `axis`; elements outside are dropped. The
    indices may be

    - of the shape of `data`: one for each element;
    - a vector as long as `axis`, or one with the rank of `data` and a length of 1 along the other axes: one for
      each slice. Not if `enable_index_broadcast` is false;
    - of the rank of `data` and smaller, if `enable_index_broadcast` is false: one for each of its first elements
      along each axis. The others are not used.

    Args:
        data: Any shape but a scalar, any number dtype; any dtype with ``"none"``. Float16 is summed in float32.
        indices: Integers.
        reduction: ``"sum"``, ``"min"``, ``"max"``, or ``"none"``: the last element wins.
        initial_values: Dtype of `data`. They take part in the reduction, or are overwritten by ``"none"``.
            Without them, places that receive nothing are 0.
        axis: The axis, which may count from the end.
        axis_size: Length of `axis` in the result; needed without `initial_values`, and not used with them.
        enable_index_broadcast: Whether the indices may be a vector.
        available_memory_proportion: A number or None; a hint without effect.

    Returns:
        Shape of `initial_values`, or that of `data` (of the elements used) with `axis_size` along `axis`; dtype
        of `data`. Where elements are equal, each has the whole gradient of their minimum or maximum, and with
        ``"none"`` each element written has that of its place.

    Raises:
        PopxlValueError: (a `ValueError`) without `initial_values` and `axis_size`, or for another reduction.
        PopxlTypeError: (a `TypeError`) if `available_memory_proportion` is no number.
        CoreError: (a `RuntimeError`) if there is no such axis, shapes or dtypes do not fit, or `indices` are
            no integers.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.scatter_reduce(popxl.constant([-1, -2, -3]), popxl.constant([2, 0, 2]), "sum", axis_size=4).shape
        (4,)
    """
    return grouped_scatter_reduce(
        data,
        indices,
        reduction,
        initial_values,
        axis,
        axis_size,
        1,
        bool(enable_index_broadcast),
        available_memory_proportion,
    )


def grouped_scatter_reduce(
    data: Tensor,
    indices: Tensor,
    reduction: ScatterReductionType,
    initial_values: Tensor | None = None,
    axis: int = 0,
    axis_size: int | None = None,
    group_size: int = 1,
    enable_index_broadcast: bool = True,
    available_memory_proportion: float | None = None,
) -> Tensor:
    """Do one `scatter_reduce` for each group; axis 0 of the tensors is the groups.

    Args:
        data: As for `scatter_reduce`, of each group.
        indices: As for `scatter_reduce`, of each group.
        reduction: As for `scatter_reduce`.
        initial_values: As for `scatter_reduce`, of each group.
        axis: As for `scatter_reduce`, but not 0.
        axis_size: As for `scatter_reduce`.
        group_size: Number of groups. With 1, this is `scatter_reduce`, and there is no axis of groups.
        enable_index_broadcast: As for `scatter_reduce`.
        available_memory_proportion: As for `scatter_reduce`.

    Returns:
        The results of all groups.

    Raises:
        PopxlValueError: (a `ValueError`) as for `scatter_reduce`.
        PopxlTypeError: (a `TypeError`) as for `scatter_reduce`.
        CoreError: (a `RuntimeError`) as for `scatter_reduce`, and if `axis` is that of the groups or one that
            is not `group_size` long.
    """
    if initial_values is None and axis_size is None:
        raise PopxlValueError(
            "One of initial_values and axis_size must be specified.",
            hint="pass the length of `axis` in the result as axis_size=",
        )
    if reduction not in _REDUCTIONS:
        raise PopxlValueError(
            f"The reduction must be one of {list(_REDUCTIONS)}. Provided {reduction!r}.",
            hint="'none' keeps the last of the elements for one place",
        )
    tensors = {"data": data, "indices": indices}
    if initial_values is not None:
        tensors["initial_values"] = initial_values
    declaration = SCATTER_REDUCE if group_size == 1 else GROUPED_SCATTER_REDUCE
    return declaration.emit(
        tensors,
        "scatterreduce_out",
        reduction=reduction,
        axis=axis,
        axis_size=None if initial_values is not None or axis_size is None else operator.index(axis_size),
        group_size=operator.index(group_size),
        enable_index_broadcast=bool(enable_index_broadcast),
        available_memory_proportion=checked_memory_hint(available_memory_proportion),
    )[0]


def _placed(inputs: Sequence[Any], how: Any) -> tuple[Form, Any]:
    """The form of the inputs, and their places."""
    data, indices, *initial = inputs
    how.pop("available_memory_proportion")
    form = find_form(data.shape, indices.shape, initial[0].shape if initial else None, **how)
    return form, as_places(indices, form.places, form.out[form.axis])


def _neutral(dtype: Any, reduction: str) -> Any:
    """What changes no reduction."""
    if reduction in ("sum", "none"):
        return 0
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf if reduction == "max" else np.inf
    limits = jnp.iinfo(dtype)
    return limits.min if reduction == "max" else limits.max


def _lower_scatter_reduce(data: Any, indices: Any, *initial: Any, reduction: str, **how: Any) -> Any:
    form, places = _placed((data, indices, *initial), how)
    axis, values = form.axis, corner(data, form.used)
    start = initial[0] if initial else jnp.full(form.out, _neutral(data.dtype, reduction), data.dtype)
    reached = corner(start, form.reached)
    if reduction == "none":
        new = _along.put(reached, places, values, axis)
    elif reduction == "sum":
        new = _along.add(at_least_float32(reached), places, at_least_float32(values), axis).astype(data.dtype)
    else:
        new = (_along.maximum if reduction == "max" else _along.minimum)(reached, places, values, axis)
        if not initial:
            new = jnp.where(_along.last_writer(places, axis, form.out[axis]) < 0, jnp.zeros((), data.dtype), new)
    return with_corner(start, new)


def _scatter_reduce_gradient(
    grads: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], reduction: str, **how: Any
) -> Sequence[Any]:
    form, places = _placed(inputs, how)
    (g,), data, initial = grads, inputs[0], inputs[2:]
    reached = corner(g, form.reached)
    of_data = _along.take(reached, places, form.axis)
    of_initial = g
    if reduction == "none":
        written = _along.last_writer(places, form.axis, form.out[form.axis]) >= 0
        of_initial = with_corner(g, jnp.where(written, 0, reached))
    elif reduction != "sum":
        chosen = _along.take(corner(outputs[0], form.reached), places, form.axis)
        of_data = jnp.where(corner(data, form.used) == chosen, of_data, 0)
        of_initial = jnp.where(initial[0] == outputs[0], g, 0) if initial else None
    return [padded(of_data, data.shape), None, of_initial]


def _steps(data: Any, indices: Any, axis: int, whole: bool) -> Iterator[tuple[Any, Any, int]]:
    """Positions in `data`, positions in the result, and their index."""
    if whole:
        rest = (np.s_[:],) * (axis % data.ndim)
        for i, index in enumerate(indices.ravel().tolist()):
            yield (*rest, i), (*rest, index), index
    else:
        for place in np.ndindex(*indices.shape):
            target = list(place)
            target[axis] = int(indices[place])
            yield place, tuple(target), target[axis]


def _scatter_reduce_oracle(
    data: Any,
    indices: Any,
    reduction: str,
    initial_values: Any = None,
    axis: int = 0,
    axis_size: Any = None,
    enable_index_broadcast: Any = True,
    *_hints: Any,
) -> Any:
    whole = bool(enable_index_broadcast) and indices.shape != data.shape
    if initial_values is None:
        shape = list(data.shape if whole else indices.shape)
        shape[axis] = axis_size
        result, fresh = np.zeros(shape, data.dtype), np.ones(shape, bool)
    else:
        result, fresh = initial_values.copy(), np.zeros(initial_values.shape, bool)
    combine: Any = {"sum": np.add, "min": np.minimum, "max": np.maximum}.get(reduction)
    for source, target, index in _steps(data, indices, axis, whole):
        if 0 <= index < result.shape[axis]:
            reduced = combine(result[target], data[source]) if combine else data[source]
            result[target] = np.where(fresh[target], data[source], reduced)
            fresh[target] = False
    return result


def _scatter_reduce_samples() -> Sequence[Sample]:
    i, f = np.int32, np.float32
    x = np.array([[1.5, -2.0, 0.25], [3.0, -0.5, -1.0], [-4.0, 2.5, 0.75], [0.5, 1.25, -3.0]], f)
    vector = np.array([2, 0, 2, 4], i)
    full = np.array([[0, 1, 2], [0, 1, 1], [1, -1, 5], [0, 2, 2]], i)
    initial = np.array([[0.1, 9.0, -9.0], [-9.0, 0.2, 0.3], [9.0, 0.4, -9.0]], f)
    exact = [sample(x, vector, r, axis_size=5, tolerance=0) for r in ("sum", "max", "min")]
    started = [sample(x, full, r, initial) for r in ("sum", "max", "min")]
    small = np.array([[1, 0], [1, 1]], np.uint32)
    return (
        *exact,
        *started,
        sample(np.array([-1, -2, -3], i), np.array([2, 0, 2], i), "max", axis_size=4, tolerance=0),
        sample(np.array([100, 100, -3], np.int8), np.array([2, 2, 0], i), "sum", axis_size=3, tolerance=0),
        sample(np.array([7, 2**31], np.uint32), np.array([1, 1], i), "min", axis_size=2, tolerance=0),
        sample(x, np.array([0, 3, 2, 1], i), "none", axis_size=5, tolerance=0),
        sample(x, np.array([[2, 0, 1]], i), "none", initial.T.repeat(2, 0)[:4], axis=1, tolerance=0),
        sample(x, np.array([1, 1, 0, 1], i), "none", axis_size=2, tolerance=0, smooth=False),
        sample(x, small, "sum", None, 1, 3, enable_index_broadcast=False, tolerance=0),
        sample(x, small, "max", initial, -1, None, False),
        sample(x[:1], np.array([3], i), "sum", axis_size=4, tolerance=0),
        sample(np.ones((3000, 1), np.float16), np.zeros(3000, i), "sum", axis_size=2, tolerance=0),
        sample(np.array([np.nan, 1.0, -np.inf], f), np.array([0, 0, 1], i), "max", axis_size=3, tolerance=0),
        sample(np.array([True, False]), np.array([0, 0], i), "none", axis_size=2, tolerance=0),
        sample(np.zeros((0, 2), f), np.zeros((0,), i), "min", axis_size=2, tolerance=0),
    )


SCATTER_REDUCE = define(
    "ScatterReduce",
    scatter_reduce,
    lower=_lower_scatter_reduce,
    rule=_scatter_reduce_rule,
    dtypes={"indices": INTS},
    oracle=_scatter_reduce_oracle,
    samples=_scatter_reduce_samples,
    gradient=Gradient(_scatter_reduce_gradient, wrt=(0, 2)),
    differences="with 'none', the last element for a place wins; indices outside the axis are dropped; "
    "a vector of one index is taken; without broadcasting, there is a gradient for any shape",
)


def _grouped_scatter_reduce_oracle(
    data: Any,
    indices: Any,
    reduction: str,
    initial_values: Any = None,
    axis: int = 0,
    axis_size: Any = None,
    group_size: int = 1,
    enable_index_broadcast: Any = True,
    *_hints: Any,
) -> Any:
    axis = axis % data.ndim - 1
    starts = [None] * group_size if initial_values is None else initial_values
    groups = zip(data, indices, starts, strict=True)
    return np.stack(
        [_scatter_reduce_oracle(d, i, reduction, s, axis, axis_size, enable_index_broadcast) for d, i, s in groups]
    )


def _grouped_scatter_reduce_samples() -> Sequence[Sample]:
    i, x = np.int32, grid(2, 3, 2) - 5
    vectors, full = (
        np.array([[0, 3, 0], [1, 1, 2]], i),
        np.array([[[0, 1], [1, 1], [0, 2]], [[2, 2], [2, 0], [0, 1]]], i),
    )
    return (
        sample(x, vectors, "sum", axis=1, axis_size=4, group_size=2, tolerance=0),
        sample(x, vectors, "max", 0.5 - grid(2, 4, 2), 1, group_size=2, tolerance=0),
        sample(x, full, "min", None, -2, 3, 2, tolerance=0),
        sample(x.astype(i), vectors, "none", None, 1, 4, 2, tolerance=0),
        sample(x, full[:, :2, :1], "sum", None, 1, 3, 2, False, tolerance=0),
    )


GROUPED_SCATTER_REDUCE = define(
    "GroupedScatterReduce",
    grouped_scatter_reduce,
    lower=_lower_scatter_reduce,
    rule=_scatter_reduce_rule,
    dtypes={"indices": INTS},
    oracle=_grouped_scatter_reduce_oracle,
    samples=_grouped_scatter_reduce_samples,
    gradient=Gradient(_scatter_reduce_gradient, wrt=(0, 2)),
)
