"""The process-wide building context: current graph, name scopes, placement, ordering (spec ``core.md`` §5-§6).

Nothing here knows about ops or arrays. `popxl.op.Op` reads the context once, when it is created.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from popxl.errors import ContextError, PopxlTypeError, PopxlValueError
from popxl.tensorlocation import ExecutionContext

if TYPE_CHECKING:
    from popxl.graph import Graph
    from popxl.ir import Ir
    from popxl.op import Op

SequenceMode = bool | Literal["pass"]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """The user's line that made an op."""

    file_name: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file_name}:{self.line} in {self.function}"


@dataclass(slots=True)
class Context:
    """All building state. One object per process, not per thread, as in the reference."""

    graphs: list[Graph] = field(default_factory=list["Graph"])
    name_scopes: list[str] = field(default_factory=list[str])
    ipu: int = 0
    io_tiles: bool = False
    sequence_mode: SequenceMode | None = None
    execution_context: ExecutionContext = ExecutionContext.Normal
    frame_offset: int = 0
    api_names: list[str] = field(default_factory=list[str])
    # The ops that the next op must follow, per graph and execution context. None stands for the head of
    # an unordered block that nothing precedes.
    previous: dict[tuple[Graph, ExecutionContext], list[Op | None]] = field(
        default_factory=dict["tuple[Graph, ExecutionContext]", "list[Op | None]"]
    )

    def push_graph(self, graph: Graph) -> None:
        """Make `graph` current; one stack serves one IR."""
        if self.graphs and self.graphs[0].ir != graph.ir:
            raise ContextError(
                f"Cannot enter graph `{graph.name}` of {graph.ir!r}: a graph of {self.graphs[0].ir!r} is active.",
                hint="leave the `with` block of the first Ir before entering a graph of the second",
            )
        self.graphs.append(graph)

    def pop_graph(self) -> None:
        """Undo the last `push_graph`."""
        self.graphs.pop()

    def order_after(self, op: Op) -> tuple[Op, ...]:
        """Record `op` in the sequence and return the ops that `in_sequence` puts before it."""
        mode = self.sequence_mode
        if mode is None or mode == "pass":
            return ()
        if not isinstance(cast(object, mode), bool):
            raise PopxlValueError(f"Unknown mode {mode!r} for `in_sequence`.", hint='use True, False or "pass"')
        before = self.previous.setdefault((op.graph, self.execution_context), [])
        if mode:
            edges = tuple(p for p in before if p is not None)
            before[:] = [op]
            return edges
        if not before:
            before.append(None)
        head = before[0]
        before.append(op)
        return () if head is None else (head,)


_context = Context()


def get_current_context() -> Context:
    """Return the process-wide building context."""
    return _context


def _no_graph() -> ContextError:
    return ContextError(
        "Trying to access a graph, but no graph has been selected.",
        hint="build ops inside `with ir.main_graph:`",
    )


def get_current_graph() -> Graph:
    """Return the graph that new ops are added to.

    Raises:
        ContextError: (a `RuntimeError`) if no graph is active.

    Example:
        >>> import popxl
        >>> ir = popxl.Ir()
        >>> with ir.main_graph:
        ...     popxl.gcg() == ir.main_graph
        True
    """
    if not _context.graphs:
        raise _no_graph()
    return _context.graphs[-1]


def get_main_graph() -> Graph:
    """Return the main graph of the IR being built.

    Raises:
        ContextError: (a `RuntimeError`) if no graph is active.
    """
    return get_ir().main_graph


def get_ir() -> Ir:
    """Return the IR being built.

    Raises:
        ContextError: (a `RuntimeError`) if no graph is active.
    """
    if not _context.graphs:
        raise _no_graph()
    return _context.graphs[0].ir


gcg, gmg, gir = get_current_graph, get_main_graph, get_ir


@contextmanager
def ipu(ipu: int) -> Generator[int]:
    """Place the ops created inside on IPU `ipu` (a hint here; also a decorator)."""
    before, _context.ipu = _context.ipu, ipu
    try:
        yield ipu
    finally:
        _context.ipu = before


@contextmanager
def io_tiles() -> Generator[None]:
    """Place the ops created inside on the IO tile set (a hint here; also a decorator)."""
    before, _context.io_tiles = _context.io_tiles, True
    try:
        yield None
    finally:
        _context.io_tiles = before


@contextmanager
def name_scope(name: str) -> Generator[list[str]]:
    """Prefix the names of tensors created inside with ``name/`` (also a decorator).

    Yields:
        All active scopes, outermost first.
    """
    _context.name_scopes.append(name)
    try:
        yield list(_context.name_scopes)
    finally:
        _context.name_scopes.pop()


@contextmanager
def no_name_scopes() -> Generator[None]:
    """Name the tensors created inside without the active scopes."""
    before, _context.name_scopes = _context.name_scopes, []
    try:
        yield None
    finally:
        _context.name_scopes = before


@contextmanager
def in_sequence(mode: SequenceMode = True) -> Generator[SequenceMode | None]:
    """Order the ops created inside (also a decorator).

    Ops always run in the order of their creation here, so this never changes a result. The constraints
    are recorded on the ops (`Op.after`), and the optional ambiguity check of a session reads them.

    Args:
        mode: True orders strictly, False makes one unordered block, ``"pass"`` leaves ops free.

    Raises:
        PopxlTypeError: (a `TypeError`) if `mode` is None.
    """
    if cast(object, mode) is None:
        raise PopxlTypeError("`None` cannot be passed to `in_sequence`.", hint='use True, False or "pass"')
    before, _context.sequence_mode = _context.sequence_mode, mode
    try:
        yield None if mode == "pass" else mode
    finally:
        _context.sequence_mode = before
        if before is None:
            _context.previous.clear()


@contextmanager
def _execution_context(execution_context: ExecutionContext) -> Generator[None]:  # pyright: ignore[reportUnusedFunction]
    """Create the ops inside for another program of the session (weights from host, weights to host)."""
    before, _context.execution_context = _context.execution_context, execution_context
    try:
        yield None
    finally:
        _context.execution_context = before


@contextmanager
def debug_context_frame_offset(i: int) -> Generator[None]:
    """Skip `i` more stack frames when the user's line of an op is recorded (also a decorator)."""
    _context.frame_offset += i
    try:
        yield None
    finally:
        _context.frame_offset -= i


def get_source_location(offset: int = 0) -> SourceLocation:
    """Return the innermost line outside this package, `offset` frames further out."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    # By module, not by file: the methods that dataclasses generate belong to no file.
    while frame.f_back is not None and _is_own(frame.f_globals.get("__name__")):
        frame = frame.f_back
    for _ in range(offset + _context.frame_offset):
        if frame.f_back is None:
            break
        frame = frame.f_back
    return SourceLocation(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def _is_own(module: str | None) -> bool:
    return module is not None and (module == "popxl" or module.startswith("popxl."))


@overload
def op_debug_context(name: Callable[P, R]) -> Callable[P, R]: ...
@overload
def op_debug_context(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def op_debug_context(name: Callable[..., Any] | str) -> Callable[..., Any]:
    """Decorate a function that creates ops: they record its name as `Op.api`.

    Use it bare, or with the name to record.
    """
    if isinstance(name, str):
        return partial(_record_api, name)
    return _record_api(name.__name__, name)


def _record_api(api: str, function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        _context.api_names.append(api)
        try:
            return function(*args, **kwargs)
        finally:
            _context.api_names.pop()

    return wrapper
