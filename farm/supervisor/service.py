"""The supervisor's loop: polls, decodes, asks the machine, performs what it says. One thread, no busy wait.

`farm.supervisor.entry` makes it, in the process of `farm serve` or in one that `farm.Farm` has started.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from farm.config import Config
from farm.cpus import CpuPool
from farm.supervisor import events as ev
from farm.supervisor import host, status
from farm.supervisor.children import Children
from farm.supervisor.door import Connection, Door, Wanted
from farm.supervisor.log import Log
from farm.supervisor.loop import Loop, Signals
from farm.supervisor.machine import Machine
from farm.supervisor.seats import ModelPlan, Plan
from farm.supervisor.spawning import ROUTER
from shm import paths, seqpacket
from shm.control import (
    DrainStarted,
    DrainWanted,
    InspectAsked,
    InspectWanted,
    ScaleWanted,
    StatusAsked,
    StatusWanted,
    StopWanted,
    WorkerRetired,
)
from shm.errors import FrameRefused, PeerGone

ROUTER_TELLS_NS: Final = 1_000_000_000
"""How long the router may take to tell of itself before the answer goes out without it."""

ENDING_S: Final = 4.0
"""What an end may take beyond the configured limits: SIGTERM and SIGKILL for workers, then for the router."""


class Question(NamedTuple):
    """Asked of the router for an operator, whose connection waits until `due_ns` at the latest."""

    connection: Connection
    due_ns: int
    of_status: bool


class Service:
    """One farm's life, with its runtime directory held by the caller. `run` returns with every child gone.

    Attributes:
        message: why the farm gave up, one line; empty when it did not.
        announced: called once, when a request would be answered.
    """

    def __init__(self, config: Config, runtime_dir: str, log: Log, starter: socket.socket | None = None) -> None:
        self.config = config
        self.runtime_dir = runtime_dir
        self.log = log
        self.message = ""
        self.announced: Callable[[], None] = lambda: None
        self._starter = starter
        self._started_ns = time.monotonic_ns()
        self._loop = Loop()
        self._events: deque[ev.Event] = deque()
        self._questions: dict[int, Question] = {}
        self._questions_asked = 0
        self._end: ev.End | None = None
        self._names = list(config.models)
        self._children = Children(config, runtime_dir, self._loop, self._events.append, self._told, log.event)
        cpus = CpuPool(
            host.allowed_cpus(),
            host.quota_cpus(),
            [model.intra_op_threads for model in config.models.values() for _ in range(model.workers)],
            pin=config.farm.pin,
        )
        self._cpus_line = cpus.line()
        # Milliseconds of a clock that this host's processes share and no restart sets back: a later farm's epochs lie
        # above an earlier one's, since no router lives for less than a millisecond. After a reboot they may not, but
        # then no client is left that knew the old ones.
        self.machine = Machine(plan_of(config), cpus, epoch=time.monotonic_ns() // 1_000_000)
        self._door: Door | None = None

    def run(self) -> int:
        """The farm from its first spawn to its end; gives the exit code."""
        signals = Signals(self._loop, self._children.reap, lambda name: self._events.append(ev.StopAsked(False, name)))
        try:
            path = paths.control_path(self.runtime_dir)
            self._door = Door(path, self._loop.watch, self._loop.unwatch, self._wanted, time.monotonic_ns)
            self._watch_starter()
            if self._cpus_line:
                self.log.event("cpus", {"note": self._cpus_line})
            self._perform(self.machine.start(time.monotonic_ns()))
            while self._end is None:
                self._turn()
            host.notify_systemd("STOPPING=1")
            self.message = self._end.message
            return self._end.code
        finally:
            if self._door is not None:
                self._door.close()
            self._children.kill_all()
            signals.close()

    def _turn(self) -> None:
        self._loop.turn(self._patience_ns())
        self._events.append(ev.TimePassed())
        while self._events:
            event = self._events.popleft()
            self._perform(self.machine.handle(event, time.monotonic_ns()))
            if isinstance(event, ev.RouterDied):
                for number in list(self._questions):
                    self._told(number, None)
        if self._door is not None:
            self._door.look_at_time()
        now_ns = time.monotonic_ns()
        for number in [number for number, question in self._questions.items() if now_ns >= question.due_ns]:
            self._told(number, None)
        self._children.flush()

    def _patience_ns(self) -> int | None:
        """Until the next thing is due; None: until something happens."""
        if self._events:
            return 0
        times = [self.machine.due_ns(), self._door.due_ns() if self._door else None]
        times += [question.due_ns for question in self._questions.values()]
        due_ns = min((time_ns for time_ns in times if time_ns is not None), default=None)
        return None if due_ns is None else due_ns - time.monotonic_ns()

    def _watch_starter(self) -> None:
        """Stop when the process that started us ends. Its leash alone would not say: a forked child keeps it open."""
        if self._starter is None:
            return
        starter = self._starter
        pidfd = seqpacket.peer_pidfd(starter)

        def gone() -> None:
            self._loop.unwatch(starter.fileno())
            if pidfd is not None:
                self._loop.unwatch(pidfd)
            self._events.append(ev.StopAsked(False, "its starter is gone"))

        def read() -> None:
            try:
                seqpacket.receive(starter)
            except (PeerGone, FrameRefused):
                gone()

        self._loop.watch(starter.fileno(), read)
        if pidfd is not None:
            self._loop.watch(pidfd, gone)

    def _perform(self, actions: list[ev.Action]) -> None:
        for action in actions:
            match action:
                case ev.PrepareRouter(epoch):
                    self._children.prepare_router(epoch)
                case ev.SpawnRouter():
                    self._children.spawn_router()
                case ev.SpawnWorker():
                    self._children.spawn_worker(action)
                case ev.IntroduceWorker():
                    self._children.introduce(action)
                case ev.RetireWorker(worker):
                    self._children.tell_router(WorkerRetired(worker))
                case ev.StartDrain(timeout_ms):
                    self._children.tell_router(DrainStarted(timeout_ms))
                case ev.SignalRouter(signum):
                    self._children.signal(ROUTER, signum)
                case ev.SignalWorker(worker, signum):
                    self._children.signal(worker, signum)
                case ev.AnnounceReady():
                    self._announce()
                case ev.Record(event, fields):
                    self.log.event(event, fields)
                case ev.End():
                    self._end = action

    def _announce(self) -> None:
        if not self.log.quiet:
            self.log.line(f"farm ready: {self.config.serves}, attach at {self.runtime_dir}")
        host.notify_systemd(f"READY=1\nSTATUS=serving {self.config.serves}")
        self.announced()

    # What operators want.

    def _wanted(self, connection: Connection, wanted: Wanted) -> None:
        door = self._door
        assert door is not None
        limit_s = (self.config.farm.drain_timeout_ms + self.config.farm.stop_timeout_ms) / 1000 + ENDING_S
        try:
            match wanted:
                case StatusWanted():
                    self._ask_router(connection, StatusAsked(self._questions_asked))
                case InspectWanted(worker):
                    self._ask_router(connection, InspectAsked(self._questions_asked, worker))
                case StopWanted(now):
                    self._events.append(ev.StopAsked(now, "farm stop"))
                    door.answer(connection, {"pid": os.getpid(), "limit_s": limit_s})
                case DrainWanted():
                    self._perform(self.machine.handle(ev.DrainAsked(), time.monotonic_ns()))
                    door.answer(connection, {"limit_s": limit_s})
                case ScaleWanted(model, workers):
                    before = self.machine.wanted(self._names.index(model)) if model in self._names else 0
                    self._perform(self.machine.handle(ev.ScaleAsked(model, workers), time.monotonic_ns()))
                    door.answer(connection, {"model": model, "workers": workers, "before": before})
        except ev.ScaleRefused as refused:
            door.answer(connection, error=str(refused))

    def _ask_router(self, connection: Connection, asked: StatusAsked | InspectAsked) -> None:
        self._questions_asked += 1
        due_ns = time.monotonic_ns() + ROUTER_TELLS_NS
        self._questions[asked.number] = Question(connection, due_ns, isinstance(asked, StatusAsked))
        if self.machine.router.listening_ns is None:
            self._told(asked.number, None)
        else:
            self._children.tell_router(asked)

    def _told(self, number: int, facts_json: str | None) -> None:
        """The router's account came, or (None) did not come in time."""
        question = self._questions.pop(number, None)
        if question is None or self._door is None:
            return
        facts: Any = None
        if facts_json is not None:
            try:
                facts = msgspec.json.decode(facts_json)
            except msgspec.MsgspecError:
                self.log.event("frame_refused", {"title": "router", "why": "its facts are not JSON"})
        if question.of_status:
            self._door.answer(question.connection, self._status(facts))
        elif facts is None:
            self._door.answer(question.connection, error="the router did not answer in time; look at `farm status`")
        else:
            self._door.answer(question.connection, facts)

    def _status(self, router_facts: Any) -> dict[str, Any]:
        now_ns = time.monotonic_ns()
        facts = status.farm_facts(self.machine, self._children.living, now_ns)
        facts["processes"] = status.add_costs(facts["processes"], self._started_ns, now_ns)
        own = {
            "runtime_dir": self.runtime_dir,
            "source": self.config.source,
            "pid": os.getpid(),
            "age_s": round((now_ns - self._started_ns) / 1e9, 1),
        }
        return status.bounded({**own, **facts, "log_lines_dropped": self.log.dropped, "router": router_facts})


def plan_of(config: Config) -> Plan:
    """What the machine needs of the configuration."""
    section = config.farm
    return Plan(
        models=tuple(
            ModelPlan(name, model.version, model.path, model.workers, model.intra_op_threads, model.hang_ms)
            for name, model in config.models.items()
        ),
        start_timeout_ns=int(section.start_timeout_s * 1e9),
        beat_timeout_ns=int(section.beat_timeout_ms * 1e6),
        drain_timeout_ns=int(section.drain_timeout_ms * 1e6),
        stop_timeout_ns=int(section.stop_timeout_ms * 1e6),
        restart_delay_ns=int(section.restart_delay_ms * 1e6),
        restart_delay_ns_max=int(section.restart_delay_ms_max * 1e6),
        restart_healthy_ns=int(section.restart_healthy_s * 1e9),
    )
