"""Which values may differ between replicas. Only those have an axis over replicas; the others are held once.

A *varying* value comes from what differs: items of host streams, variables with a value for each group, shards, an op
that gives each replica its own part. Whatever is computed from one is varying too, until a collective over all
replicas makes it equal again. So the weights of a data-parallel program are held once, however many replicas a device
has.

Values that the host passes around (arguments, results of graphs, rows of buffers) keep their form on the way: if either
side of a passage varies, both do. Inside compiled code a value is given the axis where it is written, if its storage
has one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from popxl.aliasing import storage_roots
from popxl.graph import Graph
from popxl.ir import Ir
from popxl.op import Across, Control, Effect, Op
from popxl.tensor import Tensor

#: A storage, or a remote buffer by its id.
_Place: TypeAlias = Tensor | int


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas there are, and what differs between them.

    Attributes:
        count: Replicas of the whole job.
        local: Replicas of this process.
        per_device: Replicas that share a device.
        storages: Storages whose values may differ.
        buffers: Remote buffers whose rows may differ.
    """

    count: int = 1
    local: int = 1
    per_device: int = 1
    storages: frozenset[Tensor] = frozenset()
    buffers: frozenset[int] = frozenset()

    def varies(self, t: Tensor) -> bool:
        """Whether the value of a tensor may differ between replicas: it then has an axis over all of them in front."""
        return bool(self.storages) and any(root in self.storages for root in storage_roots(t))


ONE_REPLICA = Replicas()


def find_replicas(ir: Ir, graphs: Sequence[Graph], device_count: int = 1) -> Replicas:
    """Return what differs between the replicas of a program.

    Args:
        ir: The program.
        graphs: Its reachable graphs.
        device_count: Devices of the whole job; it divides the number of replicas.
    """
    count, local = ir.replication_factor, ir.instance_replication_factor
    if count == 1:
        return ONE_REPLICA
    flow = _Flow()
    for v in ir.main_graph.variables:
        location = v.location_info
        if v.replica_grouping.num_groups > 1 or location.isSharded():
            flow.sources.add(location.getRemoteBufferInfo()[0] if location.isRemote() else v)
    for graph in graphs:
        for op in graph.ops:
            _add_op(flow, op)
    varying = flow.reached()
    storages = frozenset(t for t in varying if isinstance(t, Tensor))
    buffers = frozenset(i for i in varying if isinstance(i, int))
    return Replicas(count, local, count // device_count, storages, buffers)


@dataclass(slots=True)
class _Flow:
    """Where varying values come from, and where they go."""

    sources: set[_Place] = field(default_factory=set["_Place"])
    _edges: defaultdict[_Place, set[_Place]] = field(default_factory=lambda: defaultdict(set))

    def flows(self, source: _Place, target: _Place) -> None:
        """If `source` varies, so does `target`."""
        for s in _roots(source):
            self._edges[s].update(_roots(target))

    def equal(self, a: _Place, b: _Place) -> None:
        """Both vary or none does."""
        self.flows(a, b)
        self.flows(b, a)

    def reached(self) -> set[_Place]:
        """Everything that varies."""
        found, pending = set(self.sources), list(self.sources)
        while pending:
            for target in self._edges.get(pending.pop(), ()):
                if target not in found:
                    found.add(target)
                    pending.append(target)
        return found


def _roots(place: _Place) -> Iterable[_Place]:
    return (place,) if isinstance(place, int) else storage_roots(place)


def _add_op(flow: _Flow, op: Op) -> None:
    if op.definition.control is not None:
        for a, b in _passages(op):
            flow.equal(a, b)
        if op.definition.control is Control.BRANCH:
            for t in op.outputs:
                flow.flows(op.inputs[0], t)
        return
    match op.definition.effect:
        case Effect.HOST_LOAD:
            for t in op.written():
                flow.sources.update(storage_roots(t))
        case Effect.REMOTE_LOAD | Effect.REMOTE_STORE:
            buffer_id = op.attributes["buffer"].remote_buffer_id
            flow.flows(op.inputs[1], buffer_id)
            for t in op.outputs or op.inputs[:1]:
                flow.equal(t, buffer_id)
        case Effect.PRINT:
            flow.equal(op.inputs[0], op.outputs[0])
        case _:
            _add_plain(flow, op)


def _add_plain(flow: _Flow, op: Op) -> None:
    across = op.definition.across
    if across is Across.SAME and len(op.attributes["members"]) == 1:
        return
    for target in op.written():
        if across is Across.OWN and len(op.attributes["members"][0]) > 1:
            flow.sources.update(storage_roots(target))
        for t in op.read_inputs():
            flow.flows(t, target)


def _passages(op: Op) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of tensors, outside and inside a called graph, that a value passes between unchanged."""
    if op.definition.control is Control.BRANCH:
        then_graph, else_graph = op.called_graphs
        split = 1 + len(then_graph.inputs)
        yield from zip(op.inputs[1:split], then_graph.inputs, strict=True)
        yield from zip(op.inputs[split:], else_graph.inputs, strict=True)
        # A graph may have got more outputs since this call of it was made.
        for graph in op.called_graphs:
            yield from zip(op.outputs, graph.outputs, strict=False)
        return
    graph = op.called_graphs[0]
    yield from zip(op.inputs, graph.inputs[op.definition.first_input :], strict=True)
    if op.definition.control is Control.CALL:
        yield from zip(op.outputs, graph.outputs, strict=False)
        return
    for output, inner, carried in zip(op.outputs, graph.outputs[1:], graph.inputs[2:], strict=False):
        yield output, inner
        yield output, carried
