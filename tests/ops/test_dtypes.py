"""Every op with every dtype: it computes what its oracle does, or says clearly that it does not take that dtype."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from declared import LOWERED, assert_close, call, convert, device_array, fitting_samples, name_of, oracle_values

import popxl
from popxl import dtypes
from popxl.errors import PopxlError
from popxl.op import Op, as_results
from popxl.ops._define import FLOATS, INTS, Declaration, Sample

KINDS = {"f": FLOATS, "i": INTS, "u": INTS, "b": (dtypes.bool,)}
"""What an array of a sample is converted to: other dtypes of its kind, so that its values keep their sense."""
REFUSED = {
    "f": (*INTS[:4], dtypes.bool, dtypes.float8_143),
    "i": (*FLOATS, dtypes.bool, dtypes.float8_152),
    "u": (*FLOATS, dtypes.bool, dtypes.float8_152),
    "b": (*FLOATS, *INTS),
}
"""Dtypes of other kinds that are tried where the declaration says that the op refuses them."""
TOLERANCES = {2: 1e-2, 4: 5e-5, 8: 1e-8}
SAMPLES = 3
"""Samples of an op that are tried with every dtype."""

OWN = [d for d in LOWERED if d.twin_of is None]


def tried_samples(declaration: Declaration) -> list[Sample]:
    """The first samples with finite, not too large and not too many numbers: those mean the same in each dtype."""

    def is_tame(array: np.ndarray) -> bool:
        kept = array.dtype.kind in "iub" or (array.dtype.kind == "f" and bool(np.all(np.abs(array) < 1e3)))
        return kept and 0 < array.size <= 200

    def tame(one: Sample) -> bool:
        found: list[bool] = []
        convert(one.args, lambda a: found.append(is_tame(a)))
        return bool(found) and all(found)

    return [one for one in fitting_samples(declaration) if tame(one)][:SAMPLES]


def numpy_dtypes(one: Sample) -> list[np.dtype[Any]]:
    """The dtypes of a sample's arrays, each once, in order."""
    found: dict[np.dtype[Any], None] = {}
    convert(one.args, lambda a: found.setdefault(a.dtype))
    return list(found)


def converted(one: Sample, old: np.dtype[Any], new: dtypes.dtype) -> Sample:
    """The sample with its arrays of dtype `old` given another one, keeping the values as far as it can hold them."""

    def change(array: np.ndarray) -> np.ndarray:
        if array.dtype != old:
            return array
        if new in dtypes_float8():
            return np.zeros(array.shape, new.as_numpy())
        target = new.as_numpy()
        if target.kind in "iu":
            limits = np.iinfo(target)
            whole = array.astype(np.int64)
            return np.clip(np.abs(whole) if target.kind == "u" else whole, limits.min, min(limits.max, 2**62)).astype(
                target
            )
        with np.errstate(over="ignore"):  # integers, seeds for example, that float16 cannot hold
            return array.astype(target)

    return replace(one, args=convert(one.args, change))


def dtypes_float8() -> tuple[dtypes.dtype, ...]:
    return dtypes.float8_143, dtypes.float8_152


def allowed(declaration: Declaration, one: Sample, old: np.dtype[Any]) -> set[dtypes.dtype] | None:
    """What the declaration lets the arguments be whose arrays have dtype `old`; None if it does not say."""
    sets: list[set[dtypes.dtype]] = []
    for name, value in zip(inspect.signature(declaration.function).parameters, one.args, strict=False):
        has_old = []
        convert(value, lambda a, has_old=has_old: has_old.append(a.dtype == old))
        declared = declaration.dtypes_of(name)
        if any(has_old) and declared is not None:
            sets.append(set(declared))
    return set.intersection(*sets) if sets else None


def changes(declaration: Declaration) -> Iterator[tuple[Sample, dtypes.dtype, bool | None]]:
    """Samples with one dtype changed, to which, and whether the declaration allows it (None: it does not say)."""
    for one in tried_samples(declaration):
        for old in numpy_dtypes(one):
            permitted = allowed(declaration, one, old)
            for new in KINDS[old.kind]:
                if new.as_numpy() != old:
                    yield converted(one, old, new), new, None if permitted is None else new in permitted
            for new in REFUSED[old.kind]:
                if permitted is not None and new not in permitted:
                    yield converted(one, old, new), new, False


def attempt(declaration: Declaration, one: Sample) -> tuple[Op | None, str]:
    """Call the op; return it, or why it refuses."""
    try:
        with popxl.Ir().main_graph:
            return call(declaration, one).op, ""
    except PopxlError as error:
        return None, str(error)


def lowered(op: Op) -> tuple[np.ndarray, ...]:
    assert op.definition.lower is not None
    with jax.enable_x64(True):
        arrays = [device_array(t) for t in op.inputs]
        result = jax.jit(partial(op.definition.lower, **op.attributes))(*arrays)
    return tuple(np.asarray(r) for r in as_results(result))


def tolerance(one: Sample) -> float:
    sizes: list[int] = []
    convert(one.args, lambda a: sizes.append(a.dtype.itemsize if a.dtype.kind == "f" else 8))
    return max(TOLERANCES[min(sizes)], one.tolerance)


@pytest.mark.parametrize("declaration", OWN, ids=name_of)
def test_each_dtype_is_computed_as_by_the_oracle_or_refused(declaration: Declaration) -> None:
    done: dict[Any, None] = {}
    for one, new, permitted in changes(declaration):
        key = (new, permitted, tuple(str(d) for d in numpy_dtypes(one)))
        if key in done:
            continue
        done[key] = None
        op, refusal = attempt(declaration, one)
        assert permitted is None or permitted == (op is not None), f"{new}: {refusal or 'taken'}"
        if op is None:
            continue
        if any(t.producer is not None for t in op.inputs):
            continue  # made of casts as well, which have tests of their own
        close = tolerance(one)
        for actual, expected, t in zip(lowered(op), oracle_values(declaration, one), op.outputs, strict=False):
            assert_close(actual, expected, t, 0 if t.dtype.is_int else close)
