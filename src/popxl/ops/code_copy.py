"""Moving the code of graphs, which has no meaning here (spec ``ops-nn.md`` §7.1)."""

from __future__ import annotations

from typing import Literal, TypeAlias

from popxl.context import get_current_graph
from popxl.errors import PopxlNotImplementedError, PopxlTypeError, PopxlValueError
from popxl.graph import Graph
from popxl.ops._define import define

__all__ = ["CodeLocation", "code_copy", "remote_code_load"]

CodeLocation: TypeAlias = Literal["executable", "compute_buffer", "io_buffer"]


def remote_code_load(graph: Graph, destination: CodeLocation) -> None:
    """Say when the code of a graph should be loaded. Programs keep it; it does nothing.

    Args:
        graph: Another graph of the program.
        destination: ``"executable"``.

    Raises:
        PopxlTypeError: (a `TypeError`) if `graph` is none.
        PopxlValueError: (a `ValueError`) if `graph` is the current graph, or of another program.
        PopxlNotImplementedError: (a `NotImplementedError`) for another destination.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> ir = popxl.Ir()
        >>> with ir.main_graph:
        ...     ops.remote_code_load(ir.create_empty_graph("layer"), "executable")
    """
    current = get_current_graph()
    if not isinstance(graph, Graph):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PopxlTypeError(f"`graph` is {graph!r}, not a Graph.", hint="pass what ir.create_graph returned")
    if graph == current:
        raise PopxlValueError(
            "The remote_code_load op cannot load the code for the graph it resides in "
            f"({graph.name or 'the main graph'}).",
            hint="call it in the graph that calls this one",
        )
    if graph.ir != current.ir:
        raise PopxlValueError(
            f"The graph {graph.name or 'main'} belongs to another program.", hint="pass a graph of the current Ir"
        )
    if destination != "executable":
        raise PopxlNotImplementedError(
            f"destination == '{destination}' is not possible.", hint='use "executable", or leave the op out'
        )
    # The name stands for the graph: nothing runs it here.
    REMOTE_CODE_LOAD.emit({}, outputs=(), graph=graph.name or "main", destination=destination)


def code_copy(graph: Graph, source: CodeLocation, destination: CodeLocation) -> None:
    """Copy the code of a graph from one place to another: not possible, in the reference neither.

    Raises:
        PopxlNotImplementedError: (a `NotImplementedError`) always.
    """
    raise PopxlNotImplementedError(
        f"code_copy of {graph!r} from {source!r} to {destination!r} is not possible.",
        hint="leave it out: code needs no copies here",
    )


REMOTE_CODE_LOAD = define(
    "RemoteCodeLoad", remote_code_load, differences="the code of all graphs is loaded from the start"
)
