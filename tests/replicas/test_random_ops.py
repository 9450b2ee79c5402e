"""Random programs of ops give every replica what they must, when some of the values have an axis over replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from op_programs import Instruction, Program, data, op_programs
from op_runs import RUNS, Build, assert_close

import popxl

R = 2
QUICK = settings(
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class BuildForReplicas(Build):
    """Items of streams, and every second variable, may differ between replicas. They are equal, but no one knows."""

    def _step(self, step: Instruction) -> Sequence[popxl.Tensor]:
        if step.kind != "variable":
            return super()._step(step)
        value = data(**step.attributes)
        differs = len(self.variables) % 2 == 0
        grouping = popxl.gcg().ir.replica_grouping(group_size=1) if differs else None
        value = np.stack([value] * R) if differs else value
        v = popxl.variable(value, popxl.dtype.as_dtype(value.dtype), replica_grouping=grouping)
        self.variables[v] = value
        return [v]


def check(program: Program, devices: int) -> None:
    ir = popxl.Ir(replication=R)
    with ir.main_graph:
        build = BuildForReplicas(program)
    inputs = {stream: np.stack([value] * R) for stream, value in build.inputs.items()}
    stores = [step for step in program.instructions if step.kind == "store"]
    with popxl.Session(ir, "cpu", devices=devices) as session:
        for number in range(RUNS):
            if number:
                session.write_variables_data(build.variables)
            found: Any = session.run(inputs)
            for step, stream, expected in zip(stores, build.outputs, program.stores, strict=True):
                for r in range(R):
                    assert_close(found[stream][r], expected, f"run {number}, replica {r}, {step}", program)
        final = session.get_tensors_data(build.variables)
        for i, (v, expected) in enumerate(zip(build.variables, program.variables, strict=True)):
            for value in final[v] if i % 2 == 0 else [final[v]]:
                assert_close(np.asarray(value), expected, f"variable {i} at the end", program)


@given(program=op_programs(most=25, focus="update view"))
@settings(QUICK, max_examples=12)
@pytest.mark.parametrize("devices", [1, R])
def test_random_programs_of_ops_of_two_replicas(program: Program, devices: int) -> None:
    check(program, devices)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@given(program=op_programs())
@settings(QUICK, max_examples=1000, derandomize=False, print_blob=True)
@pytest.mark.parametrize("devices", [1, R])
def test_many_random_programs_of_ops_of_two_replicas(program: Program, devices: int) -> None:
    check(program, devices)
