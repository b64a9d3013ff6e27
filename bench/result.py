"""One run of the harness as a file, and what its repeats come to: the median and the spread of every figure."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from bench.target import Measured
from farm.errors import ConfigError

FORMAT = 1

OTHERS_PERCENT = 10.0
"""Of the host's CPUs: a host that does so much beside a run disturbs it."""


class Result(Struct, kw_only=True):
    """What was measured, where and by which command. `left_out`: what was not, and why."""

    format: int = FORMAT
    command: str = ""
    began: str = ""
    took_s: float = 0.0
    quick: bool = False
    interrupted: bool = False
    host: dict[str, Any] = {}
    about: dict[str, str] = {}
    capacity: dict[str, float] = {}
    left_out: list[str] = []
    runs: list[Measured] = []


def save(result: Result, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    partial.replace(path)


def load(path: Path) -> Result:
    """Raises:
    ConfigError: it cannot be read, or is no result of this format.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a result that `python -m bench run` wrote") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: no result of format {FORMAT}: {error}") from error


class Figure(NamedTuple):
    """A figure over repeats. `low` and `high` are the least and the most of them."""

    median: float
    low: float
    high: float
    repeats: int

    @property
    def spread(self) -> float:
        return self.high - self.low


class Place(NamedTuple):
    """Which runs belong together."""

    scenario: str
    label: str
    target: str


FIGURES: dict[str, bool] = {
    "per_second": True,
    "goodput": True,
    "p50": False,
    "p90": False,
    "p95": False,
    "p99": False,
    "p999": False,
    "max": False,
    "cpu_us_per_request": False,
    "pss_mib": False,
    "start_s": False,
}
"""Name to whether more is better."""


def figure_of(run: Measured, name: str) -> float | None:
    if name in ("p50", "p90", "p95", "p99", "p999", "max"):
        return None if run.latency is None else float(getattr(run.latency, name))
    value = getattr(run, name)
    return None if value is None else float(value)


def places_of(result: Result) -> dict[Place, list[Measured]]:
    """In the order in which they were first measured."""
    places: dict[Place, list[Measured]] = {}
    for run in result.runs:
        places.setdefault(Place(run.group, run.label, run.target), []).append(run)
    return places


def valid(runs: list[Measured]) -> list[Measured]:
    """Those that are not void."""
    return [run for run in runs if run.void is None]


def summary_of(runs: list[Measured], name: str) -> Figure | None:
    """Of the runs that are not void; None when there is none, or the figure was not taken."""
    values = [value for run in valid(runs) if (value := figure_of(run, name)) is not None]
    if not values:
        return None
    return Figure(statistics.median(values), min(values), max(values), len(values))
