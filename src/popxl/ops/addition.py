"""The sum of any number of tensors, which adds up the gradients of a tensor (spec ``transforms.md`` §1.1, §7)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from popxl.errors import PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import FLOATS, Sample, define, sample
from popxl.ops._jax import at_least_float32
from popxl.ops.utils import broadcast_shapes, same_dtype
from popxl.tensor import Tensor


def add_up(ts: Sequence[Tensor], name: str = "sum_out") -> Tensor:
    """Add tensors elementwise, from the first to the last. Float16 is added in float32 and rounded once.

    Args:
        ts: At least one tensor; float dtypes, all the same, of shapes that broadcast.
        name: Name of the sum.

    Raises:
        PopxlValueError: (a `ValueError`) if there is no tensor.
        CoreError: (a `RuntimeError`) if dtypes differ or shapes do not broadcast.
    """
    if not ts:
        raise PopxlValueError("There is no tensor to add up.", hint="pass at least one")
    return SUM.emit({f"ts_{i}": t for i, t in enumerate(ts)}, name, same_place=False)[0]


def _rule(*ts: ShapeDtype) -> ShapeDtype:
    return ShapeDtype(broadcast_shapes(*(t.shape for t in ts)), same_dtype(*ts))


def _add_up(*ts: Any) -> Any:
    return reduce(lambda a, b: a + b, (at_least_float32(t) for t in ts)).astype(ts[0].dtype)


def _oracle(ts: Any) -> Any:
    return np.sum(np.stack(np.broadcast_arrays(*ts)), axis=0)


def _samples() -> Sequence[Sample]:
    a = np.array([[1.5, -2.0], [0.25, 4.0]], np.float32)
    half = np.array([1000.0, -0.5], np.float16)
    return (
        sample([a]),
        sample([a, a[:1], -a]),
        sample([half, half, -half, np.float16(0.25)], tolerance=1e-3),
        sample([np.float64(2.0), np.float64(0.5)], tolerance=1e-15),
        sample([np.array([np.inf, 1.0], np.float32), np.array([-np.inf, np.nan], np.float32)]),
        sample([np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)]),
    )


SUM = define(
    "Sum", add_up, lower=_add_up, rule=_rule, dtypes=FLOATS, oracle=_oracle, samples=_samples, elementwise=True
)
