"""What happens to the supervisor's machine (past tense), and what it orders (imperative)."""

from __future__ import annotations

from msgspec import Struct

# Events.


class RouterListened(Struct, frozen=True):
    """Clients can attach to the router of this epoch."""

    epoch: int


class BeatCame(Struct, frozen=True):
    pass


class WorkerReported(Struct, frozen=True):
    """The router says that this worker is loaded and warm."""

    worker: int


class LoadRefused(Struct, frozen=True):
    """The worker says that its model cannot be served, and why; it exits."""

    worker: int
    message: str


class RouterDied(Struct, frozen=True):
    """`how` says it for people: `exit status 1`, `signal SIGKILL`. `status`: -n for signal n, as subprocess has it."""

    status: int
    how: str


class WorkerDied(Struct, frozen=True):
    worker: int
    how: str


class DrainEnded(Struct, frozen=True):
    """Nothing is open in the router any more; so many requests were refused for it."""

    refused: int


class DrainAsked(Struct, frozen=True):
    """By an operator: take nothing new, stay up."""


class StopAsked(Struct, frozen=True):
    """By a signal or an operator. The first one drains; `now`, or a second one, does not wait."""

    now: bool
    why: str


class ScaleAsked(Struct, frozen=True):
    model: str
    workers: int


class TimePassed(Struct, frozen=True):
    """Look at every limit: due at `Machine.due_ns` at the latest, harmless at any time."""


Event = (
    RouterListened
    | BeatCame
    | WorkerReported
    | LoadRefused
    | RouterDied
    | WorkerDied
    | DrainEnded
    | DrainAsked
    | StopAsked
    | ScaleAsked
    | TimePassed
)


class ScaleRefused(ValueError):
    """A ScaleAsked or DrainAsked that cannot be followed now; nothing has changed."""


# Actions.


class PrepareRouter(Struct, frozen=True):
    """Make the leash of the next router: what is sent to it from now on waits there until it is spawned."""

    epoch: int


class SpawnRouter(Struct, frozen=True):
    epoch: int


class SpawnWorker(Struct, frozen=True):
    """Spawn it and introduce it to the router of this epoch, both sides with new sockets."""

    worker: int
    model: int
    cpus: tuple[int, ...]
    epoch: int


class IntroduceWorker(Struct, frozen=True):
    """Give a living worker and the router of this epoch new sockets to each other."""

    worker: int
    model: int
    cpus: tuple[int, ...]
    epoch: int


class RetireWorker(Struct, frozen=True):
    """Ask the router to give it nothing more and to stop it."""

    worker: int


class StartDrain(Struct, frozen=True):
    timeout_ms: int


class SignalRouter(Struct, frozen=True):
    signum: int


class SignalWorker(Struct, frozen=True):
    worker: int
    signum: int


class AnnounceReady(Struct, frozen=True):
    """A request would be answered now."""


class Record(Struct, frozen=True):
    """One line of the log: an event's name and its fields."""

    event: str
    fields: dict[str, str | int | float]


class End(Struct, frozen=True):
    """The farm is over. `message`: one line for people when it did not end well."""

    code: int
    message: str = ""


Action = (
    PrepareRouter
    | SpawnRouter
    | SpawnWorker
    | IntroduceWorker
    | RetireWorker
    | StartDrain
    | SignalRouter
    | SignalWorker
    | AnnounceReady
    | Record
    | End
)
