"""Whether something grows: a straight line through samples of several slices, with what it may be wrong by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WARM_UP = 0.2
"""This part of each slice's samples is left out: pools and caches fill."""
SIGMAS = 2.0
SAMPLES_MIN = 8


class Slope(NamedTuple):
    """Per unit of x; `noise` is half of the interval that holds the true slope in 95 % of cases."""

    value: float
    noise: float

    @property
    def is_zero(self) -> bool:
        return abs(self.value) <= self.noise


def slope(slices: Sequence[Sequence[tuple[float, float]]]) -> Slope | None:
    """Of (x, y) in each slice, which may begin at any height; None where there are too few.

    Least squares; neighbours in time are alike, so the error is that of as many samples as would be independent at the
    residuals' correlation from one to the next. Without this, a slow wave would be told as a leak.
    """
    xs, ys = [], []
    for samples in slices:
        warm = np.array(samples[math.ceil(len(samples) * WARM_UP) :], dtype=float)
        if len(warm) > 1:
            xs.append(warm[:, 0] - warm[:, 0].mean())
            ys.append(warm[:, 1] - warm[:, 1].mean())
    if sum(map(len, xs)) < SAMPLES_MIN + len(xs):
        return None
    x, y = np.concatenate(xs), np.concatenate(ys)
    value = float(x @ y / (x @ x))
    rest = y - value * x
    power = float(rest @ rest)
    alike = max(0.0, min(0.99, float(rest[1:] @ rest[:-1] / power))) if power > 0 else 0.0
    error = math.sqrt(power / (len(x) - len(xs) - 1) / float(x @ x)) * math.sqrt((1 + alike) / (1 - alike))
    return Slope(value, SIGMAS * error)
