"""What the router's machine is told (past tense) and what it wants done (imperative). Plain data, no behaviour."""

from __future__ import annotations

from msgspec import Struct

from router.config import Behaviour
from shm.client import Reply, Request
from shm.layout import Signature
from shm.worker import Copies, Member, MemberDone, RunCost


class ClientAttached(Struct, frozen=True, gc=False):
    session: int
    slot_count: int
    slot_bytes: int
    denied: frozenset[int] = frozenset()
    """Models that it may not ask for."""


class ClientLost(Struct, frozen=True, gc=False):
    """Its socket or its process has ended, or it was cut off."""

    session: int


class RequestsArrived(Struct, frozen=True):
    """`poison`: ids among them whose inputs are known to kill workers."""

    session: int
    requests: list[Request]
    poison: frozenset[int] = frozenset()


class RequestsCancelled(Struct, frozen=True):
    session: int
    ids: list[int]


class WorkerBorn(Struct, frozen=True, gc=False):
    """It exists and loads its model."""

    worker: int
    model: int


class WorkerReady(Struct, frozen=True):
    worker: int
    signature: Signature
    costs: list[RunCost]


class WorkerRetired(Struct, frozen=True, gc=False):
    """The operator wants it gone: it finishes what it has."""

    worker: int


class RunFinished(Struct, frozen=True):
    worker: int
    run: int
    status: int
    started_ns: int
    finished_ns: int
    members: list[MemberDone]
    copies: Copies


class WorkerLost(Struct, frozen=True, gc=False):
    """Its socket has ended. It may still write to slots until it is gone."""

    worker: int


class WorkerGone(Struct, frozen=True, gc=False):
    """Its process has ended: the kernel says so. Only now are its slots free."""

    worker: int


class TimePassed(Struct, frozen=True, gc=False):
    """Nothing happened but the clock."""


class DrainStarted(Struct, frozen=True, gc=False):
    timeout_ns: int


Event = (
    ClientAttached
    | ClientLost
    | RequestsArrived
    | RequestsCancelled
    | WorkerBorn
    | WorkerReady
    | WorkerRetired
    | RunFinished
    | WorkerLost
    | WorkerGone
    | TimePassed
    | DrainStarted
)


class SendReplies(Struct, frozen=True):
    """All replies of this turn to one client."""

    session: int
    replies: list[Reply]


class SendOverflow(Struct, frozen=True, gc=False):
    """A memory file that came with the finished run belongs to this request: the one at `position` among them."""

    session: int
    id: int
    position: int
    payload_bytes: int


class AnswerInstead(Struct, frozen=True):
    """Try each of `steps` in order and complete `reply` with the outputs of the first that has some.

    Where none can answer, `reply` goes out as the refusal that it is until then. Its reason stays what it is.
    """

    session: int
    model: int
    request: Request
    reply: Reply
    steps: tuple[Behaviour, ...]


class KeepAnswer(Struct, frozen=True):
    """The model has answered a request with a key: keep a copy for `last_good`, before the reply goes out."""

    session: int
    model: int
    request: Request
    reply: Reply


class CompareRules(Struct, frozen=True):
    """One of a sample: would the rules have said the same as this reply of the model? Before the reply goes out."""

    session: int
    model: int
    request: Request
    reply: Reply


class Quarantine(Struct, frozen=True):
    """Two workers died while they ran this request: keep its input and refuse the same for a while. Before the reply
    goes out, which gives the slots back."""

    session: int
    model: int
    request: Request
    workers: tuple[int, ...]


class SendRelease(Struct, frozen=True):
    session: int
    ids: list[int]


class SendRejected(Struct, frozen=True, gc=False):
    session: int
    reason: int
    message: str


class Dispatch(Struct, frozen=True):
    worker: int
    run: int
    not_after_ns: int
    members: list[Member]


class TerminateRun(Struct, frozen=True, gc=False):
    worker: int
    run: int


class KillWorker(Struct, frozen=True, gc=False):
    worker: int
    why: str


class StopWorker(Struct, frozen=True, gc=False):
    worker: int


class CloseArena(Struct, frozen=True, gc=False):
    """No run works in this session's memory any more."""

    session: int


class PublishModel(Struct, frozen=True, gc=False):
    """This model's readiness or signature has changed: tell every client."""

    model: int


class TellDrained(Struct, frozen=True, gc=False):
    refused: int


Action = (
    SendReplies
    | SendOverflow
    | AnswerInstead
    | KeepAnswer
    | CompareRules
    | Quarantine
    | SendRelease
    | SendRejected
    | Dispatch
    | TerminateRun
    | KillWorker
    | StopWorker
    | CloseArena
    | PublishModel
    | TellDrained
)
