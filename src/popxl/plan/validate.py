"""Checks of a whole program, made when a session takes it."""

from __future__ import annotations

from popxl.aliasing import overlap, storage_roots
from popxl.errors import CoreError, PopxlNotImplementedError, PopxlValueError, RemoteOffsetError
from popxl.graph import Graph
from popxl.ir import Ir
from popxl.op import Control, Effect, Op
from popxl.plan.program import Program
from popxl.plan.shards import shard_count
from popxl.tensor import Constant, Tensor, Variable
from popxl.tensorlocation import ExecutionContext


def check_program(ir: Ir) -> None:
    """Check what only the finished program tells: remote variables, static offsets, changed rows, missing inputs.

    Raises:
        RemoteOffsetError: (a `ValueError`) for an offset of at least ``entries``.
        PopxlValueError: (a `ValueError`) for a shape or dtype that differs from the buffer's.
        CoreError: (a `RuntimeError`) for a call that does not pass all inputs of a graph.
    """
    for v in ir.main_graph.variables:
        if v.location_info.isRemote():
            _check_remote_variable(ir, v)
    for graph in ir.reachable_graphs():
        for op in graph.ops:
            if op.definition.effect in (Effect.REMOTE_LOAD, Effect.REMOTE_STORE):
                _check_transfer(op)
            if op.called_graphs:
                _check_call_site(op)
            if op.definition.across is not None:
                _check_members(ir, op)


def _check_remote_variable(ir: Ir, v: Variable) -> None:
    buffer_id, offset = v.location_info.getRemoteBufferInfo()
    info = ir.remote_buffers.get(buffer_id)
    where = f"{v!r} in row {offset} of remote buffer {buffer_id}"
    if info is None:
        raise PopxlValueError(
            f"{ir!r} has no remote buffer {buffer_id}.",
            where=where,
            hint="pass the id of a popxl.remote_buffer to setRemoteBufferInfo",
        )
    if v.consumers:
        raise PopxlValueError(
            f"Remote variable {v.id} is used by an op, but its value is in Streaming Memory.",
            where=v.consumers[0].where,
            hint="load it with popxl.ops.remote_load and use the result",
        )
    if not 0 <= offset < info.entries:
        raise RemoteOffsetError(
            f"Offset {offset} is outside remote buffer {buffer_id}, which has {info.entries} entries.",
            where=where,
            hint=f"use 0 <= offset < {info.entries}, or set buffer.entries to at least {offset + 1}",
        )
    if v.dtype != info.dtype:
        raise PopxlValueError(
            f"Remote variable {v.id} has dtype {v.dtype}, remote buffer {buffer_id} has {info.dtype}.",
            where=where,
            hint="pass dtype= to remote_variable, or make the buffer with the variable's dtype",
        )
    others = (u for u in ir.main_graph.variables if u.location_info.isRemote())
    if any(
        u.location_info.getRemoteBufferInfo()[0] == buffer_id
        and u.location_info.isSharded() != v.location_info.isSharded()
        for u in others
    ):
        raise PopxlValueError(
            f"Remote buffer {buffer_id} has variables that are sharded and variables that are not.",
            where=where,
            hint="use a buffer for each kind",
        )
    if v.location_info.isSharded():
        shard_count(ir, v)
    elif v.shape != info.shape:
        raise PopxlValueError(
            f"Remote variable {v.id} has shape {v.shape}, a row of remote buffer {buffer_id} has {info.shape}.",
            where=where,
            hint="make the buffer with the variable's shape on one replica",
        )


def _check_transfer(op: Op) -> None:
    buffer = op.attributes["buffer"]
    t, offset = (op.outputs[0] if op.outputs else op.inputs[0]), op.inputs[1]
    if t.shape != buffer.tensor_shape or t.dtype != buffer.tensor_dtype:
        raise PopxlValueError(
            f"{t!r} does not match {buffer!r}: the buffer was changed after the op was made.",
            where=op.where,
            hint="call set_remote_buffer_info before making loads and stores",
        )
    if isinstance(offset, Constant):
        entry = int(offset.host_value.reshape(()))
        if not 0 <= entry < buffer.entries:
            raise RemoteOffsetError(
                f"Offset {entry} is outside {buffer!r}, which has {buffer.entries} entries.",
                where=op.where,
                hint=f"use 0 <= offset < {buffer.entries}, or set buffer.entries to at least {entry + 1}",
            )


def _check_members(ir: Ir, op: Op) -> None:
    count = sum(len(group) for group in op.attributes["members"])
    if count != ir.replication_factor:
        raise PopxlValueError(
            f"{op.type} was made for {count} replicas, and {ir!r} has {ir.replication_factor}.",
            where=op.where,
            hint="set ir.replication_factor before making collectives",
        )


def check_branches(program: Program) -> None:
    """Check that what is done besides computing does not depend on a condition that replicas decide differently.

    Raises:
        PopxlNotImplementedError: (a `NotImplementedError`) for a branch where it does.
    """
    for graph in program.graphs:
        for op in graph.ops:
            is_split = op.definition.control is Control.BRANCH and program.replicas.varies(op.inputs[0])
            if is_split and program.has_effect(op):
                raise PopxlNotImplementedError(
                    f"The condition {op.inputs[0].id} may differ between replicas, and a side of the branch transfers "
                    "to or from the host or Streaming Memory: replicas run in step, and each takes both sides.",
                    where=op.where,
                    hint="transfer before or after the branch, or make the condition equal with "
                    "popxl.ops.collectives.replicated_all_reduce",
                )


def _check_call_site(op: Op) -> None:
    condition = 1 if op.definition.control is Control.BRANCH else 0
    wanted = condition + sum(len(g.inputs) for g in op.called_graphs) - op.definition.first_input
    if len(op.inputs) != wanted:
        raise CoreError(
            f"{op!r} passes {len(op.inputs)} inputs where {wanted} are wanted by "
            f"{', '.join(g.name for g in op.called_graphs)}.",
            where=op.where,
            hint="pass all inputs (check_inputs=True tells which are missing), and add inputs to a graph before "
            "calling it",
        )


_CONTEXT_ORDER = (
    ExecutionContext.WeightsFromHostFragment,
    ExecutionContext.Normal,
    ExecutionContext.AccumulateOuterFragment,
    ExecutionContext.WeightsToHostFragment,
)


def check_inplacing(ir: Ir) -> None:
    """Check that each in-place op is ordered against every other use of the same storage (spec ``core.md`` §6).

    Raises:
        CoreError: (a `RuntimeError`) for the first pair that is not.
    """
    for graph in ir.reachable_graphs():
        _check_graph_inplacing(graph)


def _check_graph_inplacing(graph: Graph) -> None:
    ops = list(graph.ops)
    before = _predecessors(ops)
    users: dict[Tensor, list[int]] = {}
    for i, op in enumerate(ops):
        for root in dict.fromkeys(r for t in op.inputs for r in storage_roots(t)):
            users.setdefault(root, []).append(i)
    for i, op in enumerate(ops):
        for target in (op.inputs[k] for k in op.mutates):
            for j in sorted({j for root in storage_roots(target) for j in users[root]} - {i}):
                unordered = not (before[i] >> j | before[j] >> i) & 1
                if unordered and not ops[j].definition.is_view and any(overlap(target, t) for t in ops[j].inputs):
                    raise CoreError(
                        f"Inplacing ambiguity detected. {op!r} modifies {target.id}, and {ops[j]!r} uses the same "
                        "storage; nothing says which comes first.",
                        where=op.where,
                        hint="wrap both in `with popxl.in_sequence():`, or use the result of one in the other",
                    )


def _predecessors(ops: list[Op]) -> list[int]:
    """For each op the set of ops that must come before it, as the bits of an int."""
    numbers = {id(op): i for i, op in enumerate(ops)}
    contexts = {c: sum(1 << i for i, op in enumerate(ops) if op.execution_context is c) for c in _CONTEXT_ORDER}
    before: list[int] = []
    for op in ops:
        direct = [t.producer for t in op.inputs if t.producer is not None] + list(op.after)
        bits = 0
        for p in direct:
            bits |= before[numbers[id(p)]] | 1 << numbers[id(p)]
        if op.execution_context in _CONTEXT_ORDER:
            for c in _CONTEXT_ORDER[: _CONTEXT_ORDER.index(op.execution_context)]:
                bits |= contexts[c]
        before.append(bits)
    return before
