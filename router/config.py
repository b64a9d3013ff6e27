"""What the router is told at its start. `farm.config` fills it from TOML; nothing here reads a file."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from shm.limits import MEMBERS_MAX, SLOT_COUNT_MAX

Whole = Annotated[int, Meta(ge=1, le=2**31)]
Millis = Annotated[float, Meta(gt=0, le=86_400_000)]
Scalar = bool | int | float | str
Value = Scalar | list[Scalar | list[Scalar]]


class RuleConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`when` is a CEL condition over the features; the first that holds gives the answer. No `when`: always."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    when: Annotated[str, Meta(max_length=4096)] | None = None
    answer: dict[str, Value]
    """Every output of the model by name: a scalar, or a list for one row of that output."""
    decision: Annotated[str, Meta(max_length=64)] | None = None


class RulesConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The answer when time runs out: an ordered list, evaluated for each row of a request."""

    features: dict[str, list[str]] = {}
    """Input name to the names of its columns; an input of one value a row needs no entry and goes by its own name."""
    rules: Annotated[list[RuleConfig], Meta(min_length=1, max_length=256)]
    rows_max: Whole = 1024
    """Rows that rules may be asked for in one turn of the router; beyond, requests end `shed`, reason `rules_busy`."""


class ModelConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One model version, as the router treats its requests."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    version: Annotated[int, Meta(ge=1, le=2**31)] = 1
    deadline_ms: Millis = 1000.0
    max_batch: Annotated[int, Meta(ge=1, le=MEMBERS_MAX)] = 32
    max_delay_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    queue_requests: Whole = 1024
    queue_mib: Whole = 256
    hang_ms: Millis = 1000.0
    """Past its deadline and its predicted time a run gets this long before its worker is taken for hung and killed."""
    rules: RulesConfig | None = None


class RouterConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    models: Annotated[list[ModelConfig], Meta(min_length=1, max_length=1024)]
    isolation: Literal["same-uid", "group"] = "same-uid"
    service_group: str | None = None
    clients_max: Whole = 256
    arena_budget_mib: Whole = 1024
    """Of all arenas together, both files counted."""
    client_mib_max: Whole = 256
    slot_count_max: Annotated[int, Meta(ge=1, le=SLOT_COUNT_MAX)] = SLOT_COUNT_MAX
    turn_requests: Whole = 512
    worker_arenas_max: Whole = 64
    faults_max: Whole = 100
    """Frames a client may send that cannot be taken before its session ends."""
    prefetch_runs: Annotated[int, Meta(ge=1, le=2)] = 2
    """Runs in a worker's hands at a time: 2 hide the way to the router and back behind a run."""
