"""Replicated tensor sharding, as the plan sees it (spec ``remote-memory.md`` §6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from popxl.errors import PopxlValueError
from popxl.graph import Graph
from popxl.ir import Ir
from popxl.op import Across, Effect, Op
from popxl.tensor import Constant, Tensor, Variable
from popxl.tensorlocation import ExecutionContext


@dataclass(frozen=True, slots=True)
class ResidentShard:
    """A shard that lies on the device between runs, and the row that it is uploaded from and downloaded to."""

    tensor: Tensor
    buffer_id: int
    entry: int


def resident_shards(graph: Graph) -> Iterator[ResidentShard]:
    """Yield the shards that an upload loads into the main graph, for `popxl.replica_sharded_variable`."""
    for op in graph.ops:
        if op.execution_context is ExecutionContext.WeightsFromHostFragment and op.definition.effect:
            offset = op.inputs[1]
            assert isinstance(offset, Constant)
            yield ResidentShard(
                op.outputs[0], op.attributes["buffer"].remote_buffer_id, int(offset.host_value.reshape(()))
            )


def state_tensors(graph: Graph) -> list[Tensor]:
    """The values of the main graph that lie on the device between runs: variables, then shards."""
    variables = [v for v in graph.variables if not v.location_info.isRemote()]
    return [*variables, *(shard.tensor for shard in resident_shards(graph))]


def shard_count(ir: Ir, v: Variable) -> int:
    """Return over how many replicas a sharded variable is sharded; 1 for one that is not.

    It is the size of the groups of a collective that its shards go to or come from; else what `replica_sharded_buffer`
    recorded; else the largest number of shards whose size is that of the buffer's row.

    Raises:
        PopxlValueError: (a `ValueError`) if no number of shards gives the row's size.
    """
    if not v.location_info.isSharded():
        return 1
    buffer_id, _ = v.location_info.getRemoteBufferInfo()
    info = ir.remote_buffers[buffer_id]
    group_size = v.replica_grouping.const_rg.group_size
    divisors = [k for k in range(group_size, 0, -1) if group_size % k == 0]
    recorded = [] if info.shard_over is None else [info.shard_over]
    for k in [*_collective_sizes(ir, buffer_id), *recorded, *divisors]:
        if k in divisors and info.shape == (-(-v.nelms // k),):
            return k
    raise PopxlValueError(
        f"Rows of remote buffer {buffer_id} have shape {info.shape}, which is no shard of {v!r}: its {v.nelms} "
        f"elements are shared by groups of {group_size} replicas.",
        where=repr(v),
        hint=f"make the buffer with rows of {', '.join(str((-(-v.nelms // k),)) for k in divisors)}",
    )


def _collective_sizes(ir: Ir, buffer_id: int) -> Iterator[int]:
    """Group sizes of the collectives right after a load of the buffer, or right before a store."""
    for graph in ir.reachable_graphs():
        for op in graph.ops:
            if op.definition.effect is Effect.REMOTE_LOAD and op.attributes["buffer"].remote_buffer_id == buffer_id:
                for user in (user for t in op.outputs for user in t.consumers):
                    yield from _group_size(user)
            elif op.definition.effect is Effect.REMOTE_STORE and op.attributes["buffer"].remote_buffer_id == buffer_id:
                producer = op.inputs[0].producer
                if producer is not None:
                    yield from _group_size(producer)


def _group_size(op: Op) -> Iterator[int]:
    if op.definition.across in (Across.SAME, Across.OWN):
        yield len(op.attributes["members"][0])
