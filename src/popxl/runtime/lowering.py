"""From ops to one JAX function. Reads and writes go through storages, so in-place ops and views come out right.

Lowering keeps one array per storage. A view is computed from its bases when it is read; a write to a view puts
the new value back along the chain (functionalisation). XLA makes it in place again where memory is donated.

A value that may differ between replicas has an axis over all of them in front (`popxl.plan.replicas`). An op of one
replica is mapped over that axis, so the function is that of all replicas at once, and XLA divides it over devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from popxl.aliasing import elements_by_root, storage_roots
from popxl.graph import Graph
from popxl.op import Control, Op, as_results
from popxl.ops._jax import jax, jnp, lax
from popxl.plan.replicas import Replicas
from popxl.plan.steps import Assign, Segment, Value
from popxl.tensor import Constant, Tensor

Array = Any


def segment_function(segment: Segment) -> Callable[..., tuple[Array, ...]]:
    """Return the function that a segment stands for: inputs in, outputs out, in the segment's order, then a token.

    The token is a byte that nothing else uses: it is ready when the segment has run (`popxl.runtime.completion`).
    """

    def run(*arrays: Array) -> tuple[Array, ...]:
        storages = _Storages(dict(zip(segment.inputs, arrays, strict=True)), segment.replicas)
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

    def __init__(self, values: dict[Value, Array], replicas: Replicas) -> None:
        self.values = values
        self.replicas = replicas
        self._views: dict[Tensor, Array] = {}

    def varies(self, t: Tensor) -> bool:
        """Whether the value of a tensor has the axis over replicas."""
        return self.replicas.varies(t)

    def read(self, t: Tensor) -> Array:
        t = t.storage
        if t in self.values:
            return self.values[t]
        if t in self._views:
            return self._views[t]
        if isinstance(t, Constant):
            value: Array = self.in_form(t, jnp.asarray(t.host_value.view(t.dtype.storage)), varies=False)
            self.values[t] = value
            return value
        op = t.producer
        if op is None or op.definition.lower is None:
            raise AssertionError(f"{t!r} is read before it is made")
        bases = [op.inputs[i] for i in op.aliases]
        forms = [self.varies(b) for b in bases]
        (value,), _ = self.apply(op.definition.lower, op.attributes, [self.read(b) for b in bases], forms)
        self._views[t] = value
        return value

    def write(self, t: Tensor, value: Array, *, varies: bool | None = None) -> None:
        """Set a tensor. `varies`: the form of `value`, if it may be another than the tensor's."""
        t = t.storage
        value = value if varies is None else self.in_form(t, value, varies=varies)
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
        forms = [self.varies(t), *map(self.varies, bases)]
        arrays = [value, *map(self.read, bases)]
        news, form = self.apply(op.definition.put, op.attributes, arrays, forms)
        for base, new in zip(bases, news, strict=True):
            self.write(base, new, varies=form)

    def _write_elements(self, t: Tensor, value: Array) -> None:
        """Write to a view of several regions of one tensor: whole regions would undo what others have changed."""
        for root, (elements, places) in elements_by_root(t).items():

            def put(old: Array, new: Array, elements: Any = elements, places: Any = places) -> Array:
                return old.reshape(-1).at[elements].set(new.reshape(-1)[places]).reshape(old.shape)

            (new,), form = self.apply(put, {}, [self.read(root), value], [self.varies(root), self.varies(t)])
            self.values[root] = self.in_form(root, new, varies=form)

    # Replicas

    def in_form(self, t: Tensor, value: Array, *, varies: bool) -> Array:
        """A value, with the axis over replicas or without it, as the tensor has it."""
        wanted = self.varies(t)
        if wanted and not varies:
            return jnp.broadcast_to(value, (self.replicas.count, *value.shape))
        if varies and not wanted:
            raise AssertionError(f"{t!r} is given a value that differs between replicas")
        return value

    def apply(
        self,
        function: Callable[..., Any],
        attributes: Mapping[str, Any],
        arrays: Sequence[Array],
        varies: Sequence[bool],
    ) -> tuple[tuple[Array, ...], bool]:
        """Call the function of an op on arrays of either form; return the results, and whether they vary."""

        def run(*arguments: Array) -> tuple[Array, ...]:
            return as_results(function(*arguments, **attributes))

        if not any(varies):
            return run(*arrays), False
        axes = [0 if v else None for v in varies]
        mapped = jax.vmap(run, in_axes=axes, axis_size=self.replicas.count)
        return mapped(*arrays), True


def _run_op(storages: _Storages, op: Op) -> None:
    match op.definition.control:
        case None:
            # A view is computed where it is read; what gives nothing a value is nothing to compute.
            if op.written() and not op.definition.is_view:
                _run_plain(storages, op)
            return
        case Control.CALL:
            results, changed = _run_graph(
                storages.replicas, op.called_graphs[0], [storages.read(t) for t in op.inputs], op.mutates
            )
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
    forms = [i not in unread and storages.varies(t) for i, t in enumerate(op.inputs)]
    targets = op.outputs if op.aliases else op.written()
    if op.definition.across is None:
        results, form = storages.apply(lower, op.attributes, arguments, forms)
    else:
        results, form = _run_across(storages, op, arguments, forms), storages.varies(targets[0])
    for t, value in zip(targets, results, strict=True):
        shape = (storages.replicas.count, *t.shape) if form else t.shape
        if value.shape != shape or value.dtype != t.dtype.storage:
            raise AssertionError(f"{op!r} made {value.dtype}{value.shape} for {t!r}")
        storages.write(t, value, varies=form)


def _run_across(storages: _Storages, op: Op, arguments: Sequence[Array], forms: Sequence[bool]) -> tuple[Array, ...]:
    """Run an op that sees all replicas; its results are in the form of its first target."""
    count = storages.replicas.count
    spread = [
        value if varies else jnp.broadcast_to(value, (count, *value.shape))
        for value, varies in zip(arguments, forms, strict=True)
    ]
    assert op.definition.lower is not None
    results = as_results(op.definition.lower(*spread, **op.attributes))
    return results if storages.varies(op.written()[0]) else tuple(value[0] for value in results)


def _run_graph(
    replicas: Replicas, graph: Graph, arguments: Sequence[Array], mutated: Sequence[int]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the outputs of a graph, and the final values of the inputs `mutated`."""
    storages = _Storages(dict(zip(graph.inputs, arguments, strict=True)), replicas)
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
        hidden = [
            storages.in_form(t, value, varies=False)
            for t, value in zip(graph.inputs, (counter, jnp.asarray(True)), strict=False)
        ]
        outputs, changed = _run_graph(storages.replicas, graph, [*hidden, *values], mutated)
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

    def then_side() -> tuple[Array, ...]:
        return _run_graph(storages.replicas, then_graph, inputs[:split], ())[0][:count]

    def else_side() -> tuple[Array, ...]:
        return _run_graph(storages.replicas, else_graph, inputs[split:], ())[0][:count]

    if not storages.varies(op.inputs[0]):
        return cast("tuple[Array, ...]", lax.cond(condition.reshape(()), then_side, else_side))
    taken = condition.reshape(storages.replicas.count)
    return tuple(jax.vmap(jnp.where)(taken, a, b) for a, b in zip(then_side(), else_side(), strict=True))


def segment_avals(segment: Segment, sharding: Callable[[bool], Any] = lambda _: None) -> tuple[list[Any], list[Any]]:
    """Return shape, dtype and placement of each input of a segment's function, and the placement of each output.

    Args:
        segment: The segment.
        sharding: Where a value lies that varies, and one that does not.
    """
    replicas = segment.replicas

    def tensor(v: Value) -> Tensor:
        return v if isinstance(v, Tensor) else v.tensor

    def aval(t: Tensor) -> Any:
        varies = replicas.varies(t)
        shape = (replicas.count, *t.shape) if varies else t.shape
        return jax.ShapeDtypeStruct(shape, t.dtype.storage, sharding=sharding(varies))

    inputs = [aval(tensor(v)) for v in segment.inputs]
    outputs = [sharding(replicas.varies(tensor(v))) for v in segment.outputs]
    return inputs, [*outputs, sharding(False)]  # the token lies everywhere
