"""From ops to one JAX function. Reads and writes go through storages, so in-place ops and views come out right.

Lowering keeps one array per storage. A view is computed from its bases when it is read; a write to a view puts
the new value back along the chain (functionalisation). XLA makes it in place again where memory is donated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from popxl.aliasing import elements_by_root, storage_roots
from popxl.graph import Graph
from popxl.op import Control, Op, as_results
from popxl.ops._jax import jax, jnp, lax
from popxl.plan.steps import Assign, Segment, Value
from popxl.tensor import Constant, Tensor

Array = Any


def segment_function(segment: Segment) -> Callable[..., tuple[Array, ...]]:
    """Return the function that a segment stands for: inputs in, outputs out, in the segment's order, then a token.

    The token is a byte that nothing else uses: it is ready when the segment has run (`popxl.runtime.completion`).
    """

    def run(*arrays: Array) -> tuple[Array, ...]:
        storages = _Storages(dict(zip(segment.inputs, arrays, strict=True)))
        for item in segment.items:
            if isinstance(item, Assign):
                storages.write(item.source.tensor, storages.values[item.source])
            else:
                _run_op(storages, item)
        outputs = [storages.read(v) if isinstance(v, Tensor) else storages.values[v] for v in segment.outputs]
        return (*_distinct(outputs, arrays), jnp.zeros((), jnp.uint8))

    return run


def _distinct(outputs: Sequence[Array], inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Copy outputs that are an input or another output: each slot must own its memory."""
    seen = {id(a) for a in inputs}
    result: list[Array] = []
    for a in outputs:
        result.append(jnp.array(a, copy=True) if id(a) in seen else a)
        seen.add(id(a))
    return tuple(result)


class _Storages:
    """The current value of each storage, while a segment or an inlined graph is traced."""

    def __init__(self, values: dict[Value, Array]) -> None:
        self.values = values
        self._views: dict[Tensor, Array] = {}

    def read(self, t: Tensor) -> Array:
        t = t.storage
        if t in self.values:
            return self.values[t]
        if t in self._views:
            return self._views[t]
        if isinstance(t, Constant):
            value: Array = jnp.asarray(t.host_value.view(t.dtype.storage))
            self.values[t] = value
            return value
        op = t.producer
        if op is None or op.definition.lower is None:
            raise AssertionError(f"{t!r} is read before it is made")
        value = op.definition.lower(*(self.read(op.inputs[i]) for i in op.aliases), **op.attributes)
        self._views[t] = value
        return value

    def write(self, t: Tensor, value: Array) -> None:
        t = t.storage
        self._views.clear()
        op = t.producer
        if op is None or op.definition.put is None:
            self.values[t] = value
            return
        roots = list(storage_roots(t))
        if len(set(roots)) < len(roots):
            self._write_elements(t, value)
            return
        bases = [op.inputs[i] for i in op.aliases]
        news = op.definition.put(value, *(self.read(b) for b in bases), **op.attributes)
        for base, new in zip(bases, news, strict=True):
            self.write(base, new)

    def _write_elements(self, t: Tensor, value: Array) -> None:
        """Write to a view of several regions of one tensor: whole regions would undo what others have changed."""
        flat = value.reshape(-1)
        for root, (elements, places) in elements_by_root(t).items():
            old = self.read(root)
            self.values[root] = old.reshape(-1).at[elements].set(flat[places]).reshape(old.shape)


def _run_op(storages: _Storages, op: Op) -> None:
    match op.definition.control:
        case None:
            # A view is computed where it is read; what gives nothing a value is nothing to compute.
            if op.written() and not op.definition.is_view:
                _run_plain(storages, op)
            return
        case Control.CALL:
            results, changed = _run_graph(op.called_graphs[0], [storages.read(t) for t in op.inputs], op.mutates)
        case Control.LOOP:
            results, changed = _run_loop(storages, op)
        case Control.BRANCH:
            results, changed = _run_branch(storages, op), ()
    # A graph may have got more outputs since this call of it was made.
    for t, value in zip(op.outputs, results[: len(op.outputs)], strict=True):
        storages.write(t, value)
    for i, value in zip(op.mutates, changed, strict=True):
        storages.write(op.inputs[i], value)


def _run_plain(storages: _Storages, op: Op) -> None:
    lower = op.definition.lower
    if lower is None:
        raise AssertionError(f"{op!r} has no lowering")
    unread = op.definition.unread
    arguments = [
        jnp.zeros(t.shape, t.dtype.storage) if i in unread else storages.read(t) for i, t in enumerate(op.inputs)
    ]
    results = as_results(lower(*arguments, **op.attributes))
    targets = op.outputs if op.aliases else op.written()
    for t, value in zip(targets, results, strict=True):
        if value.shape != t.shape or value.dtype != t.dtype.storage:
            raise AssertionError(f"{op!r} made {value.dtype}{value.shape} for {t!r}")
        storages.write(t, value)


def _run_graph(
    graph: Graph, arguments: Sequence[Array], mutated: Sequence[int]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the outputs of a graph, and the final values of the inputs `mutated`."""
    storages = _Storages(dict(zip(graph.inputs, arguments, strict=True)))
    for op in graph.ops:
        _run_op(storages, op)
    outputs = tuple(storages.read(t) for t in graph.outputs)
    return outputs, tuple(storages.read(graph.inputs[i]) for i in mutated)


def _run_loop(storages: _Storages, op: Op) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the outputs of a loop, and the final values of the inputs that it overwrites."""
    graph = op.called_graphs[0]
    first = op.definition.first_input
    carried = len(op.outputs)
    mutated = [i + first for i in op.mutates]

    def body(i: Array, state: tuple[list[Array], tuple[Array, ...]]) -> tuple[list[Array], tuple[Array, ...]]:
        values, _ = state
        counter = jnp.asarray(i, graph.inputs[0].dtype.storage)
        outputs, changed = _run_graph(graph, [counter, jnp.asarray(True), *values], mutated)
        values = list(values)
        for k, value in zip(op.mutates, changed, strict=True):
            values[k] = value
        values[:carried] = outputs[1 : 1 + carried]
        return values, changed

    count = op.attributes["repeat_count"]
    values = [storages.read(t) for t in op.inputs]
    start = (values, tuple(values[i] for i in op.mutates))
    values, changed = cast("tuple[list[Array], tuple[Array, ...]]", lax.fori_loop(0, count, body, start))
    return tuple(values[:carried]), changed


def _run_branch(storages: _Storages, op: Op) -> tuple[Array, ...]:
    then_graph, else_graph = op.called_graphs
    condition, *inputs = (storages.read(t) for t in op.inputs)
    split, count = len(then_graph.inputs), len(op.outputs)
    return cast(
        "tuple[Array, ...]",
        lax.cond(
            condition.reshape(()),
            lambda: _run_graph(then_graph, inputs[:split], ())[0][:count],
            lambda: _run_graph(else_graph, inputs[split:], ())[0][:count],
        ),
    )


def segment_avals(segment: Segment) -> list[Any]:
    """Return shape and dtype of each input of a segment's function."""
    tensors = (v if isinstance(v, Tensor) else v.tensor for v in segment.inputs)
    return [jax.ShapeDtypeStruct(t.shape, t.dtype.storage) for t in tensors]
