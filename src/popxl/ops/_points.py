"""Samples that many elementwise ops of one tensor share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from popxl.ops._define import Sample, sample


def points(
    *values: float, kinks: Sequence[float] = (), tolerance: float = 2e-6, double_tolerance: float = 1e-14
) -> Sequence[Sample]:
    """Return samples at numbers, in each float dtype, of several ranks, and of nothing.

    Args:
        values: Numbers at which the op is smooth.
        kinks: Numbers at which it is not, and numbers that are not finite.
        tolerance: Tolerance of float32.
        double_tolerance: Tolerance of float64.
    """
    a, edges = np.array(values, np.float32), np.array(kinks, np.float32)
    of_edges = (
        sample(edges, tolerance=tolerance, smooth=False),
        sample(edges.astype(np.float16), tolerance=2e-3, smooth=False),
        sample(edges.astype(np.float64), tolerance=double_tolerance, smooth=False),
    )
    return (
        sample(a, tolerance=tolerance),
        sample(a.reshape(1, -1).astype(np.float16), tolerance=2e-3),
        sample(a.astype(np.float64), tolerance=double_tolerance),
        sample(a[0].reshape(()), tolerance=tolerance),
        sample(np.zeros((3, 0), np.float32)),
        *(of_edges if kinks else ()),
    )
