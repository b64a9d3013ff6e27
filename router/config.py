"""What the router is told at its start. `farm.config` fills it from TOML; nothing here reads a file."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from shm.limits import MEMBERS_MAX, SLOT_COUNT_MAX

Whole = Annotated[int, Meta(ge=1, le=2**31)]
Millis = Annotated[float, Meta(gt=0, le=86_400_000)]
Behaviour = Literal["rules", "last_good", "constant", "previous_version", "retry", "reject"]
Behaviours = Annotated[list[Behaviour], Meta(min_length=1, max_length=6)]
Scalar = bool | int | float | str
Value = Scalar | list[Scalar | list[Scalar]]


class RuleConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`when` is a CEL condition over the features; the first that holds gives the answer. No `when`: always."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    when: Annotated[str, Meta(max_length=4096)] | None = None
    answer: dict[str, Value]
    """Every output of the model by name: a scalar, or a list for one row of that output."""
    decision: Annotated[str, Meta(max_length=64)] | None = None


class AgreeConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """When a rule's and the model's value of one output agree: both on one side of `threshold`, or no farther apart
    than `tolerance`. One of the two."""

    threshold: float | None = None
    tolerance: Annotated[float, Meta(ge=0)] | None = None


class RulesConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The answer when time runs out: an ordered list, evaluated for each row of a request."""

    features: dict[str, list[str]] = {}
    """Input name to the names of its columns; an input of one value a row needs no entry and goes by its own name."""
    rules: Annotated[list[RuleConfig], Meta(min_length=1, max_length=256)]
    rows_max: Whole = 1024
    """Rows that rules may be asked for in one turn of the router; beyond, the next behaviour of the table is tried."""
    sample_every: Annotated[int, Meta(ge=0, le=2**31)] = 100
    """Every so many requests that the model answered are put to the rules too, and agreement is counted. 0: none."""
    agree: dict[str, AgreeConfig] = {}
    """By output. Outputs without an entry agree when they are equal, floats when they are 0.1 apart at most."""


class OnConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a request gets instead of its model's answer, by what went wrong: behaviours, tried in order.

    None: what `router.fallback` says for models with rules and without.
    """

    timeout: Behaviours | None = None
    predicted_late: Behaviours | None = None
    shed: Behaviours | None = None
    no_worker: Behaviours | None = None
    worker_died: Behaviours | None = None
    model_error: Behaviours | None = None
    guard: Behaviours | None = None


class LastGoodConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How long and how many of the model's answers are kept for `last_good`, by the request's key."""

    max_age_ms: Millis = 60_000.0
    keys_max: Whole = 10_000
    mib_max: Whole = 64


class AllowConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Who may ask for a model: users and groups by number."""

    uids: list[int] = []
    gids: list[int] = []


class ModelConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One model version, as the router treats its requests."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    version: Annotated[int, Meta(ge=1, le=2**31)] = 1
    path: str = ""
    """Of the model's file, for whoever reads the facts of a quarantined input. The router does not open it."""
    deadline_ms: Millis = 1000.0
    max_batch: Annotated[int, Meta(ge=1, le=MEMBERS_MAX)] = 32
    max_delay_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    queue_requests: Whole = 1024
    queue_mib: Whole = 256
    in_flight_max: Annotated[int, Meta(ge=0, le=2**31)] = 0
    """Requests queued and running together; 0 for no limit but the queue's."""
    hang_ms: Millis = 1000.0
    """A run that takes so much longer than predicted is told to stop, and its worker killed when it does not within
    the same time again."""
    worker_rows_per_second: Annotated[float, Meta(ge=0)] = 0.0
    """What one worker carries with full batches, as it was measured under load; 0: what its warm-up says."""
    rules: RulesConfig | None = None
    constant: dict[str, Value] | None = None
    """Every output by name, as in a rule's answer: what the behaviour `constant` answers."""
    last_good: LastGoodConfig = LastGoodConfig()
    on: OnConfig = OnConfig()
    allow: AllowConfig | None = None
    """None: everyone who may attach."""


class RouterConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    models: Annotated[list[ModelConfig], Meta(min_length=1, max_length=1024)]
    source: str = ""
    """The file or call that all this came from, for messages."""
    isolation: Literal["same-uid", "group"] = "same-uid"
    service_group: str | None = None
    clients_max: Whole = 256
    arena_budget_mib: Whole = 1024
    """Of all arenas together, both files counted."""
    client_mib_max: Whole = 256
    slot_count_max: Annotated[int, Meta(ge=1, le=SLOT_COUNT_MAX)] = SLOT_COUNT_MAX
    turn_requests: Whole = 512
    worker_arenas_max: Whole = 64
    lane_mib: Annotated[int, Meta(ge=16, le=2**20)] = 32
    """By how much the router may grow over the ZeroMQ lane before connections are cut: at once who brings no message,
    at twice as much who has bytes on the way, at four times everyone."""
    faults_max: Whole = 100
    """Frames a client may send that cannot be taken before its session ends."""
    client_rate: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    """Requests a second that one client may send, a tenth of a second's worth at once; 0 for no limit."""
    quarantine_mib: Annotated[int, Meta(ge=0, le=2**20)] = 16
    """Inputs that killed two workers, kept in the runtime directory for whoever looks into it; 0 keeps none."""
    poison_ms: Millis = 60_000.0
    """How long the same input is refused after it killed two workers."""
    prefetch_runs: Annotated[int, Meta(ge=1, le=2)] = 2
    """Runs in a worker's hands at a time: 2 hide the way to the router and back behind a run."""
