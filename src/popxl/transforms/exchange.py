"""`merge_exchange` and `io_tile_exchange` (spec ``core.md`` §5, ``transforms.md`` §8).

The reference fuses the transfers made inside into one op. Here the runtime overlaps transfers by itself, so both
change nothing but the placement of ops; what the reference could not fuse is still an error.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from itertools import permutations

from popxl.aliasing import storage_roots
from popxl.context import get_current_graph, in_sequence, io_tiles
from popxl.errors import ContextError
from popxl.op import Effect, Op

_EXCHANGES = (Effect.HOST_LOAD, Effect.HOST_STORE, Effect.REMOTE_LOAD, Effect.REMOTE_STORE)


@contextmanager
def merge_exchange() -> Generator[None]:
    """Say that the transfers created inside may happen together (also a decorator). No result changes.

    Example:
        >>> import popxl
        >>> from popxl import ops, transforms
        >>> with popxl.Ir().main_graph, transforms.merge_exchange():
        ...     x = ops.host_load(popxl.h2d_stream((2,), popxl.float32, "x"))
        >>> x.name
        'x_hostload'
    """
    yield None


@contextmanager
def io_tile_exchange(verify_overlap: bool = True) -> Generator[None]:
    """Put transfers on the IO tiles, unordered and together (also a decorator).

    The same as `io_tiles`, `merge_exchange` and ``in_sequence(False)`` at once.

    Args:
        verify_overlap: Whether to check that all ops created inside in the current graph can happen together.

    Raises:
        ContextError: (a `RuntimeError`) when leaving, if they cannot: one of several ops is no transfer, or a
            transfer uses the result of another.
    """
    graph = get_current_graph()
    before = len(graph.ops)
    with io_tiles(), merge_exchange(), in_sequence(False):
        yield None
    if verify_overlap:
        # Ops without inputs and effects only make the tensors that transfers fill.
        _check_together([op for op in graph.ops[before:] if op.inputs or op.definition.effect])


def _check_together(ops: list[Op]) -> None:
    compute = [op for op in ops if op.definition.effect not in _EXCHANGES]
    if len(ops) < 2 or (not compute and not any(_uses(b, a) for a, b in permutations(ops, 2))):
        return
    raise ContextError(
        "More than one Op remained after `io_tile_exchange`. They cannot happen together: "
        + ", ".join(repr(op) for op in ops)
        + ".",
        where=ops[-1].where,
        hint="keep ops that compute, and transfers of what was just transferred, out of the block",
    )


def _uses(op: Op, earlier: Op) -> bool:
    """Whether `op` reads what `earlier` made or overwrote."""
    written = (*earlier.outputs, *(earlier.inputs[i] for i in earlier.mutates))
    made = {root for t in written for root in storage_roots(t)}
    return any(root in made for t in op.read_inputs() for root in storage_roots(t))
