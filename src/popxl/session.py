"""`Session`: compiles a program and runs it (spec ``session.md``)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from popxl.errors import PopxlError, PopxlTypeError, PopxlValueError
from popxl.host_arrays import (
    HostArray,
    as_items,
    check_array,
    check_dtype,
    check_fillable,
    check_streams,
    check_variable_data,
    extra_dims,
    full_shape,
    given_out,
)
from popxl.ir import Ir
from popxl.observe.observed import Observed
from popxl.plan import GraphPlan
from popxl.streams import DeviceToHostStream, HostToDeviceStream, Stream
from popxl.tensor import Constant, Tensor, Variable
from popxl.typing_ import HostScalarTensor
from popxl.units import parse_bytes
from popxl.utils import to_numpy

if TYPE_CHECKING:
    from popxl.runtime.events import Sink
    from popxl.runtime.host_io import HostStreams
    from popxl.runtime.streaming import StreamingMemory

Array = Any
_log = logging.getLogger(__name__)

#: Told of each session that is about to be made, with its arguments, while somebody wants to stop a program there.
on_construction: Callable[[Ir, dict[str, Any]], object] | None = None


class Session(Observed):
    """A program, compiled for a device. Inside ``with session:`` it is attached and can run.

    Args:
        ir: The program. It cannot change any more.
        device_desc: ``"cpu"``, ``"gpu"``, or ``"ipu_model"`` and ``"ipu_hw"`` for the best device there is.
        weights_to_host_on_exit: Whether leaving the context fetches the variables.
        streaming_memory: Where remote buffers live: ``"ram"``, ``"file:DIR"`` or a
            `popxl.StreamingMemory`. If not given, the environment variable ``POPXL_STREAMING_MEMORY`` says,
            and else it is RAM.
        device_memory: How much memory the program may take on the device, such as ``"2GiB"``. A program that needs
            more is refused before it runs; one that needs less runs ahead of the device by what is left. If not
            given, it may take half as much again as it needs.
        devices: Number of devices that the replicas of this process are divided over; it divides them. If not given, as
            many as there are and as divide them. On one device replicas share the values that are equal for all. A
            program with one replica that is placed on several IPUs (`popxl.ipu`) gets a device for each, if there are
            so many; give 1 to run it on one.
        check_ambiguity: Whether to refuse programs in which an in-place op and a read of the same storage
            are ordered neither by data nor by `popxl.in_sequence`, as the reference does. Such programs run
            in the order of their creation here, so there is no need to.

    Raises:
        PopxlValueError: (a `ValueError`) for an unknown device string or Streaming Memory, and for offsets
            and remote variables that do not fit their buffers.
        DeviceError: (a `RuntimeError`) if the device is not there.
        CoreError: (a `RuntimeError`) for a program without ops, or an ambiguous one if asked to check.
        PopxlNotImplementedError: (a `NotImplementedError`) for a branch that replicas decide differently, and in which
            something is transferred.
        OutOfMemoryError: (a `MemoryError`) if the program needs more than `device_memory`, or its largest row more than
            the host memory of its Streaming Memory.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> ir = popxl.Ir()
        >>> with ir.main_graph:
        ...     x = popxl.variable([1.0, 2.0])
        ...     out = popxl.d2h_stream(x.shape, x.dtype)
        ...     ops.host_store(out, x + 1)
        >>> with popxl.Session(ir) as session:
        ...     session.run()[out].tolist()
        [2.0, 3.0]
    """

    def __init__(
        self,
        ir: Ir,
        device_desc: str = "cpu",
        weights_to_host_on_exit: bool = True,
        *,
        streaming_memory: str | StreamingMemory | None = None,
        device_memory: str | int | None = None,
        devices: int | None = None,
        check_ambiguity: bool = False,
    ) -> None:
        from popxl.observe.progress_bar import ByteProgress
        from popxl.runtime.compiled import compile_program
        from popxl.runtime.completion import Completion
        from popxl.runtime.device_weights import DeviceWeights
        from popxl.runtime.devices import let_go_of_arguments
        from popxl.runtime.executor import Executor
        from popxl.runtime.placement import find_placement
        from popxl.runtime.processes import join
        from popxl.runtime.streaming import StreamingMemory

        if not isinstance(ir, Ir):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PopxlTypeError(f"A Session takes an Ir, not {ir!r}.", hint="pass the Ir, not a graph")
        if on_construction is not None:
            arguments = {
                "device_desc": device_desc,
                "weights_to_host_on_exit": weights_to_host_on_exit,
                "streaming_memory": streaming_memory,
                "device_memory": device_memory,
                "devices": devices,
                "check_ambiguity": check_ambiguity,
            }
            on_construction(ir, arguments)
        self._ir = ir
        peers = join(ir.job)
        placement = find_placement(ir, device_desc, devices)
        self._streaming_memory = StreamingMemory.from_spec(streaming_memory)
        if peers is not None:
            self._streaming_memory.tier.join(peers)
        budget = parse_bytes(device_memory)
        compiled = compile_program(ir, placement, self._streaming_memory, budget, check_ambiguity=check_ambiguity)
        completion = Completion(compiled.limits.slack_bytes, let_go=let_go_of_arguments(placement.device))
        self._compiled, self._events = compiled, completion.events
        # The processes of a job share a terminal.
        self._weights = DeviceWeights(compiled, completion, ByteProgress if ir.job.process_id == 0 else None)
        self._executor = Executor(compiled.plan, compiled.executables, placement, completion)
        self._variables = ir.main_graph.variables
        self._inputs, self._outputs = ir.get_all_h2d_streams(), ir.get_all_d2h_streams()
        maps = (v.memory_map for v in self._variables)
        self._read_only = any(m is not None and not m.flags.writeable for m in maps)
        if self._read_only and weights_to_host_on_exit:
            _log.info("A memory map of %r is read-only, so leaving the session does not fetch the variables.", ir)
        self.weights_to_host_on_exit = weights_to_host_on_exit and not self._read_only
        self._entries: list[bool] = []
        #: Variables whose host value is not the device's.
        self._stale: set[Variable] = set()
        self._has_uncommitted = True

    # Properties

    @property
    def ir(self) -> Ir:
        """The program."""
        return self._ir

    @property
    def ir_(self) -> Ir:
        """`ir`, as companion libraries of the reference call it."""
        return self._ir

    @property
    def is_attached(self) -> bool:
        """Whether the session is inside its context."""
        return bool(self._entries)

    @property
    def streaming_memory(self) -> StreamingMemory:
        """Where the remote buffers live."""
        return self._streaming_memory

    @property
    def plan(self) -> GraphPlan:
        """The plan of the main graph, which holds the plans of the graphs that it calls."""
        return self._compiled.plan

    @property
    def executable_count(self) -> int:
        """Number of functions that XLA compiled for this session; equal ones count once."""
        return len(self._compiled.executables)

    # Context

    def __enter__(self) -> Session:
        attaches = not self.is_attached
        if attaches:
            self._weights.attach()
        self._entries.append(attaches)
        if attaches:
            try:
                self._weights.upload(self._continue())
            except BaseException:
                self._detach()
                raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        if not self._entries[-1]:
            self._entries.pop()
            return
        try:
            if exc_type is None:
                if self.weights_to_host_on_exit:
                    self.weights_to_host()
                if self._commits and self._has_uncommitted:
                    self.commit()
        finally:
            self._detach()

    def _continue(self) -> list[Variable]:
        """Take up what the last commit holds, where Streaming Memory goes on from one; return the other variables."""
        missing = self._weights.restore(self._variables)
        self._set_stale(set(self._variables).difference(missing))
        self._has_uncommitted = bool(missing)
        return missing

    def _detach(self) -> None:
        try:
            self._end_recording()
        finally:
            self._entries.clear()
            self._weights.detach()

    def _check_attached(self) -> None:
        if not self.is_attached:
            raise PopxlValueError(
                "Must be attached to device before calling a runtime function.", hint="use `with session:`"
            )

    # Running

    def run(
        self, inputs: Mapping[HostToDeviceStream, HostScalarTensor] | None = None, downcast_inputs: bool = True
    ) -> Mapping[DeviceToHostStream, HostArray]:
        """Run the main graph once and return the output arrays.

        Args:
            inputs: For each input stream an array of shape
                ``(num_host_transfers, replicas, *stream.shape)``, the first two only where above 1.
            downcast_inputs: Whether 64-bit numbers become 32-bit ones.

        Returns:
            For each output stream an array, shaped alike.

        Raises:
            PopxlValueError: (a `ValueError`) while detached, and for missing, unexpected or wrongly shaped
                inputs.
            PopxlTypeError: (a `TypeError`) for an input of another dtype.
            StreamExhaustedError: (a `RuntimeError`) if a stream is used more often than
                `Ir.num_host_transfers`.
            RemoteOffsetError: (a `ValueError`) for a dynamic offset out of range.
        """
        outputs = self.create_host_outputs()
        self.run_with_outputs(inputs, outputs, downcast_inputs)
        return outputs

    def run_with_outputs(
        self,
        inputs: Mapping[HostToDeviceStream, HostScalarTensor] | None = None,
        outputs: Mapping[DeviceToHostStream, HostArray] | None = None,
        downcast_inputs: bool = True,
    ) -> None:
        """Run the main graph once and fill the given output arrays; see `run`."""
        self._check_attached()
        streams = self._streams_of_run(inputs or {}, outputs or {}, downcast_inputs=downcast_inputs)
        recording = self._recording
        if recording is not None:
            recording.begin_run()
        try:
            self._executor.run(self._weights.values, streams, self._weights.transfers)
        finally:
            self._has_uncommitted = True
            self._set_stale(self._variables)
            if recording is not None:
                recording.end_run()

    def _streams_of_run(
        self,
        inputs: Mapping[HostToDeviceStream, HostScalarTensor],
        outputs: Mapping[DeviceToHostStream, HostArray],
        *,
        downcast_inputs: bool = True,
    ) -> HostStreams:
        """Check the arrays of a run, and bring them into the form that the executor takes."""
        from popxl.runtime.host_io import HostStreams

        check_streams(inputs, self._inputs, "input")
        # What a 64-bit stream wants stays as it is.
        arrays = {
            s: to_numpy(a, downcast=downcast_inputs and s.dtype.nbytes < 8, copy=False) for s, a in inputs.items()
        }
        self._validate_run_inputs(arrays)
        self._validate_run_outputs(outputs)
        ins: dict[Stream, HostArray] = {s: as_items(self._ir, s, check_dtype(s, a)) for s, a in arrays.items()}
        outs: dict[Stream, HostArray] = {s: as_items(self._ir, s, a) for s, a in outputs.items()}
        return HostStreams(ins, outs)

    def _preparation(self) -> Callable[[], object]:
        zeros = {s: np.zeros(full_shape(self._ir, s.shape), s.dtype.as_numpy()) for s in self._inputs}
        return lambda: self._streams_of_run(zeros, self.create_host_outputs())

    def wait(self) -> None:
        """Wait until everything that runs have started is finished.

        `run` returns when its outputs are there; updates of variables and stores to Streaming Memory may still be on
        their way. Nothing needs this call for its values, but a measurement of time does, and it is where a store
        that failed late is heard of at once.

        Raises:
            PopxlValueError: (a `ValueError`) while detached.
            StreamingMemoryError: A store has failed.
        """
        self._check_attached()
        self._weights.wait()

    def _observe(self, sink: Sink | None) -> None:
        if self.is_attached:
            self._weights.wait()
        self._events.sink = sink

    def create_host_outputs(self) -> Mapping[DeviceToHostStream, HostArray]:
        """Return an uninitialised array for each output stream."""
        streams = sorted(self._outputs, key=lambda s: s.tensor_id)  # in the same order in every process
        return {s: np.empty(full_shape(self._ir, s.shape), s.dtype.as_numpy()) for s in streams}

    def expected_inputs(self) -> set[HostToDeviceStream]:
        """Return the streams that `run` needs arrays for."""
        return set(self._inputs)

    def _expected_outputs(self) -> set[DeviceToHostStream]:
        return set(self._outputs)

    @property
    def _extra_input_dims(self) -> tuple[int, ...]:
        return extra_dims(self._ir)

    def _full_input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return full_shape(self._ir, shape)

    def _verify_io_shape(self, stream: Stream, array: HostArray) -> None:
        check_array(self._ir, stream, array)

    def _validate_run_inputs(self, arrays: Mapping[HostToDeviceStream, HostArray]) -> None:
        check_streams(arrays, self._inputs, "input")
        for stream, array in arrays.items():
            check_array(self._ir, stream, array)

    def _validate_run_outputs(self, arrays: Mapping[DeviceToHostStream, HostArray]) -> None:
        check_streams(arrays, self._outputs, "output")
        for stream, array in arrays.items():
            check_fillable(stream, array)
            check_array(self._ir, stream, array)

    # Variables

    def weights_from_host(self) -> None:
        """Copy all variables from the host to the device and to Streaming Memory.

        Raises:
            PopxlValueError: (a `ValueError`) while detached.
        """
        self._check_attached()
        self._weights.upload(self._variables)
        self._has_uncommitted = True

    def weights_to_host(self) -> None:
        """Copy all variables from the device and from Streaming Memory to the host.

        Raises:
            PopxlError: if a variable's data are a read-only memory map.
            PopxlValueError: (a `ValueError`) while detached.
        """
        self._check_writeable_maps()
        self._check_attached()
        self._weights.download(self._variables, is_committed=not self._has_uncommitted)
        self._has_uncommitted = self._has_uncommitted and not self._commits
        self._set_stale(())

    def _check_writeable_maps(self) -> None:
        if self._read_only:
            maps = {v.id: v.memory_map for v in self._variables}
            names = [name for name, m in maps.items() if m is not None and not m.flags.writeable]
            raise PopxlError(
                f"Cannot copy variables to the host: the memory maps of {names} are read-only.",
                hint='open them with mode "r+" or "c"',
            )

    def _set_stale(self, variables: Iterable[Variable]) -> None:
        self._stale = set(variables)
        for v in self._variables:
            v._in_sync = v not in self._stale  # pyright: ignore[reportPrivateUsage]

    @property
    def _commits(self) -> bool:
        return self._streaming_memory.tier.capabilities.commits

    @property
    def generation(self) -> int:
        """Number of the last commit of this Streaming Memory; 0 before the first, and where there are none."""
        return self._streaming_memory.tier.generation

    def commit(self) -> int:
        """Publish all variables as they are now: whatever happens later, a session can go on from here.

        It waits until the device has computed them and their rows are written; what a commit adds to that does not
        depend on their size. Leaving the session without an error commits too. A new process goes on with
        ``StreamingMemory("file:DIR", reopen=True)``.

        Returns:
            The new `generation`.

        Raises:
            PopxlValueError: (a `ValueError`) while detached, and for a Streaming Memory without commits.
            StreamingMemoryError: A store has failed, or the commit; the last one stands.
        """
        self._check_attached()
        if not self._commits:
            raise PopxlValueError(
                f"{self._streaming_memory!r} has no commits: its rows end with the session.",
                hint='use streaming_memory="file:DIR"',
            )
        generation = self._weights.commit()
        self._has_uncommitted = False
        return generation

    def get_tensor_data(self, tensor: Variable | Constant) -> HostArray:
        """Return the value of a variable or constant; see `get_tensors_data`."""
        return self.get_tensors_data([tensor])[tensor]

    def get_tensors_data(self, tensors: Iterable[Variable | Constant]) -> dict[Constant | Variable, HostArray]:
        """Return values of variables and constants.

        Variables are fetched first if the session is attached and has run since the last time. The arrays
        are the host's own: a later fetch changes them, so copy what you keep.

        Raises:
            PopxlTypeError: (a `TypeError`) for a tensor that is neither.
        """
        tensors = list(tensors)
        for t in tensors:
            if not isinstance(t, Variable | Constant):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise PopxlTypeError(
                    f"Tensor {getattr(t, 'id', t)} is not of type Constant or Variable. Type: {type(t).__name__}.",
                    hint="stream its value out with popxl.ops.host_store",
                )
            self._check_own(t)
        if self.is_attached and not self._stale.isdisjoint(tensors):
            self._fetch(tensors)
        return {t: given_out(t) for t in tensors}

    def _fetch(self, tensors: Iterable[Variable | Constant]) -> None:
        """Bring the host up to date: all variables, but of a Streaming Memory of files only rows that are asked for."""
        if not self._commits:
            self.weights_to_host()
            return
        self._check_writeable_maps()
        asked = self._stale.intersection(tensors)
        # In the order of the program: the processes of a job fetch each variable together.
        fetched = [v for v in self._variables if v in self._stale and (v in asked or not v.location_info.isRemote())]
        for v in fetched:
            self._weights.fetch(v)
        self._set_stale(self._stale.difference(fetched))

    def write_variable_data(self, tensor: Variable, data: HostArray) -> None:
        """Give a variable a new value; see `write_variables_data`."""
        self.write_variables_data({tensor: data})

    def write_variables_data(self, tensors: Mapping[Variable, HostArray]) -> None:
        """Give variables new values, on the host, and on the device if the session is attached.

        Only these variables are uploaded; the others keep the device's values.

        Args:
            tensors: For each variable an array of its `shape_on_host` and exactly its dtype, or a number.

        Raises:
            PopxlTypeError: (a `TypeError`) for a tensor that is no variable, and for another dtype.
            PopxlValueError: (a `ValueError`) for another shape.
            PopxlNotImplementedError: (a `NotImplementedError`) for a variable that the host reads for each replica.
        """
        for t, data in tensors.items():
            array = check_variable_data(t, data)
            self._check_own(t)
            self._weights.replace_host_value(t, array)
        if self.is_attached:
            self._weights.upload(tensors)
            self._has_uncommitted = True
        self._set_stale(self._stale.difference(tensors))

    def _check_own(self, t: Tensor) -> None:
        if t.ir != self._ir:
            raise PopxlValueError(
                f"Tensor {t.id} belongs to {t.ir!r}; this session runs {self._ir!r}.",
                hint="use the session made from the tensor's Ir",
            )

    def __repr__(self) -> str:
        state = "attached" if self.is_attached else "detached"
        return f"Session[{self._ir!r} {state} {self._streaming_memory!r}]"
