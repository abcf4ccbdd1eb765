"""How sure a figure is: over calibration seeds, and over test questions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2000


def over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % interval (Student); None with a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))


def paired_ratio(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """The ratio of two mean KLs on the same questions, and its 95 % interval over questions (paired bootstrap).

    first, second: runs (seeds) x questions. An interval that does not hold 1 means that the two differ by more than
    the choice of questions explains.
    """
    a, b = np.asarray(first).mean(0), np.asarray(second).mean(0)
    chosen = np.random.default_rng(0).integers(len(a), size=(RESAMPLES, len(a)))
    ratios = a[chosen].sum(1) / np.maximum(b[chosen].sum(1), 1e-30)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(a.sum() / max(b.sum(), 1e-30)), float(low), float(high)
