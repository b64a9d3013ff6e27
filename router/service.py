"""The router's process: polls, decodes, asks the machine, performs what it says. One loop, no thread.

A turn begins with whatever is readable at the gate (frames of clients, ends of runs), with the supervisor's leash, or
with the timer. It goes machine.handle → `_perform`, and ends with the timer armed to the next due time.
"""

from __future__ import annotations

import asyncio
import gc
import grp
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec
import setproctitle
import uvloop

from router import events as ev
from router.answering import Answering, Owner
from router.answers import AnswerRefused
from router.arena import Arena
from router.config import RouterConfig
from router.crew import Crew
from router.door import Client, Door
from router.gate import Gate
from router.killers import Killers
from router.lanes.direct import DirectLane
from router.lanes.watch import raise_descriptors
from router.lanes.zeromq import ZeroMqLane
from router.leash import FromSupervisor, Leash
from router.log import LogLines
from router.machine import RouterMachine
from router.permits import Permits
from router.post import Post
from router.status import status_facts
from router.timer import Timer
from shm import paths, seqpacket
from shm.client import Model, Reply
from shm.control import (
    Drained,
    DrainStarted,
    InspectAsked,
    RouterConfigured,
    RouterListening,
    StatusAsked,
    Told,
    WorkerBecameReady,
    WorkerRetired,
    WorkerSpawned,
    to_router_codec,
)
from shm.errors import PeerGone
from shm.worker import Inspected, Ready

log = logging.getLogger("shmfarm.router")

CONFIGURED_WITHIN_S = 10.0
UNUSABLE = 2
"""Exit code for a configuration that this router cannot serve; starting it again will not help."""
TURN_FRAMES = 256
"""Frames taken in one turn; with lists of requests in them a turn stays near its millisecond."""


class RouterService:
    """Everything the router touches. Built inside a running loop; `close` gives all of it back."""

    def __init__(self, leash: socket.socket, told: RouterConfigured, loop: asyncio.AbstractEventLoop) -> None:
        config = msgspec.json.decode(told.config, type=RouterConfig)
        self._config = config
        self._epoch = told.epoch
        self._loop = loop
        self.stopped = asyncio.Event()
        self.exit_code = 0
        self._machine = RouterMachine(config)
        self._counters = self._machine.counters
        self._answering = Answering(config.models, self._owner_of, self._counters, time.monotonic_ns)
        self._killers = Killers(
            config,
            paths.quarantine_path(told.runtime_dir),
            self._machine.models,
            self._client_and_arena,
            self._counters,
            loop.call_soon,
        )
        self._timer = Timer()
        self._arenas: dict[int, tuple[Client, Arena]] = {}
        self._turns = 0
        self._inspecting: dict[int, int] = {}
        self._allowed_gid = grp.getgrnam(config.service_group).gr_gid if config.service_group else None
        self._permits = Permits(config.models, frozenset((0, os.geteuid())), self._allowed_gid)
        # Connecting to a Unix socket takes the right to write to it.
        mode = 0o660 if self._allowed_gid is not None else 0o600
        gate = Gate(loop, self._turn, self._is_full)
        lane_path = paths.lane_path(told.runtime_dir, told.epoch)
        self._zeromq = ZeroMqLane(
            lane_path,
            mode,
            told.epoch,
            loop,
            gate,
            self._counters,
            lambda uid, gid: self._permits.speaks(uid, self._door.clients.values()),
            config.lane_mib << 20,
            self._cut,
            self._answering.bytes_kept,
        )
        self._zeromq.on_readable = self._on_zeromq_readable
        self._direct = DirectLane(loop)
        self._post = Post(told.epoch, config.faults_max, self._counters, self._client_of, self._cut)
        self._gate = gate
        self._events: list[ev.Event] = []
        self._gathered = 0
        self._in_turn = False
        self._fds: list[int] = []
        self._instead: dict[int, list[Reply]] = {}
        self._crew = Crew(
            loop=loop,
            gate=gate,
            arena_of=self._arena_of,
            arenas_max=config.worker_arenas_max,
            private=config.isolation == "group",
            on_event=self._on_worker_event,
            on_ready=self._on_worker_ready,
            on_inspected=self._on_inspected,
        )
        self._door = Door(
            path=paths.attach_path(told.runtime_dir),
            mode=mode,
            lanes={self._direct.name: "", self._zeromq.name: self._zeromq.path},
            epoch=told.epoch,
            config=config,
            counters=self._counters,
            loop=loop,
            gate=gate,
            allowed=self._permits.may_attach,
            catalog=lambda: [self._model_frame(index) for index in range(len(config.models))],
            on_attached=self._on_attached,
            on_lost=self._on_client_lost,
            on_frame=self._on_frame,
            direct=self._direct,
        )
        self._perform = self._performers()
        if self._allowed_gid is not None:
            for path in (self._zeromq.path, self._door.path):
                os.chown(path, -1, self._allowed_gid)
        loop.add_reader(self._timer.fd, self._on_timer)
        self._leash = Leash(leash, loop, lambda: self._turns, self._on_supervisor, self.stopped.set)
        self._leash.tell(RouterListening(told.epoch))

    def _client_of(self, session: int) -> Client | None:
        return self._door.clients.get(session)

    def _arena_of(self, session: int) -> Arena | None:
        known = self._arenas.get(session)
        return known[1] if known else None

    def _client_and_arena(self, session: int) -> tuple[Client, Arena] | None:
        return self._arenas.get(session)

    def _owner_of(self, session: int) -> Owner | None:
        known = self._arenas.get(session)
        return Owner(known[0].uid, known[1]) if known else None

    # One turn

    def _happened(self, event: ev.Event) -> None:
        """Of what is not gathered by the gate: a turn of its own."""
        self._events.append(event)
        self._turn()

    def _turn(self) -> None:
        """Hand what was gathered to the machine and do what it says, until that brings up nothing new."""
        if self._in_turn:
            return
        machine, perform = self._machine, self._perform
        self._in_turn = True
        try:
            while self._events:
                events, self._events = self._events, []
                self._gathered = 0
                self._turns += 1
                for action in machine.handle(events, time.monotonic_ns()):
                    perform[type(action)](action)
                if self._instead:
                    self._send_instead()
                if self._answering.ruling.spent:
                    self._answering.ruling.start_turn()
        finally:
            self._in_turn = False
        self._timer.arm(machine.next_due_ns())
        if self._zeromq.has_more:
            self._zeromq.look_again()

    def _is_full(self) -> bool:
        return self._gathered >= self._config.turn_requests

    def _performers(self) -> dict[type[Any], Callable[[Any], None]]:
        """What is done for each action. The machine puts runs before replies: no worker waits for an encoder."""
        crew, door, post = self._crew, self._door, self._post
        return {
            ev.Dispatch: crew.dispatch,
            ev.SendReplies: lambda action: post.send_replies(action.session, action.replies),
            ev.AnswerInstead: self._answer_instead,
            ev.KeepAnswer: self._answering.keep,
            ev.CompareRules: self._answering.compare,
            ev.Quarantine: self._killers.keep,
            ev.SendRelease: post.release,
            ev.SendRejected: lambda action: post.reject(action.session, action.reason, action.message),
            ev.SendOverflow: self._send_overflow,
            ev.TerminateRun: lambda action: crew.terminate(action.worker, action.run),
            ev.KillWorker: self._kill_worker,
            ev.StopWorker: lambda action: crew.stop(action.worker),
            ev.CloseArena: lambda action: self._close_arena(action.session),
            ev.PublishModel: lambda action: door.publish(self._model_frame(action.model)),
            ev.TellDrained: lambda action: self._leash.tell(Drained(action.refused)),
        }

    def _answer_instead(self, action: ev.AnswerInstead) -> None:
        reply = self._answering.answer(action)
        self._machine.instead_ended(reply.ending, reply.reason)
        self._instead.setdefault(action.session, []).append(reply)

    def _send_instead(self) -> None:
        instead, self._instead = self._instead, {}
        for session, replies in instead.items():
            self._post.send_replies(session, replies)

    def _send_overflow(self, action: ev.SendOverflow) -> None:
        assert self._fds, "an overflow came without its memory file"
        self._door.send_overflow(action.session, action.id, action.payload_bytes, self._fds[action.position])

    def _kill_worker(self, action: ev.KillWorker) -> None:
        log.warning("worker_killed worker=%d why=%r", action.worker, action.why)
        self._crew.kill(action.worker)

    def _on_timer(self) -> None:
        self._timer.fired()
        self._happened(ev.TimePassed())

    # Clients

    def _on_attached(self, client: Client, token: bytes) -> None:
        assert client.arena is not None
        self._arenas[client.number] = (client, client.arena)
        if client.lane == self._direct.name:
            self._direct.admit(client.number, client.sock)
            self._post.lanes[client.number] = self._direct
        else:
            self._zeromq.admit(client.number, token)
            self._post.lanes[client.number] = self._zeromq
        denied = self._permits.denied_to(client.uid, client.gids)
        self._happened(ev.ClientAttached(client.number, client.arena.slot_count, client.arena.slot_bytes, denied))

    def _on_client_lost(self, client: Client) -> None:
        self._post.lanes.pop(client.number).end(client.number)
        self._happened(ev.ClientLost(client.number))

    def _close_arena(self, session: int) -> None:
        client, _ = self._arenas.pop(session)
        self._crew.close_arena(session)
        self._door.close_arena(client)

    def _cut(self, session: int, why: str) -> None:
        """End a session whose client breaks the protocol or does not read."""
        client = self._client_of(session)
        if client is not None:
            self._counters.clients_cut += 1
            log.warning("client_cut session=%d pid=%d why=%r", session, client.pid, why)
            self._door.end(client)

    def _on_zeromq_readable(self) -> None:
        for session, frame in self._zeromq.receive(TURN_FRAMES):
            self._on_frame(session, frame)
            if self._is_full():
                return

    def _on_frame(self, session: int, frame: bytes) -> None:
        """Gather one frame of a client."""
        event = self._post.read(session, frame)
        if event is not None:
            if self._killers.known and type(event) is ev.RequestsArrived:
                event = self._killers.marked(event, self._turns)
            self._events.append(event)
            self._gathered += len(event.requests) if isinstance(event, ev.RequestsArrived) else len(event.ids)

    # Workers

    def _on_worker_event(self, event: ev.Event, fds: list[int]) -> None:
        """Gather the end of a run. Descriptors are ours for this call only, and a death comes by its own way."""
        self._events.append(event)
        if fds or type(event) is not ev.RunFinished:
            self._fds = fds
            self._turn()
            self._fds = []

    def _on_worker_ready(self, worker: int, ready: Ready) -> None:
        link = self._crew.links[worker]
        try:
            self._answering.bind(link.model, ready.signature)
        except AnswerRefused as refused:
            # Better no farm than one that has no answer when time runs out, which is when it would be noticed.
            log.error("fallback_refused %s: %s", self._config.source, refused)
            self.exit_code = UNUSABLE
            self.stopped.set()
            return
        self._happened(ev.WorkerReady(worker, ready.signature, ready.costs))
        self._leash.tell(WorkerBecameReady(worker))

    def _model_frame(self, index: int) -> Model:
        model = self._machine.models[index]
        return Model(
            index,
            model.config.name,
            model.config.version,
            model.ready,
            model.deadline_ns,
            model.max_batch,
            model.signature,
            ("latest",),
        )

    # Supervisor

    def _on_supervisor(self, message: FromSupervisor, fds: list[int]) -> None:
        match message:
            case WorkerSpawned(worker, pid, model, cpus):
                self._crew.add(worker, pid, model, cpus, fds)
                self._happened(ev.WorkerBorn(worker, model))
            case WorkerRetired(worker):
                self._happened(ev.WorkerRetired(worker))
            case DrainStarted(timeout_ms):
                self._happened(ev.DrainStarted(timeout_ms * 1_000_000))
            case StatusAsked(number):
                facts = status_facts(
                    self._epoch, self._turns, self._machine, self._door, self._crew, self._answering, self._killers
                )
                self._leash.tell(Told(number, facts))
            case InspectAsked(number, worker):
                self._inspecting[number] = worker
                if not self._crew.inspect(worker, number):
                    self._on_inspected(Inspected(number, "{}"))

    def _on_inspected(self, inspected: Inspected) -> None:
        if self._inspecting.pop(inspected.number, None) is not None:
            self._leash.tell(Told(inspected.number, inspected.facts))

    def close(self) -> None:
        self._leash.close()
        self._loop.remove_reader(self._timer.fd)
        self._zeromq.on_readable = lambda: None
        self._door.close()
        self._crew.close()
        self._zeromq.close()
        self._gate.close()
        self._timer.close()


async def _serve(leash: socket.socket, told: RouterConfigured) -> int:
    loop = asyncio.get_running_loop()
    service = RouterService(leash, told, loop)
    loop.add_signal_handler(signal.SIGTERM, service.stopped.set)
    # What lives now lives for good; the collector need not look at it again. Nothing on a request's way makes cycles
    # that last, so that young collections are rare and find little.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    await service.stopped.wait()
    service.close()
    return service.exit_code


def main(leash: socket.socket) -> int:
    """The router, from its first frame on the leash to its end. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogLines()])
    setproctitle.setproctitle("farm: router")
    raise_descriptors()
    leash.setblocking(False)
    try:
        got = seqpacket.receive_within(leash, CONFIGURED_WITHIN_S)
    except PeerGone:
        return 1
    if got is None:
        log.error("router_not_configured within_s=%d", CONFIGURED_WITHIN_S)
        return 1
    told = to_router_codec.decode(got[0])
    assert isinstance(told, RouterConfigured)
    try:
        return uvloop.run(_serve(leash, told))
    except AnswerRefused as refused:
        source = msgspec.json.decode(told.config, type=RouterConfig).source
        log.error("fallback_refused %s: %s", source, refused)
        return UNUSABLE
