"""Every op gives each replica what it gives a single one, whichever of its inputs differ between replicas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from declared import LOWERED, convert, fitting_samples, is_array, name_of, store

import popxl
from popxl import dtypes
from popxl.ops._define import Declaration, Sample
from popxl.tensor import Tensor

R = 3
PARTS = 4
Chosen = tuple[str, Declaration, Sample, int]


def arrays_of(one: Sample) -> list[np.ndarray]:
    found: list[np.ndarray] = []

    def keep(array: np.ndarray) -> np.ndarray:
        found.append(array)
        return array

    convert(one.args, keep)
    return found


def one_of_each() -> list[Chosen]:
    """A sample of each op, of which one input is to differ."""
    chosen: list[Chosen] = []
    for i, declaration in enumerate(LOWERED):
        samples = fitting_samples(declaration)
        one = samples[i % len(samples)]
        arrays = arrays_of(one)
        able = [k for k, a in enumerate(arrays) if differs(a)] or list(range(len(arrays)))
        if able:
            chosen.append((name_of(declaration), declaration, one, able[i // 2 % len(able)]))
    return chosen


def differs(array: np.ndarray) -> bool:
    """Whether replicas get different values of it."""
    return len({row.tobytes() for row in of_each_replica(array)}) > 1


def everything(inputs_of: Callable[[int, int], list[int]]) -> list[Chosen]:
    """All samples; `inputs_of` says which inputs are to differ, of sample i with n inputs, each in a program."""
    return [
        (f"{name_of(declaration)}-{i}, input {k}", declaration, one, k)
        for declaration in LOWERED
        for i, one in enumerate(fitting_samples(declaration))
        for k in inputs_of(i, len(arrays_of(one)))
    ]


def of_each_replica(array: np.ndarray) -> np.ndarray:
    """Other values of the same kind for each replica: the elements in another order, or a number made smaller."""
    if array.size > 1:
        return np.stack([np.roll(array.reshape(-1), r).reshape(array.shape) for r in range(R)])
    factors = [1, 0.5, 0.25] if array.dtype.kind == "f" else [1] * R
    return np.stack([array if f == 1 else (array * f).astype(array.dtype) for f in factors])


@dataclass
class Program:
    """Samples as one program, of one replica or of `R`."""

    replicas: int
    ir: popxl.Ir = field(init=False)
    #: Of each variable, its value for each replica.
    values: dict[Any, np.ndarray] = field(default_factory=dict)
    outputs: dict[Any, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ir = popxl.Ir(replication=self.replicas)

    def add(self, name: str, declaration: Declaration, one: Sample, differs: int) -> None:
        made: list[Tensor] = []

        def variable(array: np.ndarray) -> Tensor:
            own = len(made) == differs
            data = of_each_replica(array) if own else np.stack([array] * R)
            grouping = self.ir.replica_grouping(group_size=1) if own and self.replicas > 1 else None
            v = popxl.variable(
                data if grouping else data[0], dtypes.dtype.as_dtype(array.dtype), replica_grouping=grouping
            )
            self.values[v] = data
            made.append(v)
            return v

        before = len(self.ir.main_graph.ops)
        declaration.function(*convert(one.args, variable), **one.kwargs)
        own = [op for op in self.ir.main_graph.ops[before:] if op.type == declaration.definition.type]
        for k, t in enumerate((*own[-1].outputs, *made)):
            self.outputs[store(t)] = f"{name}, value {k}"

    def run(self, session: popxl.Session) -> dict[str, np.ndarray]:
        found = session.run()
        return {name: np.asarray(found[stream]) for stream, name in self.outputs.items()}


def run_all(chosen: list[Chosen], replicas: int, devices: int = 1) -> list[dict[str, np.ndarray]]:
    """What each replica has."""
    program = Program(replicas)
    with program.ir.main_graph, popxl.in_sequence():
        for one in chosen:
            program.add(*one)
    with popxl.Session(program.ir, "cpu", devices=devices) as session:
        if replicas > 1:
            found = program.run(session)
            return [{name: value[r] for name, value in found.items()} for r in range(R)]
        results: list[dict[str, np.ndarray]] = []
        for r in range(R):
            session.write_variables_data({v: np.asarray(data[r]) for v, data in program.values.items()})
            results.append(program.run(session))
        return results


def check(chosen: list[Chosen], devices: int) -> None:
    together, alone = run_all(chosen, R, devices), run_all(chosen, 1)
    for r in range(R):
        for name, expected in alone[r].items():
            assert_near(together[r][name], expected, f"replica {r}, {name}")


def assert_near(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """The same bits, or a few roundings apart: XLA fuses the two programs differently."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), what
    if found.tobytes() == expected.tobytes():
        return
    assert found.dtype.kind == "f", what
    finite = expected[np.isfinite(expected)].astype(np.float64)
    scale = np.abs(finite).max(initial=0.0)
    tolerance = 8 * float(np.finfo(found.dtype).eps)
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), tolerance, tolerance * scale, err_msg=what
    )


@pytest.mark.parametrize("part", range(PARTS))
def test_an_op_of_which_one_input_differs(part: int) -> None:
    check(one_of_each()[part::PARTS], devices=(1, R)[part % 2])


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("devices", [1, R])
@pytest.mark.parametrize("part", range(PARTS))
def test_an_op_of_which_each_input_in_turn_differs(part: int, devices: int) -> None:
    check(everything(lambda _, n: list(range(n)))[part::PARTS], devices)


def test_samples_differ_between_replicas() -> None:
    # Else the tests above would see little.
    chosen = one_of_each()
    differing = [name for name, _, one, k in chosen if differs(arrays_of(one)[k])]
    assert len(differing) > 0.8 * len(chosen) > 80
    assert all(is_array(a) for _, _, one, _ in chosen for a in arrays_of(one))
