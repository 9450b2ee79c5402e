"""`call`: run a graph at this point of another (spec ``ops-control.md`` §2, §4), and what call sites share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from popxl.aliasing import is_writable, overlap, storage_roots
from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.errors import CoreError, PopxlError, PopxlIndexError, PopxlTypeError, PopxlValueError
from popxl.graph import Graph
from popxl.op import Control, Op, ShapeDtype
from popxl.ops._define import Declaration, define
from popxl.tensor import Tensor, TensorLike
from popxl.utils import table_to_string


def call(
    graph: Graph,
    *inputs: TensorLike | Iterable[TensorLike],
    inputs_dict: Mapping[Tensor, TensorLike] | None = None,
) -> tuple[Tensor, ...]:
    """Run `graph` here.

    Inputs are passed by value, except those that the graph takes by reference (`popxl.TensorByRef`): what
    the graph does to these in place, it does to the caller's tensors.

    Args:
        graph: The graph.
        inputs: Values for its inputs, in order; lists are flattened, numbers become constants.
        inputs_dict: Values for the other inputs, by input.

    Returns:
        The outputs, always a tuple.

    Raises:
        PopxlValueError: (a `ValueError`) for too many, too few or foreign inputs.
        PopxlTypeError: (a `TypeError`) for values that cannot become tensors.
        CoreError: (a `RuntimeError`) if a shape or dtype differs from the graph's input.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> ir = popxl.Ir()
        >>> with ir.main_graph:
        ...     x = popxl.constant(2.0)
        ...     double = ir.create_graph(lambda x: x + x, x)
        ...     (y,) = ops.call(double, x)
    """
    return call_with_info(graph, *inputs, inputs_dict=inputs_dict).outputs


def call_with_info(
    graph: Graph,
    *inputs: TensorLike | Iterable[TensorLike],
    inputs_dict: Mapping[Tensor, TensorLike] | None = None,
    check_inputs: bool = True,
) -> CallSiteInfo:
    """Run `graph` here, as `call` does, and return information on the call site.

    Args:
        graph: The graph.
        inputs: As for `call`.
        inputs_dict: As for `call`.
        check_inputs: Whether all inputs must be given.
    """
    parents = match_inputs(graph, inputs, inputs_dict, "called", check_inputs=check_inputs)
    emit_call(graph, parents)
    return CallSiteInfo(get_current_graph().ops[-1])


CALL = define("Call", call, control=Control.CALL)


class CallSiteInfo:
    """What a call site connects: the tensors of the caller and those of the called graph.

    All results are computed when asked for, so they follow later changes of the graph.

    Args:
        subgraph_op: The op at the call site.
    """

    def __init__(self, subgraph_op: Op) -> None:
        self._op = subgraph_op

    @property
    def called_graph(self) -> Graph:
        """The called graph."""
        return self._op.called_graphs[0]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The caller's tensors that are passed in."""
        return self._op.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The caller's tensors that come out."""
        return self._op.outputs

    def parent_input(self, idx: int) -> Tensor:
        """Return the caller's tensor at input `idx` of the op. Raises an `IndexError` if there is none."""
        first = self._op.definition.first_input
        if not first <= idx < first + len(self._op.inputs):
            raise PopxlIndexError(f"The call site has no input {idx}.", where=self._op.where)
        return self._op.inTensor(idx)

    def parent_output(self, idx: int) -> Tensor:
        """Return the caller's tensor at output `idx` of the op. Raises an `IndexError` if there is none."""
        if not 0 <= idx < len(self._op.outputs):
            raise PopxlIndexError(f"The call site has no output {idx}.", where=self._op.where)
        return self._op.outputs[idx]

    def graph_to_parent_input_index(self, idx: int) -> int:
        """Return the op's input that feeds input `idx` of the called graph."""
        return idx

    def parent_to_graph_input_index(self, idx: int) -> int:
        """Return the input of the called graph that input `idx` of the op feeds."""
        return idx

    def graph_to_parent_output_index(self, idx: int) -> int:
        """Return the op's output that output `idx` of the called graph feeds."""
        return idx - self._hidden_outputs

    def parent_to_graph_output_index(self, idx: int) -> int:
        """Return the output of the called graph that feeds output `idx` of the op."""
        return idx + self._hidden_outputs

    @property
    def _hidden_outputs(self) -> int:
        # The first output of a loop's wrapper is its condition.
        return 1 if self._op.definition.control is Control.LOOP else 0

    def graph_to_parent(self, graph_tensor: Tensor) -> Tensor:
        """Return the caller's tensor for an input, else an output, of the called graph.

        Raises:
            PopxlValueError: (a `ValueError`) if it is neither.
        """
        first = self._op.definition.first_input
        for i, t in enumerate(self.called_graph.inputs):
            if t == graph_tensor and i >= first:
                return self.parent_input(self.graph_to_parent_input_index(i))
        for i, t in enumerate(self.called_graph.outputs):
            if t == graph_tensor and i >= self._hidden_outputs:
                return self.parent_output(self.graph_to_parent_output_index(i))
        raise PopxlValueError(
            f"Tensor {graph_tensor.name} is not an input or output of the called graph(s).", where=self._op.where
        )

    def parent_to_graph(self, parent_tensor: Tensor) -> Tensor:
        """Return the input of the called graph that a tensor of the caller feeds, the first if several.

        Raises:
            PopxlValueError: (a `ValueError`) if it feeds none.
        """
        for i, t in enumerate(self._op.inputs):
            if t == parent_tensor:
                return self.called_graph.inputs[i + self._op.definition.first_input]
        raise PopxlValueError(
            f"Tensor {parent_tensor.name} is not a parent graph input of the call site.", where=self._op.where
        )

    def set_parent_input_modified(self, parent_tensor: Tensor, infer_modified_regions: bool = False) -> None:
        """Let what the graph does in place to an input happen to the caller's tensor as well.

        Args:
            parent_tensor: The caller's tensor; it must be passed to exactly one input.
            infer_modified_regions: Accepted; the result is the same.

        Raises:
            CoreError: (a `RuntimeError`) if the tensor is passed to no input or to several, or shares storage
                with another one that is modified.
        """
        self._op.graph.ir.check_open()
        places = [i for i, t in enumerate(self._op.inputs) if t == parent_tensor]
        if len(places) != 1:
            raise CoreError(
                f"Tensor {parent_tensor.id} must be passed to exactly one input of the call site to be modified; "
                f"it is passed to {len(places)}.",
                where=self._op.where,
            )
        if is_writable(parent_tensor):
            mutated = sorted({*self._op.mutates, *places})
            _check_separate([self._op.inputs[i] for i in mutated])
            self._op.mutates = tuple(mutated)

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{self._op!r}]"


def emit_call(graph: Graph, parents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Add the op that calls `graph` with its inputs in order."""
    inputs = {f"input {i}": t for i, t in enumerate(parents)}
    return emit_call_site(CALL, inputs, (graph,), graph.outputs, mutates=by_ref_inputs(graph, parents))


def emit_call_site(
    declaration: Declaration,
    inputs: Mapping[str, Tensor],
    graphs: tuple[Graph, ...],
    like: tuple[Tensor, ...],
    names: Sequence[str] | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """Add an op that runs `graphs`.

    Args:
        declaration: The op.
        inputs: The caller's tensors, by what errors call them.
        graphs: The graphs.
        like: For each output, a tensor of the same name, shape, dtype and meta shape.
        names: Names of the outputs, where other than those of `like`.
        options: As for `Declaration.emit`.
    """
    specs = tuple(ShapeDtype(t.shape, t.dtype) for t in like)
    outputs = declaration.emit(
        inputs, names or [t.name for t in like], graphs=graphs, outputs=specs, same_place=False, **options
    )
    for output, t in zip(outputs, like, strict=True):
        output.meta_shape = t.meta_shape
    return outputs


def by_ref_inputs(graph: Graph, parents: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Return the inputs that the call site overwrites: those by reference.

    Raises:
        CoreError: (a `RuntimeError`) if a tensor goes to an input by reference and to another one, or if two
            that go by reference share storage.
    """
    by_ref = graph.by_ref_inputs
    given = list(zip(graph.inputs, parents, strict=False))
    mutated = tuple(i for i, (t, parent) in enumerate(given) if t in by_ref and is_writable(parent))
    times = Counter(parents)
    for i in mutated:
        if times[parents[i]] > 1:
            raise CoreError(
                f"Tensor {parents[i].id} is passed by reference to `{graph.inputs[i].name}` of graph {graph.name}, "
                "and to another input as well.",
                hint="pass a copy (popxl.ops.identity) to the other input",
            )
    _check_separate([parents[i] for i in mutated])
    return mutated


def _check_separate(modified: Sequence[Tensor]) -> None:
    """Check that no two of the tensors that a call site overwrites share storage: one write would undo the other."""
    seen: dict[Tensor, list[Tensor]] = {}
    for t in modified:
        for root in set(storage_roots(t)):
            for other in seen.setdefault(root, []):
                if overlap(other, t):
                    raise CoreError(
                        f"Tensors {other.id} and {t.id} share storage, and both are passed by reference.",
                        hint="pass only one of them, and make the other from it inside the graph",
                    )
            seen[root].append(t)


def match_inputs(
    graph: Graph,
    inputs: Iterable[Any],
    inputs_dict: Mapping[Tensor, TensorLike] | None,
    kind: str,
    *,
    check_inputs: bool = True,
) -> tuple[Tensor, ...]:
    """Return the caller's tensor for each input of `graph`, in order (spec ``ops-control.md`` §2.1).

    Args:
        graph: The called graph.
        inputs: Positional values, flattened one level.
        inputs_dict: Values by input.
        kind: What error messages call the graph.
        check_inputs: Whether all inputs must be given.
    """
    parent = get_current_graph()
    if graph.ir != parent.ir:
        raise PopxlValueError(f"Graph {graph.name} belongs to {graph.ir!r}, not to the current {parent.ir!r}.")
    found: dict[int, Tensor] = {}
    for i, value in enumerate(_flatten(inputs)):
        if i >= len(graph.inputs):
            raise PopxlValueError(
                f"Too many inputs have been provided to the {kind} graph. It has {len(graph.inputs)} inputs: "
                f"{[t.name for t in graph.inputs]}.",
                hint="a list is passed as one input per element",
            )
        if isinstance(value, Tensor) and value not in parent:
            raise PopxlValueError(f'Parent input tensor "{value.id}" is not in parent graph `{parent.name}`.')
        found[i] = _as_tensor(value, graph.inputs[i], f'Input at position "{i}"')
    for target, value in (inputs_dict or {}).items():
        i = _input_index(graph, target, kind)
        if isinstance(value, Tensor) and value not in parent:
            raise PopxlValueError(f'The parent input tensor "{value.id}" is not in the parent graph `{parent.name}`.')
        if i in found:
            raise PopxlValueError(
                f"Graph input tensor is specified twice for the {kind} graph, `{target.name}`: by position {i} "
                "and in inputs_dict."
            )
        found[i] = _as_tensor(value, target, f'Input "{target.name}"')
    if check_inputs and len(found) < len(graph.inputs):
        _raise_missing(graph, found, kind)
    matched = {i: found[i] for i in sorted(found)}
    for i, t in matched.items():
        _check_matches(graph, i, t)
    return tuple(matched.values())


def _flatten(inputs: Iterable[Any]) -> Iterable[Any]:
    for value in inputs:
        is_number = getattr(value, "ndim", None) == 0  # an array without axes is iterable in name only
        if isinstance(value, Iterable) and not isinstance(value, str | Tensor) and not is_number:
            yield from cast("Iterable[Any]", value)
        else:
            yield value


def _as_tensor(value: Any, target: Tensor, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        if value is None or isinstance(value, str) or (target.nelms and not np.size(value)):
            raise PopxlTypeError("it is no number")
        return constant(value, target.dtype)
    except (PopxlError, TypeError, ValueError) as error:
        raise PopxlTypeError(
            f"{what} could not be coerced into a tensor of dtype {target.dtype}: {value!r}.",
            hint="pass a tensor or a number",
        ) from error


def _input_index(graph: Graph, target: Tensor, kind: str) -> int:
    if target not in graph:
        raise PopxlValueError(
            f'The graph input tensor "{target.id}" is not in the {kind} graph `{graph.name}`.',
            hint="keys of inputs_dict are inputs of the graph that is called",
        )
    if target not in graph.inputs:
        raise CoreError(
            f'Tensor "{target.id}" is not an input of graph `{graph.name}`.',
            hint="make it an input with popxl.graph_input",
        )
    return graph.inputs.index(target)


def _raise_missing(graph: Graph, found: Mapping[int, Tensor], kind: str) -> None:
    missing = [(i, t.name, t.dtype, t.shape) for i, t in enumerate(graph.inputs) if i not in found]
    connected = [(i, graph.inputs[i].name, t.id) for i, t in sorted(found.items())]
    raise PopxlValueError(
        f"Not enough inputs have been provided for the {kind} graph ({graph.name}): {len(missing)} missing.\n"
        "Missing inputs:\n"
        + table_to_string([("index", "name", "dtype", "shape"), *missing])
        + "Connected inputs:\n"
        + table_to_string([("index", "name", "parent tensor"), *connected]),
        hint="pass them by position or in inputs_dict",
    )


def _check_matches(graph: Graph, i: int, t: Tensor) -> None:
    target = graph.inputs[i]
    if (t.shape, t.dtype) != (target.shape, target.dtype):
        raise CoreError(
            f"CallOp input (@{i}) does not match callee input tensor (@{i}) of graph {graph.name}: "
            f"{t.id} is {t.dtype.name}{list(t.shape)}, {target.name} is {target.dtype.name}{list(target.shape)}.",
            hint="reshape or cast it, or create the graph from a tensor of this shape and dtype",
        )
