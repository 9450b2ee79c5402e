"""Runs programs of ops in popxl and compares with what they must give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from op_interpreter import Approx, Array
from op_kinds import KINDS
from op_programs import Instruction, Program, data, reduced

import popxl
from popxl import ops

RUNS = 2


class Build:
    """One program as ops of the current graph."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.values: list[popxl.Tensor] = []
        self.inputs: dict[popxl.HostToDeviceStream, Array] = {}
        self.outputs: list[popxl.DeviceToHostStream] = []
        self.variables: dict[popxl.Variable, Array] = {}
        for step in program.instructions:
            results = self._step(step)
            for t, expected in zip(results, step.results, strict=True):
                assert _spec(t) == (expected.shape, expected.dtype), f"{step} made {t}"
            self.values += results

    def _step(self, step: Instruction) -> Sequence[popxl.Tensor]:
        kind, attributes = step.kind, step.attributes
        args = [self.values[i] for i in step.args]
        match kind:
            case "variable":
                value = data(**attributes)
                variable = popxl.variable(value, popxl.dtype.as_dtype(value.dtype))
                self.variables[variable] = value
                return [variable]
            case "constant":
                value = data(**attributes)
                return [popxl.constant(value, popxl.dtype.as_dtype(value.dtype))]
            case "init":
                return [ops.init(attributes["shape"], popxl.dtype.as_dtype(attributes["dtype"]))]
            case "host_load":
                stream = popxl.h2d_stream(attributes["shape"], popxl.dtype.as_dtype(attributes["dtype"]))
                self.inputs[stream] = data(**attributes)
                return [ops.host_load(stream)]
            case "store":
                output = popxl.d2h_stream(args[0].shape, args[0].dtype)
                ops.host_store(output, args[0])
                self.outputs.append(output)
                return []
            case _:
                result: Any = KINDS[kind].call(*args, **attributes)
                return result if isinstance(result, (list, tuple)) else [result]


def _spec(t: popxl.Tensor) -> tuple[tuple[int, ...], np.dtype[Any]]:
    return t.shape, np.dtype(t.dtype.as_numpy())


def check(program: Program) -> None:
    """Assert that popxl gives what a program must, in each of two runs from the same start.

    Raises:
        Exception: that of a smaller program that fails in the same way.
    """
    try:
        run(program)
    except Exception as error:
        way = _way(error)
        run(reduced(program, lambda smaller: _way(_failure(smaller)) == way))
        raise


def _failure(program: Program) -> Exception | None:
    try:
        run(program)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return error
    return None


def _way(error: Exception | None) -> tuple[object, str]:
    """What failures of one cause have in common."""
    return type(error), "" if isinstance(error, AssertionError) else str(error)[:40]


def run(program: Program) -> None:
    """Do what `check` does, for this program only."""
    ir = popxl.Ir()
    with ir.main_graph:
        build = Build(program)
    with popxl.Session(ir) as session:
        for number in range(RUNS):
            if number:
                session.write_variables_data(build.variables)
            found = session.run(build.inputs)
            _compare(number, build, [found[stream] for stream in build.outputs], session)


def _compare(number: int, build: Build, outputs: Sequence[Any], session: popxl.Session) -> None:
    program = build.program
    stores = [step for step in program.instructions if step.kind == "store"]
    for step, ours, expected in zip(stores, outputs, program.stores, strict=True):
        assert_close(np.asarray(ours), expected, f"run {number}, {step}", program)
    final = session.get_tensors_data(build.variables)
    names = [f"v{step.first}" for step in program.instructions if step.kind == "variable"]
    for name, variable, expected in zip(names, build.variables, program.variables, strict=True):
        assert_close(np.asarray(final[variable]), expected, f"run {number}, variable {name} at the end", program)


def assert_close(found: Array, expected: Approx, what: str, program: Program) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
    wrong = expected.differs(found)
    if wrong.any():
        raise AssertionError(
            f"{what}\nfound    {found[wrong].tolist()}\nexpected {expected.value[wrong].tolist()}\n"
            f"   within {expected.error[wrong].tolist()}\nat {np.argwhere(wrong).tolist()}\n{program}"
        )
