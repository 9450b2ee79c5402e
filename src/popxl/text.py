"""Text and Graphviz forms of a program, for people and for golden tests.

The form is read like this. ``&`` marks an input that the op overwrites::

    program replicas=1 host_transfers=1
    remote_buffer 1 : float32[2] x 4
    d2h_stream y : float32[2]
    graph main () -> () {
      variable w : float32[2] = remote(buffer 1, entry 3)
      constant offset : uint32[] = 3
      constant t : float32[] = 1.0
      w_remote_load = Init() {shape=[2], dtype=float32, init_type=undef} : float32[2]
      w_remote_loaded = RemoteLoad(w_remote_load, offset) {buffer=1} : float32[2]
      add_lhs_inplace_out = AddLhsInplace(&w_remote_loaded, t) : float32[2] alias of w_remote_loaded
      HostStore(w_remote_loaded) {stream=y}
    }
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from popxl import dtypes
from popxl.op import ShapeDtype
from popxl.remote_buffer import RemoteBuffer
from popxl.streams import Stream
from popxl.tensor import Constant, Tensor, Variable
from popxl.tensorlocation import ExecutionContext

if TYPE_CHECKING:
    from popxl.graph import Graph
    from popxl.ir import Ir
    from popxl.op import Op

_MAX_PRINTED_ELEMENTS = 8


def ir_text(ir: Ir) -> str:
    """Return the text of a whole program: its remote buffers and streams, then its graphs."""
    lines = [f"program replicas={ir.replication_factor} host_transfers={ir.num_host_transfers}"]
    lines += [
        f"remote_buffer {i} : {b.dtype.name}{_value_text(b.shape)} x {b.entries}" for i, b in ir.remote_buffers.items()
    ]
    for kind, streams in (("h2d_stream", ir.get_all_h2d_streams()), ("d2h_stream", ir.get_all_d2h_streams())):
        lines += sorted(f"{kind} {s.tensor_id} : {type_text(s.tensor)}" for s in streams)
    return "\n".join([*lines, *(graph_text(g) for g in ir.graphs)])


def graph_text(graph: Graph) -> str:
    """Return the text of one graph: its variables and constants, then its ops in program order."""
    by_ref = graph.by_ref_inputs
    ins = ", ".join(f"{'ref ' if t in by_ref else ''}{t.name} : {type_text(t)}" for t in graph.inputs)
    outs = ", ".join(f"{t.name} : {type_text(t)}" for t in graph.outputs)
    lines = [f"graph {graph.name or 'main'} ({ins}) -> ({outs}) {{"]
    lines += [f"  {_leaf_text(t)}" for t in graph.tensors if isinstance(t, Variable | Constant)]
    lines += [f"  {op_text(op)}" for op in graph.ops]
    return "\n".join([*lines, "}"])


def op_text(op: Op) -> str:
    """Return one line: outputs, type, inputs, called graphs, attributes, types of the outputs, placement."""
    outs = ", ".join(t.name for t in op.outputs)
    ins = ", ".join(f"{'&' if i in op.mutates else ''}{t.name}" for i, t in enumerate(op.inputs))
    words = [f"{op.type}({ins})", *(f"@{g.name}" for g in op.called_graphs)]
    attributes = ", ".join(f"{k}={_value_text(v)}" for k, v in op.attributes.items() if v is not None)
    if attributes:
        words.append(f"{{{attributes}}}")
    if op.outputs:
        words += [":", ", ".join(type_text(t) for t in op.outputs)]
    if op.aliases:
        words += ["alias of", ", ".join(op.inputs[i].name for i in op.aliases)]
    words += _placement_text(op)
    return f"{outs} = {' '.join(words)}" if outs else " ".join(words)


def _placement_text(op: Op) -> Iterator[str]:
    if op.ipu:
        yield f"on ipu {op.ipu}"
    if op.tile_set == "io":
        yield "on io tiles"
    if op.execution_context is not ExecutionContext.Normal:
        yield f"during {op.execution_context.name}"


def type_text(t: Tensor) -> str:
    """Return a tensor's dtype and shape, as in ``float32[2, 3]``; of a shard, what it is a part of as well."""
    shard = f" shard of {_value_text(t.meta_shape)}" if t.meta_shape else ""
    return f"{t.dtype.name}{_value_text(t.shape)}{shard}"


def _leaf_text(t: Variable | Constant) -> str:
    if isinstance(t, Constant):
        return f"constant {t.name} : {type_text(t)} = {_array_text(t)}"
    text = f"variable {t.name} : {type_text(t)}"
    if t.replica_grouping.num_groups > 1:
        text += f" for each of the replicas {t.replica_grouping.members}"
    if t.location_info.isRemote():
        buffer, entry = t.location_info.getRemoteBufferInfo()
        text += f" = {'sharded ' if t.location_info.isSharded() else ''}remote(buffer {buffer}, entry {entry})"
    return text


def _array_text(t: Constant) -> str:
    # Float8 values print as their codes.
    return "..." if t.nelms > _MAX_PRINTED_ELEMENTS else str(t.host_value.view(t.dtype.storage).tolist())


def _value_text(value: Any) -> str:
    """Return a value of an attribute as Python writes it, where that is short."""
    if isinstance(value, RemoteBuffer):
        return str(value.remote_buffer_id)
    if isinstance(value, Stream):
        return value.tensor_id
    if isinstance(value, dtypes.dtype):
        return value.name
    if isinstance(value, ShapeDtype):
        return f"{value.dtype.name}{_value_text(value.shape)}"
    if isinstance(value, tuple):
        return f"[{', '.join(_value_text(v) for v in cast('tuple[Any, ...]', value))}]"
    return value if isinstance(value, str) and value.isidentifier() else repr(value)


def write_dot(ir: Ir, check: str, directory: Path) -> None:
    """Write ``<check>_r.dot`` for the main graph and ``<check>_<n>.dot`` for graph number n, where they have ops."""
    for graph in ir.graphs:
        if graph.ops:
            number = graph.name.rpartition("(")[2].rstrip(")") if graph.name else "r"
            (directory / f"{check}_{number}.dot").write_text(dot_text(graph), encoding="utf-8")


def dot_text(graph: Graph) -> str:
    """Return a graph in the language of Graphviz: a node per op, an edge per tensor between two ops."""
    numbers = {id(op): i for i, op in enumerate(graph.ops)}
    lines = [f"digraph {_quoted(graph.name or 'main')} {{"]
    for op, i in zip(graph.ops, numbers.values(), strict=True):
        lines.append(f"  {i} [label={_quoted(op.type)}];")
        lines += [
            f"  {numbers[id(t.producer)]} -> {i} [label={_quoted(t.name)}];"
            for t in op.inputs
            if t.producer is not None
        ]
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
