"""A structural key for runs of ops: equal keys compute the same, so they share one executable."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from popxl.aliasing import is_view
from popxl.graph import Graph
from popxl.op import Op
from popxl.plan.program import is_embedded
from popxl.plan.replicas import ONE_REPLICA, Replicas
from popxl.plan.steps import Assign, Transferred, Value


def segment_key(
    items: Iterable[Op | Assign],
    inputs: Iterable[Value],
    outputs: Iterable[Value],
    donated: tuple[int, ...],
    replicas: Replicas = ONE_REPLICA,
) -> Hashable:
    """Return the key of a segment: what it computes, independent of names and of the graph it is in."""
    numbering = _Numbering(replicas)
    for value in inputs:
        numbering.define_input(value)
    for item in items:
        numbering.add(item)
    # Numbering an output that is a view adds the entries that tell which view it is.
    numbers = tuple(numbering.number(v) for v in outputs)
    return (tuple(numbering.entries), numbers, donated)


def graph_key(graph: Graph, replicas: Replicas = ONE_REPLICA) -> Hashable:
    """Return the key of a whole graph."""
    return segment_key(graph.ops, graph.inputs, graph.outputs, (), replicas)


def _exact(attributes: Mapping[str, Any]) -> Hashable:
    """The attributes, with their text: 0.0 equals -0.0 and 1 equals True, but they compute different things."""
    return tuple((name, value, repr(value)) for name, value in attributes.items())


class _Numbering:
    """Numbers values in the order in which they appear; the entries say how each comes about."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self.entries: list[Hashable] = []
        self._numbers: dict[Value, int] = {}

    def define_input(self, value: Value) -> None:
        self._define(value, "input")

    def add(self, item: Op | Assign) -> None:
        if isinstance(item, Assign):
            self.entries.append(("assign", self.number(item.source.tensor), self.number(item.source)))
            return
        definition = item.definition
        if definition.is_view:
            return
        self.entries.append(
            (
                definition,
                _exact(item.attributes),
                tuple(graph_key(g, self._replicas) for g in item.called_graphs),
                tuple(self._input_number(item, i) for i in range(len(item.inputs))),
                item.mutates,
                item.aliases,
            )
        )
        for t in item.written():
            # What an op fills without reading it begins here, too.
            if t.storage not in self._numbers and not is_view(t):
                self._define(t.storage, "output")

    def _input_number(self, op: Op, i: int) -> int:
        t = op.inputs[i]
        if i in op.definition.unread and not (i in op.mutates and is_view(t)):
            return self._numbers.get(t.storage, -1)
        return self.number(t)

    def number(self, value: Value) -> int:
        if isinstance(value, Transferred):
            return self._numbers[value]
        t = value.storage
        if t not in self._numbers:
            op = t.producer
            if op is not None and op.definition.is_view:
                bases = tuple(self.number(op.inputs[i]) for i in op.aliases)
                self._numbers[t] = len(self._numbers)
                self.entries.append((op.definition, _exact(op.attributes), bases))
            elif is_embedded(t):
                self._numbers[t] = len(self._numbers)
                self.entries.append((t.dtype, t.shape, t.host_value.tobytes(), self._replicas.varies(t)))
            else:
                raise AssertionError(f"{t!r} is neither an input nor made in the segment")
        return self._numbers[t]

    def _define(self, value: Value, kind: str) -> None:
        t = value.tensor if isinstance(value, Transferred) else value
        self._numbers[value] = len(self._numbers)
        self.entries.append((kind, t.shape, t.dtype, self._replicas.varies(t) and self._replicas.count))
