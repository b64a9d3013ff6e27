"""Goodput and latency against offered load, up to the knee and beyond, and the capacity written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench import scenario
from bench.result import Result, places_of, summary_of
from bench.scenario import Scenario

FACTORS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0)
QUICK_FACTORS = (0.25, 0.75, 1.0, 2.0)
HELD = 0.99
"""A load is held where this share of it is answered in time."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What to sweep."""

    model: str
    workers: int
    deadline_ms: float
    targets: list[str]
    seconds: float
    repeats: int
    quick: bool


class Knee(Struct, frozen=True, kw_only=True):
    """The most that was held, and what the latency was there."""

    rows_per_second: float
    p99_ms: float


class Capacity(Struct, frozen=True, kw_only=True):
    """The file: what so many workers of a model carry on a host, within a deadline."""

    format: int = 1
    model: str
    workers: int
    rows_per_second: float
    rows_per_second_per_worker: float
    p99_ms: float
    deadline_ms: float
    host: dict[str, Any]


def scenario_of(wanted: Wanted) -> Scenario:
    """The sweep as a scenario."""
    factors = QUICK_FACTORS if wanted.quick else FACTORS
    tables = {
        "about": f"{wanted.model}: goodput and p99 against offered load.",
        "models": [wanted.model],
        "workers": wanted.workers,
        "deadline_ms": wanted.deadline_ms,
        "targets": wanted.targets,
        "seconds": 1.0 if wanted.quick else wanted.seconds,
        "repeats": wanted.repeats,
        "steps": [{"label": f"{factor:g} x capacity", "of_capacity": factor} for factor in factors],
    }
    return scenario.read(tables, source="sweep", name="sweep")


def knee_of(result: Result, target: str) -> Knee | None:
    """None where nothing was held."""
    best: Knee | None = None
    for place, runs in places_of(result).items():
        goodput, p99 = summary_of(runs, "goodput"), summary_of(runs, "p99")
        if place.target != target or goodput is None or p99 is None:
            continue
        asked = sum(run.asked for run in runs) / sum(run.seconds for run in runs)
        if goodput.median >= HELD * asked and (best is None or goodput.median > best.rows_per_second):
            best = Knee(rows_per_second=goodput.median, p99_ms=p99.median)
    return best


def write_capacity(path: Path, wanted: Wanted, knee: Knee, host: dict[str, Any]) -> None:
    """As JSON. A request of the harness has one row, so rows and requests are the same here."""
    capacity = Capacity(
        model=wanted.model,
        workers=wanted.workers,
        rows_per_second=knee.rows_per_second,
        rows_per_second_per_worker=round(knee.rows_per_second / wanted.workers, 2),
        p99_ms=knee.p99_ms,
        deadline_ms=wanted.deadline_ms,
        host=host,
    )
    path.write_bytes(msgspec.json.format(msgspec.json.encode(capacity), indent=2) + b"\n")
