"""Reductions across the IPUs of one replica, of a list of tensors (spec ``collectives.md`` §3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlValueError, UndefinedValue
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import NUMBERS, Declaration, Sample, define, define_variant, sample
from popxl.ops.collectives._lowering import reduce_tensors
from popxl.ops.collectives.collectives import CollectiveOps, check_reducible, to_collective_op
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


def all_reduce(ts: list[Tensor], ipus: list[int] | None = None, op: CollectiveOps = "add") -> list[Tensor]:
    """Reduce tensors of several IPUs elementwise; each of the IPUs gets the result.

    The gradient of "add" adds up the upstream gradients; the other reductions refuse to give one.

    Args:
        ts: One or more tensors of one shape and dtype. Numbers; bools for "and" and "or".
        ipus: The IPU of each tensor, which is a hint here; that of ``t.ipu`` if not given.
        op: As for `replicated_all_reduce`.

    Returns:
        As many tensors like those of `ts`; number i is on ``ipus[i]``. One tensor comes back as it is, whatever `op`.

    Raises:
        PopxlValueError: (a `ValueError`) for an unknown reduction, if there are not as many IPUs as tensors, or if
            `ipus` is not given and a tensor is not placed yet.
        CoreError: (a `RuntimeError`) if there is no tensor, they differ in shape or dtype, or `op` does not take the
            dtype.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     a, b = popxl.variable([1.0, 2.0]), popxl.variable([3.0, 4.0])
        ...     totals = ops.collectives.all_reduce([a, b], ipus=[0, 1])
        >>> [(t.shape, t.ipu) for t in totals]
        [((2,), 0), ((2,), 1)]
    """
    return _emit(ALL_REDUCE if op == "add" else ALL_REDUCE_OTHER, "reduced", "added", ts, ipus, op)


def all_reduce_identical_inputs(
    ts: list[Tensor], ipus: list[int] | None = None, op: CollectiveOps = "add"
) -> list[Tensor]:
    """Return the tensors as they are, with the gradient of `all_reduce`: they are promised to be equal.

    Args:
        ts: As for `all_reduce`.
        ipus: As for `all_reduce`.
        op: As for `all_reduce`.

    Raises:
        PopxlValueError: (a `ValueError`) as for `all_reduce`.
        CoreError: (a `RuntimeError`) as for `all_reduce`.
    """
    return _emit(IDENTICAL_INPUTS if op == "add" else IDENTICAL_INPUTS_OTHER, "same", "added", ts, ipus, op)


def all_reduce_identical_grad_inputs(
    ts: list[Tensor], ipus: list[int] | None = None, op: CollectiveOps = "add"
) -> list[Tensor]:
    """Do `all_reduce`, but pass the gradients through: they are promised to be equal.

    Args:
        ts: As for `all_reduce`.
        ipus: As for `all_reduce`.
        op: As for `all_reduce`.

    Raises:
        PopxlValueError: (a `ValueError`) as for `all_reduce`.
        CoreError: (a `RuntimeError`) as for `all_reduce`.
    """
    declaration = IDENTICAL_GRAD_INPUTS if op == "add" else IDENTICAL_GRAD_INPUTS_OTHER
    return _emit(declaration, "reduced", "same", ts, ipus, op)


def _emit(
    declaration: Declaration,
    forward: str,
    backward: str,
    ts: list[Tensor],
    ipus: list[int] | None,
    op: CollectiveOps,
) -> list[Tensor]:
    named = {f"ts_{i}": t for i, t in enumerate(ts)}
    if not named:
        raise CoreError("AllReduceOp::setup there is no tensor to reduce.", hint="pass at least one")
    check_in_graph(get_current_graph(), **named)
    reduce = to_collective_op(op)
    places = _ipus(ts, ipus)
    outputs = declaration.emit(
        named,
        [f"{t.name}_all_reduce" for t in ts],
        same_place=False,
        reduce=reduce,
        forward=forward,
        backward=backward,
    )
    made = outputs[0].producer
    assert made is not None
    made.ipus = places
    return list(outputs)


def _ipus(ts: Sequence[Tensor], ipus: Sequence[int] | None) -> tuple[int, ...]:
    if ipus is None:
        try:
            return tuple(t.ipu for t in ts)
        except UndefinedValue as error:
            raise PopxlValueError(
                f"Could not automatically infer the IPU of all input Tensors `ts`. {error.fact}",
                hint="pass the IPU of each tensor: ipus=[0, 1]",
            ) from error
    if len(ts) != len(ipus):
        raise PopxlValueError(
            f"Number of specified tensor does not equal number of specified IPUs. {len(ts)} != {len(ipus)}.",
            hint="pass one IPU for each tensor",
        )
    return tuple(ipus)


def _rule(*ts: ShapeDtype, reduce: CollectiveOps, **_how: str) -> tuple[ShapeDtype, ...]:
    if any(t != ts[0] for t in ts):
        found = ", ".join(f"{t.dtype.name}{list(t.shape)}" for t in ts)
        raise CoreError(
            f"AllReduceOp::setup not all inputs have the same shape and dtype: {found}.",
            hint="reshape or cast them first",
        )
    check_reducible(reduce, ts[0].dtype)
    return ts


def _lower(*ts: Any, reduce: CollectiveOps, forward: str, **_how: str) -> tuple[Any, ...]:
    if forward == "same" or len(ts) == 1:
        return ts
    return (reduce_tensors(ts, reduce),) * len(ts)


def _gradient(
    grads: Sequence[Any], _inputs: Sequence[Any], _outputs: Sequence[Any], backward: str, **_how: str
) -> Sequence[Any]:
    if backward == "same":
        return grads
    return (reduce_tensors(tuple(grads), "add"),) * len(grads)


# Oracles and samples


def _square_add(ts: Any) -> Any:
    return np.sum(np.square(ts), axis=0)


_REDUCTIONS: dict[str, Any] = {
    "add": partial(np.sum, axis=0),
    "mean": partial(np.mean, axis=0),
    "mul": partial(np.prod, axis=0),
    "min": partial(np.min, axis=0),
    "max": partial(np.max, axis=0),
    "and": partial(np.all, axis=0),
    "or": partial(np.any, axis=0),
    "square_add": _square_add,
}


def _oracle(ts: Any, _ipus: Any = None, op: str = "add") -> Any:
    return [_REDUCTIONS[op](np.stack(ts))] * len(ts) if len(ts) > 1 else list(ts)


def _same_oracle(ts: Any, _ipus: Any = None, op: str = "add") -> Any:
    return list(ts)


def _samples(op: str, *, smooth: bool) -> Sequence[Sample]:
    # `smooth`: whether the gradient for several tensors is the mathematical one. For one it always is.
    a, b = np.array([1.0, -2.5], np.float32), np.array([3.0, 4.0], np.float32)
    half = np.array([1000.0, 0.25], np.float16)
    return (
        sample([a, b], [0, 1], op=op, smooth=smooth),
        sample([a, b, a + b], [0, 1, 0], op=op, smooth=smooth),
        sample([half, -half, half], [0, 1, 2], op=op, smooth=smooth, tolerance=1e-3),
        sample([np.float32(3.5)], [1], op=op),
        sample([np.array([4, 6], np.int32), np.array([2, -2], np.int32)], [0, 1], op=op, tolerance=0),
    )


def _other_samples() -> Sequence[Sample]:
    flags = [np.array([True, True, False, False]), np.array([True, False, True, False])]
    numbers = (one for op in ("mean", "mul", "min", "max", "square_add") for one in _samples(op, smooth=False))
    return (*numbers, *(sample(flags, [0, 1], op=op, tolerance=0) for op in ("and", "or")))


ALL_REDUCE = define(
    "AllReduce",
    all_reduce,
    lower=_lower,
    rule=_rule,
    dtypes=NUMBERS,
    oracle=_oracle,
    samples=lambda: _samples("add", smooth=True),
    gradient=Gradient(_gradient),
    elementwise=True,
)
ALL_REDUCE_OTHER = define(
    "AllReduceOther",
    all_reduce,
    lower=_lower,
    rule=_rule,
    dtypes=(*NUMBERS, dtypes.bool),
    oracle=_oracle,
    samples=_other_samples,
    gradient=Gradient(refusal="Cannot create grad op for AllReduceOp. It has a gradient only if it adds."),
    elementwise=True,
    differences="does the reduction that `op` names, not always the sum",
    reference_type="AllReduce",
)
IDENTICAL_INPUTS = define_variant(
    ALL_REDUCE,
    all_reduce_identical_inputs,
    oracle=_same_oracle,
    samples=lambda: _samples("add", smooth=False),
)
IDENTICAL_INPUTS_OTHER = define_variant(
    ALL_REDUCE_OTHER, all_reduce_identical_inputs, oracle=_same_oracle, samples=_other_samples
)
IDENTICAL_GRAD_INPUTS = define_variant(
    ALL_REDUCE,
    all_reduce_identical_grad_inputs,
    oracle=_oracle,
    samples=lambda: _samples("add", smooth=False),
)
IDENTICAL_GRAD_INPUTS_OTHER = define_variant(
    ALL_REDUCE_OTHER, all_reduce_identical_grad_inputs, oracle=_oracle, samples=_other_samples
)
