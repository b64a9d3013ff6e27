"""The control lanes: operator to supervisor (control socket), and supervisor to each child (its leash).

A leash is a SEQPACKET pair made at spawn. Its end of file tells a child that the supervisor is gone. No numpy, no zmq:
the supervisor imports this module.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from shm.frames import Codec
from shm.limits import NAME_BYTES_MAX

Name = Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
Message = Annotated[str, Meta(max_length=4096)]
Json = Annotated[str, Meta(max_length=120_000)]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]

# supervisor to router


class RouterConfigured(Struct, array_like=True, tag=1, frozen=True, forbid_unknown_fields=True):
    """First frame on a router's leash: its configuration, as the JSON of `router.config.RouterConfig`."""

    epoch: Number
    runtime_dir: str
    config: Json


class WorkerSpawned(Struct, array_like=True, tag=2, frozen=True, forbid_unknown_fields=True):
    """A worker of model `model` (an index of the configuration's list) is to be had. Three descriptors come with it:
    the run socket, the watch socket and the worker's pidfd. `worker` is never used twice in a supervisor's life."""

    worker: Number
    pid: Number
    model: Number
    cpus: tuple[int, ...] = ()


class WorkerRetired(Struct, array_like=True, tag=3, frozen=True, forbid_unknown_fields=True):
    """Give this worker no more runs; when it is idle, send Stop."""

    worker: Number


class DrainStarted(Struct, array_like=True, tag=4, frozen=True, forbid_unknown_fields=True):
    """Take no new requests; answer Drained once none is open. `timeout_ms`: then refuse what is left."""

    timeout_ms: Number


class StatusAsked(Struct, array_like=True, tag=5, frozen=True, forbid_unknown_fields=True):
    number: Number


class InspectAsked(Struct, array_like=True, tag=6, frozen=True, forbid_unknown_fields=True):
    number: Number
    worker: Number


# router to supervisor


class RouterListening(Struct, array_like=True, tag=16, frozen=True, forbid_unknown_fields=True):
    """Clients can attach."""

    epoch: Number


class Beat(Struct, array_like=True, tag=17, frozen=True, forbid_unknown_fields=True):
    """From the router's own loop; a router whose beat stops is killed."""

    turns: Number


class WorkerBecameReady(Struct, array_like=True, tag=18, frozen=True, forbid_unknown_fields=True):
    worker: Number


class Drained(Struct, array_like=True, tag=19, frozen=True, forbid_unknown_fields=True):
    """Nothing is open any more. `refused`: how many were refused because the drain's time was up."""

    refused: Number = 0


class Told(Struct, array_like=True, tag=20, frozen=True, forbid_unknown_fields=True):
    """Answer to StatusAsked or InspectAsked of that number; `facts` is a JSON object."""

    number: Number
    facts: Json


# supervisor to worker and back


class WorkerConfigured(Struct, array_like=True, tag=32, frozen=True, forbid_unknown_fields=True):
    """First frame on a worker's leash: the JSON of `workers.config.WorkerConfig`."""

    worker: Number
    config: Json


class RouterBorn(Struct, array_like=True, tag=33, frozen=True, forbid_unknown_fields=True):
    """Serve this router: the run socket and the watch socket come with it. What came from an earlier one is void."""

    epoch: Number


class LoadFailed(Struct, array_like=True, tag=40, frozen=True, forbid_unknown_fields=True):
    """Worker to supervisor: this model cannot be served, and why, in ONNX Runtime's words. The worker exits."""

    message: Message


# operator to supervisor


class StatusWanted(Struct, array_like=True, tag=64, frozen=True, forbid_unknown_fields=True):
    pass


class ScaleWanted(Struct, array_like=True, tag=65, frozen=True, forbid_unknown_fields=True):
    model: Name
    workers: Annotated[int, Meta(ge=0, le=1024)]


class DrainWanted(Struct, array_like=True, tag=66, frozen=True, forbid_unknown_fields=True):
    pass


class StopWanted(Struct, array_like=True, tag=67, frozen=True, forbid_unknown_fields=True):
    now: bool = False


class InspectWanted(Struct, array_like=True, tag=68, frozen=True, forbid_unknown_fields=True):
    worker: Number


class Answer(Struct, array_like=True, tag=80, frozen=True, forbid_unknown_fields=True):
    """To each of the above: `facts` is a JSON object when it is well, else `error` says what to do."""

    facts: Json = "{}"
    error: Message | None = None


to_router_codec: Codec[RouterConfigured | WorkerSpawned | WorkerRetired | DrainStarted | StatusAsked | InspectAsked] = (
    Codec(RouterConfigured | WorkerSpawned | WorkerRetired | DrainStarted | StatusAsked | InspectAsked)
)
from_router_codec: Codec[RouterListening | Beat | WorkerBecameReady | Drained | Told] = Codec(
    RouterListening | Beat | WorkerBecameReady | Drained | Told
)
to_worker_codec: Codec[WorkerConfigured | RouterBorn] = Codec(WorkerConfigured | RouterBorn)
from_worker_codec: Codec[LoadFailed] = Codec(LoadFailed)
wanted_codec: Codec[StatusWanted | ScaleWanted | DrainWanted | StopWanted | InspectWanted] = Codec(
    StatusWanted | ScaleWanted | DrainWanted | StopWanted | InspectWanted
)
answer_codec: Codec[Answer] = Codec(Answer)
