"""The user's handle on Streaming Memory: which tier holds the remote buffers of a session."""

from __future__ import annotations

import os
from typing import final

from popxl.errors import PopxlTypeError, PopxlValueError
from popxl.units import parse_bytes

from .file import FileTier
from .ram import RamTier
from .tier import Tier, TierCounters

ENVIRONMENT_VARIABLE = "POPXL_STREAMING_MEMORY"
_ACCEPTED = '"ram" (host memory) and "file:DIR" (files in the directory DIR)'


@final
class StreamingMemory:
    """Where a session keeps its remote buffers (spec ``remote-memory.md`` §1).

    One object serves one open session at a time; after the session is closed, another may use it.

    Args:
        spec: ``"ram"`` or ``"file:DIR"``.
        tier: A tier of your own, instead of ``spec``.
        reopen: For ``"file:DIR"``: go on with what the last commit left there. Where there is none, start anew;
            `popxl.Session.generation` tells. Without it a session starts anew, and what was committed stays until its
            own first commit.
        checksums: For ``"file:DIR"``: whether each row that is read is compared with what was written.
        host_memory: For ``"file:DIR"``: how much host memory the session may use for rows, such as ``"8GiB"``: those on
            their way, and, with what is left, those that it will use again. Rows that the program itself holds do not
            count, nor does a row that was stored and is still being written. If not given, four rows of
            each buffer, within reason.

    Raises:
        PopxlValueError: ``spec`` names no tier, or ``host_memory`` is no size.
        PopxlTypeError: Not exactly one of ``spec`` and ``tier``, or of the wrong type, or an option that the tier has
            not.

    Example:
        >>> StreamingMemory("ram")
        StreamingMemory(RamTier())
        >>> StreamingMemory("file:/scratch/rows")
        StreamingMemory(FileTier('/scratch/rows'))
    """

    __slots__ = ("_host_bytes", "_tier")

    def __init__(
        self,
        spec: str | None = None,
        *,
        tier: Tier | None = None,
        reopen: bool = False,
        checksums: bool = True,
        host_memory: str | int | None = None,
    ) -> None:
        if (spec is None) == (tier is None):
            raise PopxlTypeError(
                "StreamingMemory takes a spec or a tier: exactly one of the two.",
                hint='write StreamingMemory("ram"), StreamingMemory("file:DIR") or StreamingMemory(tier=my_tier).',
            )
        self._tier = _tier_named(spec, reopen, checksums) if spec is not None else _checked(tier)
        self._host_bytes = parse_bytes(host_memory)
        unused = {"reopen": reopen, "checksums": not checksums, "host_memory": host_memory is not None}
        given = [name for name, is_given in unused.items() if is_given]
        if given and not isinstance(self._tier, FileTier):
            raise PopxlTypeError(
                f"{self._tier!r} has no option {given[0]!r}.",
                hint='only "file:DIR" has reopen, checksums, host_memory.',
            )

    @classmethod
    def from_spec(cls, spec: str | StreamingMemory | None) -> StreamingMemory:
        """What a session does with the ``streaming_memory`` it was given.

        Args:
            spec: A spec, or an object, which is returned as it is. ``None`` means the environment variable
                ``POPXL_STREAMING_MEMORY`` or, where that is unset or empty, ``"ram"``.

        Raises:
            PopxlValueError: The spec, or the environment variable, names no tier.
            PopxlTypeError: ``spec`` is none of these.

        Example:
            >>> StreamingMemory.from_spec("ram")
            StreamingMemory(RamTier())
        """
        if isinstance(spec, StreamingMemory):
            return spec
        if spec is not None:
            return cls(spec)
        from_environment = os.environ.get(ENVIRONMENT_VARIABLE)
        if not from_environment:
            return cls("ram")
        try:
            return cls(from_environment)
        except PopxlValueError as error:
            raise PopxlValueError(
                error.fact, where=f"environment variable {ENVIRONMENT_VARIABLE}", hint=error.hint
            ) from error

    @property
    def tier(self) -> Tier:
        """The tier that holds the rows."""
        return self._tier

    @property
    def host_bytes(self) -> int | None:
        """How much host memory rows may take; None for the usual."""
        return self._host_bytes

    @property
    def counters(self) -> TierCounters:
        """What the tier has moved since it was made: loads, stores and bytes."""
        return self._tier.counters

    def __repr__(self) -> str:
        return f"StreamingMemory({self._tier!r})"


def _tier_named(spec: object, reopen: bool, checksums: bool) -> Tier:
    if not isinstance(spec, str):
        raise PopxlTypeError(
            f"A Streaming Memory spec is text; got {type(spec).__name__}.",
            hint=f"accepted are {_ACCEPTED}, and a StreamingMemory object.",
        )
    kind, colon, rest = spec.partition(":")
    if spec == "ram":
        return RamTier()
    if kind == "file" and colon and rest:
        return FileTier(rest, reopen=reopen, checksums=checksums)
    raise PopxlValueError(
        f"Unknown Streaming Memory {spec!r}.",
        hint=f"accepted are {_ACCEPTED}; for a tier of your own write StreamingMemory(tier=my_tier).",
    )


def _checked(tier: object) -> Tier:
    if not isinstance(tier, Tier):
        raise PopxlTypeError(
            f"tier is a {type(tier).__name__}, not a Tier.",
            hint="inherit popxl.runtime.streaming.Tier.",
        )
    return tier
