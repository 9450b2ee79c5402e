"""Facts about the graphs of a program that planning asks for: effects, sizes, what to inline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeGuard

from popxl.graph import Graph
from popxl.op import Control, Op
from popxl.plan.host_values import host_values
from popxl.plan.replicas import ONE_REPLICA, Replicas
from popxl.tensor import Constant, Tensor

#: A called graph of at most this many ops becomes part of the segment that calls it. A larger one is an
#: executable of its own, compiled once however many call sites it has.
SMALL_GRAPH_OPS = 16
#: A loop or a branch whose graphs have at most this many ops is compiled into the segment around it. The host
#: drives larger ones, at some 20 microseconds a step, and their bodies' executables are shared.
SMALL_LOOP_OPS = 100
#: A constant of at most this many elements is written into the code; a larger one is passed to it.
SMALL_CONSTANT_ELEMENTS = 16


def is_embedded(value: object) -> TypeGuard[Constant]:
    """Whether a value is a constant that is written into code."""
    return isinstance(value, Constant) and value.nelms <= SMALL_CONSTANT_ELEMENTS


@dataclass(slots=True)
class Program:
    """The reachable graphs of a program, and what is known of each."""

    graphs: tuple[Graph, ...]
    replicas: Replicas = ONE_REPLICA
    #: Whether each IPU is a device of its own, so that code is compiled for one of them.
    has_stages: bool = False
    host_values: frozenset[Tensor] = frozenset()
    _pure: dict[Graph, bool] = field(default_factory=dict["Graph", bool])
    _size: dict[Graph, int] = field(default_factory=dict["Graph", int])
    _ipus: dict[Graph, frozenset[int]] = field(default_factory=dict["Graph", frozenset[int]])
    _large_constants: dict[Graph, bool] = field(default_factory=dict["Graph", bool])

    def __post_init__(self) -> None:
        self.host_values = host_values(self.graphs, self.replicas)

    def is_pure(self, graph: Graph) -> bool:
        """Whether no op of the graph, nor of the graphs it calls, has an effect."""
        if graph not in self._pure:
            self._pure[graph] = all(
                op.definition.effect is None and all(self.is_pure(g) for g in op.called_graphs) for op in graph.ops
            )
        return self._pure[graph]

    def size(self, graph: Graph) -> int:
        """Number of ops, called graphs counted at each call."""
        if graph not in self._size:
            self._size[graph] = sum(
                1 + sum(self.size(g) for g in op.called_graphs) for op in graph.ops if not op.definition.is_view
            )
        return self._size[graph]

    def has_large_constants(self, graph: Graph) -> bool:
        """Whether the graph or one it calls has a constant that should not be written into code."""
        if graph not in self._large_constants:
            self._large_constants[graph] = any(not is_embedded(c) for c in graph.constants) or any(
                self.has_large_constants(g) for g in graph.called_graphs
            )
        return self._large_constants[graph]

    def ipus(self, graph: Graph) -> frozenset[int]:
        """The IPUs that the ops of the graph, and of the graphs it calls, are placed on."""
        if graph not in self._ipus:
            inner = (self.ipus(g) for g in graph.called_graphs)
            self._ipus[graph] = frozenset(op.ipu for op in graph.ops).union(*inner)
        return self._ipus[graph]

    def is_compiled_inline(self, op: Op) -> bool:
        """Whether an op that calls graphs is compiled into the segment around it."""
        if any(t.storage in self.host_values for t in op.written()):
            return False
        if op.definition.control is Control.BRANCH and self.replicas.varies(op.inputs[0]):
            return True  # both sides are computed: the host can take only one
        if self.has_stages and any(self.ipus(g) - {op.ipu} for g in op.called_graphs):
            return False
        limit = SMALL_GRAPH_OPS if op.definition.control is Control.CALL else SMALL_LOOP_OPS
        return all(
            self.is_pure(g) and self.size(g) <= limit and not self.has_large_constants(g) for g in op.called_graphs
        )

    def has_effect(self, op: Op) -> bool:
        """Whether running the op can be told from not running it, apart from its outputs."""
        return op.definition.effect is not None or not all(self.is_pure(g) for g in op.called_graphs)
