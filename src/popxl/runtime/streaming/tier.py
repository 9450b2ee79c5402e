"""What a Streaming Memory tier is: remote buffers as rows of immutable arrays.

A tier is chosen by its capabilities, never by its class: the executor asks :attr:`Tier.capabilities` and calls
``open``, ``load``, ``store`` and ``close``. The checks that every tier owes its caller live here, once.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, SupportsIndex

import numpy as np

from popxl.errors import PopxlKeyError, PopxlTypeError, PopxlValueError, RemoteOffsetError, StreamingMemoryError

if TYPE_CHECKING:
    from .transfer import Transfer

PAGE_BYTES = 4096

# Fixed-size numbers only: no objects, no strings, nothing that would need pickle. fp8 travels as uint8.
STORAGE_DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64", "complex64", "complex128"}
)


class ImmutableArray(Protocol):
    """An array that nobody changes any more: ``numpy.ndarray``, ``jax.Array``, or what ``numpy.asarray`` accepts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type."""
        ...

    def __array__(self) -> np.ndarray[Any, Any]:
        """The same numbers as a NumPy array."""
        ...


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """One remote buffer as a tier sees it.

    Args:
        buffer_id: The buffer's number, unique within one ``open``; not negative.
        shape: The shape of one entry. ``()`` and zero-length axes are fine.
        dtype: The dtype as the device stores it (``uint8`` for the float8 types), in native byte order.
        entries: How many entries the buffer has; not negative.
        names: Of the variables that live in it, ``(entry, name)`` each. A buffer with names is *persistent*: its rows
            are what a commit publishes. One without is scratch.

    Attributes:
        entry_bytes: Bytes of one entry, without padding.
        padded_bytes: Bytes of one entry, padded to whole pages.

    Raises:
        TypeError: A number that is not an integer.
        PopxlValueError: A negative number, or a dtype that is not a plain native number.

    Example:
        >>> BufferSpec(1, (2, 3), np.dtype("float32"), entries=4).entry_bytes
        24
    """

    buffer_id: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    entries: int
    names: tuple[tuple[int, str], ...] = ()
    entry_bytes: int = field(init=False, repr=False, compare=False)
    padded_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dtype = np.dtype(self.dtype)
        if dtype.name not in STORAGE_DTYPES or not dtype.isnative:
            raise PopxlValueError(
                f"Remote buffer {self.buffer_id} has dtype {dtype!r}, which Streaming Memory cannot hold.",
                hint=f"use one of {', '.join(sorted(STORAGE_DTYPES))} in native byte order.",
            )
        # Plain Python integers: NumPy's wrap around in slot arithmetic, and JSON cannot hold them.
        shape = tuple(operator.index(n) for n in self.shape)
        buffer_id, entries = operator.index(self.buffer_id), operator.index(self.entries)
        if buffer_id < 0 or entries < 0 or any(n < 0 for n in shape):
            raise PopxlValueError(
                f"Remote buffer {buffer_id} has shape {shape} and {entries} entries; none may be negative."
            )
        for name, value in (("buffer_id", buffer_id), ("shape", shape), ("dtype", dtype), ("entries", entries)):
            object.__setattr__(self, name, value)
        entry_bytes = math.prod(shape) * dtype.itemsize
        object.__setattr__(self, "entry_bytes", entry_bytes)
        object.__setattr__(self, "padded_bytes", -(-entry_bytes // PAGE_BYTES) * PAGE_BYTES)

    @property
    def is_persistent(self) -> bool:
        """Whether a commit publishes its rows."""
        return bool(self.names)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a tier can do beyond storing rows. Code asks for a flag, never for a class.

    Args:
        zero_copy_load: ``load`` hands out memory that the tier already holds, so it costs no bandwidth.
        persistent: A later ``open`` with the same buffers can go on with the rows of an earlier one.
        asynchronous: Loads can be started early and stores finished late, by `Tier.start_reads` and
            `Tier.start_writes`.
        commits: Stores to persistent buffers can be published all at once, whole or not at all, by `Tier.commit`.
        checksums: A changed byte is noticed at load.
    """

    zero_copy_load: bool = False
    persistent: bool = False
    asynchronous: bool = False
    commits: bool = False
    checksums: bool = False


@dataclass(slots=True)
class TierCounters:
    """What a tier has moved since it was made; ``open`` and ``close`` do not reset it.

    Refused and failed transfers do not count. Bytes are those of the entries, without padding.
    """

    loads: int = 0
    stores: int = 0
    bytes_loaded: int = 0
    bytes_stored: int = 0


class Peers(Protocol):
    """The processes that run a program together. All of them make the same calls in the same order."""

    @property
    def index(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def count(self) -> int:
        """Number of processes."""
        ...

    def gather(self, *numbers: int) -> list[tuple[int, ...]]:
        """Return the numbers that each process gives, once all have."""
        ...


class Tier(ABC):
    """Where the rows of remote buffers live, such as RAM or files.

    A tier implements four methods, ``_attach``, ``_read``, ``_write`` and ``_detach``; they are called with checked
    arguments only. ``popxl.testing.tiers.TierTests`` tells whether a tier keeps the contract:

    * an entry is immutable: a store swaps in a new value, and an array that ``load`` returned stays valid and
      unchanged for as long as somebody holds it, also after a later store or ``close``;
    * a stored value is immutable by contract, so a tier may keep a reference to it;
    * after ``open`` every row reads as zeros (spec ``remote-memory.md`` §11);
    * a refused call changes nothing.

    Invariant: one thread calls a tier at a time, and one session has it open at a time.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self) -> None:
        self.counters = TierCounters()
        self._specs: dict[int, BufferSpec] | None = None

    @property
    def copy_bytes(self) -> int:
        """What the tier takes at most for copies of rows that it cannot store from where they lie, in bytes."""
        return 0

    @abstractmethod
    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        """Make room for ``buffers``, all zeros. If it raises, nothing is left open."""

    @abstractmethod
    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        """The value of an entry that exists."""

    @abstractmethod
    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        """Set an entry that exists to a value of the right shape and dtype."""

    @abstractmethod
    def _detach(self) -> None:
        """Let go of everything that ``_attach`` took."""

    def open(self, buffers: Sequence[BufferSpec]) -> None:
        """Attach: afterwards every row of every buffer reads as zeros.

        Args:
            buffers: The buffers, each with its own ``buffer_id``.

        Raises:
            PopxlValueError: Two buffers have the same id.
            StreamingMemoryError: The tier is open already, or cannot hold the buffers.
        """
        if self._specs is not None:
            raise StreamingMemoryError(
                f"{self!r} already serves an open session.",
                hint="close that session first, or give each session a StreamingMemory of its own.",
            )
        specs: dict[int, BufferSpec] = {}
        for spec in buffers:
            if spec.buffer_id in specs:
                raise PopxlValueError(f"Two remote buffers have the id {spec.buffer_id}.")
            specs[spec.buffer_id] = spec
        self._attach(tuple(specs.values()))
        self._specs = specs

    def load(self, buffer_id: int, entry: int) -> ImmutableArray:
        """Read one entry.

        Args:
            buffer_id: Which buffer.
            entry: Which entry, ``0 <= entry < entries``.

        Returns:
            An array of the buffer's shape and dtype that stays valid and unchanged for its holder.

        Raises:
            PopxlKeyError: No such buffer.
            PopxlTypeError: ``entry`` is not an integer.
            RemoteOffsetError: ``entry`` is out of range.
            StreamingMemoryError: The tier is closed, or the entry cannot be read.
        """
        spec, index = self._locate(buffer_id, entry)
        value = self._read(spec, index)
        self.counters.loads += 1
        self.counters.bytes_loaded += spec.entry_bytes
        return value

    def store(self, buffer_id: int, entry: int, value: ImmutableArray) -> None:
        """Set one entry. The tier may keep a reference: nobody may change ``value``, or donate it, afterwards.

        Args:
            buffer_id: Which buffer.
            entry: Which entry, ``0 <= entry < entries``.
            value: An array of the buffer's shape and dtype.

        Raises:
            PopxlKeyError: No such buffer.
            PopxlTypeError: ``entry`` is not an integer, or ``value`` is not an array.
            PopxlValueError: ``value`` has another shape or dtype.
            RemoteOffsetError: ``entry`` is out of range.
            StreamingMemoryError: The tier is closed, or the entry cannot be written.
        """
        spec, index = self._locate(buffer_id, entry)
        try:
            shape, dtype = value.shape, value.dtype
        except AttributeError as error:
            raise PopxlTypeError(
                f"A {type(value).__name__} was stored to remote buffer {buffer_id}, entry {index}; it takes arrays.",
                hint="convert it with numpy.asarray(value, dtype=...) first.",
            ) from error
        if tuple(shape) != spec.shape or dtype != spec.dtype:
            raise PopxlValueError(
                f"A value of shape {tuple(shape)} and dtype {dtype} does not fit remote buffer {buffer_id}, entry "
                f"{index} of {spec.entries}: its entries have shape {spec.shape} and dtype {spec.dtype}.",
                hint="reshape or cast the value before the store.",
            )
        self._write(spec, index, value)
        self.counters.stores += 1
        self.counters.bytes_stored += spec.entry_bytes

    def join(self, peers: Peers) -> None:
        """Work for one process of several: rows are those of its replicas, and all processes commit together.

        Called while the tier is closed, with equal calls in all processes. A tier whose rows end with the process has
        nothing to do.
        """
        del peers

    # What an asynchronous tier does besides

    def start_reads(self, transfers: Sequence[Transfer]) -> None:
        """Start to read entries into ``transfer.raw``; finish each transfer from any thread, in any order.

        A tier with ``capabilities.asynchronous`` implements it. No write to an entry is under way while it is read.
        Neighbouring entries in one call may share a request.

        Args:
            transfers: Reads of entries that exist.
        """
        raise NotImplementedError(f"{self!r} is not asynchronous")

    def start_writes(self, transfers: Sequence[Transfer]) -> None:
        """Start to write entries from ``transfer.raw``, like `start_reads`.

        No other transfer of the same entry is under way.
        """
        raise NotImplementedError(f"{self!r} is not asynchronous")

    # What a tier that commits does besides

    @property
    def generation(self) -> int:
        """Number of the last commit that the rows go back to; 0 before the first."""
        return 0

    def holds(self, buffer_id: int, entry: int) -> bool:
        """Whether the last commit, if the tier continues from one, has a value for an entry."""
        del buffer_id, entry
        return False

    def commit(self, failure: StreamingMemoryError | None = None) -> int:
        """Publish the rows of all persistent buffers as they are now: after a crash they are there, all or none.

        A tier with ``capabilities.commits`` implements it. Nothing is under way.

        Args:
            failure: Why this process has nothing to publish: it is raised, after other processes, which would wait for
                this one, have heard that there is no commit.

        Returns:
            The new `generation`.

        Raises:
            StreamingMemoryError: It could not be published; the last commit stands.
        """
        raise NotImplementedError(f"{self!r} has no commits")

    def committed_reader(
        self, buffer_id: int, entry: int, process: int | None = None
    ) -> Callable[[], np.ndarray[Any, Any]] | None:
        """What reads an entry of the last commit, also when the tier is closed.

        Args:
            buffer_id: Which buffer.
            entry: Which entry.
            process: Whose rows, for a tier that has joined others; None for those of this process.

        Returns:
            A function that gives a new array of the entry's shape and dtype, or raises StreamingMemoryError once there
            is a later commit; None if commits, or those of that process, cannot be read like that.
        """
        del buffer_id, entry, process
        return None

    def roll_back(self) -> None:
        """Make the rows of all persistent buffers what they were at the last commit. Nothing is under way."""
        raise NotImplementedError(f"{self!r} has no commits")

    def close(self) -> None:
        """Detach. Calling it again does nothing; arrays that ``load`` returned stay valid.

        Raises:
            StreamingMemoryError: Something could not be closed; the tier is closed all the same.
        """
        if self._specs is None:
            return
        self._specs = None
        self._detach()

    def _locate(self, buffer_id: int, entry: SupportsIndex) -> tuple[BufferSpec, int]:
        specs = self._specs
        if specs is None:
            raise StreamingMemoryError(
                f"{self!r} is not open, so entry {entry} of remote buffer {buffer_id} cannot be reached.",
                hint="load and store inside the `with session:` block.",
            )
        spec = specs.get(buffer_id)
        if spec is None:
            raise PopxlKeyError(f"{self!r} has no remote buffer {buffer_id}; it has {sorted(specs)}.")
        try:
            index = operator.index(entry)
        except TypeError as error:
            raise PopxlTypeError(f"Entry {entry!r} of remote buffer {buffer_id} is not an integer.") from error
        if not 0 <= index < spec.entries:
            raise RemoteOffsetError(
                f"Entry {index} is out of range for remote buffer {buffer_id} with {spec.entries} entries.",
                hint="keep 0 <= offset < entries, or raise `buffer.entries` before the session is built.",
            )
        return spec, index

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
