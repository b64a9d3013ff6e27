"""The farm's configuration: TOML in, one strict struct out, and from it what router and workers are told.

Every option with its default and its reason is in `configs/farm.toml`; `docs/OPERATIONS.md` has the table. A key stands
in one section only, so that `farm.Farm(**options)` can take keys without naming sections.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

import farm.siblings  # noqa: F401 - refuses a stranger's router or workers before the next lines import them
from farm import allowance, capacity
from farm.errors import ConfigError
from farm.strict import Place, did_you_mean, read_table, show
from router.config import (
    LastGoodConfig,
    Millis,
    ModelConfig,
    OnConfig,
    RouterConfig,
    RulesConfig,
    Value,
    Whole,
)
from router.fallback import refuse
from shm.limits import MEMBERS_MAX, SLOT_COUNT_MAX
from workers.config import GuardConfig, SessionConfig, WorkerConfig
from workers.files import refuse_file

EMBEDDED_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "embedded", "wdbc.toml")
"""What `farm serve` runs when it is given nothing. Not taken from `farm.embedded`, which loads records with numpy."""

WORKERS_MAX = 1024
"""Of one model; the same as a ScaleWanted takes."""

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class FarmSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the supervisor goes by."""

    runtime_dir: str | None = None
    isolation: Literal["same-uid", "group"] = "same-uid"
    service_group: str | None = None
    pin: bool = True
    start_timeout_s: Seconds = 60.0
    beat_timeout_ms: Millis = 2000.0
    drain_timeout_ms: Annotated[float, Meta(ge=0, le=86_400_000)] = 5000.0
    stop_timeout_ms: Millis = 2000.0
    restart_delay_ms: Millis = 100.0
    restart_delay_ms_max: Millis = 30_000.0
    restart_healthy_s: Seconds = 60.0


class ArenaSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Shared memory of attached clients."""

    arena_budget_mib: Whole = 1024
    client_mib_max: Whole = 256
    slot_count_max: Annotated[int, Meta(ge=1, le=SLOT_COUNT_MAX)] = SLOT_COUNT_MAX


class RouterSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The router's limits."""

    clients_max: Whole = 256
    turn_requests: Whole = 512
    faults_max: Whole = 100
    lane_mib: Annotated[int, Meta(ge=16, le=2**20)] = 32
    worker_arenas_max: Whole = 64
    prefetch_runs: Annotated[int, Meta(ge=1, le=2)] = 2
    client_rate: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    quarantine_mib: Annotated[int, Meta(ge=0, le=2**20)] = 16
    poison_ms: Millis = 60_000.0


class ModelSection(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One model: where it lies, how its requests are treated, how it runs."""

    path: str
    version: Annotated[int, Meta(ge=1, le=2**31)] = 1
    workers: Annotated[int, Meta(ge=0, le=WORKERS_MAX)] = 2
    """In a file also `"auto"`; here it is the number that this came to."""
    capacity: str | None = None
    rows_per_second: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    deadline_ms: Millis = 1000.0
    max_batch: Annotated[int, Meta(ge=1, le=MEMBERS_MAX)] = 32
    max_delay_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    queue_requests: Whole = 1024
    queue_mib: Whole = 256
    in_flight_max: Annotated[int, Meta(ge=0, le=2**31)] = 0
    hang_ms: Millis = 1000.0
    batching: Literal["auto", "on", "off"] = "auto"
    intra_op_threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    inter_op_threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    spinning: bool = False
    optimization: Literal["off", "basic", "extended", "all"] = "all"
    output_mib_max: Whole = 256
    memory_mib: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    rules: RulesConfig | None = None
    constant: dict[str, Value] | None = None
    last_good: LastGoodConfig = LastGoodConfig()
    guard: GuardConfig | None = None
    on: OnConfig = OnConfig()
    allow: list[str | int] | None = None


class Config(Struct, kw_only=True, frozen=True):
    """A whole configuration, checked. `source` names the file or the call that it came from, for messages."""

    source: str
    farm: FarmSection
    arena: ArenaSection
    router: RouterSection
    models: dict[str, ModelSection]
    measured_rates: dict[str, float] = {}
    """By model with a `capacity` file: rows a second of one worker, as that says."""

    @property
    def serves(self) -> str:
        """`wdbc v1 (2 workers), ...`: what the ready line says."""
        return ", ".join(
            f"{name} v{model.version} ({model.workers} worker{'' if model.workers == 1 else 's'})"
            for name, model in self.models.items()
        )


SECTIONS: dict[str, type[Struct]] = {"farm": FarmSection, "arena": ArenaSection, "router": RouterSection}


def load(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """The configuration in a TOML file; model paths are relative to it. `options` go over what it says.

    Raises:
        ConfigError: naming file, key, value and what is allowed.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a readable TOML file") from error
    except (ValueError, RecursionError) as error:
        # Beside its own error: text that is not UTF-8, numbers of thousands of digits, arrays within arrays.
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return from_tables(tables, source=path, base_dir=os.path.dirname(os.path.abspath(path)), options=options)


def for_models(models: Mapping[str, Any], source: str, options: Mapping[str, Any] | None = None) -> Config:
    """The configuration of models given by path, or by a table of their own; all else as the defaults say."""
    tables = {name: dict(model) if isinstance(model, Mapping) else {"path": model} for name, model in models.items()}
    return from_tables({"models": tables}, source=source, base_dir=os.getcwd(), options=options)


def from_tables(
    tables: Mapping[str, Any], *, source: str, base_dir: str, options: Mapping[str, Any] | None = None
) -> Config:
    """The configuration in tables as TOML gives them."""
    known = [*SECTIONS, "models"]
    for key in tables:
        if key not in known:
            raise ConfigError(f"{source}: no section [{key}]{did_you_mean(key, known)}")
    tables = with_options(tables, options or {}, source)
    models = tables.get("models", {})
    if not isinstance(models, Mapping) or not models:
        raise ConfigError(f'{source}: no model; add a section such as [models.fraud] with path = "fraud.onnx"')
    auto_models = sum(map(capacity.is_auto, models.values()))
    read = {name: _read_model(name, table, source, base_dir, auto_models) for name, table in models.items()}
    config = Config(
        source=source,
        farm=_read_farm(tables.get("farm", {}), source, base_dir),
        arena=read_table(ArenaSection, tables.get("arena", {}), Place(source, "[arena]")),
        router=read_table(RouterSection, tables.get("router", {}), Place(source, "[router]")),
        models={name: model for name, (model, _) in read.items()},
        measured_rates={
            name: measured.rows_per_second_per_worker for name, (_, measured) in read.items() if measured is not None
        },
    )
    _check_together(config)
    return config


def with_options(tables: Mapping[str, Any], options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The tables with each option laid over: a model's key over every model, others in their section."""
    merged = {key: value for key, value in tables.items()}
    homes = {key: section for section, kind in SECTIONS.items() for key in kind.__struct_fields__}
    for key, value in options.items():
        if key in homes:
            merged[homes[key]] = {**merged.get(homes[key], {}), key: value}
        elif key in ModelSection.__struct_fields__ and key != "path":
            merged["models"] = {name: {**model, key: value} for name, model in merged.get("models", {}).items()}
        else:
            names = [*homes, *(name for name in ModelSection.__struct_fields__ if name != "path")]
            raise ConfigError(f"{source}: no option {key!r}{did_you_mean(key, names)}")
    return merged


def router_config(config: Config) -> RouterConfig:
    """What the router is told."""
    return RouterConfig(
        models=[
            model_config(name, model, config.measured_rates.get(name, 0.0), config.source)
            for name, model in config.models.items()
        ],
        source=config.source,
        isolation=config.farm.isolation,
        service_group=config.farm.service_group,
        clients_max=config.router.clients_max,
        arena_budget_mib=config.arena.arena_budget_mib,
        client_mib_max=config.arena.client_mib_max,
        slot_count_max=config.arena.slot_count_max,
        turn_requests=config.router.turn_requests,
        worker_arenas_max=config.router.worker_arenas_max,
        faults_max=config.router.faults_max,
        lane_mib=config.router.lane_mib,
        prefetch_runs=config.router.prefetch_runs,
        client_rate=config.router.client_rate,
        quarantine_mib=config.router.quarantine_mib,
        poison_ms=config.router.poison_ms,
    )


def model_config(name: str, model: ModelSection, measured_rate: float = 0.0, source: str = "") -> ModelConfig:
    """What the router is told of one model. measured_rate: rows a second of one worker, 0: not measured."""
    return ModelConfig(
        name=name,
        version=model.version,
        path=model.path,
        deadline_ms=model.deadline_ms,
        max_batch=model.max_batch,
        max_delay_ms=model.max_delay_ms,
        queue_requests=model.queue_requests,
        queue_mib=model.queue_mib,
        in_flight_max=model.in_flight_max,
        hang_ms=model.hang_ms,
        worker_rows_per_second=measured_rate,
        rules=model.rules,
        constant=model.constant,
        last_good=model.last_good,
        on=model.on,
        allow=None if model.allow is None else allowance.resolve(model.allow, Place(source, f"[models.{name}]")),
    )


def session_config(model: ModelSection) -> SessionConfig:
    """How one model's workers run it."""
    return SessionConfig(
        intra_op_threads=model.intra_op_threads,
        inter_op_threads=model.inter_op_threads,
        spinning=model.spinning,
        optimization=model.optimization,
        batching=model.batching,
    )


def worker_config(config: Config, name: str, cpus: tuple[int, ...]) -> WorkerConfig:
    """What one worker of a model is told."""
    model = config.models[name]
    return WorkerConfig(
        name=name,
        version=model.version,
        path=model.path,
        max_batch=model.max_batch,
        session=session_config(model),
        guard=model.guard,
        cpus=cpus,
        arenas_max=config.router.worker_arenas_max,
        output_mib_max=model.output_mib_max,
        memory_mib=model.memory_mib,
    )


def check_files(config: Config) -> None:
    """Every model's file is there and can be read: known before a worker would have to say it.

    Raises:
        ConfigError: it is not.
    """
    for name, model in config.models.items():
        refused = refuse_file(model.path)
        if refused is not None:
            raise ConfigError(f"{config.source}: [models.{name}] path = {show(model.path)}: {refused}")


def _read_farm(table: object, source: str, base_dir: str) -> FarmSection:
    section = read_table(FarmSection, table, Place(source, "[farm]"))
    if section.runtime_dir is None:
        return section
    return msgspec.structs.replace(section, runtime_dir=os.path.abspath(os.path.join(base_dir, section.runtime_dir)))


def _read_model(
    name: str, table: object, source: str, base_dir: str, auto_models: int
) -> tuple[ModelSection, capacity.Capacity | None]:
    """The section, its paths made absolute, and what its `capacity` file says."""
    place = Place(source, f"[models.{name}]")
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise place.error("is no name for a model: it must be a text of 1 to 128 characters")
    auto = capacity.is_auto(table)
    if auto and isinstance(table, Mapping):
        table = {key: value for key, value in table.items() if key != "workers"}
    model = read_table(ModelSection, table, place)
    if not model.path:
        raise place.error('path = "": it must be an ONNX file')
    changes: dict[str, Any] = {"path": os.path.abspath(os.path.join(base_dir, model.path))}
    measured = None
    if model.capacity is not None:
        changes["capacity"] = os.path.abspath(os.path.join(base_dir, model.capacity))
        measured = capacity.read(changes["capacity"], place)
    if auto:
        changes["workers"] = capacity.workers_for(
            model.rows_per_second, measured, model.intra_op_threads, max(1, auto_models)
        )
    model = msgspec.structs.replace(model, **changes)
    _check_fallback(name, model, source)
    return model, measured


def _check_fallback(name: str, model: ModelSection, source: str) -> None:
    """What can be refused without the model's signature; `farm.checking` does the rest."""
    wrong = refuse(model_config(name, model, source=source))
    if wrong is not None:
        raise Place(source, f"[models.{name}.on]").error(wrong.removeprefix("on."))
    for output, how in (model.rules.agree if model.rules is not None else {}).items():
        place = Place(source, f"[models.{name}.rules.agree.{output}]")
        if (how.threshold is None) == (how.tolerance is None):
            raise place.error("must have one of threshold and tolerance")
        if how.threshold is not None and not math.isfinite(how.threshold):
            raise place.error(f"threshold = {how.threshold}: it must be a finite number")
    for output, (low, high) in (model.guard.ranges if model.guard is not None else {}).items():
        if not low <= high:
            raise Place(source, f"[models.{name}.guard]").error(
                f"ranges.{output} = [{low:g}, {high:g}]: the least value must come first, and neither may be nan"
            )


def _check_together(config: Config) -> None:
    """What no key can be refused for by itself."""
    section, arena = config.farm, config.arena
    place = Place(config.source, "[farm]")
    if section.isolation == "group" and not section.service_group:
        raise place.error('isolation = "group": it needs service_group, the group whose members may attach')
    if section.service_group and section.isolation != "group":
        raise place.error(f'service_group = {show(section.service_group)}: it needs isolation = "group"')
    for name, model in config.models.items():
        if model.allow is not None and section.isolation != "group":
            raise Place(config.source, f"[models.{name}]").error(
                'allow: it needs [farm] isolation = "group"; with "same-uid" nobody attaches but this user'
            )
    if section.restart_delay_ms > section.restart_delay_ms_max:
        raise place.error(
            f"restart_delay_ms = {section.restart_delay_ms:g}: it must be at most restart_delay_ms_max, "
            f"{section.restart_delay_ms_max:g}"
        )
    if arena.client_mib_max > arena.arena_budget_mib:
        raise Place(config.source, "[arena]").error(
            f"client_mib_max = {arena.client_mib_max}: it must be at most arena_budget_mib, {arena.arena_budget_mib}"
        )
