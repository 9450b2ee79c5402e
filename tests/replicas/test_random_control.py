"""Random programs with calls, loops, branches, views and updates in place give each replica what one alone gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from program_runs import RUNS, Builder, Machine, item, limits
from random_programs import Program, programs

import popxl
from popxl.errors import PopxlNotImplementedError

R = 2
QUICK = settings(
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def items(spec: Any, seed: int, run: int) -> np.ndarray:
    return np.stack([item(spec, seed, run + r) for r in range(R)])


def check(program: Program, devices: int) -> None:
    builder = Builder(program, R)
    with limits(inline=program.inline):
        try:
            session = popxl.Session(builder.ir, "cpu", devices=devices)
        except PopxlNotImplementedError as error:
            # Replicas would have to take different sides of a branch that transfers.
            assert "may differ between replicas" in str(error)  # noqa: PT017
            reject()
    machines = [Machine(program, r) for r in range(R)]
    with session:
        for run in range(RUNS):
            found = session.run({stream: items(spec, seed, run) for stream, spec, seed in builder.inputs})
            expected = [machine.run() for machine in machines]
            for k, stream in enumerate(builder.outputs):
                each = np.stack([outputs[k] for outputs in expected])
                np.testing.assert_array_equal(found[stream], each, f"output {k} of run {run}", strict=True)
        for i, v in enumerate(builder.variables):
            values = [m.read(m.variables[i], program.main.inputs[i]) for m in machines]
            host = np.stack(values) if i % 2 else values[0]
            np.testing.assert_array_equal(session.get_tensor_data(v), host, f"variable {i}", strict=True)
        for (b, e), v in builder.rows.items():
            rows = [m.rows[b, e] for m in machines]
            host = np.stack(rows) if b % 2 else rows[0]
            np.testing.assert_array_equal(session.get_tensor_data(v), host, f"row {(b, e)}", strict=True)


@given(program=programs())
@settings(QUICK, max_examples=12)
@pytest.mark.parametrize("devices", [1, R])
def test_random_programs_of_two_replicas(program: Program, devices: int) -> None:
    check(program, devices)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@given(program=programs())
@settings(QUICK, max_examples=1500, derandomize=False, print_blob=True)
@pytest.mark.parametrize("devices", [1, R])
def test_many_random_programs_of_two_replicas(program: Program, devices: int) -> None:
    check(program, devices)
