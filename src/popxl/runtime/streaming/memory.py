"""The user's handle on Streaming Memory: which tier holds the remote buffers of a session."""

from __future__ import annotations

import os
from typing import final

from popxl.errors import PopxlTypeError, PopxlValueError

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

    Raises:
        PopxlValueError: ``spec`` names no tier.
        PopxlTypeError: Not exactly one of ``spec`` and ``tier``, or of the wrong type.

    Example:
        >>> StreamingMemory("ram")
        StreamingMemory(RamTier())
        >>> StreamingMemory("file:/scratch/rows")
        StreamingMemory(FileTier('/scratch/rows'))
    """

    __slots__ = ("_tier",)

    def __init__(self, spec: str | None = None, *, tier: Tier | None = None) -> None:
        if (spec is None) == (tier is None):
            raise PopxlTypeError(
                "StreamingMemory takes a spec or a tier: exactly one of the two.",
                hint='write StreamingMemory("ram"), StreamingMemory("file:DIR") or StreamingMemory(tier=my_tier).',
            )
        self._tier = _tier_named(spec) if spec is not None else _checked(tier)

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
    def counters(self) -> TierCounters:
        """What the tier has moved since it was made: loads, stores and bytes."""
        return self._tier.counters

    def __repr__(self) -> str:
        return f"StreamingMemory({self._tier!r})"


def _tier_named(spec: object) -> Tier:
    if not isinstance(spec, str):
        raise PopxlTypeError(
            f"A Streaming Memory spec is text; got {type(spec).__name__}.",
            hint=f"accepted are {_ACCEPTED}, and a StreamingMemory object.",
        )
    kind, colon, rest = spec.partition(":")
    if spec == "ram":
        return RamTier()
    if kind == "file" and colon and rest:
        return FileTier(rest)
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
