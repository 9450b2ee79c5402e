"""Which ops of a graph anything depends on."""

from __future__ import annotations

from collections.abc import Iterable

from popxl.aliasing import is_view, storage_roots
from popxl.graph import Graph
from popxl.op import Op
from popxl.plan.program import Program
from popxl.tensor import Tensor


def needed_ops(program: Program, graph: Graph, ops: Iterable[Op], live_out: Iterable[Tensor]) -> list[Op]:
    """Return, in order, the ops that have an effect or that `live_out` depends on. Views are left out.

    Args:
        program: The program.
        graph: The graph.
        ops: Its ops, in order.
        live_out: Tensors whose final values are wanted.
    """
    live = {root for t in live_out for root in storage_roots(t)}
    needed: list[Op] = []
    for op in reversed(list(ops)):
        if op.definition.is_view:
            continue
        if program.has_effect(op) or any(root in live for t in op.written() for root in storage_roots(t)):
            # A write through a view reads its storages: the rest of them stays as it is.
            changed = (op.inputs[i] for i in op.mutates if is_view(op.inputs[i]))
            live.update(root for t in (*op.read_inputs(), *changed) for root in storage_roots(t))
            needed.append(op)
    needed.reverse()
    return needed
