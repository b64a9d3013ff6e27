"""One message of every kind on every lane, by `lane.Message`; `lane.Message+` has every field away from its default.

`golden/v1.txt`, and so on, hold their bytes, a file for each protocol version; older ones stay as they are. That of
this version is written, after a change that was meant, by `python -m tests.contract.messages`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from shm import client, control, worker
from shm.client import (
    Attach,
    Attached,
    AttachRefused,
    Cancel,
    Hello,
    Model,
    Overflow,
    Rejected,
    Release,
    Replies,
    Reply,
    Request,
    Stages,
    Submit,
)
from shm.control import (
    Answer,
    Beat,
    Drained,
    DrainStarted,
    DrainWanted,
    InspectAsked,
    InspectWanted,
    LoadFailed,
    RouterBorn,
    RouterConfigured,
    RouterListening,
    ScaleWanted,
    StatusAsked,
    StatusWanted,
    StopWanted,
    Told,
    WorkerBecameReady,
    WorkerConfigured,
    WorkerRetired,
    WorkerSpawned,
)
from shm.endings import Ending, Reason
from shm.frames import Codec
from shm.layout import Signature, Tensor, TensorSpec
from shm.limits import ID_MAX, PROTOCOL_VERSION
from shm.worker import (
    ArenaOpened,
    ArenasClosed,
    Copies,
    Done,
    Inspect,
    Inspected,
    Member,
    MemberDone,
    Ready,
    Run,
    RunCost,
    Stop,
    Terminate,
)

GOLDEN: Final = Path(__file__).with_name("golden")
VERSIONS: Final = sorted(int(path.stem[1:]) for path in GOLDEN.glob("v*.txt"))

CODECS: Final[dict[str, Codec[Any]]] = {
    "attach": client.attach_codec,
    "welcome": client.welcome_codec,
    "request": client.request_codec,
    "reply": client.reply_codec,
    "run": worker.run_codec,
    "watch": worker.watch_codec,
    "done": worker.done_codec,
    "to_router": control.to_router_codec,
    "from_router": control.from_router_codec,
    "to_worker": control.to_worker_codec,
    "from_worker": control.from_worker_codec,
    "wanted": control.wanted_codec,
    "answer": control.answer_codec,
}
CLIENT_LANES: Final = frozenset({"attach", "welcome", "request", "reply"})

TOKEN: Final = bytes(range(16))
SIGNATURE: Final = Signature(
    (TensorSpec("x", 1, ("N", 30)), TensorSpec("words", 8, ("?",), True)), (TensorSpec("score", 11, ("N",)),), True
)
TENSORS: Final = (Tensor(0, 1, (2, 30), 0, 240), Tensor(1, 8, (1,), 256, 21))
STAGES: Final = Stages(1_000_000_007, 11, 22, 33, 44)
SUBMIT: Final = Submit(7, [Request(258, 0, 1_000_000_000_000, 3, 1, 2)])
"""The worked example of docs/PROTOCOL.md."""

MESSAGES: Final[dict[str, Any]] = {
    "attach.Attach": Attach(1, 64, 16_384, "zeromq"),
    "attach.Attach+": Attach(1, 65_536, 2**30, "zeromq", "checkout"),
    "welcome.Attached": Attached(1, 5, 7, TOKEN, 64, 16_384, "zeromq", "/run/f/service/requests-7.sock", 2),
    "welcome.AttachRefused": AttachRefused(Reason.PROTOCOL, "another version"),
    "welcome.AttachRefused+": AttachRefused(Reason.BUDGET, "no memory", 1000),
    "welcome.Model": Model(0, "fraud", 1, False, 1_000_000_000, 1),
    "welcome.Model+": Model(1, "fraud", 2, True, 40_000_000, 32, SIGNATURE, ("latest",)),
    "welcome.Overflow": Overflow(258, 2**31),
    "request.Hello": Hello(TOKEN, 7),
    "request.Submit": SUBMIT,
    "request.Submit+": Submit(
        7,
        [
            Request(ID_MAX, 1, 1_000_000_000_000, 4, 2, 0, 7, TENSORS, "user-17", "trace-é"),
            Request(259, 1, 1_000_000_000_000, 6, 1, 0, 0, ()),
        ],
    ),
    "request.Cancel": Cancel([258, 259]),
    "reply.Replies": Replies([Reply(258, Ending.MODEL)]),
    "reply.Replies+": Replies(
        [
            Reply(258, 0, 0, False, 2, STAGES, 91, 4, 8),
            Reply(
                259, 1, 20, True, 1, STAGES, 0, 0, 0, (Tensor(0, 11, (1,), 0, 8),), bytes(8), False, "amount", "stop"
            ),
            Reply(260, 0, 0, False, 1, STAGES, 92, 0, 1, (Tensor(0, 1, (25_000,), 0, 100_000),), None, True),
            Reply(261, 16, 10, False, 1, STAGES, message="full", retry_after_ms=12, last=False),
        ]
    ),
    "reply.Release": Release([258]),
    "reply.Rejected": Rejected(Reason.FRAME, "a frame could not be read"),
    "run.Run": Run(91, 1_000_000_000_000, [Member(5, 3, 1, 2)]),
    "run.Run+": Run(92, 1, [Member(5, 4, 2, 0, TENSORS), Member(6, 0, 1, 1)], [ArenaOpened(6, 64, 16_384)], True),
    "run.ArenasClosed": ArenasClosed([5, 6]),
    "run.Stop": Stop(),
    "run.Inspect": Inspect(3),
    "watch.Terminate": Terminate(91),
    "done.Ready": Ready(2, "fraud", 1, SIGNATURE, [RunCost(1, 20_000), RunCost(32, 90_000)], 5_000_000),
    "done.Done": Done(91, worker.RAN, 1_000, 2_000),
    "done.Done+": Done(
        92,
        worker.TERMINATED,
        1_000,
        2_000,
        [
            MemberDone(),
            MemberDone(0, TENSORS, bytes(3)),
            MemberDone(0, TENSORS, None, 4096),
            MemberDone(Reason.MODEL_ERROR, message="Gather: index out of range"),
        ],
        Copies(1, 2, 3, 4, 5, 6),
    ),
    "done.Inspected": Inspected(3, "{}"),
    "to_router.RouterConfigured": RouterConfigured(7, "/run/f", '{"models":[]}'),
    "to_router.WorkerSpawned": WorkerSpawned(2, 4711, 0),
    "to_router.WorkerSpawned+": WorkerSpawned(2, 4711, 1, (0, 1)),
    "to_router.WorkerRetired": WorkerRetired(2),
    "to_router.DrainStarted": DrainStarted(10_000),
    "to_router.StatusAsked": StatusAsked(1),
    "to_router.InspectAsked": InspectAsked(1, 2),
    "from_router.RouterListening": RouterListening(7),
    "from_router.Beat": Beat(300),
    "from_router.WorkerBecameReady": WorkerBecameReady(2),
    "from_router.Drained": Drained(),
    "from_router.Drained+": Drained(3),
    "from_router.Told": Told(1, "{}"),
    "to_worker.WorkerConfigured": WorkerConfigured(2, "{}"),
    "to_worker.RouterBorn": RouterBorn(7),
    "from_worker.LoadFailed": LoadFailed("no such file"),
    "wanted.StatusWanted": StatusWanted(),
    "wanted.ScaleWanted": ScaleWanted("fraud", 3),
    "wanted.DrainWanted": DrainWanted(),
    "wanted.StopWanted": StopWanted(),
    "wanted.StopWanted+": StopWanted(True),
    "wanted.InspectWanted": InspectWanted(2),
    "answer.Answer": Answer(),
    "answer.Answer+": Answer('{"drained":true}', "ask again"),
}


def encoded(name: str) -> bytes:
    return CODECS[name.split(".")[0]].encode(MESSAGES[name])


def golden(version: int = VERSIONS[-1]) -> tuple[int, dict[str, bytes]]:
    """The protocol version that the golden bytes are of (the newest kept), and the bytes by name."""
    head, *lines = (GOLDEN / f"v{version}.txt").read_text().splitlines()
    return int(head.split()[-1]), {name: bytes.fromhex(frame) for name, frame in (line.split() for line in lines)}


if __name__ == "__main__":
    lines = [f"protocol {PROTOCOL_VERSION}", *(f"{name} {encoded(name).hex()}" for name in MESSAGES)]
    (GOLDEN / f"v{PROTOCOL_VERSION}.txt").write_text("\n".join(lines) + "\n")
