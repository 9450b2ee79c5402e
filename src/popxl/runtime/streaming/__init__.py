"""Streaming Memory: where remote buffers live. Importing it starts no JAX backend."""

from .file import FileTier
from .memory import StreamingMemory
from .ram import RamTier
from .tier import BufferSpec, Capabilities, ImmutableArray, Tier, TierCounters

__all__ = [
    "BufferSpec",
    "Capabilities",
    "FileTier",
    "ImmutableArray",
    "RamTier",
    "StreamingMemory",
    "Tier",
    "TierCounters",
]
