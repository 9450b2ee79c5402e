"""A graph of an IR: its tensors, its ops in program order, its inputs and outputs (spec ``core.md`` §3)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from popxl.context import get_current_context
from popxl.errors import CoreError, PopxlIndexError, PopxlTypeError, PopxlValueError
from popxl.tensor import Constant, Tensor, Variable

if TYPE_CHECKING:
    from popxl.ir import Ir
    from popxl.op import Op

_hook_handles = itertools.count(1)


class Graph:
    """A list of ops over tensors. Made by `Ir.create_graph` and `Ir.create_empty_graph`, never directly.

    ``with graph:`` makes it the current graph, which new ops are added to.
    """

    _ir: Ir
    _id: str
    _tensors: dict[str, Tensor]
    _ops: list[Op]
    _inputs: list[Tensor]
    _outputs: list[Tensor]
    _by_ref_inputs: set[Tensor]
    _hooks: dict[int, Callable[[Op], Any]]
    #: Ops that call this graph.
    call_sites: list[Op]

    def __init__(self) -> None:
        raise PopxlTypeError("Cannot create a Graph directly.", hint="use Ir.create_graph or Ir.create_empty_graph")

    @classmethod
    def _create(cls, ir: Ir, graph_id: str) -> Graph:
        self = object.__new__(cls)
        self._ir = ir
        self._id = graph_id
        self._tensors = {}
        self._ops = []
        self._inputs = []
        self._outputs = []
        self._by_ref_inputs = set()
        self._hooks = {}
        self.call_sites = []
        return self

    # Inspection

    @property
    def ir(self) -> Ir:
        """The IR it belongs to."""
        return self._ir

    @property
    def id(self) -> str:
        """Unique name within the IR; empty for the main graph."""
        return self._id

    @property
    def name(self) -> str:
        """Same as `id`."""
        return self._id

    @property
    def main_graph(self) -> Graph:
        """The main graph of the same IR."""
        return self._ir.main_graph

    @property
    def ops(self) -> tuple[Op, ...]:
        """The ops, in the order in which they were made and in which they run."""
        return tuple(self._ops)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs, in the order in which they were made."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs, in the order in which they were marked."""
        return tuple(self._outputs)

    @property
    def inputs_by_name(self) -> dict[str, Tensor]:
        """The inputs by name."""
        return {t.name: t for t in self._inputs}

    @property
    def by_ref_inputs(self) -> frozenset[Tensor]:
        """The inputs that call sites pass by reference."""
        return frozenset(self._by_ref_inputs)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the graph."""
        return tuple(self._tensors.values())

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables, sorted by id."""
        return tuple(sorted((t for t in self._tensors.values() if isinstance(t, Variable)), key=lambda t: t.id))

    @property
    def constants(self) -> tuple[Constant, ...]:
        """The constants, sorted by id."""
        return tuple(sorted((t for t in self._tensors.values() if isinstance(t, Constant)), key=lambda t: t.id))

    @property
    def called_graphs(self) -> tuple[Graph, ...]:
        """The graphs that ops of this one call, each once."""
        return tuple(dict.fromkeys(g for op in self._ops for g in op.called_graphs))

    def get_tensor(self, tensor_id: str) -> Tensor:
        """Return the tensor with this full id.

        Raises:
            CoreError: (a `RuntimeError`) if there is none.
        """
        try:
            return self._tensors[tensor_id]
        except KeyError:
            raise CoreError(
                f"No tensor `{tensor_id}` in graph `{self.name}`.", hint="ids have the graph's name in front"
            ) from None

    def __contains__(self, value: Tensor) -> bool:
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PopxlTypeError(f"Only a Tensor can be in a graph, not {value!r}.", hint="ask for graph.tensors")
        return value.id in self._tensors and value.ir == self._ir

    # Building

    def register_tensor(self, tensor: Tensor, base_name: str) -> str:
        """Give `tensor` a unique id from the name scopes and `base_name`, and keep it."""
        base = "/".join((*get_current_context().name_scopes, base_name))
        tensor_id = f"{self._id}/{base}" if self._id else base
        while tensor_id in self._tensors:
            tensor_id = f"{self._id}/{base}" if self._id else base
            tensor_id += f"__t{self._ir.next_tensor_suffix()}"
        self._tensors[tensor_id] = tensor
        return tensor_id

    def append(self, op: Op) -> None:
        """Add `op` at the end and tell the hooks."""
        self._ir.check_open()
        self._ops.append(op)
        self._connect(op)

    def _connect(self, op: Op) -> None:
        for t in op.inputs:
            t.consumers.append(op)
        for g in op.called_graphs:
            g.call_sites.append(op)
        for hook in tuple(self._hooks.values()):
            hook(op)

    def add_input(self, tensor: Tensor, *, by_ref: bool) -> None:
        """Make `tensor` the next input."""
        self._inputs.append(tensor)
        if by_ref:
            self._by_ref_inputs.add(tensor)

    def reorder_inputs(self, inputs: Sequence[Tensor]) -> None:
        """Put the inputs, all of them, in another order; nothing may call the graph yet."""
        assert not self.call_sites
        assert len(inputs) == len(self._inputs)
        assert set(inputs) == set(self._inputs)
        self._inputs = list(inputs)

    def add_output(self, tensor: Tensor) -> None:
        """Make `tensor` the next output."""
        self._outputs.append(tensor)

    def remove_output(self, index: int) -> None:
        """Drop an output, such as a gradient that is accumulated inside a gradient graph; nothing may call it yet.

        Args:
            index: Its number; the outputs after it move up.

        Raises:
            PopxlIndexError: (an `IndexError`) if there is no such output.
            CoreError: (a `RuntimeError`) if the graph is called already.

        Example:
            >>> import popxl
            >>> ir = popxl.Ir()
            >>> g = ir.create_graph(lambda x: (x, x + x), popxl.TensorSpec((), popxl.float32))
            >>> g.remove_output(0)
            >>> [t.name for t in g.outputs]
            ['add_out']
        """
        self._ir.check_open()
        if not 0 <= index < len(self._outputs):
            raise PopxlIndexError(f"Graph `{self.name}` has no output {index}, it has {len(self._outputs)}.")
        if self.call_sites:
            raise CoreError(
                f"Output {index} of graph `{self.name}` cannot be removed: the graph is called already.",
                where=self.call_sites[0].where,
                hint="remove outputs before the first call",
            )
        del self._outputs[index]

    def insert_before(self, op: Op, new: Sequence[Op]) -> None:
        """Put ops that are in no graph yet before `op`, and tell the hooks."""
        self._ir.check_open()
        place = self._ops.index(op)
        self._ops[place:place] = new
        for made in new:
            self._connect(made)

    def register_op_created_hook(self, fn: Callable[[Op], Any]) -> int:
        """Call ``fn(op)`` after each op made in this graph.

        Returns:
            A handle for `remove_op_created_hook`.
        """
        handle = next(_hook_handles)
        self._hooks[handle] = fn
        return handle

    def remove_op_created_hook(self, handle: int) -> None:
        """Stop calling a hook.

        Raises:
            PopxlValueError: (a `ValueError`) if the handle is not known.
        """
        if handle not in self._hooks:
            raise PopxlValueError(
                f"No op created hook with handle {handle} in graph `{self.name}`.", hint="it may be removed already"
            )
        del self._hooks[handle]

    def __enter__(self) -> Graph:
        get_current_context().push_graph(self)
        return self

    def __exit__(self, *exc: object) -> None:
        get_current_context().pop_graph()

    # Identity and text

    def __eq__(self, value: object) -> bool:
        if not isinstance(value, Graph):
            raise PopxlTypeError(f"Cannot compare a Graph with {value!r}.", hint="compare its id, or test with `is`")
        return self._id == value._id and self._ir == value._ir

    def __hash__(self) -> int:
        return hash((self._id, self._ir.id))

    def __repr__(self) -> str:
        return f"Graph[id={self.id} name={self.name}]"

    def __str__(self) -> str:
        from popxl.text import graph_text

        return graph_text(self)


def check_in_current_graph(graph: Graph, **tensors: object) -> None:
    """Check that each named argument is a tensor of `graph`.

    Raises:
        PopxlTypeError: (a `TypeError`) if one is not a tensor.
        PopxlValueError: (a `ValueError`) if one belongs to another graph.
    """
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise PopxlTypeError(
                f"The input `{name}` is not a Tensor. Type: {type(t).__name__}. Value: {t!r}.",
                hint="wrap host data in popxl.constant(...)",
            )
        if t not in graph:
            owner = f"`{t.graph.name}` of {t.ir!r}" if t.graph.name else f"the main graph of {t.ir!r}"
            raise PopxlValueError(
                f"The input tensor `{name}` is not in the current Graph {graph.name or '(main)'}. "
                f"Tensor {t.id} belongs to {owner}.",
                hint="pass it into the graph as an input (an argument of create_graph, or popxl.graph_input)",
            )
