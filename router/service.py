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
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import setproctitle
import uvloop

from router import events as ev
from router.config import RouterConfig
from router.crew import Crew
from router.door import Arena, Client, Door
from router.gate import Gate
from router.lanes import Lane
from router.lanes.direct import DirectLane
from router.lanes.zeromq import ZeroMqLane
from router.leash import FromSupervisor, Leash
from router.machine import RouterMachine
from router.rules import RuleRefused
from router.ruling import Ruling
from router.status import status_facts
from router.timer import Timer
from shm import paths, seqpacket
from shm.client import (
    Cancel,
    Hello,
    Model,
    Rejected,
    Release,
    Replies,
    Reply,
    Submit,
    reply_codec,
    request_codec,
)
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
from shm.endings import Reason
from shm.errors import FrameRefused, PeerGone
from shm.limits import FRAME_BYTES_MAX, MESSAGE_CHARS_MAX
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
        self._ruling = Ruling(config.models, self._arena_of)
        self._timer = Timer()
        self._arenas: dict[int, tuple[Client, Arena]] = {}
        self._turns = 0
        self._inspecting: dict[int, int] = {}
        self._allowed_gid = grp.getgrnam(config.service_group).gr_gid if config.service_group else None
        # Connecting to a Unix socket takes the right to write to it.
        mode = 0o660 if self._allowed_gid is not None else 0o600
        gate = Gate(loop, self._turn, self._is_full)
        lane_path = paths.lane_path(told.runtime_dir, told.epoch)
        self._zeromq = ZeroMqLane(lane_path, mode, told.epoch, loop, gate, self._counters, self._is_allowed)
        self._zeromq.on_readable = self._on_zeromq_readable
        self._direct = DirectLane(loop)
        self._lanes: dict[int, Lane] = {}
        self._gate = gate
        self._events: list[ev.Event] = []
        self._gathered = 0
        self._in_turn = False
        self._fds: list[int] = []
        self._by_rule: dict[int, list[Reply]] = {}
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
            allowed=self._is_allowed,
            catalog=lambda: [self._model_frame(index) for index in range(len(config.models))],
            on_attached=self._on_attached,
            on_lost=self._on_client_lost,
            on_frame=self._read,
            direct=self._direct,
        )
        self._encode = reply_codec.encode
        self._perform = self._performers()
        if self._allowed_gid is not None:
            for path in (self._zeromq.path, self._door.path):
                os.chown(path, -1, self._allowed_gid)
        loop.add_reader(self._timer.fd, self._on_timer)
        self._leash = Leash(leash, loop, lambda: self._turns, self._on_supervisor, self.stopped.set)
        self._leash.tell(RouterListening(told.epoch))

    def _is_allowed(self, uid: int, gid: int) -> bool:
        """The farm's own user, root, and the configured group (by primary group; the directory's mode has let in
        those who are members of it otherwise)."""
        return uid in (0, os.geteuid()) or self._allowed_gid is not None

    def _arena_of(self, session: int) -> Arena | None:
        known = self._arenas.get(session)
        return known[1] if known else None

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
                if self._by_rule:
                    self._send_by_rule()
        finally:
            self._in_turn = False
        self._timer.arm(machine.next_due_ns())
        if self._zeromq.has_peers:
            self._zeromq.look_again()

    def _is_full(self) -> bool:
        return self._gathered >= self._config.turn_requests

    def _performers(self) -> dict[type[Any], Callable[[Any], None]]:
        """What is done for each action. The machine puts runs before replies: no worker waits for an encoder."""
        crew, door = self._crew, self._door
        return {
            ev.Dispatch: crew.dispatch,
            ev.SendReplies: self._send_turn,
            ev.AnswerByRule: self._answer_by_rule,
            ev.SendRelease: lambda action: self._send(action.session, reply_codec.encode(Release(action.ids))),
            ev.SendRejected: lambda action: self._reject(action.session, action.reason, action.message),
            ev.SendOverflow: self._send_overflow,
            ev.TerminateRun: lambda action: crew.terminate(action.worker, action.run),
            ev.KillWorker: self._kill_worker,
            ev.StopWorker: lambda action: crew.stop(action.worker),
            ev.CloseArena: lambda action: self._close_arena(action.session),
            ev.PublishModel: lambda action: door.publish(self._model_frame(action.model)),
            ev.TellDrained: lambda action: self._leash.tell(Drained(action.refused)),
        }

    def _answer_by_rule(self, action: ev.AnswerByRule) -> None:
        reply = self._ruling.answer(action)
        self._machine.rule_ended(reply.ending)
        self._by_rule.setdefault(action.session, []).append(reply)

    def _send_by_rule(self) -> None:
        by_rule, self._by_rule = self._by_rule, {}
        for session, replies in by_rule.items():
            self._send_replies(session, replies)
        self._ruling.start_turn()

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
            self._lanes[client.number] = self._direct
        else:
            self._zeromq.admit(client.number, token)
            self._lanes[client.number] = self._zeromq
        self._happened(ev.ClientAttached(client.number, client.arena.slot_count, client.arena.slot_bytes))

    def _on_client_lost(self, client: Client) -> None:
        self._lanes.pop(client.number).end(client.number)
        self._happened(ev.ClientLost(client.number))

    def _close_arena(self, session: int) -> None:
        client, _ = self._arenas.pop(session)
        self._crew.close_arena(session)
        self._door.close_arena(client)

    def _cut(self, session: int, why: str) -> None:
        """End a session whose client breaks the protocol or does not read."""
        client = self._door.clients.get(session)
        if client is not None:
            self._counters.clients_cut += 1
            log.warning("client_cut session=%d pid=%d why=%r", session, client.pid, why)
            self._door.end(client)

    def _on_zeromq_readable(self) -> None:
        for session, frame in self._zeromq.receive(TURN_FRAMES):
            self._read(session, frame)

    def _read(self, session: int, frame: bytes) -> None:
        """Gather one frame of a client, as an event or as a fault of that client alone."""
        self._counters.frames_in += 1
        try:
            message = request_codec.decode(frame)
        except FrameRefused as refused:
            self._reject(session, Reason.FRAME, str(refused))
            return
        if type(message) is Submit:
            if message.epoch == self._epoch:
                self._events.append(ev.RequestsArrived(session, message.requests))
                self._gathered += len(message.requests)
            else:
                self._reject(session, Reason.STALE_EPOCH, f"this is epoch {self._epoch}, not {message.epoch}")
        elif type(message) is Cancel:
            self._events.append(ev.RequestsCancelled(session, message.ids))
        elif type(message) is Hello:
            self._reject(session, Reason.FRAME, "a session says Hello once, and only on the ZeroMQ lane")

    def _reject(self, session: int, reason: int, message: str) -> None:
        self._counters.frames_rejected += 1
        client = self._door.clients.get(session)
        if client is None:
            return
        client.faults += 1
        if client.faults > self._config.faults_max:
            self._cut(session, "too many frames that could not be taken")
            return
        self._send(session, reply_codec.encode(Rejected(reason, message[:MESSAGE_CHARS_MAX])))

    def _send_turn(self, action: ev.SendReplies) -> None:
        """The usual frame: all replies of a turn to a client, in one."""
        frame = self._encode(Replies(action.replies))
        lane = self._lanes.get(action.session)
        if len(frame) > FRAME_BYTES_MAX or lane is None or not lane.send(action.session, frame):
            self._send_replies(action.session, action.replies)
            return
        self._counters.replies_out += len(action.replies)
        self._counters.frames_out += 1

    def _send_replies(self, session: int, replies: list[Reply]) -> None:
        self._counters.replies_out += len(replies)
        frame = reply_codec.encode(Replies(replies))
        if len(frame) > FRAME_BYTES_MAX and len(replies) > 1:
            middle = len(replies) // 2
            self._counters.replies_out -= len(replies)
            self._send_replies(session, replies[:middle])
            self._send_replies(session, replies[middle:])
            return
        self._send(session, frame)

    def _send(self, session: int, frame: bytes) -> None:
        lane = self._lanes.get(session)
        if lane is None:
            return
        self._counters.frames_out += 1
        if not lane.send(session, frame):
            # No reply is dropped while a session lives; so this one does not.
            self._cut(session, "a reply could not be queued: it does not read")

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
            self._ruling.bind(link.model, ready.signature)
        except RuleRefused as refused:
            # Better no farm than one that has no answer when time runs out, which is when it would be noticed.
            log.error("rules_refused %s", refused)
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
                facts = status_facts(self._epoch, self._turns, self._machine, self._door, self._crew)
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
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    setproctitle.setproctitle("farm: router")
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
    except RuleRefused as refused:
        log.error("rules_refused %s", refused)
        return UNUSABLE
