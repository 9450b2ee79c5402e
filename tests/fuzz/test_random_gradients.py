"""Gradients of random functions are those that jax finds for the same functions, written without popxl."""

from __future__ import annotations

import numpy as np
import pytest
from function_kinds import KINDS
from function_runs import expected, found
from hypothesis import HealthCheck, given, settings
from random_functions import Function, function_of, functions

SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


def check(function: Function) -> None:
    wanted = expected(function)
    scale = max(1.0, *(np.abs(g).max() for g in wanted))
    assert np.isfinite(scale)
    for i, ours, theirs in zip(function.required, found(function), wanted, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale, err_msg=f"gradient of input {i}")


PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_the_gradient_of_each_instruction_is_that_of_jax(part: int) -> None:
    """Random functions need not have all of them."""
    check(function_of(list(KINDS)[part::PARTS], seed=part, differentiate_first=part % 2 == 0))


@given(functions())
@settings(SLOW, max_examples=12)
@pytest.mark.parametrize("part", range(8))
def test_gradients_of_random_functions_are_those_of_jax(part: int, function: Function) -> None:
    check(function)


@given(functions())
@settings(SLOW, max_examples=2000)
@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_gradients_of_many_random_functions_are_those_of_jax(function: Function) -> None:
    check(function)
