"""Which tensors share storage. A tensor is a storage of its own, or a chain of views of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from popxl.tensor import Constant, Tensor


def storage_roots(t: Tensor) -> Iterator[Tensor]:
    """Yield the tensors whose storage `t` is made of, one per path through its views."""
    t = t.storage
    op = t.producer
    if op is None or not op.definition.is_view:
        yield t
    else:
        for i in op.aliases:
            yield from storage_roots(op.inputs[i])


def is_view(t: Tensor) -> bool:
    """Whether `t` shares storage with others through a view."""
    op = t.storage.producer
    return op is not None and op.definition.is_view


def is_writable(t: Tensor) -> bool:
    """Whether a write to `t` changes each storage element at most once, and no constant."""
    roots = list(storage_roots(t))
    if any(isinstance(r, Constant) for r in roots):
        return False
    if len(set(roots)) == len(roots):
        return True
    elements = _elements(t, _first_elements(roots))
    return elements is not None and np.unique(elements).size == elements.size


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether `a` and `b` share an element of some storage."""
    roots_a, roots_b = set(storage_roots(a)), set(storage_roots(b))
    if roots_a.isdisjoint(roots_b):
        return False
    first = _first_elements([*roots_a, *roots_b])
    elements_a, elements_b = _elements(a, first), _elements(b, first)
    return elements_a is None or elements_b is None or np.intersect1d(elements_a, elements_b).size > 0


def elements_by_root(t: Tensor) -> dict[Tensor, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """For each tensor that `t` is made of: which of its elements `t` has, and where in `t`, both counted row by row."""
    first = _first_elements(list(storage_roots(t)))
    elements = _elements(t, first)
    if elements is None:
        raise AssertionError(f"{t!r} is a view that has no NumPy form")
    flat = elements.ravel()
    result: dict[Tensor, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}
    for root, start in first.items():
        places = np.flatnonzero((flat >= start) & (flat < start + root.nelms))
        result[root] = flat[places] - start, places
    return result


def _first_elements(roots: list[Tensor]) -> Mapping[Tensor, int]:
    """Number the elements of all `roots` one after the other."""
    first: dict[Tensor, int] = {}
    count = 0
    for root in dict.fromkeys(roots):
        first[root] = count
        count += root.nelms
    return first


def _elements(t: Tensor, first: Mapping[Tensor, int]) -> np.ndarray[Any, Any] | None:
    """The number of the storage element that each element of `t` is; None if a view has no NumPy form."""
    t = t.storage
    op = t.producer
    if op is None or not op.definition.is_view:
        return np.arange(first[t], first[t] + t.nelms).reshape(t.shape)
    bases = [_elements(op.inputs[i], first) for i in op.aliases]
    if op.definition.host is None or any(b is None for b in bases):
        return None
    return np.asarray(op.definition.host(*bases, **op.attributes))
