"""What the machine knows of each process: the router, and one seat for each worker that a model should have.

A seat outlives its workers: it has the history, each worker only its number, which is never used twice.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from farm.supervisor.backoff import Backoff


class Phase(Enum):
    """Of the whole farm; `farm.supervisor.machine` draws the edges."""

    SERVING = "serving"
    DRAINING = "draining"
    ENDING = "ending"
    ENDED = "ended"


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
    """The router, over all its lives.

    `doomed`: it was sent SIGKILL and is not judged any more. `limit_ns`: when the next of `signals` is due.
    """

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

    def spawned(self, now_ns: int) -> None:
        self.alive, self.doomed, self.since_ns, self.listening_ns = True, False, now_ns, None
        self.restarts += 1

    def patience_end_ns(self, plan: Plan) -> int:
        """When a router that says nothing is taken for hung: generous until it listens, then by its beat."""
        if self.listening_ns is None:
            return self.since_ns + plan.start_timeout_ns
        return self.beat_ns + plan.beat_timeout_ns


class ModelState:
    """Whether a model ever got as far as to serve, and what stood in its way."""

    __slots__ = ("deaths_unready", "ever_ready")

    def __init__(self) -> None:
        self.ever_ready = False
        self.deaths_unready = 0
