"""What `benchmarks/layer_stack.py` counts, with tiny layers. Times are not judged here."""

from __future__ import annotations

import jax
import layer_stack
import numpy as np
import pytest

SIZES = layer_stack.Sizes(layers=5, width=8, tokens=4, heads=2)


@pytest.fixture(scope="module")
def samples() -> dict[str, layer_stack.Samples]:
    programs = (layer_stack.BASE, *layer_stack.TARGETS, layer_stack.CONTRAST)
    return layer_stack.measure(SIZES, 1, programs, warm_up=0)


@pytest.mark.parametrize("program", [layer_stack.BASE, *layer_stack.TARGETS])
def test_any_number_of_equal_layers_is_one_executable(samples: dict[str, layer_stack.Samples], program: str) -> None:
    assert samples[program].executables == [1]


@pytest.mark.parametrize("program", [layer_stack.BASE, *layer_stack.TARGETS])
def test_jax_reports_one_compilation(samples: dict[str, layer_stack.Samples], program: str) -> None:
    assert samples[program].compiled == [1]


@pytest.mark.parametrize("program", [layer_stack.BASE, *layer_stack.TARGETS, layer_stack.CONTRAST])
def test_nothing_is_compiled_after_the_session_is_made(samples: dict[str, layer_stack.Samples], program: str) -> None:
    assert samples[program].compiled_later == [0]


def test_the_ways_to_write_a_stack_compute_the_same(samples: dict[str, layer_stack.Samples]) -> None:
    shared, separate, contrast = (samples[p].result for p in (*layer_stack.TARGETS, layer_stack.CONTRAST))
    np.testing.assert_array_equal(shared, separate)
    np.testing.assert_allclose(shared, contrast, rtol=1e-5, atol=1e-5)
    assert np.ptp(shared) > 0.1


def test_every_layer_of_the_stack_counts(samples: dict[str, layer_stack.Samples]) -> None:
    assert not np.allclose(samples["shared"].result, samples[layer_stack.BASE].result)


def test_separate_layers_are_graphs_of_their_own() -> None:
    shared, separate = (layer_stack.build(p, SIZES, 0)[0] for p in layer_stack.TARGETS)
    assert [len(ir.main_graph.called_graphs) for ir in (shared, separate)] == [1, SIZES.layers]


def test_the_listener_sees_a_compilation() -> None:
    with layer_stack.compilations() as events:
        jax.jit(lambda x: x * 3.0 + 1.0).lower(np.zeros(3, np.float32)).compile()
    assert len(events) == 1


def test_it_runs_and_reports_each_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert layer_stack.main(["--layers=2", "--width=8", "--tokens=4", "--heads=2", "--rounds=1"]) == 0
    out = capsys.readouterr().out
    for words in (layer_stack.BASE, *layer_stack.TARGETS, layer_stack.CONTRAST, "1 / 1 / 0", "Not measured"):
        assert words in out
