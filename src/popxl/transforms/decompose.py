"""`decompose_sum`: sums of many tensors as chains of additions (spec ``transforms.md`` §7)."""

from __future__ import annotations

from popxl.context import in_sequence, no_name_scopes
from popxl.graph import Graph
from popxl.op import Op, ShapeDtype
from popxl.ops._define import make_outputs
from popxl.ops.addition import SUM
from popxl.ops.binary import ADD
from popxl.ops.init import INIT
from popxl.tensor import Tensor


def decompose_sum(graph: Graph) -> Graph:
    """Write each sum of more than two tensors as zeros to which they are added one after the other.

    Such sums add up the gradients that `autodiff` finds for a tensor. The graph changes in place: for n tensors,
    n + 1 ops take the place of one, and the sum is the same tensor as before. Its value may be rounded differently.

    Args:
        graph: The graph to change.

    Returns:
        The same graph.

    Raises:
        ContextError: (a `RuntimeError`) once a session has taken the program.

    Example:
        >>> import popxl
        >>> from popxl import ops, transforms
        >>> ir = popxl.Ir()
        >>> fan_out = ir.create_graph(lambda x: (x, -x, x + 1.0), popxl.TensorSpec((), popxl.float32))
        >>> info = transforms.autodiff(fan_out)
        >>> [op.type for op in transforms.decompose_sum(info.graph).ops[-4:]]
        ['Init', 'Add', 'Add', 'Add']
    """
    graph.ir.check_open()
    # The new ops stand before what they replace, so they must not be ordered behind the last op that was made.
    with no_name_scopes(), in_sequence("pass"):
        for op in graph.ops:
            if op.definition is SUM.definition and len(op.inputs) > 2:
                _decompose(op)
    return graph


def _decompose(op: Op) -> None:
    """Add all inputs but the last in ops before `op`, which becomes the addition of the last."""
    total = op.outputs[0]
    zeros = Op(INIT.definition, op.graph, (), {"shape": total.shape, "dtype": total.dtype, "init_type": "zero"})
    new = [zeros]
    partial = _output(zeros, total)
    for t in op.inputs[:-1]:
        new.append(Op(ADD.definition, op.graph, (partial, t), {}))
        partial = _output(new[-1], total)
    for made in new:
        made.ipu, made.tile_set, made.execution_context = op.ipu, op.tile_set, op.execution_context
        made.api, made.location, made.after = op.api, op.location, op.after
    op.graph.insert_before(op, new)
    op.become(ADD.definition, (partial, op.inputs[-1]))


def _output(op: Op, total: Tensor) -> Tensor:
    make_outputs(op, [ShapeDtype(total.shape, total.dtype)], [f"{total.name}_partial"], total.meta_shape)
    return op.outputs[0]
