"""Tensors of a graph: `Tensor`, `Variable`, `Constant` (spec ``tensors-dtypes.md`` §4-§6).

A tensor is a node of the IR. It holds no device data; a `Variable` and a `Constant` hold their host data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypeVar, cast

import numpy as np

from popxl import dtypes
from popxl.errors import ContextError, PopxlTypeError, PopxlValueError, UndefinedValue
from popxl.tensor_spec import TensorSpec
from popxl.tensorlocation import LocationInfo
from popxl.typing_ import HostScalarTensor, HostTensor, NewAliasAnnotation, ScalarType, host_tensor_types

if TYPE_CHECKING:
    from popxl.graph import Graph
    from popxl.ir import Ir
    from popxl.op import Op
    from popxl.replica_grouping import ReplicaGrouping

RetrievalMode = Literal["one_per_group", "all_replicas"]
TensorT = TypeVar("TensorT", bound="Tensor")


class Tensor:
    """A value in a graph. Made by ops and by functions such as `popxl.variable`, never directly.

    Arithmetic operators create ops in the current graph. An operand that is no tensor becomes a constant
    of *this tensor's* dtype, except with ``**`` (see `popxl.ops.pow`). ``a += b`` changes ``a`` in place;
    the other augmented forms do not.
    ``a == b`` compares identity (id and IR) and gives a Python bool.
    """

    # NumPy arrays on the left of an operator give way to `__radd__` and friends.
    __array_ufunc__ = None

    _graph: Graph
    _id: str
    _dtype: dtypes.dtype
    _shape: tuple[int, ...]
    meta_shape: tuple[int, ...]
    #: The op that makes this tensor, if an op does.
    producer: Op | None
    #: Ops that take this tensor.
    consumers: list[Op]
    #: The tensor whose whole storage this one shares, when an in-place op returned it.
    storage: Tensor
    _location: LocationInfo | None

    def __init__(self) -> None:
        raise ContextError(
            f"Cannot create a {type(self).__name__} directly.", hint="use popxl.variable, popxl.constant or an op"
        )

    @classmethod
    def _create(
        cls: type[TensorT],
        graph: Graph,
        base_name: str,
        shape: tuple[int, ...],
        dtype: dtypes.dtype,
        meta_shape: tuple[int, ...] = (),
    ) -> TensorT:
        self = object.__new__(cls)
        self._graph = graph
        self._id = graph.register_tensor(self, base_name)
        self._dtype = dtype
        self._shape = shape
        self.meta_shape = meta_shape
        self.producer = None
        self.consumers = []
        self.storage = self
        self._location = None
        return self

    # Properties

    @property
    def id(self) -> str:
        """The full name, with the graph's name in front (none in the main graph)."""
        return self._id

    @property
    def name(self) -> str:
        """The id without the graph's name."""
        scope = self.scope
        return self._id[len(scope) + 1 :] if scope else self._id

    @property
    def scope(self) -> str:
        """The graph's name; empty in the main graph."""
        return self._graph.id

    @property
    def graph(self) -> Graph:
        """The graph it belongs to."""
        return self._graph

    @property
    def ir(self) -> Ir:
        """The IR it belongs to."""
        return self._graph.ir

    @property
    def dtype(self) -> dtypes.dtype:
        """The dtype."""
        return self._dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape on one replica."""
        return self._shape

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self._shape)

    @property
    def nelms(self) -> int:
        """The number of elements."""
        return int(np.prod(self._shape, dtype=np.int64))

    @property
    def spec(self) -> TensorSpec:
        """Shape, dtype and meta shape."""
        return TensorSpec(self.shape, self.dtype, self.meta_shape)

    def strides(self, shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return the C-order strides in bytes, of `shape` if given."""
        strides: list[int] = []
        step = self.dtype.nbytes
        for n in reversed(self.shape if shape is None else shape):
            strides.append(step)
            step *= n
        return tuple(reversed(strides))

    def _place(self) -> tuple[int, str]:
        """The IPU and the tile set."""
        if self.producer is None and self.consumers:
            user = self.consumers[0]
            if user.ipus:
                return user.ipus[user.inputs.index(self)], user.tile_set
            return user.source_place or (user.ipu, user.tile_set)
        op = self.producer
        if op is None and self in self._graph.inputs:
            op = next(iter(self._graph.call_sites), None)
        if op is None:
            raise UndefinedValue(
                f"Tensor {self.id} is not placed yet: no op makes it and none uses it.", hint="use it in an op first"
            )
        return op.ipus[op.outputs.index(self)] if op.ipus else op.ipu, op.tile_set

    @property
    def ipu(self) -> int:
        """The IPU it lives on (a hint here).

        Raises:
            UndefinedValue: if nothing makes or uses the tensor yet.
        """
        return self._place()[0]

    @property
    def tile_set(self) -> str:
        """``"compute"`` or ``"io"`` (a hint here).

        Raises:
            UndefinedValue: if nothing makes or uses the tensor yet.
        """
        return self._place()[1]

    @property
    def location_info(self) -> LocationInfo:
        """Whether the tensor is remote or sharded, and in which row of which buffer; only variables are."""
        if self._location is None:
            self._location = LocationInfo()
        return self._location

    @property
    def in_sync_with_ipu(self) -> bool:
        """Whether the host's copy is up to date with the device's.

        Raises:
            UndefinedValue: for tensors that have no host data.
        """
        raise UndefinedValue(
            f"Tensor {self.id} has no host data.", hint="only variables and constants have; stream others out"
        )

    # Methods

    def transpose(self, permutation: tuple[int, ...] | None = None) -> Tensor:
        """Return `popxl.ops.transpose` of this tensor."""
        return _ops().transpose(self, permutation)

    def transpose_(self, permutation: tuple[int, ...] | None = None) -> Tensor:
        """Return `popxl.ops.transpose_` of this tensor."""
        return _ops().transpose_(self, permutation)

    @property
    def T(self) -> Tensor:  # noqa: N802
        """The transpose, a copy."""
        return self.transpose()

    @property
    def T_(self) -> Tensor:  # noqa: N802
        """The transpose, a view."""
        return self.transpose_()

    def reshape(self, shape: tuple[int, ...]) -> Tensor:
        """Return `popxl.ops.reshape` of this tensor."""
        return _ops().reshape(self, shape)

    def reshape_(self, shape: tuple[int, ...]) -> Tensor:
        """Return `popxl.ops.reshape_` of this tensor."""
        return _ops().reshape_(self, shape)

    def flatten(self) -> Tensor:
        """Return `popxl.ops.flatten` of this tensor."""
        return _ops().flatten(self)

    def flatten_(self) -> Tensor:
        """Return `popxl.ops.flatten_` of this tensor."""
        return _ops().flatten_(self)

    def detach(self) -> Tensor:
        """Return `popxl.ops.detach` of this tensor."""
        return _ops().detach(self)

    def detach_(self) -> Tensor:
        """Return `popxl.ops.detach_` of this tensor."""
        return _ops().detach_(self)

    def diag(self) -> Tensor:
        """Return the main diagonal of a matrix, shape ``(min(rows, columns),)``, a copy.

        Raises:
            PopxlValueError: (a `ValueError`) if the rank is not 2.
        """
        if self.rank != 2:
            raise PopxlValueError(
                f"Diag expected a 2d tensor. {self.id} has shape {self.shape}.", hint="reshape it to a matrix first"
            )
        rows, columns = self.shape
        return self.flatten()[: min(rows, columns) * columns : columns + 1]

    def copy_to_ipu(self, destination: int, source: int | None = None) -> Tensor:
        """Return `popxl.ops.ipu_copy` of this tensor."""
        return _ops().ipu_copy(self, destination, source)

    # Operators

    def _ensure_tensor(self, value: TensorLike, dtype: dtypes.dtype | None = None) -> Tensor:
        if isinstance(value, Tensor):
            return value
        from popxl.creation import constant

        self._check_not_empty(value)
        return constant(value, dtype)

    def _check_not_empty(self, value: TensorLike) -> None:
        if not isinstance(value, Tensor) and np.size(cast(Any, value)) == 0:
            raise PopxlValueError(
                f"The value has 0 elements, so it cannot be an operand of {self.id}.", hint="pass a number"
            )

    def _binary(self, name: str, other: TensorLike, *, reflected: bool = False) -> Tensor:
        operand = self._ensure_tensor(other, self.dtype)
        function = getattr(_ops(), name)
        return function(operand, self) if reflected else function(self, operand)

    def __add__(self, other: TensorLike) -> Tensor:
        return self._binary("add", other)

    def __radd__(self, other: TensorLike) -> Tensor:
        return self._binary("add", other, reflected=True)

    def __iadd__(self, other: TensorLike) -> Tensor:
        self._binary("add_", other)
        return self

    def __sub__(self, other: TensorLike) -> Tensor:
        return self._binary("sub", other)

    def __rsub__(self, other: TensorLike) -> Tensor:
        return self._binary("sub", other, reflected=True)

    def __mul__(self, other: TensorLike) -> Tensor:
        return self._binary("mul", other)

    def __rmul__(self, other: TensorLike) -> Tensor:
        return self._binary("mul", other, reflected=True)

    def __truediv__(self, other: TensorLike) -> Tensor:
        return self._binary("div", other)

    def __rtruediv__(self, other: TensorLike) -> Tensor:
        return self._binary("div", other, reflected=True)

    def __mod__(self, other: TensorLike) -> Tensor:
        return self._binary("fmod", other)

    def __rmod__(self, other: TensorLike) -> Tensor:
        return self._binary("fmod", other, reflected=True)

    def __pow__(self, other: TensorLike) -> Tensor:
        # Which dtype an exponent gets is for `pow` to say.
        self._check_not_empty(other)
        return _ops().pow(self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return _ops().pow(self._ensure_tensor(other), self)

    def __matmul__(self, other: TensorLike) -> Tensor:
        return self._binary("matmul", other)

    def __rmatmul__(self, other: TensorLike) -> Tensor:
        return self._binary("matmul", other, reflected=True)

    def __and__(self, other: TensorLike) -> Tensor:
        return self._binary("logical_and", other)

    def __rand__(self, other: TensorLike) -> Tensor:
        return self._binary("logical_and", other, reflected=True)

    def __or__(self, other: TensorLike) -> Tensor:
        return self._binary("logical_or", other)

    def __ror__(self, other: TensorLike) -> Tensor:
        return self._binary("logical_or", other, reflected=True)

    def __neg__(self) -> Tensor:
        return _ops().negate(self)

    def __invert__(self) -> Tensor:
        return _ops().logical_not(self)

    def __getitem__(self, key: Any) -> Tensor:
        return _ops().index.getitem(self, key)

    # Not a method that raises: `isinstance(t, Iterable)` must be false too.
    __iter__ = None

    def __contains__(self, value: object) -> NoReturn:
        raise PopxlTypeError(
            f"Cannot use `in` on tensor {self.id}: its values are not known while building.",
            hint="compare with popxl.ops.equal, and look at the result when the program runs",
        )

    def __len__(self) -> int:
        if not self._shape:
            raise PopxlValueError(
                f"Tensor {self.id} is a scalar: it has no length, nor a truth value while building.",
                hint="use popxl.ops.conditional or popxl.ops.where to decide by it",
            )
        return self._shape[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tensor) and self._id == other._id and self.ir == other.ir

    def __hash__(self) -> int:
        return hash((self._id, self.ir.id))

    def __repr__(self) -> str:
        return f"{type(self).__name__}[{self.id} {self.dtype} {self.shape}]"


class Variable(Tensor):
    """A tensor whose value persists between runs. Made by `popxl.variable` and the remote forms of it."""

    _host_value: np.ndarray[Any, Any] | Callable[[], np.ndarray[Any, Any]]
    _grouping: ReplicaGrouping
    _retrieval_mode: RetrievalMode
    _in_sync: bool
    #: What each replica had when they were last fetched, if `retrieval_mode` asks for that.
    replica_values: np.ndarray[Any, Any] | None = None

    @property
    def host_value(self) -> np.ndarray[Any, Any]:
        """The host's value: shape `shape_on_host`, dtype ``dtype.as_numpy()``.

        A lazy one (`is_lazy`) is read at each call, into memory of its own.
        """
        return self._host_value() if callable(self._host_value) else self._host_value

    @host_value.setter
    def host_value(self, value: np.ndarray[Any, Any] | Callable[[], np.ndarray[Any, Any]]) -> None:
        self._host_value = value

    @property
    def host_source(self) -> Callable[[], np.ndarray[Any, Any]] | None:
        """What reads the host's value, if the host only knows where to read it: a function, or Streaming Memory."""
        return self._host_value if callable(self._host_value) else None

    @property
    def is_lazy(self) -> bool:
        """Whether the host's value is read when it is wanted."""
        return callable(self._host_value)

    @property
    def memory_map(self) -> np.memmap[Any, Any] | None:
        """The file that is the host's value, if it is one."""
        value: object = self._host_value
        return cast("np.memmap[Any, Any]", value) if isinstance(value, np.memmap) else None

    @property
    def replica_grouping(self) -> ReplicaGrouping:
        """Which replicas share one host value."""
        return self._grouping

    @property
    def retrieval_mode(self) -> RetrievalMode:
        """Whether the host reads one value per group or one per replica."""
        return self._retrieval_mode

    @property
    def gives_each_replica(self) -> bool:
        """Whether the host gets the value of each replica, rather than of each group."""
        return self._retrieval_mode == "all_replicas" and self._grouping.group_size > 1

    @property
    def shape_on_host(self) -> tuple[int, ...]:
        """``shape``, with the group axis in front if there is more than one group."""
        groups = self._grouping.num_groups
        return self.shape if groups == 1 else (groups, *self.shape)

    @property
    def shape_on_replica(self) -> tuple[int, ...]:
        """The shape on one replica."""
        return self.shape

    @property
    def in_sync_with_ipu(self) -> bool:
        """Whether the host's copy is up to date with the device's."""
        return self._in_sync

    def copy_to_ipu(self, destination: int, source: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return `popxl.ops.ipu_copy` of this tensor; a variable has no producer, so `source` is required."""
        return super().copy_to_ipu(destination, source)


class Constant(Tensor):
    """A tensor whose value is fixed. Made by `popxl.constant`."""

    #: The value, dtype ``dtype.as_numpy()``. It must not change.
    host_value: np.ndarray[Any, Any]

    @property
    def in_sync_with_ipu(self) -> bool:
        """Always true."""
        return True

    def copy_to_ipu(self, destination: int, source: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return `popxl.ops.ipu_copy` of this tensor; a constant has no producer, so `source` is required."""
        return super().copy_to_ipu(destination, source)


#: A tensor, or host data that can become a constant.
TensorLike: TypeAlias = Tensor | HostScalarTensor

#: Annotation of a graph function's parameter that is passed by reference.
TensorByRef = NewAliasAnnotation("TensorByRef", Tensor)


def _ops() -> Any:
    # Ops take tensors and tensors have operators: this is the one place where the layers meet.
    from popxl import ops

    return ops


# The reference keeps the creation functions in this module too; `popxl.creation` needs this one first.
_CREATION = (
    "constant",
    "remote_replica_sharded_variable",
    "remote_variable",
    "replica_sharded_buffer",
    "replica_sharded_variable",
    "variable",
)


def __getattr__(name: str) -> Any:
    if name in _CREATION:
        from popxl import creation

        return getattr(creation, name)
    if name in ("graph_input", "graph_output"):
        from popxl import graph_function

        return getattr(graph_function, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Constant",
    "HostScalarTensor",
    "HostTensor",
    "RetrievalMode",
    "ScalarType",
    "Tensor",
    "TensorByRef",
    "TensorLike",
    "TensorSpec",
    "Variable",
    "host_tensor_types",
]
