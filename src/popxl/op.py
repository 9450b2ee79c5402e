"""What an op *is*: its definition (shared by all ops of a type) and one op in a graph.

Passes ask a definition for its effects, never for its name. Nothing here imports JAX: a definition only
*holds* the functions that do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from popxl.context import SourceLocation, get_current_context, get_source_location
from popxl.tensorlocation import ExecutionContext

if TYPE_CHECKING:
    from popxl import dtypes
    from popxl.graph import Graph
    from popxl.tensor import Tensor


class Effect(Enum):
    """What an op does besides computing its outputs. Effects happen in program order."""

    HOST_LOAD = "takes the next item of a host stream"
    HOST_STORE = "appends an item to a host stream"
    REMOTE_LOAD = "reads an entry of a remote buffer"
    REMOTE_STORE = "writes an entry of a remote buffer"
    PRINT = "prints to stderr"


class Control(Enum):
    """How an op runs the graphs it calls."""

    CALL = "once"
    LOOP = "a fixed number of times"
    BRANCH = "one of two"


@dataclass(frozen=True, slots=True)
class ShapeDtype:
    """Shape and dtype of one tensor, as shape rules see it."""

    shape: tuple[int, ...]
    dtype: dtypes.dtype


@dataclass(frozen=True, slots=True, eq=False)
class OpDefinition:
    """Everything about one type of op, described in one place.

    Attributes:
        type: The reference's name of the op.
        infer: Shape and dtype of each output, from those of the inputs and the attributes.
        lower: Arrays in, arrays out; None for transfers and control flow, which the runtime performs.
            Results beyond the op's outputs are the new values of `Op.mutates` that no output aliases.
        mutates: Inputs overwritten with the result; output k aliases input ``mutates[k]``.
        unread: Inputs whose value does not matter (a buffer that is filled).
        put: For views only: the new values of the inputs, given the new value of the output.
        host: The same op in NumPy, for integers that the plan evaluates on the host (offsets, conditions).
        effect: What it does besides computing.
        control: How it runs the graphs it calls.
        optimizer: Whether it belongs to an optimiser's update.
        first_input: Number of the first input at a call site (a loop's first two are not connected).
    """

    type: str
    infer: Callable[..., tuple[ShapeDtype, ...]]
    lower: Callable[..., Any] | None = None
    mutates: tuple[int, ...] = ()
    unread: tuple[int, ...] = ()
    put: Callable[..., tuple[Any, ...]] | None = None
    host: Callable[..., Any] | None = None
    effect: Effect | None = None
    control: Control | None = None
    optimizer: bool = False
    first_input: int = 0

    @property
    def is_view(self) -> bool:
        """Whether the output shares the storage of the inputs."""
        return self.put is not None

    def __repr__(self) -> str:
        return f"OpDefinition[{self.type}]"


def as_results(result: Any) -> tuple[Any, ...]:
    """Return what a lowering returned as a tuple: one array stands for itself."""
    return tuple(cast("tuple[Any, ...]", result)) if isinstance(result, tuple) else (result,)


@dataclass(slots=True, eq=False)
class Op:
    """One op of a graph.

    Attributes:
        definition: What all ops of this type share.
        graph: The graph it belongs to.
        inputs: Tensors it takes, in order.
        attributes: Values fixed when it was made. They are hashable.
        called_graphs: Graphs it calls.
        outputs: Tensors it makes, in order.
        mutates: Inputs it overwrites.
        aliases: Inputs whose storage output 0 shares (empty for a fresh output).
        ipu: The IPU it is placed on.
        tile_set: ``"compute"`` or ``"io"``.
        source_place: IPU and tile set of the inputs, of copies that take them from another place; else None.
        after: Ops that `in_sequence` puts before it.
        api: The public function that made it.
        location: The user's line that made it.
    """

    definition: OpDefinition
    graph: Graph
    inputs: tuple[Tensor, ...]
    attributes: Mapping[str, Any]
    called_graphs: tuple[Graph, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    mutates: tuple[int, ...] = ()
    aliases: tuple[int, ...] = ()
    ipu: int = field(default=0)
    tile_set: str = "compute"
    source_place: tuple[int, str] | None = None
    execution_context: ExecutionContext = ExecutionContext.Normal
    after: tuple[Op, ...] = ()
    api: str = ""
    location: SourceLocation = field(default_factory=get_source_location)

    def __post_init__(self) -> None:
        context = get_current_context()
        self.attributes = MappingProxyType(dict(self.attributes))
        self.ipu = context.ipu
        self.tile_set = "io" if context.io_tiles else "compute"
        self.execution_context = context.execution_context
        if context.api_names:
            self.api = context.api_names[-1]
        self.after = context.order_after(self)

    @property
    def type(self) -> str:
        """The reference's name of this kind of op."""
        return self.definition.type

    @property
    def where(self) -> str:
        """The op and the user's line, for error messages."""
        graph = self.graph.name or "the main graph"
        return f"{self.type} in {graph}, made at {self.location}"

    def read_inputs(self) -> tuple[Tensor, ...]:
        """The inputs whose value this op needs."""
        unread = self.definition.unread
        return tuple(t for i, t in enumerate(self.inputs) if i not in unread) if unread else self.inputs

    def written(self) -> tuple[Tensor, ...]:
        """The tensors that this op gives a value: its outputs, then the inputs that it overwrites."""
        return (*self.outputs, *(self.inputs[i] for i in self.mutates))

    def __repr__(self) -> str:
        ins = ", ".join(t.id for t in self.inputs)
        outs = ", ".join(t.id for t in self.outputs)
        return f"Op[{self.type} ({ins}) -> ({outs})]"

    # Names that companion libraries of the reference use.

    def opType(self) -> str:  # noqa: N802
        """Return `type`."""
        return self.type

    def inTensor(self, index: int) -> Tensor:  # noqa: N802
        """Return the input with the call site's number `index`."""
        return self.inputs[index - self.definition.first_input]

    def outTensor(self, index: int) -> Tensor:  # noqa: N802
        """Return output `index`."""
        return self.outputs[index]

    def modifiesIndex(self, index: int) -> bool:  # noqa: N802
        """Whether the input with the call site's number `index` is overwritten."""
        return index - self.definition.first_input in self.mutates

    def isOptimizerOp(self) -> bool:  # noqa: N802
        """Whether the op belongs to an optimiser's update."""
        return self.definition.optimizer
