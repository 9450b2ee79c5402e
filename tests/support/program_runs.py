"""Runs random programs: by a small interpreter of memory cells, and by popxl, with which it shares nothing.

The interpreter's tensors are arrays of *cell numbers*: a view is an index into these, an in-place op writes the
cells, a call copies. All arithmetic is exact (integers that wrap around; floats that are added, halved and
compared), so results must be equal bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from random_programs import (
    ELEMENTWISE,
    ENTRIES,
    INDEX,
    INT,
    MOVES,
    Block,
    Instruction,
    Program,
    Spec,
    can_repeat,
    entries,
)

import popxl
from popxl import ops
from popxl.plan import program as plan_program

RUNS = 2
Array = np.ndarray[Any, Any]


# The interpreter


def initial(spec: Spec, seed: int = 0) -> Array:
    """Small distinct numbers."""
    count = int(np.prod(spec.shape, dtype=int))
    return (np.arange(count).reshape(spec.shape) * 3 % 7 + seed).astype(spec.dtype.as_numpy())


def item(spec: Spec, seed: int, run: int) -> Array:
    return initial(spec, seed + run)


def own(spec: Spec, seed: int, replica: int, number: int) -> Array:
    """What a replica starts with: every second variable, and the rows of every second buffer, differ."""
    return initial(spec, seed + replica * (number % 2))


class Machine:
    """Runs a program on memory cells, as one replica. A tensor is an array of cell numbers."""

    def __init__(self, program: Program, replica: int = 0) -> None:
        self.program = program
        self.replica = replica
        self.cells: dict[int, Any] = {}
        self.constants: set[int] = set()
        self.rows = {(b, e): own(entries(b), e, replica, b) for b in range(2) for e in range(ENTRIES)}
        self.variables = [self.new(own(spec, 0, replica, i)) for i, spec in enumerate(program.main.inputs)]
        self.run_number = 0

    def new(self, value: Any) -> Array:
        value = np.asarray(value)
        addresses = np.arange(len(self.cells), len(self.cells) + value.size).reshape(value.shape)
        self.cells.update(zip(addresses.flat, value.flat, strict=True))
        return addresses

    def read(self, t: Array, spec: Spec) -> Array:
        flat = [self.cells[a] for a in t.flat]
        return np.array(flat, spec.dtype.as_numpy()).reshape(t.shape)

    def write(self, t: Array, value: Any) -> None:
        self.cells.update(zip(t.flat, np.asarray(value).flat, strict=True))

    def is_writable(self, t: Array) -> bool:
        return len(set(t.flat)) == t.size and not self.constants & set(t.flat)

    def overwrite(self, t: Array, value: Any) -> Array:
        """Write in place if that is possible, else make a new tensor; return what holds the result."""
        if not self.is_writable(t):
            return self.new(value)
        self.write(t, value)
        return t

    def run(self) -> list[Array]:
        values = self.run_block(self.program.main, list(self.variables))
        self.run_number += 1
        return [self.read(values[k], self.program.main.specs[k]) for k in self.program.main.outputs]

    def run_block(self, block: Block, inputs: list[Array]) -> list[Array]:
        values = inputs
        for step in block.steps:
            operands = [values[i] for i in step.args]
            specs = [block.specs[i] for i in step.args]
            values += self.step(
                step, operands, specs, block.specs[len(values)] if len(values) < len(block.specs) else None
            )
        return values

    def step(self, step: Instruction, args: list[Array], specs: list[Spec], result: Spec | None) -> list[Array]:
        kind, extra = step.kind, step.extra
        read = [self.read(t, s) for t, s in zip(args, specs, strict=True)]
        if kind in ELEMENTWISE:
            with np.errstate(all="ignore"):
                value = ELEMENTWISE[kind][1](*read).astype(specs[0].dtype.as_numpy())
            return [self.overwrite(args[0], value) if kind.endswith("_") else self.new(value)]
        match kind:
            case "constant":
                assert result is not None
                t = self.new(np.full(result.shape, extra).astype(result.dtype.as_numpy()))
                self.constants |= set(t.flat)
                return [t]
            case "view":
                return [MOVES[extra][3](args[0])]
            case "move":
                return [self.new(MOVES[extra][3](read[0]))]
            case "view_join":
                return [np.concatenate(args, extra)]
            case "join":
                return [self.new(np.concatenate(read, extra))]
            case "index":
                return [self.new(read[0].astype(np.uint32))]
            case "bound":
                return [self.new((read[0] + np.uint32(extra)) % np.uint32(ENTRIES))]
            case "number":
                return [self.new(read[0].astype(np.int32))]
            case "next":
                return [self.new(read[0] + np.uint32(1))]
            case "next_":
                return [self.overwrite(args[0], read[0] + np.uint32(1))]
            case "greater":
                return [self.new(read[0] > read[1])]
            case "load":
                return [self.new(self.rows[extra, int(read[0])])]
            case "load_":
                if not self.is_writable(args[1]):
                    return [self.new(self.rows[extra, int(read[0])])]
                return [self.overwrite(args[1], self.rows[extra, int(read[0])])]
            case "store":
                self.rows[extra, int(read[0])] = read[1]
                return []
            case "host_load":
                return [self.new(item(*extra, self.run_number + self.replica))]
            case "call":
                return self.call(self.program.subs[extra], args, 1)
            case "repeat":
                return self.call(self.program.subs[extra[0]], args, extra[1])
            case "conditional":
                then_block, else_block = (self.program.subs[g] for g in extra)
                split = 1 + len(then_block.inputs)
                if read[0]:
                    return self.call(then_block, args[1:split], 1)
                return self.call(else_block, args[split:], 1)
            case _:
                raise AssertionError(kind)

    def call(self, block: Block, args: list[Array], count: int) -> list[Array]:
        """Copy in; run; outputs feed the first inputs; what went by reference is written back at the end.

        A loop-carried input by reference writes back what entered the last iteration, as changed by it. An input
        by reference to which a constant was passed acts as one by value.
        """
        by_ref = [i for i, r in enumerate(block.by_ref) if r and self.is_writable(args[i])]
        state = [self.read(t, s) for t, s in zip(args, block.inputs, strict=True)]
        final = {i: state[i] for i in by_ref}
        outputs = [state[k] for k in range(len(block.outputs))] if count == 0 else []
        for _ in range(count):
            values = self.run_block(block, [self.new(value) for value in state])
            outputs = [self.read(values[k], block.specs[k]) for k in block.outputs]
            final = {i: self.read(values[i], block.inputs[i]) for i in by_ref}
            for i in by_ref:
                state[i] = final[i]
            if can_repeat(block):
                state[: len(outputs)] = outputs
        for i in by_ref:
            self.write(args[i], final[i])
        return [self.new(value) for value in outputs]


# The same program in popxl


class Builder:
    """Makes the popxl program."""

    def __init__(self, program: Program, replicas: int = 1) -> None:
        self.program = program
        self.ir = popxl.Ir(replication=replicas)
        each = self.ir.replica_grouping(group_size=1)

        def data(spec: Spec, seed: int, number: int) -> Any:
            values = [own(spec, seed, r, number) for r in range(replicas if number % 2 else 1)]
            return np.stack(values) if len(values) > 1 else values[0]

        self.inputs: list[tuple[popxl.HostToDeviceStream, Spec, int]] = []
        self.outputs: list[popxl.DeviceToHostStream] = []
        self.subs: list[popxl.Graph] = []
        with self.ir.main_graph:
            self.buffers = [popxl.remote_buffer(entries(b).shape, entries(b).dtype, ENTRIES) for b in range(2)]
            self.rows = {
                (b, e): popxl.remote_variable(
                    data(entries(b), e, b), self.buffers[b], e, replica_grouping=each if b % 2 else None
                )
                for b in range(2)
                for e in range(ENTRIES)
            }
            self.variables = [
                popxl.variable(data(s, 0, i), s.dtype, replica_grouping=each if i % 2 else None)
                for i, s in enumerate(program.main.inputs)
            ]
        for k, block in enumerate(program.subs):
            graph = self.ir.create_empty_graph(f"sub{k}")
            with graph:
                inputs = [
                    popxl.graph_input(s.shape, s.dtype, by_ref=r)
                    for s, r in zip(block.inputs, block.by_ref, strict=True)
                ]
                values = self.build(block, inputs)
                for i in block.outputs:
                    popxl.graph_output(values[i])
            self.subs.append(graph)
        with self.ir.main_graph:
            values = self.build(program.main, list(self.variables))
            for i in program.main.outputs:
                stream = popxl.d2h_stream(values[i].shape, values[i].dtype)
                ops.host_store(stream, values[i])
                self.outputs.append(stream)

    def build(self, block: Block, inputs: list[popxl.Tensor]) -> list[popxl.Tensor]:
        values = inputs
        for step in block.steps:
            result = block.specs[len(values)] if len(values) < len(block.specs) else None
            values += self.step(step, [values[i] for i in step.args], result)
        return values

    def step(self, step: Instruction, args: list[popxl.Tensor], result: Spec | None) -> Sequence[popxl.Tensor]:
        kind, extra = step.kind, step.extra
        if kind in ELEMENTWISE:
            return [ELEMENTWISE[kind][0](*args)]
        match kind:
            case "constant":
                assert result is not None
                return [popxl.constant(np.full(result.shape, extra).astype(result.dtype.as_numpy()), result.dtype)]
            case "view":
                return [MOVES[extra][1](args[0])]
            case "move":
                return [MOVES[extra][2](args[0])]
            case "view_join":
                return [ops.concat_(args, extra)]
            case "join":
                return [ops.concat(args, extra)]
            case "index":
                return [ops.cast(args[0], INDEX)]
            case "bound":
                return [ops.increment_mod(args[0], extra, ENTRIES)]
            case "number":
                return [ops.cast(args[0], INT)]
            case "next":
                return [args[0] + 1]
            case "next_":
                return [ops.add_(args[0], popxl.constant(1, INDEX))]
            case "greater":
                return [ops.greater(args[0], args[1])]
            case "load":
                return [ops.remote_load(self.buffers[extra], args[0])]
            case "load_":
                try:
                    return [ops.remote_load_(self.buffers[extra], args[0], args[1])]
                except ValueError:  # not writable, which the interpreter finds out for itself
                    return [ops.remote_load(self.buffers[extra], args[0])]
            case "store":
                ops.remote_store(self.buffers[extra], args[0], args[1])
                return []
            case "host_load":
                spec, seed = extra
                stream = popxl.h2d_stream(spec.shape, spec.dtype)
                self.inputs.append((stream, spec, seed))
                return [ops.host_load(stream)]
            case "call":
                return ops.call(self.subs[extra], *args)
            case "repeat":
                return ops.repeat(self.subs[extra[0]], extra[1], *args)
            case "conditional":
                then_graph, else_graph = (self.subs[g] for g in extra)
                split = 1 + len(then_graph.inputs)
                return ops.conditional(args[0], then_graph, else_graph, args[1:split], args[split:])
            case _:
                raise AssertionError(kind)


@contextmanager
def limits(*, inline: bool) -> Iterator[None]:
    """With `inline=False` the host runs every call, loop and branch, and no constant is written into code."""
    with pytest.MonkeyPatch.context() as patch:
        if not inline:
            patch.setattr(plan_program, "SMALL_GRAPH_OPS", -1)
            patch.setattr(plan_program, "SMALL_LOOP_OPS", -1)
            patch.setattr(plan_program, "SMALL_CONSTANT_ELEMENTS", 0)
        yield


@dataclass(frozen=True)
class Results:
    """What can be seen from outside: outputs of each run, variables and rows at the end."""

    outputs: list[list[Array]]
    variables: list[Array]
    rows: dict[tuple[int, int], Array]


def peak_bytes(program: Program) -> int:
    """The device memory that the program needs."""
    with limits(inline=program.inline):
        return popxl.Session(Builder(program).ir).figures.device.peak_bytes


def run_popxl(
    program: Program, streaming_memory: str | popxl.StreamingMemory = "ram", device_memory: int | None = None
) -> Results:
    builder = Builder(program)
    outputs: list[list[Array]] = []
    with limits(inline=program.inline):
        session = popxl.Session(builder.ir, streaming_memory=streaming_memory, device_memory=device_memory)
    with session:
        for run in range(RUNS):
            found = session.run({stream: item(spec, seed, run) for stream, spec, seed in builder.inputs})
            outputs.append([np.array(found[stream]) for stream in builder.outputs])
        variables = [np.array(session.get_tensor_data(v)) for v in builder.variables]
        rows = {place: np.array(session.get_tensor_data(v)) for place, v in builder.rows.items()}
    return Results(outputs, variables, rows)


def run_machine(program: Program) -> Results:
    machine = Machine(program)
    outputs = [machine.run() for _ in range(RUNS)]
    variables = [machine.read(t, s) for t, s in zip(machine.variables, program.main.inputs, strict=True)]
    return Results(outputs, variables, machine.rows)


def assert_equal(found: Results, expected: Results) -> None:
    for run, (ours, theirs) in enumerate(zip(found.outputs, expected.outputs, strict=True)):
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            np.testing.assert_array_equal(a, b, f"output {k} of run {run}", strict=True)
    for k, (a, b) in enumerate(zip(found.variables, expected.variables, strict=True)):
        np.testing.assert_array_equal(a, b, f"variable {k}", strict=True)
    for place, row in expected.rows.items():
        np.testing.assert_array_equal(found.rows[place], row, f"row {place}", strict=True)
