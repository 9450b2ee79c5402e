"""Which tensors share storage. A tensor is a storage of its own, or a chain of views of others."""

from __future__ import annotations

from collections.abc import Iterator

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
    return len(set(roots)) == len(roots) and not any(isinstance(r, Constant) for r in roots)
