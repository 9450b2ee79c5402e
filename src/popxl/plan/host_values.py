"""Which integers the host can compute, so that an offset or a condition never waits for the device.

A tensor is *host-known* if it is one integer or bool that depends only on constants, loop counters, items of
host streams and arguments that are host-known themselves, through ops that declare a NumPy form. Of these, the
plan evaluates the ones that an offset, a host-driven condition or a check needs; all others stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from popxl import dtypes
from popxl.aliasing import is_view, storage_roots
from popxl.graph import Graph
from popxl.op import Control, Effect, Op
from popxl.plan.replicas import ONE_REPLICA, Replicas
from popxl.tensor import Constant, Tensor, Variable


def host_values(graphs: Sequence[Graph], replicas: Replicas = ONE_REPLICA) -> frozenset[Tensor]:
    """Return the storages that the host computes, of all `graphs` (the reachable ones of a program).

    They are equal on all replicas.
    """
    known = _known(graphs, replicas)
    wanted = [t.storage for g in graphs for op in g.ops for t in _steering(op)]
    found: set[Tensor] = set()
    writers = _writers(graphs)
    reachable = set(graphs)
    while wanted:
        t = wanted.pop()
        if t in found or t not in known:
            continue
        found.add(t)
        wanted += [s for op in writers.get(t, ()) for s in _sources(op, t)]
        wanted += list(_arguments(t, reachable))
    return frozenset(found)


def _steering(op: Op) -> Iterator[Tensor]:
    """The inputs that decide where the op transfers to, which graph it runs, or whether the run goes on."""
    if op.definition.effect in (Effect.REMOTE_LOAD, Effect.REMOTE_STORE):
        yield op.inputs[1]
    elif op.definition.effect is Effect.CHECK or op.definition.control is Control.BRANCH:
        yield op.inputs[0]


def _is_candidate(t: Tensor) -> bool:
    return (t.dtype.is_int or t.dtype == dtypes.bool) and t.nelms == 1 and t.storage is t and not is_view(t)


def _writers(graphs: Iterable[Graph]) -> dict[Tensor, list[Op]]:
    """The ops that make or overwrite each candidate."""
    writers: dict[Tensor, list[Op]] = {}
    for graph in graphs:
        for op in graph.ops:
            for t in dict.fromkeys(t.storage for t in op.written()):
                if _is_candidate(t):
                    writers.setdefault(t, []).append(op)
    return writers


def _known(graphs: Sequence[Graph], replicas: Replicas) -> set[Tensor]:
    """Assume every candidate known, then strike out what is not until nothing changes."""
    known = {t for g in graphs for t in g.tensors if _is_candidate(t) and not isinstance(t, Variable)}
    known -= _overwritten_through_views(graphs)
    known -= replicas.storages
    reachable = set(graphs)
    writers = _writers(graphs)
    changed = True
    while changed:
        unknown = {
            t
            for t in known
            if not all(_knows(op, t, known) for op in writers.get(t, ()))
            or not all(s in known for s in _arguments(t, reachable))
            or not (writers.get(t) or isinstance(t, Constant) or t in t.graph.inputs)
        }
        changed = bool(unknown)
        known -= unknown
    return known


def _overwritten_through_views(graphs: Iterable[Graph]) -> set[Tensor]:
    targets = (op.inputs[i] for graph in graphs for op in graph.ops for i in op.mutates)
    return {root for t in targets if is_view(t) for root in storage_roots(t)}


def _knows(op: Op, t: Tensor, known: set[Tensor]) -> bool:
    """Whether the value that `op` gives to `t` is host-known."""
    if op.definition.effect is Effect.HOST_LOAD:
        return True
    if op.definition.control is Control.BRANCH or (op.definition.control is None and op.definition.host is None):
        return False
    return all(s in known for s in _sources(op, t))


def _sources(op: Op, t: Tensor) -> Iterator[Tensor]:
    """The storages that the value which `op` gives to `t` comes from."""
    control = op.definition.control
    if control is None:
        if op.definition.effect is not Effect.HOST_LOAD:
            yield from (s.storage for s in op.read_inputs())
        return
    graph = op.called_graphs[0]
    first = op.definition.first_input
    hidden_outputs = 1 if control is Control.LOOP else 0
    for k, output in enumerate(op.outputs):
        if output == t:
            yield graph.outputs[k + hidden_outputs].storage
            if control is Control.LOOP:
                yield op.inputs[k].storage
    for i in op.mutates:
        if op.inputs[i].storage == t:
            yield graph.inputs[i + first].storage


def _arguments(t: Tensor, reachable: set[Graph]) -> Iterator[Tensor]:
    """For an input of a graph: the storages that call sites in `reachable` graphs pass in.

    A loop's counter and condition have none.
    """
    if t not in t.graph.inputs:
        return
    position = t.graph.inputs.index(t)
    for site in (site for site in t.graph.call_sites if site.graph in reachable):
        control = site.definition.control
        if control is Control.LOOP:
            if position >= site.definition.first_input:
                carried = position - 1
                yield site.inputs[position - site.definition.first_input].storage
                if carried < len(t.graph.outputs):
                    yield t.graph.outputs[carried].storage
        elif control is Control.BRANCH:
            then_graph = site.called_graphs[0]
            if t.graph == then_graph:
                yield site.inputs[1 + position].storage
            if t.graph == site.called_graphs[1]:
                yield site.inputs[1 + len(then_graph.inputs) + position].storage
        else:
            yield site.inputs[position].storage
