"""What the machine knows of each process: the router, and one seat for each worker that a model should have.

A seat outlives its workers: it has the history, each worker only its number, which is never used twice.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from farm.supervisor.backoff import Backoff


class SeatState(Enum):
    EMPTY = "empty"
    """Its worker died; the next comes at `due_ns`."""
    LOADING = "loading"
    READY = "ready"
    RETIRING = "retiring"
    """Its worker is to end and is not replaced."""


class ModelPlan(Struct, frozen=True):
    """What the machine needs to know of one model of the configuration."""

    name: str
    version: int
    path: str
    workers: int
    threads: int
    hang_ms: float


class Plan(Struct, frozen=True):
    """The machine's whole configuration, times in nanoseconds."""

    models: tuple[ModelPlan, ...]
    start_timeout_ns: int
    beat_timeout_ns: int
    drain_timeout_ns: int
    stop_timeout_ns: int
    restart_delay_ns: int
    restart_delay_ns_max: int
    restart_healthy_ns: int

    def backoff(self) -> Backoff:
        return Backoff(self.restart_delay_ns, self.restart_delay_ns_max, self.restart_healthy_ns)


class Seat:
    """One worker's place. `loaded`: this worker has been ready before, for an earlier router if not for this one.

    `limit_ns`: when patience ends: while LOADING for its report, while RETIRING for its end; None once it was killed.
    """

    __slots__ = (
        "backoff",
        "cpus",
        "due_ns",
        "last_end",
        "limit_ns",
        "loaded",
        "model",
        "number",
        "ready_ns",
        "restarts",
        "signals",
        "since_ns",
        "state",
        "worker",
    )

    def __init__(self, model: int, number: int, backoff: Backoff, cpus: tuple[int, ...]) -> None:
        self.model = model
        self.number = number
        self.backoff = backoff
        self.cpus = cpus
        self.state = SeatState.EMPTY
        self.worker: int | None = None
        self.loaded = False
        self.since_ns = 0
        self.ready_ns: int | None = None
        self.limit_ns: int | None = None
        self.due_ns = 0
        self.restarts = -1
        self.last_end = ""
        self.signals: list[int] = []

    @property
    def alive(self) -> bool:
        return self.worker is not None


class RouterLife:
    """The router, over all its lives."""

    __slots__ = ("alive", "backoff", "beat_ns", "doomed", "due_ns", "epoch", "last_end", "limit_ns", "listening_ns",
                 "restarts", "signals", "since_ns")  # fmt: skip

    def __init__(self, epoch: int, backoff: Backoff) -> None:
        self.epoch = epoch
        self.backoff = backoff
        self.alive = False
        self.listening_ns: int | None = None
        self.beat_ns = 0
        self.doomed = False
        self.since_ns = 0
        self.due_ns = 0
        self.limit_ns: int | None = None
        self.restarts = -1
        self.last_end = ""
        self.signals: list[int] = []


class ModelState:
    __slots__ = ("deaths_unready", "ever_ready", "load_error")

    def __init__(self) -> None:
        self.ever_ready = False
        self.deaths_unready = 0
        self.load_error = ""
