"""Scenario files: what is served, how it is asked, what goes wrong on the way. One small TOML file each.

A file is read strictly: a key that is not known is refused by name. A step says only in what it differs from the file's
own keys; together they make a Case (what a target is started with) and a Load.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from bench import models
from bench.target import Arrivals, Caller, Case, Load, Stream
from farm.errors import ConfigError
from farm.strict import Place, read_table

DIRECTORY = Path(__file__).parent / "scenarios"

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Whole = Annotated[int, Meta(ge=1, le=65_536)]
Rate = Annotated[float, Meta(gt=0, le=10_000_000)]
Factor = Annotated[float, Meta(gt=0, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]

FaultKind = Literal["worker-killed", "worker-frozen", "router-killed", "client-killed", "memory-spike"]


class StreamSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the requests of every step that names no models of its own."""

    model: str
    share: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    deadline_ms: Seconds = 1000.0
    priority: Annotated[int, Meta(ge=0, le=7)] = 0


class StepSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One load. Exactly one of rate, of_capacity and in_flight says how much.

    of_capacity: a rate as a multiple of what the first target carries, measured before. deadlines_ms: as many streams
    of equal shares.
    """

    label: str
    rate: Rate | None = None
    of_capacity: Factor | None = None
    in_flight: Whole | None = None
    caller: Caller = "submit"
    arrivals: Arrivals = "poisson"
    burst_on_s: Seconds = 0.1
    burst_off_s: Seconds = 0.1
    ramp_from: Share = 0.1
    sources: Whole = 1
    trace: str | None = None
    generators: Whole | None = None
    deadline_ms: Seconds | None = None
    deadlines_ms: list[float] | None = None
    models: list[str] | None = None
    workers: Whole | None = None
    max_batch: Whole | None = None
    lane: Literal["auto", "direct", "zeromq"] = "auto"
    seconds: Seconds | None = None
    targets: list[str] | None = None
    late_ms_max: Seconds | None = None


class FaultSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to the first target's processes in every step, `at` that share of its time. mib: of a memory spike,
    held for hold_s."""

    kind: FaultKind
    at: Share = 0.4
    mib: Whole = 1024
    hold_s: Seconds = 1.0


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file. Steps run in their order; targets take turns, anew in each of `repeats`."""

    about: str
    models: list[str]
    workers: Whole = 2
    max_batch: Whole = 32
    deadline_ms: Seconds = 1000.0
    seconds: Seconds = 8.0
    quick_seconds: Seconds = 0.6
    warm_s: Annotated[float, Meta(ge=0, le=60)] = 0.5
    repeats: Annotated[int, Meta(ge=1, le=100)] = 3
    generators: Whole = 1
    late_ms_max: Seconds = 10.0
    targets: list[str] = msgspec.field(default_factory=lambda: ["farm"])
    options: dict[str, Any] = {}
    streams: list[StreamSection] = []
    steps: list[StepSection]
    fault: FaultSection | None = None
    name: str = ""


class Step(Struct, frozen=True, kw_only=True):
    """A step with all that the file says put in. `load.rate` is None while a multiple of capacity stands for it."""

    scenario: str
    case: Case
    load: Load
    of_capacity: float | None
    targets: tuple[str, ...]
    fault: FaultSection | None


def names() -> list[str]:
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def load(name: str) -> Scenario:
    """The scenario of that name, or in that file.

    Raises:
        ConfigError: there is none, or something in it is wrong; the message says what to change.
    """
    path = Path(name) if name.endswith(".toml") else DIRECTORY / f"{name}.toml"
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"no scenario {name!r} ({error.strerror}); known are {', '.join(names())}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return read(tables, source=str(path), name=path.stem)


def read(tables: Mapping[str, Any], *, source: str, name: str) -> Scenario:
    """A scenario from tables as TOML gives them.

    Raises:
        ConfigError: as `load`.
    """
    if "name" in tables:
        raise ConfigError(f"{source}: a scenario's name is its file's; leave the key 'name' out")
    scenario = read_table(Scenario, tables, Place(source, "[scenario]"))
    if not scenario.steps:
        raise ConfigError(f'{source}: no step; add one such as [[steps]] with label = "all" and rate = 1000')
    labels = [step.label for step in scenario.steps]
    for number, step in enumerate(scenario.steps, 1):
        place = Place(source, f"[[steps]] number {number}")
        if sum(amount is not None for amount in (step.rate, step.of_capacity, step.in_flight)) != 1:
            raise place.error("must have exactly one of rate, of_capacity and in_flight")
        if (step.arrivals == "trace") != (step.trace is not None):
            raise place.error('must have trace = "FILE" with arrivals = "trace", and only then')
        if labels.count(step.label) > 1:
            raise place.error(f"has the label {step.label!r} of another step")
        if step.models is not None and scenario.streams:
            raise place.error("names models where [[streams]] do")
    for stream in scenario.streams:
        if stream.model not in scenario.models:
            raise ConfigError(f"{source}: [[streams]] model = {stream.model!r}: models does not name it")
    return msgspec.structs.replace(scenario, name=name)


def steps_of(scenario: Scenario, directory: str, *, quick: bool = False, seconds: float | None = None) -> list[Step]:
    """Its steps, models made in the directory. quick: the first and the last, and short."""
    chosen = scenario.steps
    if quick and len(chosen) > 2:
        chosen = [chosen[0], chosen[-1]]
    return [_step(scenario, step, directory, quick, seconds) for step in chosen]


def _step(scenario: Scenario, step: StepSection, directory: str, quick: bool, seconds: float | None) -> Step:
    served = step.models or scenario.models
    case = Case(
        models=tuple(models.make(name, directory) for name in served),
        workers=step.workers or scenario.workers,
        max_batch=step.max_batch or scenario.max_batch,
        options=scenario.options,
    )
    long_s = seconds or step.seconds or scenario.seconds
    load = Load(
        label=step.label,
        streams=_streams(scenario, step, served),
        seconds=min(long_s, scenario.quick_seconds) if quick else long_s,
        warm_s=min(scenario.warm_s, 0.3) if quick else scenario.warm_s,
        rate=step.rate,
        arrivals=step.arrivals,
        burst_on_s=step.burst_on_s,
        burst_off_s=step.burst_off_s,
        ramp_from=step.ramp_from,
        sources=step.sources,
        trace=step.trace,
        generators=step.generators or scenario.generators,
        late_ms_max=step.late_ms_max or scenario.late_ms_max,
        in_flight=step.in_flight or 1,
        caller=step.caller,
        lane=step.lane,
    )
    return Step(
        scenario=scenario.name,
        case=case,
        load=load,
        of_capacity=step.of_capacity,
        targets=tuple(step.targets or scenario.targets),
        fault=scenario.fault,
    )


def _streams(scenario: Scenario, step: StepSection, served: list[str]) -> tuple[Stream, ...]:
    if scenario.streams:
        return tuple(
            Stream(model=each.model, share=each.share, deadline_ms=each.deadline_ms, priority=each.priority)
            for each in scenario.streams
        )
    deadlines = step.deadlines_ms or [step.deadline_ms or scenario.deadline_ms]
    return tuple(Stream(model=model, deadline_ms=deadline) for model in served for deadline in deadlines)
