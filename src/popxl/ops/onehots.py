"""`onehot` (spec ``ops-math.md`` §8.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.errors import CoreError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._along import wide_integers
from popxl.ops._define import INTS, NUMBERS, Sample, define, sample
from popxl.ops._jax import at_least_float32, jnp, lax
from popxl.ops.utils import check_in_graph
from popxl.tensor import Constant, Tensor, Variable


def _depth(num_classes: Tensor) -> int:
    """The number of classes, as it is now.

    Raises:
        CoreError: (a `RuntimeError`) if it is not one whole number that is known now.
    """
    if not isinstance(num_classes, (Constant, Variable)):
        raise CoreError(
            f"The depth Tensor `{num_classes.id}' does not have data.",
            hint="make `num_classes` with popxl.constant: it is read when the op is made",
        )
    if num_classes.nelms != 1:
        raise CoreError(
            f"The depth tensor should be rank 0 in OneHot; `num_classes` ({num_classes.id}) has shape "
            f"{list(num_classes.shape)}.",
            hint="make `num_classes` of one number",
        )
    value = num_classes.host_value.flat[0]
    if num_classes.dtype not in NUMBERS or not np.isfinite(value) or value < 0 or value != int(value):
        raise CoreError(
            f"`num_classes` ({num_classes.id}) is {value} of dtype {num_classes.dtype.name}.",
            hint="it is a whole number, 0 or more",
        )
    return int(value)


def _rule(t: ShapeDtype, _num_classes: ShapeDtype, values: ShapeDtype, depth: int, axis: int) -> ShapeDtype:
    rank = len(t.shape)
    if not -1 <= axis <= rank:
        raise CoreError(
            f"OneHot axis {axis} is outside the acceptable range [-1, {rank}] for `t` of shape {list(t.shape)}.",
            hint="it is the axis of the classes in the result; -1 is the last one",
        )
    if values.shape != (2,):
        raise CoreError(
            f"OneHot needs `values` of shape [2], not {list(values.shape)}.",
            hint="pass the off value, then the on value",
        )
    where = rank if axis == -1 else axis
    return ShapeDtype((*t.shape[:where], depth, *t.shape[where:]), values.dtype)


def onehot(t: Tensor, num_classes: Tensor, values: Tensor, axis: int) -> Tensor:
    """Turn each class number into a vector of off values, with the on value at that class.

    Args:
        t: Class numbers: any shape, integers. Outside ``0 <= t < num_classes``, all is off.
        num_classes: One number, of a constant or variable: it is read now, not when the program runs.
        values: Shape (2,), any dtype: the off value, then the on value.
        axis: The axis of the classes in the result, or -1 for the last one.

    Returns:
        Shape of `t` with an axis of length `num_classes` inserted, dtype of `values`. Only `values` have a
        gradient: the sum over all places that are off, and over those that are on.

    Raises:
        CoreError: (a `RuntimeError`) if the value of `num_classes` is not known or not one whole number of at
            least 0, `values` are not two, there is no such axis or `t` are no integers.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     labels, off_on = popxl.constant([2, 0, 1, 0]), popxl.constant([0.0, 1.0])
        ...     ops.onehot(labels, popxl.constant(3), off_on, axis=0).shape
        (3, 4)
    """
    check_in_graph(get_current_graph(), t=t, num_classes=num_classes, values=values)
    tensors = {"t": t, "num_classes": num_classes, "values": values}
    return ONEHOT.emit(tensors, "onehot_out", depth=_depth(num_classes), axis=axis)[0]


def _hot(t: Any, depth: int, axis: int) -> Any:
    """Where the result is on."""
    where = t.ndim if axis == -1 else axis
    wide = jnp.expand_dims(wide_integers(t), where)
    shape = [1] * wide.ndim
    shape[where] = depth
    return wide == lax.broadcasted_iota(wide.dtype, shape, where)


def _lower(t: Any, _num_classes: Any, values: Any, depth: int, axis: int) -> Any:
    return jnp.where(_hot(t, depth, axis), values[1], values[0])


def _gradient(grads: Sequence[Any], inputs: Sequence[Any], _outputs: Any, depth: int, axis: int) -> Sequence[Any]:
    g = at_least_float32(grads[0])
    hot = _hot(inputs[0], depth, axis)
    return [None, None, jnp.stack([jnp.sum(jnp.where(hot, 0, g)), jnp.sum(jnp.where(hot, g, 0))])]


def _oracle(t: Any, num_classes: Any, values: Any, axis: int) -> Any:
    depth = int(np.ravel(num_classes)[0])
    result = np.full((*t.shape, depth), values[0])
    for place in np.ndindex(*t.shape):
        if 0 <= t[place] < depth:
            result[(*place, int(t[place]))] = values[1]
    return np.moveaxis(result, -1, axis)


def _samples() -> Sequence[Sample]:
    i, f = np.int32, np.float32
    off_on = np.array([-0.5, 2.0], f)
    labels = np.array([[2, 0, 1, 0], [1, 1, 2, 2]], i)
    return (
        sample(labels, i(3), off_on, -1, tolerance=0),
        sample(labels, i(3), off_on.astype(np.float16), axis=0, tolerance=0),
        sample(labels, i(4), np.array([5, 7], i), 1, tolerance=0),
        sample(np.array([0, -1, 3, 2], i), np.array([[3]], i), off_on, 1, tolerance=0),
        sample(np.int8(2), i(300), off_on, 0, tolerance=0),
        sample(np.array([1, 0], np.uint32), f(2.0), np.array([False, True]), -1, tolerance=0),
        sample(np.array([1, 0], i), i(2), np.array([np.nan, np.inf], f), -1, tolerance=0),
        sample(np.zeros((0, 2), i), i(3), off_on, 1, tolerance=0),
        sample(np.array([1, 0], i), i(0), off_on, 0, tolerance=0),
    )


ONEHOT = define(
    "OneHot",
    onehot,
    lower=_lower,
    rule=_rule,
    dtypes={"t": INTS},
    oracle=_oracle,
    samples=_samples,
    gradient=Gradient(_gradient, wrt=(2,)),
    unread=(1,),
    differences="all is off for classes outside the range",
)
