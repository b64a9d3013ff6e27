"""What one seed decides: the farm's configuration, who uses it, how well it does, and what goes wrong how often."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from router.config import Behaviour, ModelConfig, OnConfig, RouterConfig, RuleConfig, RulesConfig
from router.fallback import FAILURES, RETRIED
from shm.layout import Signature, TensorSpec

MS = 1_000_000
START_NS = 1_000_000 * MS

_RULES = RulesConfig(rules=[RuleConfig(name="always", answer={"y": 0.0})])


@dataclass(frozen=True)
class Model:
    """One model of the farm. `row_ns`, `base_ns`: what its runs take in the middle of their distribution."""

    config: ModelConfig
    signature: Signature
    base_ns: int
    row_ns: int
    widths: tuple[int, ...] = ()
    """Second dimensions that described requests may have; empty where requests need no description."""


@dataclass(frozen=True)
class Scenario:
    models: list[Model]
    router: RouterConfig
    workers: list[int]
    """Workers to begin with, each the index of its model."""
    clients: int
    slot_count: int
    slot_bytes: int
    frame_interval_ns: int
    """Mean time between two frames of one client."""
    recorded: bool
    """Gaps between frames are those of a recorded service, else Poisson's."""
    burst: float
    deadlines_ms: tuple[float, ...]
    turn_late_ns: int
    """How late a turn may come. 0: every turn is on time, and so must every answer be."""
    stall: float
    """Chance, per turn, that the router stops for up to some seconds."""
    faults: dict[str, float]
    """Chance of each mishap, per frame of a client or per run of a worker."""
    router_life_ns: int
    """Mean time between two deaths of the router, 0 for never."""
    drain: bool
    """End with a drain, and not by letting the farm go quiet."""


def _float_signature(*dims: int | str, rows: bool) -> Signature:
    return Signature((TensorSpec("x", 1, dims),), (TensorSpec("y", 1, (dims[0],)),), rows)


def _draw_on(rng: Random, *, ruled: bool) -> OnConfig:
    """Any table that the configuration would take."""
    rows: dict[str, list[Behaviour] | None] = {}
    for failure in FAILURES:
        steps: list[Behaviour] = ["last_good", "constant"]
        steps += ["rules"] if ruled else []
        rng.shuffle(steps)
        first: list[Behaviour] = ["retry"] if failure in RETRIED and rng.random() < 0.7 else []
        rows[failure] = rng.choice((None, [*first, *steps[: rng.randint(0, len(steps))], "reject"]))
    return OnConfig(**rows)


def _models(rng: Random) -> list[Model]:
    kinds = [
        ("rows", _float_signature("N", 4, rows=True), ()),
        ("single", _float_signature("N", 4, rows=False), ()),
        ("described", _float_signature("N", "M", rows=True), (2, 3, 8)),
        ("fixed", _float_signature(3, 4, rows=False), ()),
    ]
    chosen = rng.sample(kinds, rng.randint(1, 3))
    models = []
    for name, signature, widths in chosen:
        config = ModelConfig(
            name=name,
            max_batch=rng.choice((1, 2, 4, 8, 32)),
            max_delay_ms=rng.choice((0.0, 0.0, 0.2, 2.0, 30.0)),
            queue_requests=rng.choice((1, 4, 64, 1024)),
            queue_mib=1,
            hang_ms=rng.choice((5.0, 50.0, 1000.0)),
            rules=_RULES if (ruled := rng.random() < 0.5) else None,
            constant={"y": 0.0},
            in_flight_max=rng.choice((0, 0, 0, 8, 100)),
            on=_draw_on(rng, ruled=ruled),
        )
        base = rng.choice((20_000, 200_000, 1 * MS, 5 * MS))
        models.append(Model(config, signature, base, base // rng.choice((2, 10, 50)), widths))
    return models


def draw(seed: int) -> Scenario:
    rng = Random(seed)
    models = _models(rng)
    workers = [index for index in range(len(models)) for _ in range(rng.randint(1, 3))]
    clients = rng.randint(1, 6)
    # A rate between a tenth of what the workers can do and four times that.
    capacity_ns = sum(model.base_ns for model in models) / len(workers)
    on_time = rng.random() < 0.6
    interval_ns = int(capacity_ns * clients * 4 / rng.choice((0.1, 0.5, 1, 2, 4)))
    severity = rng.choice((0.0, 0.2, 1.0, 3.0))
    return Scenario(
        models=models,
        router=RouterConfig(
            models=[model.config for model in models],
            prefetch_runs=rng.choice((1, 2)),
            client_rate=rng.choice((0, 0, 0, 2e9 / interval_ns)),
        ),
        workers=workers,
        clients=clients,
        slot_count=rng.choice((4, 16, 64)),
        slot_bytes=rng.choice((64, 256)),
        frame_interval_ns=interval_ns,
        recorded=rng.random() < 0.2,
        burst=rng.choice((0.0, 0.05, 0.3)),
        deadlines_ms=rng.choice(((8.0, 60.0), (40.0,), (1.0, 5.0, 500.0), (20.0, 4000.0))),
        turn_late_ns=0 if on_time else rng.choice((50_000, 2 * MS, 30 * MS)),
        stall=0.0 if on_time else rng.choice((0.0, 0.001)),
        faults={
            "client_dies": 0.002 * severity,
            "slow_client": 0.1 * severity,
            "lie": 0.03 * severity,
            "cancel": 0.05 * severity,
            "gives_up": 0.2 if severity else 0.0,
            "hang": 0.004 * severity,
            "die_in_run": 0.004 * severity,
            "die_idle": 0.001 * severity,
            "member_fails": 0.01 * severity,
            "overflow": 0.02 * severity,
            "deaf": 0.5 if severity else 0.0,
            "retire": 1.0 * (severity > 0.5),
            "nonsense": 0.001 * severity,
            "outlier": 0.01,
            "poison": 0.001 * severity,
            "known_poison": 0.002 * severity,
            "late": 0.005 * severity,
        },
        router_life_ns=rng.choice((0, 0, 400 * interval_ns)) if severity else 0,
        drain=rng.random() < 0.25,
    )
