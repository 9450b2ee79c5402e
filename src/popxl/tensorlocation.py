"""Where a tensor lives. Follows tensors-dtypes.md sections 5.1 and 7."""

from __future__ import annotations

from enum import Enum

__all__ = [
    "ExecutionContext",
    "LocationInfo",
    "ReplicatedTensorSharding",
    "TensorLocation",
    "TensorStorage",
    "TileSet",
]


class TensorStorage(Enum):
    """In which memory a tensor is kept."""

    OnChip = "OnChip"
    OffChip = "OffChip"


class ReplicatedTensorSharding(Enum):
    """Whether each replica keeps only its shard of a tensor."""

    On = "On"
    Off = "Off"


class TileSet(Enum):
    """Which tiles of an IPU an op uses. Nothing is placed on tiles here; the value is only reported."""

    Compute = 0
    IO = 1
    Undefined = 2
    N = 3


class ExecutionContext(Enum):
    """Which part of a program an op belongs to."""

    Normal = 0
    AccumulateOuterFragment = 1
    WeightsFromHostFragment = 2
    WeightsToHostFragment = 3
    OptimizerFromHostFragment = 4
    Subgraph = 5


class TensorLocation:
    """The memory of a tensor, and whether it is sharded over replicas.

    A description only: nothing in the public interface takes one.

    Args:
        storage: In which memory the tensor is kept.
        replicated_tensor_sharding: Whether each replica keeps only its shard.

    Example:
        >>> TensorLocation(TensorStorage.OffChip).replicated_tensor_sharding
        <ReplicatedTensorSharding.Off: 'Off'>
    """

    __slots__ = ("_replicated_tensor_sharding", "_storage")

    def __init__(
        self,
        storage: TensorStorage = TensorStorage.OnChip,
        replicated_tensor_sharding: ReplicatedTensorSharding = ReplicatedTensorSharding.Off,
    ) -> None:
        self._storage = storage
        self._replicated_tensor_sharding = replicated_tensor_sharding

    @property
    def storage(self) -> TensorStorage:
        """In which memory the tensor is kept."""
        return self._storage

    @property
    def replicated_tensor_sharding(self) -> ReplicatedTensorSharding:
        """Whether each replica keeps only its shard."""
        return self._replicated_tensor_sharding

    def __repr__(self) -> str:
        return f"TensorLocation(storage={self._storage}, replicated_tensor_sharding={self._replicated_tensor_sharding})"


class LocationInfo:
    """What ``Tensor.location_info`` returns: the remote buffer and entry of a tensor, if it has one.

    Args:
        remote: Whether the tensor is in a remote buffer.
        sharded: Whether each replica holds only a shard.
        buffer: (id of the remote buffer, entry in it); -1 each while there is none.

    Example:
        >>> info = LocationInfo(remote=True)
        >>> info.setRemoteBufferInfo(3, 0)
        >>> info
        LocationInfo(remote=True, sharded=False, buffer=(3, 0))
    """

    __slots__ = ("_buffer", "_remote", "_sharded")

    def __init__(self, remote: bool = False, sharded: bool = False, buffer: tuple[int, int] = (-1, -1)) -> None:
        self._remote = remote
        self._sharded = sharded
        self._buffer = buffer

    def isRemote(self) -> bool:  # noqa: N802 - PopXL's name
        """Whether the tensor is in a remote buffer."""
        return self._remote

    def isSharded(self) -> bool:  # noqa: N802 - PopXL's name
        """Whether each replica holds only a shard of the tensor."""
        return self._sharded

    def getRemoteBufferInfo(self) -> tuple[int, int]:  # noqa: N802 - PopXL's name
        """(id of the remote buffer, entry in it)."""
        return self._buffer

    def setRemoteBufferInfo(self, id: int, entry: int) -> None:  # noqa: N802 - PopXL's name
        """Say in which remote buffer and at which entry the tensor is."""
        self._buffer = (id, entry)

    def __repr__(self) -> str:
        return f"LocationInfo(remote={self._remote}, sharded={self._sharded}, buffer={self._buffer})"
