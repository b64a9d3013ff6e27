"""A real router process, with this test as its supervisor, its workers and its clients: every frame is in its hands."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

import farm
from router.config import ModelConfig, RouterConfig
from shm import paths, segment, seqpacket
from shm.client import (
    Attach,
    Attached,
    AttachRefused,
    Hello,
    Model,
    Overflow,
    Rejected,
    Release,
    Replies,
    Reply,
    Request,
    Submit,
    attach_codec,
    reply_codec,
    request_codec,
    welcome_codec,
)
from shm.control import (
    Beat,
    RouterConfigured,
    RouterListening,
    StatusAsked,
    Told,
    WorkerSpawned,
    from_router_codec,
    to_router_codec,
)
from shm.frames import Codec
from shm.layout import Signature, TensorSpec
from shm.limits import PROTOCOL_VERSION
from shm.worker import Done, Ready, Run, RunCost, done_codec, run_codec, watch_codec

LIMIT_S = 10.0
either_codec: Codec[Any] = Codec(Attached | AttachRefused | Model | Overflow | Replies | Release | Rejected)
EPOCH = 7
SIGNATURE = Signature((TensorSpec("x", 1, ("N", 4)),), (TensorSpec("y", 1, ("N", 2)),), True)


def wait_for(what: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """The first true value of `what`, looked at again and again, at most so long."""
    end = time.monotonic() + limit_s
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, f"waited {limit_s} s for {what}"
        time.sleep(0.002)


class FakeWorker:
    """The worker's end of its two sockets; its process is a `sleep`, so that it can be killed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.run_sock, self.router_run = seqpacket.pair()
        self.watch_sock, self.router_watch = seqpacket.pair()
        self.process = subprocess.Popen(["sleep", "600"])
        self.pidfd = os.pidfd_open(self.process.pid)
        self.arenas: dict[int, list[int]] = {}

    def ready(self, signature: Signature = SIGNATURE, run_ns: int = 20_000) -> None:
        self.send(Ready(self.number, "m", 1, signature, [RunCost(1, run_ns)], 1))

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        assert seqpacket.send(self.run_sock, done_codec.encode(message), fds)

    def receive(self, limit_s: float = LIMIT_S) -> Any:
        got = seqpacket.receive_within(self.run_sock, limit_s, 250)
        if got is None:
            return None
        message = run_codec.decode(got[0])
        fds = list(got[1])
        for opened in message.opened if isinstance(message, Run) else []:
            self.arenas[opened.session] = [fds.pop(0), fds.pop(0)]
        assert not fds
        return message

    def next_run(self) -> Run:
        message = self.receive()
        assert isinstance(message, Run), message
        return message

    def done(self, run: Run, **fields: Any) -> None:
        """`fds`: memory files of members."""
        now = time.monotonic_ns()
        fds = tuple(fields.pop("fds", ()))
        self.send(Done(run.run, fields.pop("status", 0), now - 1000, now, **fields), fds)

    def terminated(self, limit_s: float = LIMIT_S) -> int | None:
        got = seqpacket.receive_within(self.watch_sock, limit_s)
        return None if got is None else watch_codec.decode(got[0]).run

    def kill(self) -> None:
        """As SIGKILL looks from outside: sockets end and the process is gone."""
        self.run_sock.close()
        self.watch_sock.close()
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for sock in (self.router_run, self.router_watch):
            sock.close()
        os.close(self.pidfd)
        for fds in self.arenas.values():
            seqpacket.close_all(fds)


class RawClient:
    """One session, frame by frame."""

    def __init__(
        self,
        runtime_dir: str,
        slot_count: int = 8,
        slot_bytes: int = 4096,
        protocol: int = PROTOCOL_VERSION,
        lane: str = "zeromq",
    ) -> None:
        self.sock = seqpacket.connect(paths.attach_path(runtime_dir))
        attach = Attach(protocol, slot_count, slot_bytes, lane, "test")
        assert seqpacket.send(self.sock, attach_codec.encode(attach))
        got = seqpacket.receive_within(self.sock, LIMIT_S, 2)
        assert got is not None
        self.models: dict[int, Model] = {}
        self.refused: AttachRefused | None = None
        self.dealer: zmq.Socket[bytes] | None = None
        self.overflows: dict[int, tuple[Overflow, int]] = {}
        self.replies: dict[int, Reply] = {}
        self.released: list[int] = []
        self.rejected: list[Rejected] = []
        welcome = welcome_codec.decode(got[0])
        if isinstance(welcome, AttachRefused):
            self.refused = welcome
            return
        assert isinstance(welcome, Attached)
        self.attached = welcome
        self.in_fd, self.out_fd = got[1]
        size = slot_count * slot_bytes
        segment.check(self.in_fd, size)
        segment.check(self.out_fd, size)
        self.inputs = segment.map_memory(self.in_fd, size, writable=True)
        self.outputs: mmap.mmap = segment.map_memory(self.out_fd, size, writable=False)
        for _ in range(welcome.model_count):
            self.take_welcome()
        assert welcome.lane == lane
        if lane == "direct":
            return
        self.context = zmq.Context()
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.linger = 0
        self.dealer.connect(f"ipc://{welcome.lane_path}")
        self.send(Hello(welcome.token, welcome.epoch))

    def take_welcome(self, limit_s: float = LIMIT_S) -> bool:
        """Take one frame from the attach socket, whatever it is; False when none came."""
        got = seqpacket.receive_within(self.sock, limit_s, 1)
        if got is None:
            return False
        message = either_codec.decode(got[0])
        if isinstance(message, Model):
            self.models[message.index] = message
        elif isinstance(message, Overflow):
            self.overflows[message.id] = (message, got[1][0])
        else:
            self.take(message)
        return True

    def wait_ready(self) -> None:
        while not all(model.ready for model in self.models.values()):
            assert self.take_welcome()

    def send(self, message: Any) -> None:
        self.send_frame(request_codec.encode(message))

    def send_frame(self, frame: bytes) -> None:
        if self.dealer is None:
            assert seqpacket.send(self.sock, frame)
        else:
            self.dealer.send(frame)

    def submit(self, *requests: Request, epoch: int = EPOCH) -> None:
        self.send(Submit(epoch, list(requests)))

    def request(self, number: int, slot: int = 0, deadline_ms: float = 5000, rows: int = 1, **fields: Any) -> Request:
        deadline_ns = time.monotonic_ns() + int(deadline_ms * 1e6)
        return Request(number, fields.pop("model", 0), deadline_ns, slot, fields.pop("slot_count", 1), rows, **fields)

    def pump(self, limit_s: float) -> bool:
        """Take one frame, within a limit."""
        if self.dealer is None:
            return self.take_welcome(limit_s)
        if not self.dealer.poll(limit_s * 1000):
            return False
        self.take(reply_codec.decode(self.dealer.recv()))
        return True

    def take(self, message: Any) -> None:
        if isinstance(message, Replies):
            for reply in message.replies:
                assert reply.id not in self.replies, "a request was answered twice"
                self.replies[reply.id] = reply
        elif isinstance(message, Release):
            self.released += message.ids
        else:
            assert isinstance(message, Rejected)
            self.rejected.append(message)

    def reply(self, number: int, limit_s: float = LIMIT_S) -> Reply:
        end = time.monotonic() + limit_s
        while number not in self.replies:
            assert self.pump(max(0.0, end - time.monotonic())), f"no reply to {number} within {limit_s} s"
        return self.replies[number]

    def close(self) -> None:
        self.sock.close()
        if self.refused is not None:
            return
        if self.dealer is not None:
            self.dealer.close()
            self.context.term()
        seqpacket.close_all([fd for _, fd in self.overflows.values()])
        self.inputs.close()
        self.outputs.close()
        seqpacket.close_all([self.in_fd, self.out_fd])


class RouterHarness:
    """Starts the router; `close` ends everything that was made through it."""

    def __init__(self, runtime_dir: Path, *models: ModelConfig, lane: str = "zeromq", **options: Any) -> None:
        self.lane = lane
        self.runtime_dir = str(runtime_dir)
        (runtime_dir / paths.SERVICE_DIR).mkdir(mode=0o700, exist_ok=True)
        config = RouterConfig(models=list(models) or [ModelConfig(name="m")], **options)
        self.leash, theirs = seqpacket.pair()
        launch = str(Path(farm.__file__).parent / "launch.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", launch, "router", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.workers: list[FakeWorker] = []
        self.clients: list[RawClient] = []
        self.told: list[Any] = []
        self._number = 0
        self.tell(RouterConfigured(EPOCH, self.runtime_dir, msgspec.json.encode(config).decode()))
        self.wait_told(RouterListening)

    def tell(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        assert seqpacket.send(self.leash, to_router_codec.encode(message), fds)

    def wait_told(self, kind: type[Any]) -> Any:
        end = time.monotonic() + LIMIT_S
        while True:
            got = seqpacket.receive_within(self.leash, max(0.0, end - time.monotonic()))
            assert got is not None, f"the router did not say {kind.__name__}"
            message = from_router_codec.decode(got[0])
            if isinstance(message, kind):
                return message
            if not isinstance(message, Beat):
                self.told.append(message)

    def worker(self, model: int = 0, ready: bool = True, signature: Signature = SIGNATURE) -> FakeWorker:
        self._number += 1
        worker = FakeWorker(self._number)
        self.workers.append(worker)
        fds = (worker.router_run.fileno(), worker.router_watch.fileno(), worker.pidfd)
        self.tell(WorkerSpawned(worker.number, worker.process.pid, model), fds)
        worker.router_run.close()
        worker.router_watch.close()
        if ready:
            worker.ready(signature)
        return worker

    def client(self, **options: Any) -> RawClient:
        client = RawClient(self.runtime_dir, **{"lane": self.lane} | options)
        self.clients.append(client)
        if client.refused is None and any(w.process.poll() is None for w in self.workers):
            client.wait_ready()
        return client

    def status(self) -> dict[str, Any]:
        self._number += 1
        self.tell(StatusAsked(self._number))
        while True:
            told = self.wait_told(Told)
            if told.number == self._number:
                return msgspec.json.decode(told.facts)

    def counter(self, name: str) -> int:
        return int(self.status()["counters"][name])

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for worker in self.workers:
            worker.close()
        self.process.send_signal(signal.SIGTERM)
        self.leash.setblocking(True)
        try:
            assert self.process.wait(LIMIT_S) == 0
        finally:
            self.process.kill()
            self.process.wait()
            self.leash.close()
