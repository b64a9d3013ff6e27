"""When requests are due: seeded schedules of arrivals, as arrays of nanoseconds from the beginning of a run.

Two calls with the same arguments give the same array, so every target of a run sees the same arrivals. Nothing here
knows of targets or clocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.target import Load, TargetFailed

Moments = npt.NDArray[np.int64]
NS = 1e9


def of(load: Load, rate: float, seconds: float, seed: int) -> Moments:
    """Due moments of a load's kind of arrivals; rate is the mean, a second."""
    if load.arrivals == "constant":
        return constant(rate, seconds)
    if load.arrivals == "poisson":
        return poisson(rate, seconds, seed)
    if load.arrivals == "bursts":
        return bursts(rate, seconds, seed, load.burst_on_s, load.burst_off_s)
    if load.arrivals == "ramp":
        return ramp(rate * load.ramp_from, rate, seconds, seed)
    if load.arrivals == "periodic":
        return periodic(rate, seconds, seed, load.sources)
    if load.trace is None:
        raise TargetFailed('arrivals = "trace" needs the file: trace = "arrivals.txt"')
    return trace(load.trace, seconds)


def constant(rate: float, seconds: float) -> Moments:
    """Evenly apart, the first at once."""
    return (np.arange(round(rate * seconds)) * (NS / rate)).astype(np.int64)


def poisson(rate: float, seconds: float, seed: int) -> Moments:
    """Independent callers: their number in any time is Poisson's."""
    random = np.random.default_rng(seed)
    count = random.poisson(rate * seconds)
    return _spread(random.random(count), seconds)


def bursts(rate: float, seconds: float, seed: int, on_s: float, off_s: float) -> Moments:
    """Poisson while on, nothing while off; rate is the mean over both."""
    random = np.random.default_rng(seed)
    period_s = on_s + off_s
    whole, rest_s = divmod(seconds, period_s)
    on_total_s = whole * on_s + min(rest_s, on_s)
    inner_s = np.sort(random.random(random.poisson(rate * seconds))) * on_total_s
    return ((inner_s + np.floor(inner_s / on_s) * off_s) * NS).astype(np.int64)


def periodic(rate: float, seconds: float, seed: int, sources: int) -> Moments:
    """So many sources, cameras say, each evenly, at phases that do not change; rate is of all together."""
    period_s = sources / rate
    phases_s = np.random.default_rng(seed).random(sources) * period_s
    at_s = (np.arange(int(np.ceil(seconds / period_s)))[:, None] * period_s + phases_s).ravel()
    return (np.sort(at_s[at_s < seconds]) * NS).astype(np.int64)


def ramp(rate_from: float, rate_to: float, seconds: float, seed: int) -> Moments:
    """Poisson, from one rate to another evenly."""
    random = np.random.default_rng(seed)
    uniform = np.sort(random.random(random.poisson((rate_from + rate_to) / 2 * seconds)))
    if rate_from == rate_to:
        return _spread(uniform, seconds)
    # Turned round from the count that is due by t: rate_from t + (rate_to - rate_from) t^2 / 2, as a share of all.
    low, slope = rate_from, rate_to - rate_from
    share = (np.sqrt(low * low + uniform * slope * (2 * low + slope)) - low) / slope
    return _spread(share, seconds)


def trace(path: str, seconds: float) -> Moments:
    """Recorded arrivals: a text file with one moment a line, in seconds from its beginning; later ones are left out.

    Raises:
        TargetFailed: the file is none, or its moments do not rise from 0 on.
    """
    try:
        at_s = np.array([float(line) for line in Path(path).read_text().split()])
    except (OSError, ValueError) as error:
        raise TargetFailed(f"{path}: {error}; it must hold one moment a line, in seconds") from error
    if not len(at_s) or at_s[0] < 0 or (np.diff(at_s) < 0).any():
        raise TargetFailed(f"{path}: its moments must rise, from 0 on, and there must be one at least")
    return (at_s[at_s < seconds] * NS).astype(np.int64)


def shares(due_ns: Moments, parts: int) -> list[Moments]:
    """The schedule in turns for so many generators."""
    return [due_ns[part::parts] for part in range(parts)]


def streams_of(count: int, weights: list[float], seed: int) -> npt.NDArray[np.int8]:
    """Which stream each of so many requests belongs to, drawn by the streams' shares."""
    if len(weights) == 1:
        return np.zeros(count, np.int8)
    total = sum(weights)
    random = np.random.default_rng([seed, 1])
    return random.choice(len(weights), count, p=[weight / total for weight in weights]).astype(np.int8)


def _spread(uniform: npt.NDArray[Any], seconds: float) -> Moments:
    return (np.sort(uniform) * seconds * NS).astype(np.int64)
