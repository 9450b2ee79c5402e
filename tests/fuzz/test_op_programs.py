"""Random programs of ops give what NumPy does: in place, through views, in every dtype and shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from op_interpreter import Approx, Unsettled
from op_kinds import KINDS, Kind
from op_programs import Program, Script, op_programs, reduced
from op_runs import check, run

# A failing program makes itself smaller, so hypothesis need not.
SLOW = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
SINGLE = np.dtype(np.float32)


@given(op_programs())
@settings(SLOW, max_examples=25)
def test_random_programs_of_ops_give_what_numpy_does(program: Program) -> None:
    check(program)


@given(op_programs(most=15))
@settings(SLOW, max_examples=25)
def test_short_random_programs_of_ops_give_what_numpy_does(program: Program) -> None:
    check(program)


@given(op_programs(focus="update view"))
@settings(SLOW, max_examples=25)
def test_random_programs_of_views_and_updates_give_what_numpy_does(program: Program) -> None:
    check(program)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("focus", ["", "update view"])
@pytest.mark.parametrize("part", range(5))
def test_many_random_programs_of_ops_give_what_numpy_does(part: int, focus: str) -> None:
    # New ones each night, also where the tests above take the same ones each time.
    @given(op_programs(focus=focus))
    @settings(SLOW, max_examples=1000, derandomize=False, print_blob=True)
    def check_each(program: Program) -> None:
        check(program)

    check_each()


# Faults are seen


def write_through_view() -> Script:
    """v0 is a variable, v1 its last row as a view, which is added to itself."""
    script = Script()
    t = script.emit("variable", shape=(2, 3), dtype=SINGLE, seed=1)
    row = script.emit("slice_", t, start=1, stop=None, step=1)
    script.emit("add_", row, row)
    script.emit("store", t)
    return script


def test_a_program_written_by_hand_passes() -> None:
    check(write_through_view().finish())


def test_a_missed_write_through_a_view_is_seen() -> None:
    script = write_through_view()
    program = script.finish()
    missed = program.stores[0].value.copy()
    missed[1] /= 2
    program.stores[0] = Approx.exact(missed, SINGLE)
    with pytest.raises(AssertionError, match=r"run 0, _ = store\(v0\)"):
        run(program)


def test_a_wrong_final_value_of_a_variable_is_seen() -> None:
    program = write_through_view().finish()
    program.variables[0] = Approx.exact(program.variables[0].value + 0.25, SINGLE)
    with pytest.raises(AssertionError, match="variable v0 at the end"):
        run(program)


def test_random_programs_find_an_op_that_is_slightly_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    right = KINDS["cumsum"]

    def slightly_wrong(t: Approx, dim: int) -> Approx:
        result = right.meaning(t, dim=dim)
        return Approx(result.dtype, result.value * (1 + 2.0**-8), result.error)

    monkeypatch.setitem(KINDS, "cumsum", Kind(right.call, slightly_wrong, right.draw, weight=200))

    @seed(0)
    @given(op_programs(most=15))
    @settings(SLOW, max_examples=50, database=None)
    def run_each(program: Program) -> None:
        run(program)

    with pytest.raises(AssertionError, match="expected"):
        run_each()


# The interpreter


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("log", {}), ("log2", {}), ("sqrt", {}), ("pow", {"e": -1.0}), ("l2", {"axis": None, "keepdims": False})],
)
def test_what_no_bound_describes_is_left_out(kind: str, attributes: dict[str, float]) -> None:
    script = Script()
    zeros = script.emit("init", shape=(2,), dtype=SINGLE)
    with pytest.raises(Unsettled):
        script.emit(kind, zeros, **attributes)
    assert [step.kind for step in script.program.instructions] == ["init"]


def test_sums_of_small_numbers_are_exact_and_functions_are_not() -> None:
    script = Script()
    t = script.emit("variable", shape=(3,), dtype=SINGLE, seed=1)
    script.emit("store", script.emit("sum", t, axis=None, keepdims=False))
    script.emit("store", script.emit("tanh", t))
    total, curve = script.finish().stores
    assert not total.error.any()
    assert (curve.error > 0).all()
    assert (curve.error < 1e-5).all()


def test_a_failing_program_is_reduced_to_what_fails() -> None:
    script = write_through_view()
    other = script.emit("variable", shape=(4,), dtype=SINGLE, seed=2)
    script.emit("relu_", script.emit("exp", other))
    script.emit("store", other)
    small = reduced(script.finish(), lambda p: any(step.kind == "relu_" for step in p.instructions))
    assert [step.kind for step in small.instructions] == ["variable", "relu_"]
