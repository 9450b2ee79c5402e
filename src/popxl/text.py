"""Text and Graphviz forms of a program, for people and for golden tests.

The form is read like this::

    graph main() -> () {
      variable w : float32[2] = remote(buffer 1, entry 0)
      constant t : float32[] = 1.0
      add_out = Add(w, t) : float32[2]
    }
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from popxl.remote_buffer import RemoteBuffer
from popxl.streams import Stream
from popxl.tensor import Constant, Tensor, Variable

if TYPE_CHECKING:
    from popxl.graph import Graph
    from popxl.ir import Ir
    from popxl.op import Op

_MAX_PRINTED_ELEMENTS = 8


def ir_text(ir: Ir) -> str:
    """Return the text of a whole program: its remote buffers, then its graphs."""
    parts = [f"remote_buffer {i} : {b.dtype.name}{_shape(b.shape)} x {b.entries}" for i, b in ir.remote_buffers.items()]
    return "\n".join([*parts, *(graph_text(g) for g in ir.graphs)])


def graph_text(graph: Graph) -> str:
    """Return the text of one graph, its ops in program order."""
    by_ref = graph.by_ref_inputs
    ins = ", ".join(f"{'ref ' if t in by_ref else ''}{t.name} : {type_text(t)}" for t in graph.inputs)
    outs = ", ".join(t.name for t in graph.outputs)
    lines = [f"graph {graph.name or 'main'}({ins}) -> ({outs}) {{"]
    lines += [f"  {_leaf_text(t)}" for t in graph.tensors if isinstance(t, Variable | Constant)]
    lines += [f"  {op_text(op)}" for op in graph.ops]
    return "\n".join([*lines, "}"])


def op_text(op: Op) -> str:
    """Return one line: outputs, type, inputs, called graphs, attributes, types of the outputs."""
    outs = ", ".join(t.name for t in op.outputs)
    ins = ", ".join(f"{'&' if i in op.mutates else ''}{t.name}" for i, t in enumerate(op.inputs))
    words = [f"{op.type}({ins})"]
    words += [f"@{g.name}" for g in op.called_graphs]
    words += [f"{k}={_value_text(v)}" for k, v in op.attributes.items() if v is not None]
    if op.outputs:
        words += [":", ", ".join(type_text(t) for t in op.outputs)]
    return f"{outs} = {' '.join(words)}" if outs else " ".join(words)


def type_text(t: Tensor) -> str:
    """Return a tensor's dtype and shape, as in ``float32[2, 3]``."""
    shard = f" of {_shape(t.meta_shape)}" if t.meta_shape else ""
    return f"{t.dtype.name}{_shape(t.shape)}{shard}"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _leaf_text(t: Variable | Constant) -> str:
    if isinstance(t, Constant):
        return f"constant {t.name} : {type_text(t)} = {_array_text(t.host_value)}"
    text = f"variable {t.name} : {type_text(t)}"
    if t.location_info.isRemote():
        buffer, entry = t.location_info.getRemoteBufferInfo()
        text += f" = remote(buffer {buffer}, entry {entry})"
    return text


def _array_text(value: np.ndarray[Any, Any]) -> str:
    return "..." if value.size > _MAX_PRINTED_ELEMENTS else str(value.tolist())


def _value_text(value: Any) -> str:
    if isinstance(value, RemoteBuffer):
        return str(value.remote_buffer_id)
    return value.tensor_id if isinstance(value, Stream) else str(value)


def write_dot(ir: Ir, check: str, directory: Path) -> None:
    """Write ``<check>_r.dot`` for the main graph and ``<check>_<n>.dot`` for graph number n, where they have ops."""
    for graph in ir.graphs:
        if graph.ops:
            number = graph.name.rpartition("(")[2].rstrip(")") if graph.name else "r"
            (directory / f"{check}_{number}.dot").write_text(dot_text(graph), encoding="utf-8")


def dot_text(graph: Graph) -> str:
    """Return a graph in the language of Graphviz: a node per op, an edge per tensor between two ops."""
    numbers = {id(op): i for i, op in enumerate(graph.ops)}
    lines = [f'digraph "{graph.name or "main"}" {{']
    for op, i in zip(graph.ops, numbers.values(), strict=True):
        lines.append(f'  {i} [label="{op.type}"];')
        lines += [
            f'  {numbers[id(t.producer)]} -> {i} [label="{t.name}"];' for t in op.inputs if t.producer is not None
        ]
    return "\n".join([*lines, "}", ""])
