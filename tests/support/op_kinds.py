"""The kinds of ops that random programs are made of: popxl's function, its meaning in NumPy, how operands are drawn.

A new op is one entry of the table at the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import op_meanings as m
import op_meanings_axes as axes_m
import op_meanings_places as places_m
from op_interpreter import Approx, settle

import popxl
from popxl import ops

if TYPE_CHECKING:
    from op_programs import Writer

Shape = tuple[int, ...]
Dtype = np.dtype[Any]
Dtypes = tuple[Dtype, ...]
Drawn = tuple[list[int], dict[str, Any]]
Draw = Callable[["Writer"], Drawn]

HALF, SINGLE, DOUBLE = FLOATS = tuple(np.dtype(d) for d in (np.float16, np.float32, np.float64))
SIGNED = tuple(np.dtype(d) for d in (np.int32, np.int8, np.int16, np.int64))
UNSIGNED = tuple(np.dtype(d) for d in (np.uint32, np.uint8, np.uint16, np.uint64))
INTS = (*SIGNED, *UNSIGNED)
NUMBERS = (*FLOATS, *INTS)
BOOL = np.dtype(bool)
DTYPES = (*NUMBERS, BOOL)


@dataclass(frozen=True)
class Kind:
    """One kind of op.

    Attributes:
        call: Takes popxl tensors, and attributes as keywords.
        meaning: The same in NumPy: for a view on an array of cell numbers, else on `Approx` arrays.
        draw: Draws the operands (numbers of values) and the attributes.
        effect: "compute", "update" (of the first operand) or "view".
        weight: How often it is drawn.
    """

    call: Callable[..., Any]
    meaning: Callable[..., Any]
    draw: Draw
    effect: str = "compute"
    weight: int = 2


# Shapes


def fits(a: Shape, b: Shape, *, into: bool = False) -> bool:
    """Whether shapes broadcast, where 0 is never stretched; with `into`, to `a`."""
    if into and len(b) > len(a):
        return False
    rank = max(len(a), len(b))
    pairs = list(zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True))
    return all(x == y or (1 in (x, y) and 0 not in (x, y) and not (into and x == 1)) for x, y in pairs)


def broadcast(a: Shape, b: Shape) -> Shape:
    settle(fits(a, b))
    return np.broadcast_shapes(a, b)


# Drawing operands


def one(dtypes: Dtypes) -> Draw:
    return lambda w: ([w.any(dtypes)], {})


def two(dtypes: Dtypes, *, into: bool = False) -> Draw:
    def draw(w: Writer) -> Drawn:
        a = w.any(dtypes)
        b = w.beside(w.shape_of(a), w.dtype_of(a), into=into)
        return ([a, b] if into or w.flip() else [b, a]), {}

    return draw


def any_two(dtypes: Dtypes) -> Draw:
    """Two of any dtypes that broadcast."""

    def draw(w: Writer) -> Drawn:
        a = w.any(dtypes)
        return [a, w.beside(w.shape_of(a), w.dtype_among(dtypes))], {}

    return draw


def two_alike(dtypes: Dtypes, *, mixed: Dtypes = (), **attributes: tuple[Any, ...]) -> Draw:
    """Two of one shape, and one of the values given for each attribute."""

    def draw(w: Writer) -> Drawn:
        a = w.any(dtypes)
        b = w.like(w.shape_of(a), w.dtype_among(mixed) if mixed and w.flip() else w.dtype_of(a))
        return [a, b], {name: w.choose(values) for name, values in attributes.items()}

    return draw


def half_and_scale(w: Writer) -> Drawn:
    pair = [w.any((HALF,)), w.like(w.choose([(), (1,), (1, 1)]), SINGLE)]
    settle(0 not in w.shape_of(pair[0]))
    return (pair if w.flip() else pair[::-1]), {}


def chosen(w: Writer) -> Drawn:
    a = w.any(DTYPES)
    b = w.beside(w.shape_of(a), w.dtype_of(a))
    shape = broadcast(w.shape_of(a), w.shape_of(b))
    return [w.beside(shape, w.choose((BOOL, BOOL, w.dtype_among(DTYPES)))), a, b], {}


def masked(w: Writer) -> Drawn:
    a = w.any(DTYPES)
    settle(0 not in w.shape_of(a))  # the 0 that stands in for what is masked does not broadcast with these
    return [a, w.beside(w.shape_of(a), BOOL)], {}


def raised(w: Writer) -> Drawn:
    t = w.any(FLOATS)
    settle(0 not in w.shape_of(t))  # nor does the exponent
    return [t], {"e": w.choose((2, 3, 0.5, -1.0, 1.5, 0))}


def increment(w: Writer) -> Drawn:
    t = w.any(NUMBERS)
    step, modulus = w.choose((1, 2.5, 0, -1, 100)), w.choose((3, 5.5, 7, 1, 100, -4))
    if w.dtype_of(t).kind == "u":
        step, modulus = abs(step), abs(modulus)
    return [t], {"increment": step, "modulus": modulus}


def cast_to(w: Writer) -> Drawn:
    t = w.any(DTYPES)
    return [t], {"to": w.dtype_among(DTYPES) if w.flip() else w.choose(DTYPES)}


def reduced(dtypes: Dtypes) -> Draw:
    def draw(w: Writer) -> Drawn:
        t = w.any(dtypes)
        rank = len(w.shape_of(t))
        axes = [w.signed(a, rank) for a in w.some(range(rank), min(rank, w.choose((0, 1, 1, 1))))]
        axis = w.choose((None, axes, *axes[:1], tuple(axes)))
        return [t], {"axis": axis, "keepdims": w.flip()}

    return draw


def along_axis(dtypes: Dtypes, name: str = "axis", least_rank: int = 1) -> Draw:
    def draw(w: Writer) -> Drawn:
        t = w.any(dtypes, least_rank)
        rank = max(len(w.shape_of(t)), 1)
        return [t], {name: w.number(-rank, rank - 1)}

    return draw


def reshaped(w: Writer) -> Drawn:
    t = w.any(DTYPES)
    count = math.prod(w.shape_of(t))
    if count == 0:
        return [t], {"shape": w.choose([(-1,), (-1, 3), (2, -1)])}
    lengths: list[int] = []
    for _ in range(w.number(0 if count == 1 else 1, 4)):
        lengths.append(w.choose([n for n in range(1, count + 1) if count % n == 0]))
        count //= lengths[-1]
    if count > 1:
        lengths.append(count)
    if lengths and w.flip():
        lengths[w.number(0, len(lengths) - 1)] = -1
    return [t], {"shape": tuple(lengths)}


def permuted(w: Writer) -> Drawn:
    t = w.any(DTYPES, w.choose((0, 2, 3)))
    rank = len(w.shape_of(t))
    return [t], {"permutation": tuple(w.some(range(rank), rank)) if w.choose(range(4)) else None}


def squeezed(w: Writer) -> Drawn:
    t = w.any(DTYPES)
    shape = w.shape_of(t)
    ones = [w.signed(a, len(shape)) for a, n in enumerate(shape) if n == 1]
    return [t], {"axes": None if w.flip() else w.some(ones)}


def joined(w: Writer) -> Drawn:
    first = w.any(DTYPES, 1)
    shape, dtype = w.shape_of(first), w.dtype_of(first)
    axis = w.number(0, len(shape) - 1)
    ts = [first]
    around = (shape[:axis], shape[axis + 1 :])
    for _ in range(w.number(0, 2)):
        other = w.existing(lambda t: t.dtype == dtype and bool(t.shape) and _around(t.shape, axis) == around)
        length = w.choose((1, 2, 0, 3)) if other is None else 0
        ts.append(w.leaf((*around[0], length, *around[1]), dtype) if other is None else other)
    return ts, {"axis": w.signed(axis, len(shape))}


def _around(shape: Shape, axis: int) -> tuple[Shape, Shape] | None:
    return (shape[:axis], shape[axis + 1 :]) if axis < len(shape) else None


def cut(w: Writer) -> Drawn:
    t = w.any(DTYPES, 1)
    shape = w.shape_of(t)
    axis = w.number(0, len(shape) - 1)
    length = shape[axis]
    where = {"axis": w.signed(axis, len(shape))}
    if w.flip():
        return [t], {"splits": w.choose([n for n in (1, 2, 3, 4, 5) if length % n == 0]), **where}
    ends = sorted(w.number(0, length) for _ in range(w.number(0, 2)))
    return [t], {"splits": [b - a for a, b in zip([0, *ends], [*ends, length], strict=True)], **where}


def sliced(w: Writer) -> Drawn:
    t = w.any(DTYPES, 1)
    shape = w.shape_of(t)
    axes = w.some(range(len(shape)), 1) if w.flip() else list(range(w.number(1, len(shape))))
    bounds = [[None if w.flip() else w.number(-n - 1, n + 1) for n in map(shape.__getitem__, axes)] for _ in range(2)]
    given: dict[str, Any] = {"start": bounds[0], "stop": bounds[1], "step": [w.choose((1, -1, None)) for _ in axes]}
    given["axis"] = [w.signed(a, len(shape)) for a in axes]
    if axes == list(range(len(axes))) and w.flip():
        del given["axis"]
    if len(axes) == 1 and w.flip():
        given = {name: values[0] for name, values in given.items()}
    settle(any(given[name] is not None for name in ("start", "stop", "step")))
    return [t], given


def apply_slice(a: Any, start: Any, stop: Any, step: Any, axis: Any = None) -> Any:
    bounds = [v if isinstance(v, list) else [v] for v in (start, stop, step)]
    axes = range(len(bounds[0])) if axis is None else axis if isinstance(axis, list) else [axis]
    key = [slice(None)] * a.ndim
    for where, *limits in zip(axes, *bounds, strict=True):
        key[where] = slice(*limits)
    return a[tuple(key)]


def keyed(w: Writer) -> Drawn:
    t = w.any(DTYPES, 1)
    keys: list[Any] = []
    for n in w.shape_of(t)[: w.number(0, len(w.shape_of(t)))]:
        if n and w.number(0, 2) == 0:
            keys.append(w.number(-n, n - 1))
        else:
            bounds = [None if w.flip() else w.number(-n - 1, n + 1) for _ in range(2)]
            keys.append(slice(*bounds, w.choose((None, 1, -1, 2, -2, 3))))
    return [t], {"key": keys[0] if len(keys) == 1 and w.flip() else tuple(keys)}


def strided(w: Writer) -> Drawn:
    t = w.any(DTYPES, 1)
    strides = [w.choose((1, 2, 3)) for _ in range(w.number(1, len(w.shape_of(t))))]
    return [t], {"strides": strides[0] if len(strides) == 1 and w.flip() else strides}


def subsampled(a: Any, strides: Any) -> Any:
    return a[tuple(slice(None, None, k) for k in ([strides] if isinstance(strides, int) else strides))]


def gathered(w: Writer) -> Drawn:
    t = w.any(DTYPES, 1)
    rank = len(w.shape_of(t))
    axis = w.number(-rank, rank - 1)
    i = w.any(INTS)
    indices = w.value(i).astype(object)
    inside = bool(np.all((indices >= 0) & (indices < w.shape_of(t)[axis])))
    return [t, i], {"axis": axis, "zero_OOR": not inside or w.flip()}


def _region(w: Writer, t: int) -> tuple[int, dict[str, Any], Shape]:
    shape = w.shape_of(t)
    axes = w.some(range(len(shape)), 1)
    sizes = [w.number(0 if w.number(0, 9) == 0 else min(1, shape[a]), shape[a]) for a in axes]
    index = w.like(w.choose([(len(axes),), (1, len(axes)), *([()] if len(axes) == 1 else [])]), w.dtype_among(INTS))
    region = tuple(dict(zip(axes, sizes, strict=True)).get(a, n) for a, n in enumerate(shape))
    return index, {"axes": axes, "sizes": sizes, "no_overlap": w.flip()}, region


def region(w: Writer) -> Drawn:
    t = w.any(DTYPES, 1)
    index, attributes, _ = _region(w, t)
    return [t, index], attributes


def region_and_update(w: Writer) -> Drawn:
    t = w.any(DTYPES, 1)
    index, attributes, shape = _region(w, t)
    return [t, index, w.like(shape, w.dtype_of(t))], attributes


def factors(w: Writer) -> Drawn:
    a = w.any(FLOATS, 1)
    shape, dtype = w.shape_of(a), w.dtype_of(a)
    batch, columns = shape[:-2], w.number(0, 4)
    if 0 in batch:  # does not broadcast
        return [a, w.like((*batch, shape[-1], columns), dtype)], {}
    if w.choose(range(4)) == 0:
        return [a, w.like(shape[-1:], dtype)], {}
    b = w.existing(lambda t: t.dtype == dtype and len(t.shape) == 2 and t.shape[0] == shape[-1])
    if b is None:
        batch = tuple(w.choose((n, n, n, 1)) for n in batch[w.number(0, len(batch)) :])
        b = w.leaf((*batch, shape[-1], columns), dtype)
    return [a, b], {}


def topped(w: Writer) -> Drawn:
    t = w.any(NUMBERS, 1)
    shape = w.shape_of(t)
    axis = w.choose(range(len(shape)))
    return [t], {"k": w.number(0, shape[axis]), "axis": axis, "largest": w.flip(), "sorted": w.flip()}


def binned(w: Writer) -> Drawn:
    levels = w.choose(([0.0], [-1.0, 0.5, 2.0], [-2.5, -1.25, 0.0, 1.0]))
    return [w.any(FLOATS)], {"levels": levels, "absolute_of_input": w.flip()}


def classed(w: Writer) -> Drawn:
    t = w.any(INTS)
    values = w.like((2,), w.dtype_among(NUMBERS))
    return [t, values], {"num_classes": w.number(1, 4), "axis": w.number(-1, len(w.shape_of(t)))}


def grouped(w: Writer) -> Drawn:
    t = w.any(DTYPES, 2)
    shape = w.shape_of(t)
    settle(shape[0] > 1)
    indices = w.like((shape[0], *w.choose(((), (2,), (1, 2)))), w.dtype_among(INTS))
    return [t, indices], {"axis": w.number(1, len(shape) - 1), "group_size": shape[0], "zero_OOR": True}


def scattered(w: Writer) -> Drawn:
    t = w.any(DTYPES, 1)
    rank = len(w.shape_of(t))
    axis = w.choose(range(rank))
    shape = tuple(w.number(1, 3) if a == axis else n - (n > 1 and w.flip()) for a, n in enumerate(w.shape_of(t)))
    indices = w.like(shape, w.dtype_among(INTS))
    return [t, indices, w.like(shape, w.dtype_of(t))], {"axis": w.signed(axis, rank)}


def collected(w: Writer) -> Drawn:
    data = w.any(NUMBERS, 1)
    shape = w.shape_of(data)
    axis = w.choose(range(len(shape)))
    # A vector is refused where another axis has no elements.
    indices = w.like(shape if 0 in shape or w.flip() else shape[axis : axis + 1], w.dtype_among(INTS))
    how = {"reduction": w.choose(("sum", "max", "min", "none")), "axis": w.signed(axis, len(shape))}
    size = w.number(1, 4)
    if w.flip():
        return [data, indices], {**how, "axis_size": size}
    return [data, indices, w.like((*shape[:axis], size, *shape[axis + 1 :]), w.dtype_of(data))], how


def sparse(w: Writer) -> Drawn:
    t = w.any(FLOATS, 1)
    shape = w.shape_of(t)
    axis = w.choose(range(len(shape)))
    indices = w.like(w.choose(((), (1,), (2,), (3,), (2, 2))), w.dtype_among(INTS))
    x = w.like((*shape[:axis], *w.shape_of(indices), *shape[axis + 1 :]), w.dtype_among(FLOATS))
    return [t, x, indices], {"axis": w.signed(axis, len(shape)), "f": w.choose((None, 0.5, -2.0, 0.3, 0.0))}


def scaled(w: Writer) -> Drawn:
    return [w.any(FLOATS)], {"f": w.choose((0.5, -2.0, 0.3, 0.0))}


def kept_axis(w: Writer) -> Drawn:
    operands, axis = along_axis(NUMBERS, "dim")(w)
    return operands, {**axis, "keepdim": w.flip()}


def clipped(w: Writer) -> Drawn:
    limits = w.choose(({"min": -1.0}, {"max": 1.5}, {"min": -0.5, "max": 2.0}, {"min": 1.0, "max": -1.0}, {}))
    return [w.any(FLOATS)], limits


def several(w: Writer) -> Drawn:
    a = w.any(FLOATS)
    ts, shape = [a], w.shape_of(a)
    for _ in range(w.number(0, 2)):
        ts.append(w.beside(shape, w.dtype_of(a)))
        shape = broadcast(shape, w.shape_of(ts[-1]))
    return ts, {}


def channels(w: Writer) -> Drawn:
    t = w.any(FLOATS, 2)
    n = w.shape_of(t)[1]
    return [t, *(w.like((n,), w.dtype_of(t)) for _ in range(2))], {}


def groups(w: Writer) -> Drawn:
    operands, _ = channels(w)
    n = w.shape_of(operands[0])[1]
    return operands, {"num_groups": w.choose([k for k in range(1, n + 1) if n % k == 0] or [1]), "eps": 1e-3}


# The table


def _views() -> Mapping[str, tuple[Callable[..., Any], Callable[..., Any] | None, Callable[..., Any], Draw]]:
    """Copy, view (if there is one), the same on an array, operands."""
    return {
        "reshape": (ops.reshape, ops.reshape_, np.reshape, reshaped),
        "flatten": (ops.flatten, ops.flatten_, np.ravel, one(DTYPES)),
        "transpose": (ops.transpose, ops.transpose_, lambda a, permutation: np.transpose(a, permutation), permuted),
        "slice": (ops.slice, ops.slice_, apply_slice, sliced),
        "detach": (ops.detach, ops.detach_, np.array, one(DTYPES)),
        "concat": (_join(ops.concat), _join(ops.concat_), lambda *a, axis: np.concatenate(a, axis), joined),
        "squeeze": (ops.squeeze, None, lambda a, axes: np.squeeze(a, axes if axes is None else tuple(axes)), squeezed),
        "subsample": (ops.subsample, None, subsampled, strided),
        "getitem": (lambda t, key: t[key], None, lambda a, key: a[key], keyed),
        "identity": (ops.identity, None, np.array, one(DTYPES)),
    }


def _join(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *ts, axis: function(ts, axis)


def _split(t: Approx, splits: int | list[int], axis: int) -> tuple[Approx, ...]:
    ends = splits if isinstance(splits, int) else np.cumsum(splits)[:-1].tolist()
    value, error = (np.split(a, ends, axis) for a in (t.value, t.error))
    return tuple(Approx(t.dtype, v, e) for v, e in zip(value, error, strict=True))


def _cast(t: popxl.Tensor, to: Dtype) -> popxl.Tensor:
    return ops.cast(t, popxl.dtype.as_dtype(to))


def _onehot(t: popxl.Tensor, values: popxl.Tensor, num_classes: int, axis: int) -> popxl.Tensor:
    return ops.onehot(t, popxl.constant(num_classes, popxl.int32), values, axis)


def _collect(data: popxl.Tensor, indices: popxl.Tensor, *initial: popxl.Tensor, **how: Any) -> popxl.Tensor:
    return ops.scatter_reduce(data, indices, how.pop("reduction"), *initial, **how)


def _of_one(names: str, dtypes: Dtypes, function: Callable[[Any], Any], **how: Any) -> dict[str, Kind]:
    """Rows for a function of one tensor; names are those of the copy and, after a blank, of the op in place."""
    copy, *twin = names.split()
    meaning = m.unary(function, **how) if how else m.simple(function)
    rows = {copy: Kind(getattr(ops, copy), meaning, one(dtypes))}
    return rows | {name: Kind(getattr(ops, name), meaning, one(dtypes), "update", 3) for name in twin}


def _reduction(name: str, dtypes: Dtypes, meaning: m.Meaning, weight: int = 2) -> dict[str, Kind]:
    return {name: Kind(getattr(ops, name), meaning, reduced(dtypes), weight=weight)}


def _update(name: str, meaning: m.Meaning, draw: Draw, weight: int = 2) -> dict[str, Kind]:
    return {name: Kind(getattr(ops.var_updates, name), meaning, draw, "update", weight)}


_scales = two_alike(FLOATS, mixed=FLOATS, a=(1.0, 0.5, -2.0, 0.3, 0.0), b=(1.0, -0.25, 3.0, 0.1))
_terms = two_alike(FLOATS, mixed=FLOATS, f=(0.5, -2.0, 0.3, 0.0))
_shares = two_alike(FLOATS, mixed=FLOATS, f=(0.5, 0.9, 0.0, 1.0))

KINDS: dict[str, Kind] = {
    # Elementwise, one tensor
    **_of_one("exp exp_", FLOATS, np.exp, low=-8, high=4),
    **_of_one("log", FLOATS, np.log, low=2.0**-6, scale=1),
    **_of_one("log2", FLOATS, np.log2, low=2.0**-6, scale=4),
    **_of_one("sqrt", FLOATS, np.sqrt, low=2.0**-6),
    **_of_one("sin", FLOATS, np.sin, steep=1, scale=1, low=-16, high=16),
    **_of_one("cos", FLOATS, np.cos, steep=1, scale=1, low=-16, high=16),
    **_of_one("tanh", FLOATS, np.tanh, scale=1),
    **_of_one("gelu gelu_", FLOATS, m.gelu, steep=1.2, scale=4, extra=1e-9),
    **_of_one("geluerf geluerf_", FLOATS, m.geluerf, steep=1.2, scale=4),
    **_of_one("swish swish_", FLOATS, m.swish, steep=1.2, scale=4),
    **_of_one("relu relu_", FLOATS, lambda a: np.maximum(a, 0)),
    **_of_one("negate", (*FLOATS, *SIGNED), np.negative),
    **_of_one("abs", NUMBERS, np.abs),
    "clip": Kind(ops.clip, m.simple(lambda a, min=-np.inf, max=np.inf: np.minimum(np.maximum(a, min), max)), clipped),
    "sign": Kind(ops.sign, m.stepwise(np.sign), one(NUMBERS), weight=1),
    "floor": Kind(ops.floor, m.stepwise(np.floor), one(FLOATS), weight=1),
    "ceil": Kind(ops.ceil, m.stepwise(np.ceil), one(FLOATS), weight=1),
    "isfinite": Kind(ops.isfinite, m.classify(np.isfinite), one(FLOATS), weight=1),
    "isinf": Kind(ops.isinf, m.classify(np.isinf), one(FLOATS), weight=1),
    "isnan": Kind(ops.isnan, m.classify(np.isnan), one(FLOATS), weight=1),
    "increment_mod": Kind(ops.increment_mod, m.increment_mod, increment),
    "increment_mod_": Kind(ops.increment_mod_, m.increment_mod, increment, "update", 5),
    "cast": Kind(_cast, m.cast, cast_to, weight=4),
    "logical_not": Kind(ops.logical_not, m.logical(np.logical_not), one(DTYPES), weight=1),
    # Elementwise, several tensors
    "add": Kind(ops.add, m.add, two(NUMBERS), weight=3),
    "add_": Kind(ops.add_, m.add, two(NUMBERS, into=True), "update", 10),
    "sub": Kind(ops.sub, m.sub, two(NUMBERS), weight=3),
    "mul": Kind(ops.mul, m.mul, two(NUMBERS), weight=3),
    "mul_mixed": Kind(ops.mul, m.mul_mixed, half_and_scale, weight=1),
    "div": Kind(ops.div, m.div, two(NUMBERS)),
    "fmod": Kind(ops.fmod, m.fmod, two(NUMBERS)),
    "pow": Kind(ops.pow, m.power, raised),
    "integer_pow": Kind(ops.pow, m.integer_power, two(INTS), weight=1),
    "equal": Kind(ops.equal, m.compare(np.equal), two(DTYPES)),
    "greater": Kind(ops.greater, m.compare(np.greater), two(NUMBERS)),
    "maximum": Kind(ops.maximum, m.simple(lambda *a: functools.reduce(np.maximum, a)), several),
    "logical_and": Kind(ops.logical_and, m.logical(np.logical_and), any_two(DTYPES), weight=1),
    "logical_or": Kind(ops.logical_or, m.logical(np.logical_or), any_two(DTYPES), weight=1),
    "where": Kind(ops.where, m.where, chosen, weight=4),
    "masked": Kind(lambda t, mask: t[mask], lambda t, mask: m.where(mask, t, m.zero_of(t)), masked, weight=1),
    "scaled_add": Kind(ops.scaled_add, m.scaled_add, _scales),
    "scaled_add_": Kind(ops.scaled_add_, m.scaled_add, _scales, "update", 5),
    # Updates of variables
    **_update("copy_var_update_", lambda t, x: x, two_alike(DTYPES), 6),
    **_update("accumulate_", m.accumulate, two_alike(FLOATS, mixed=FLOATS, f=(None, 0.5, -2.0, 0.3, 0.0)), 6),
    **_update("accumulate_square_", lambda t, x, f: m.accumulate(t, m.square(x), f), _terms),
    **_update("accumulate_mean_", m.accumulate_mean, two_alike(FLOATS, mixed=FLOATS, step=(0, 1, 4.0))),
    **_update("accumulate_moving_average_", m.moving_average, _shares),
    **_update("accumulate_moving_average_square_", lambda t, x, f: m.moving_average(t, m.square(x), f), _shares),
    **_update("accumulator_scale_", m.scale, scaled),
    **_update("accumulator_zero_", lambda t: m.scale(t, 0), one(FLOATS), 1),
    **_update("sparse_accumulate_", places_m.sparse_accumulate, sparse, 3),
    # Reductions and orders
    **_reduction("sum", NUMBERS, axes_m.sum_of, 3),
    **_reduction("mean", NUMBERS, axes_m.mean),
    **_reduction("max", NUMBERS, axes_m.extreme(np.max)),
    **_reduction("min", NUMBERS, axes_m.extreme(np.min)),
    **_reduction("prod", NUMBERS, axes_m.prod),
    **_reduction("l1", NUMBERS, axes_m.l1, 1),
    **_reduction("l2", FLOATS, axes_m.l2, 1),
    **_reduction("sumsquare", NUMBERS, axes_m.sumsquare, 1),
    **_reduction("logsum", FLOATS, axes_m.logsum, 1),
    **_reduction("logsumexp", FLOATS, axes_m.logsumexp, 1),
    **_reduction("median", NUMBERS, axes_m.median),
    "lamb_square": Kind(ops.lamb_square, axes_m.lamb_square, one(FLOATS), weight=1),
    "argmax": Kind(ops.argmax, axes_m.arg_extreme(np.argmax), kept_axis, weight=1),
    "argmin": Kind(ops.argmin, axes_m.arg_extreme(np.argmin), kept_axis, weight=1),
    "cumsum": Kind(ops.cumsum, axes_m.cumsum, along_axis(FLOATS, "dim")),
    "topk": Kind(ops.topk, axes_m.topk, topped),
    "histogram": Kind(ops.histogram, axes_m.histogram, binned, weight=1),
    # Matrices and normalisation
    "matmul": Kind(ops.matmul, axes_m.matmul, factors, weight=4),
    "softmax": Kind(ops.softmax, axes_m.softmax, along_axis(FLOATS, least_rank=0)),
    "layer_norm": Kind(ops.layer_norm, functools.partial(axes_m.group_norm, num_groups=1), channels, weight=1),
    "group_norm": Kind(ops.group_norm, axes_m.group_norm, groups, weight=1),
    # Layout and places
    **{name: Kind(copy, m.moved(move), draw) for name, (copy, _, move, draw) in _views().items()},
    "split": Kind(ops.split, _split, cut, weight=3),
    "gather": Kind(ops.gather, places_m.take, gathered, weight=4),
    "tied_gather": Kind(ops.tied_gather, places_m.take, gathered, weight=1),
    "groupedgather": Kind(ops.groupedgather, places_m.grouped_take, grouped, weight=1),
    "onehot": Kind(_onehot, places_m.onehot, classed, weight=1),
    "scatter": Kind(ops.scatter, places_m.scatter, scattered),
    "scatter_reduce": Kind(_collect, places_m.scatter_reduce, collected),
    "dynamic_slice": Kind(ops.dynamic_slice, places_m.dynamic_slice, region),
    "dynamic_update": Kind(ops.dynamic_update, places_m.dynamic_update, region_and_update),
    "dynamic_update_": Kind(ops.dynamic_update_, places_m.dynamic_update, region_and_update, "update", 8),
    # Views
    **{
        f"{name}_": Kind(view, move, draw, "view", 3 if name in ("detach", "flatten") else 9)
        for name, (_, view, move, draw) in _views().items()
        if view
    },
    "slice_of_all": Kind(lambda t: ops.slice(t), np.array, one(DTYPES), "view", 1),
}
