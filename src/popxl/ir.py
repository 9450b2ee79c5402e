"""The intermediate representation: graphs, and everything they share (spec ``core.md`` §2, §8)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from popxl.errors import ContextError, PopxlTypeError
from popxl.graph import Graph
from popxl.job import Job
from popxl.op import Effect
from popxl.replica_grouping import ReplicaGrouping
from popxl.streams import DeviceToHostStream, HostToDeviceStream, Stream

if TYPE_CHECKING:
    from popxl import dtypes
    from popxl.module import Module
    from popxl.tensor import Tensor

_ir_ids = itertools.count()

GraphFunction = Callable[..., "Tensor | Iterable[Tensor] | None"]


@dataclass(slots=True)
class RemoteBufferInfo:
    """What an IR knows of one remote buffer; every handle of the buffer sees it."""

    shape: tuple[int, ...]
    dtype: dtypes.dtype
    entries: int
    #: Replicas that one value is sharded over, where `replica_sharded_buffer` made the buffer.
    shard_over: int | None = None


class Ir:
    """A program: one main graph and the graphs it calls.

    Args:
        replication: Number of replicas, or ``"popdist"`` for those of a job of several processes, as ``popxl run`` and
            the environment say (`popxl.job`); a process that is alone has one replica.

    Example:
        >>> import popxl
        >>> ir = popxl.Ir()
        >>> with ir.main_graph:
        ...     x = popxl.constant(1.0) + 2.0
        >>> x.shape
        ()
    """

    def __init__(self, replication: int | Literal["popdist"] = 1) -> None:
        self._id = next(_ir_ids)
        #: The processes that run this program together.
        self.job = Job.from_environment() if replication == "popdist" else Job()
        self._local_replication = self.job.local_replicas if replication == "popdist" else replication
        self._sealed = False
        self._tensor_suffixes = itertools.count()
        self._graph_numbers = itertools.count()
        self._graphs: list[Graph] = []
        self._dot_directory: Path | None = None
        self._dot_requested = False
        self.remote_buffers: dict[int, RemoteBufferInfo] = {}
        self.num_host_transfers = 1
        self.cache_directory = os.environ.get("POPXL_CACHE_DIR") or os.environ.get("POPART_CACHE_DIR")
        self._main_graph = self._add_graph("")

    # Properties

    @property
    def id(self) -> int:
        """Number of this IR, distinct within the process."""
        return self._id

    @property
    def main_graph(self) -> Graph:
        """The graph that a session runs."""
        return self._main_graph

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """All graphs, the main graph first."""
        return tuple(self._graphs)

    @property
    def replication_factor(self) -> int:
        """Number of replicas of the whole job. Setting it sets the number of each process."""
        return self._local_replication * self.job.process_count

    @replication_factor.setter
    def replication_factor(self, value: int) -> None:
        if self._sealed:
            raise ContextError(
                f"The `Ir` {self._id} is already prepared: a Session was made from it, so its replication factor "
                f"stays {self.replication_factor}.",
                hint="set replication_factor before popxl.Session(ir)",
            )
        self._local_replication = value

    @property
    def instance_replication_factor(self) -> int:
        """Number of replicas in this process."""
        return self._local_replication

    def replica_grouping(self, stride: int = 1, group_size: int | None = None) -> ReplicaGrouping:
        """Partition the replicas into groups by stride and size (spec ``tensors-dtypes.md`` §8.1)."""
        return ReplicaGrouping._from_stride(self, self.replication_factor, stride, group_size)  # pyright: ignore[reportPrivateUsage]

    def replica_grouping_from_assignments(self, assignment: Sequence[int]) -> ReplicaGrouping:
        """Partition the replicas by the group number of each (spec ``tensors-dtypes.md`` §8.2)."""
        return ReplicaGrouping._from_assignment(self, list(assignment), self.replication_factor)  # pyright: ignore[reportPrivateUsage]

    # Graphs

    def create_empty_graph(self, name: str | None = None) -> Graph:
        """Return a new graph without inputs, ops and outputs, called ``<name or "graph">_subgraph(<n>)``.

        Raises:
            ContextError: (a `RuntimeError`) once a session has taken the program.
        """
        self.check_open()
        return self._add_graph(f"{name or 'graph'}_subgraph({next(self._graph_numbers)})")

    def create_derived_graph(self, graph_id: str) -> Graph:
        """Return a new empty graph called `graph_id`, or ``<graph_id>_<n>`` if that is taken.

        Raises:
            ContextError: (a `RuntimeError`) once a session has taken the program.
        """
        self.check_open()
        taken = {g.id for g in self._graphs}
        ids = itertools.chain([graph_id], (f"{graph_id}_{n}" for n in itertools.count(1)))
        return self._add_graph(next(i for i in ids if i not in taken))

    def create_graph(self, fn: GraphFunction | Module, *args: Any, **kwargs: Any) -> Graph:
        """Build a graph by running `fn` on new graph inputs that look like the arguments.

        Tensors and each `TensorSpec` among the arguments (also inside lists, ``*args`` and ``**kwargs``) become
        inputs of the new graph; everything else is passed through. The outputs are what `fn` returns.

        Args:
            fn: A function, a method or a `Module`.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            The new graph.

        Raises:
            PopxlTypeError: (a `TypeError`) if `fn` is no function, or a sequence mixes tensors and others.
            PopxlValueError: (a `ValueError`) if the arguments do not fit, or an output is no tensor of the graph.

        Example:
            >>> import popxl
            >>> ir = popxl.Ir()
            >>> with ir.main_graph:
            ...     x = popxl.variable([1.0, 2.0])
            ...     g = ir.create_graph(lambda x: x + x, x)
            >>> g.inputs[0].name, g.outputs[0].shape
            ('x', (2,))
        """
        from popxl.graph_function import build_graph

        return build_graph(self, fn, args, kwargs)

    def _add_graph(self, graph_id: str) -> Graph:
        graph = Graph._create(self, graph_id)  # pyright: ignore[reportPrivateUsage]
        self._graphs.append(graph)
        return graph

    # Bookkeeping for the other IR modules

    def next_tensor_suffix(self) -> int:
        """Return the next number for a tensor whose name is taken."""
        return next(self._tensor_suffixes)

    def next_buffer_id(self) -> int:
        """Return the id of the next remote buffer; the first is 1."""
        return max(self.remote_buffers, default=0) + 1

    def seal(self) -> None:
        """Fix the program: a session has taken it."""
        self._sealed = True

    def check_open(self) -> None:
        """Check that the program may still change.

        Raises:
            ContextError: (a `RuntimeError`) once a session has taken it.
        """
        if self._sealed:
            raise ContextError(
                f"The `Ir` {self._id} is already prepared: a Session was made from it, so nothing can be added.",
                hint="build the whole program before popxl.Session(ir)",
            )

    # Inspection

    def get_all_d2h_streams(self) -> set[DeviceToHostStream]:
        """Return the streams that some `host_store` uses."""
        return {s for s in self._streams(Effect.HOST_STORE) if isinstance(s, DeviceToHostStream)}

    def get_all_h2d_streams(self) -> set[HostToDeviceStream]:
        """Return the streams that some `host_load` uses."""
        return {s for s in self._streams(Effect.HOST_LOAD) if isinstance(s, HostToDeviceStream)}

    def _streams(self, effect: Effect) -> Iterable[Stream]:
        graphs = self.reachable_graphs() if self._sealed else self._graphs
        return (op.attributes["stream"] for g in graphs for op in g.ops if op.definition.effect is effect)

    def reachable_graphs(self) -> tuple[Graph, ...]:
        """Return the graphs that the main graph calls, directly or not, itself first."""
        found = {self._main_graph: None}
        stack = [self._main_graph]
        while stack:
            for g in stack.pop().called_graphs:
                if g not in found:
                    found[g] = None
                    stack.append(g)
        return tuple(found)

    def dot_checkpoint(self, check: str, save_dir: Path | str | None = None) -> None:
        """Write a Graphviz file per graph that has ops, if `check` is enabled (spec ``core.md`` §2).

        Args:
            check: Name of the checkpoint. ``POPART_DOT_CHECKS`` (names joined by ``:``, or ``ALL``) enables
                checkpoints; all are enabled when it is not set.
            save_dir: Directory for this and all later files; made if missing.
        """
        self._dot_requested = True
        if save_dir is not None:
            self._dot_directory = Path(save_dir)
            self._dot_directory.mkdir(parents=True, exist_ok=True)
        self._write_dot(check, os.environ.get("POPART_DOT_CHECKS", "ALL"))

    def dot_final(self) -> None:
        """Write the checkpoint ``Final``, if checkpoints were asked for; a session does when it takes the program."""
        default = "ALL" if self._dot_requested else ""
        self._write_dot("Final", os.environ.get("POPART_DOT_CHECKS", default))

    def _write_dot(self, check: str, enabled: str) -> None:
        from popxl.text import write_dot

        names = set(enabled.upper().split(":")) - {""}
        if "ALL" in names or check.upper() in names:
            write_dot(self, check, self._dot_directory or Path.cwd())

    # Identity and text

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, value: object) -> bool:
        if not isinstance(value, Ir):
            raise PopxlTypeError(f"Cannot compare an Ir with {value!r}.", hint="test for None with `is`")
        return self._id == value._id

    def __repr__(self) -> str:
        return f"Ir[id={self._id}]"

    def __str__(self) -> str:
        from popxl.text import ir_text

        return ir_text(self)
