"""Rough steps: what the cutter makes and `popxl.plan.assemble` finishes. They say what they read and write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from popxl.aliasing import is_view, storage_roots
from popxl.graph import Graph
from popxl.op import Op
from popxl.plan.program import is_embedded
from popxl.plan.steps import Assign, Value
from popxl.tensor import Tensor


@dataclass(frozen=True, slots=True)
class RoughCall:
    """A graph to run, the tensors passed in, and which inputs (by position) it overwrites or carries around."""

    graph: Graph
    inputs: tuple[Tensor, ...]
    mutated: frozenset[int]
    carried: frozenset[int]
    is_loop: bool


@dataclass(frozen=True, slots=True)
class RoughStep:
    """An op that the executor performs."""

    op: Op
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    calls: tuple[RoughCall, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishedSegment:
    """A run of pure ops, with the storages it reads and writes and the views it must give the value of."""

    items: tuple[Op | Assign, ...]
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    views: tuple[Tensor, ...]
    ipu: int


@dataclass(frozen=True, slots=True)
class RoughGraph:
    """A graph as rough steps.

    Attributes:
        graph: The graph.
        steps: The steps, in order.
        outputs: The value of each output.
        persistent: Storages whose final values the caller or the next run wants.
    """

    graph: Graph
    steps: tuple[RoughStep | FinishedSegment, ...]
    outputs: tuple[Value, ...]
    persistent: tuple[Tensor, ...]


@dataclass(slots=True)
class RoughSegment:
    """Pure ops gathered until something must come after them."""

    items: list[Op | Assign] = field(default_factory=list["Op | Assign"])
    reads: dict[Value, None] = field(default_factory=dict[Value, None])
    writes: dict[Value, None] = field(default_factory=dict[Value, None])
    views: dict[Tensor, None] = field(default_factory=dict[Tensor, None])
    #: The IPU that the ops are placed on; None as long as there are none.
    ipu: int | None = None

    @property
    def is_trivial(self) -> bool:
        """Whether it has nothing worth running before a transfer: no ops that read anything."""
        return not self.reads and not self.views

    def add(self, item: Op | Assign) -> None:
        """Put an op at the end."""
        self.items.append(item)
        self.ipu = (item.source.op if isinstance(item, Assign) else item).ipu
        if isinstance(item, Assign):
            self._read([item.source])
            self._overwrite(item.source.tensor)
            return
        self._read(r for t in item.read_inputs() for r in storage_roots(t))
        for i in item.mutates:
            self._overwrite(item.inputs[i])
        self.writes.update((t, None) for t in item.outputs if t.storage is t)

    def _overwrite(self, t: Tensor) -> None:
        roots = list(storage_roots(t))
        if is_view(t):  # the rest of each storage stays as it is
            self._read(roots)
        self.writes.update(dict.fromkeys(roots))

    def read_view(self, t: Tensor) -> None:
        """Let the segment give the value of a view at its end."""
        self._read(storage_roots(t))
        self.views[t] = None
        if self.ipu is None and t.producer is not None:
            self.ipu = t.producer.ipu

    def _read(self, values: Iterable[Value]) -> None:
        for v in values:
            if v not in self.writes and not is_embedded(v):
                self.reads[v] = None

    def conflicts(self, reads: Sequence[Value], writes: Sequence[Value]) -> bool:
        """Whether a step that reads and writes these must come after the gathered ops."""
        mine = {*self.reads, *self.writes, *self.views}
        return any(v in self.writes or v in self.views for v in reads) or any(v in mine for v in writes)

    def finish(self) -> FinishedSegment:
        """Return what has been gathered."""
        return FinishedSegment(
            tuple(self.items), tuple(self.reads), tuple(self.writes), tuple(self.views), self.ipu or 0
        )
