"""The supervisor's loop: polls, decodes, asks the machine, performs what it says. One thread, no busy wait.

`farm.supervisor.entry` makes it, in the process of `farm serve` or in one that `farm.Farm` has started.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from farm.config import Config, router_config, worker_config
from farm.cpus import CpuPool
from farm.runtime_dir import RuntimeDir
from farm.supervisor import children, host, status
from farm.supervisor.children import ROUTER, Child
from farm.supervisor.door import Connection, Door, Wanted
from farm.supervisor.events import (
    Action,
    AnnounceReady,
    BeatCame,
    DrainAsked,
    DrainEnded,
    End,
    Event,
    IntroduceWorker,
    LoadRefused,
    PrepareRouter,
    Record,
    RetireWorker,
    RouterDied,
    RouterListened,
    ScaleAsked,
    ScaleRefused,
    SignalRouter,
    SignalWorker,
    SpawnRouter,
    SpawnWorker,
    StartDrain,
    StopAsked,
    TimePassed,
    WorkerDied,
    WorkerReported,
)
from farm.supervisor.leash import Leash
from farm.supervisor.log import Log
from farm.supervisor.machine import Machine
from farm.supervisor.seats import ModelPlan, Plan
from shm import paths, seqpacket
from shm.control import (
    Beat,
    Drained,
    DrainStarted,
    DrainWanted,
    InspectAsked,
    InspectWanted,
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
    from_router_codec,
    from_worker_codec,
    to_router_codec,
    to_worker_codec,
)
from shm.errors import FrameRefused, PeerGone

ROUTER_TELLS_NS = 1_000_000_000
"""How long the router may take to tell of itself before the answer goes out without it."""

NOT_A_PROBLEM = frozenset({"worker_ready", "worker_ended", "router_ended", "scaled", "drain_started", "drained",
                           "stopping", "cpus"})  # fmt: skip
"""Left out when the farm runs inside somebody's program."""


class Service:
    """One farm's life. Made with the runtime directory held; `run` returns an exit code with every child gone."""

    def __init__(self, config: Config, runtime_dir: RuntimeDir, log: Log, starter: socket.socket | None = None) -> None:
        self.config = config
        self.runtime_dir = runtime_dir
        self.log = log
        self.message = ""
        """Why the farm gave up, for whoever started it."""
        self.announced: Callable[[], None] = lambda: None
        self._starter = starter
        self._started_ns = time.monotonic_ns()
        self._poller = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._writing: set[int] = set()
        self._children: dict[int, Child] = {}
        self._leashes: dict[int, Leash] = {}
        """ROUTER or a worker's number to its leash; the router's is there before the router is."""
        self._router_end: socket.socket | None = None
        self._events: deque[Event] = deque()
        self._asked: dict[int, tuple[Connection, int, bool]] = {}
        self._questions = 0
        self._ended: End | None = None
        self._router_json = msgspec.json.encode(router_config(config)).decode()
        self._names = list(config.models)
        cpus = CpuPool(
            host.allowed_cpus(),
            host.quota_cpus(),
            [model.intra_op_threads for model in config.models.values() for _ in range(model.workers)],
            pin=config.farm.pin,
        )
        self._cpus_line = cpus.line()
        # Milliseconds of a clock that all processes of this host share and that no restart sets back: a later farm's
        # epochs lie above an earlier one's as long as a router lives longer than a millisecond. After a reboot they
        # may not, but then no client is left that knew the old ones.
        self.machine = Machine(plan_of(config), cpus, epoch=time.monotonic_ns() // 1_000_000)
        self._door: Door | None = None

    # The loop.

    def run(self) -> int:
        wakeup = self._take_signals()
        try:
            self._door = Door(
                paths.control_path(self.runtime_dir.path), self._watch, self._unwatch, self._wanted, time.monotonic_ns
            )
            self._watch_starter()
            if self._cpus_line:
                self._record("cpus", {"note": self._cpus_line})
            self._perform(self.machine.start(time.monotonic_ns()))
            while self._ended is None:
                self._turn()
            host.notify_systemd("STOPPING=1")
            self.message = self._ended.message
            return self._ended.code
        finally:
            if self._door is not None:
                self._door.close()
            self._kill_children()
            signal.set_wakeup_fd(-1)
            for end in wakeup:
                end.close()

    def _turn(self) -> None:
        for fd, _ in self._poller.poll(self._patience_ms()):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()
        self._events.append(TimePassed())
        while self._events:
            self._perform(self.machine.handle(self._events.popleft(), time.monotonic_ns()))
        if self._door is not None:
            self._door.look_at_time()
        now_ns = time.monotonic_ns()
        for number, (_, due_ns, _) in list(self._asked.items()):
            if now_ns >= due_ns:
                self._told(number, None)
        self._arm_writers()

    def _patience_ms(self) -> float | None:
        """Until the next thing is due; None: until something happens."""
        times = [self.machine.due_ns(), self._door.due_ns() if self._door else None]
        times += [due_ns for _, due_ns, _ in self._asked.values()]
        due_ns = min((time_ns for time_ns in times if time_ns is not None), default=None)
        if due_ns is None:
            return None
        # poll counts in milliseconds and rounds down: one more, or the last millisecond would be spun away.
        return max(0.0, (due_ns - time.monotonic_ns()) / 1e6) + 1

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._poller.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poller.unregister(fd)
        self._writing.discard(fd)

    def _arm_writers(self) -> None:
        """Look for room to write only where something waits to be written."""
        for child in self._children.values():
            fd, leash = child.leash.sock.fileno(), child.leash
            if leash.wants_write:
                leash.flush()
            if leash.wants_write != (fd in self._writing) and fd in self._handlers:
                self._poller.modify(fd, select.POLLIN | (select.POLLOUT if leash.wants_write else 0))
                (self._writing.add if leash.wants_write else self._writing.discard)(fd)

    # Signals and the starter.

    def _take_signals(self) -> tuple[socket.socket, socket.socket]:
        """From here on a signal is a byte in a socket; the loop acts on it."""
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(signum, _only_wake)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, _only_wake)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

        def read() -> None:
            try:
                numbers = reading.recv(4096)
            except BlockingIOError:
                return
            if signal.SIGCHLD in numbers:
                self._reap()
            for number in numbers:
                if number != signal.SIGCHLD:
                    self._events.append(StopAsked(False, signal.Signals(number).name))

        self._watch(reading.fileno(), read)
        return reading, writing

    def _watch_starter(self) -> None:
        """Stop when the process that started us ends. Its leash alone would not say: a forked child keeps it open."""
        if self._starter is None:
            return
        starter = self._starter
        pidfd = seqpacket.peer_pidfd(starter)

        def gone() -> None:
            self._unwatch(starter.fileno())
            if pidfd is not None:
                self._unwatch(pidfd)
            self._events.append(StopAsked(False, "its starter is gone"))

        def read() -> None:
            try:
                seqpacket.receive(starter)
            except (PeerGone, FrameRefused):
                gone()

        self._watch(starter.fileno(), read)
        if pidfd is not None:
            self._watch(pidfd, gone)

    # What children say, and how they end.

    def _reap(self) -> None:
        """Collect every child that ended; as process 1 of a container also those that are not ours."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.get(pid)
            if child is None:
                continue
            code = child.reaped(wait_status)
            # Its last words first: a LoadFailed explains the exit status.
            self._read_leash(child)
            del self._children[pid]
            self._unwatch(child.leash.sock.fileno())
            if self._leashes.get(child.worker) is child.leash:
                del self._leashes[child.worker]
            child.close()
            self._child_ended(child.worker, code)

    def _child_ended(self, worker: int, code: int) -> None:
        how = children.ended_how(code)
        self._events.append(RouterDied(code, how) if worker == ROUTER else WorkerDied(worker, how))

    def _read_leash(self, child: Child) -> None:
        while True:
            try:
                got = seqpacket.receive(child.leash.sock)
                if got is None:
                    return
                if child.worker == ROUTER:
                    self._router_said(from_router_codec.decode(got[0]))
                else:
                    self._events.append(LoadRefused(child.worker, from_worker_codec.decode(got[0]).message))
            except PeerGone:
                # Its end is reported by the kernel too; this descriptor would only stay readable.
                self._unwatch(child.leash.sock.fileno())
                return
            except FrameRefused as error:
                self._record("frame_refused", {"pid": child.pid, "title": child.title, "why": str(error)})

    def _router_said(self, message: RouterListening | Beat | WorkerBecameReady | Drained | Told) -> None:
        match message:
            case Beat():
                self._events.append(BeatCame())
            case RouterListening(epoch):
                self._events.append(RouterListened(epoch))
            case WorkerBecameReady(worker):
                self._events.append(WorkerReported(worker))
            case Drained(refused):
                self._events.append(DrainEnded(refused))
            case Told(number, facts):
                self._told(number, facts)

    # What the machine orders.

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case PrepareRouter(epoch):
                    self._prepare_router(epoch)
                case SpawnRouter():
                    self._spawn_router()
                case SpawnWorker():
                    self._spawn_worker(action)
                case IntroduceWorker(worker):
                    child = self._child_of(worker)
                    if child is not None:
                        self._introduce(child, action)
                case RetireWorker(worker):
                    self._to_router(WorkerRetired(worker))
                case StartDrain(timeout_ms):
                    self._to_router(DrainStarted(timeout_ms))
                case SignalRouter(signum):
                    self._signal(ROUTER, signum)
                case SignalWorker(worker, signum):
                    self._signal(worker, signum)
                case AnnounceReady():
                    if not self.log.quiet:
                        self.log.line(f"farm ready: {self.config.serves}, attach at {self.runtime_dir.path}")
                    host.notify_systemd(f"READY=1\nSTATUS=serving {self.config.serves}")
                    self.announced()
                case Record(event, fields):
                    self._record(event, fields)
                case End():
                    self._ended = action

    def _prepare_router(self, epoch: int) -> None:
        if self._router_end is not None:
            self._router_end.close()
        leash, self._router_end = children.pair()
        self._leashes[ROUTER] = leash
        self._to_router(RouterConfigured(epoch, self.runtime_dir.path, self._router_json))

    def _spawn_router(self) -> None:
        theirs, self._router_end = self._router_end, None
        if theirs is not None:
            self._spawn(ROUTER, "router", self._leashes[ROUTER], theirs)

    def _spawn_worker(self, action: SpawnWorker) -> None:
        name = self._names[action.model]
        leash, theirs = children.pair()
        self._leashes[action.worker] = leash
        told = msgspec.json.encode(worker_config(self.config, name, action.cpus)).decode()
        leash.send(to_worker_codec.encode_checked(WorkerConfigured(action.worker, told)))
        title = f"worker {action.worker} {name} v{self.config.models[name].version}"
        child = self._spawn(action.worker, title, leash, theirs)
        if child is not None:
            self._introduce(child, action)

    def _spawn(self, worker: int, title: str, leash: Leash, theirs: socket.socket) -> Child | None:
        try:
            popen = children.spawn("router" if worker == ROUTER else "worker", theirs)
        except OSError as error:
            self._record("spawn_failed", {"title": title, "why": str(error)})
            self._leashes.pop(worker, None)
            leash.close()
            self._child_ended(worker, 127)
            return None
        finally:
            theirs.close()
        child = Child(popen, leash, worker, title, time.monotonic_ns())
        self._children[child.pid] = child
        self._watch(leash.sock.fileno(), lambda: self._read_leash(child))
        return child

    def _introduce(self, child: Child, action: SpawnWorker | IntroduceWorker) -> None:
        """Two socket pairs: runs on the first, watching on the second. Each side gets one end of both."""
        pairs = [seqpacket.pair(), seqpacket.pair()]
        (router_run, worker_run), (router_watch, worker_watch) = pairs
        try:
            child.leash.send(
                to_worker_codec.encode(RouterBorn(action.epoch)), [worker_run.fileno(), worker_watch.fileno()]
            )
            leash = self._leashes.get(ROUTER)
            if leash is not None:
                spawned = WorkerSpawned(action.worker, child.pid, action.model, action.cpus)
                fds = [router_run.fileno(), router_watch.fileno(), child.pidfd]
                leash.send(to_router_codec.encode(spawned), fds)
        finally:
            for pair in pairs:
                for end in pair:
                    end.close()

    def _to_router(self, message: Any) -> None:
        leash = self._leashes.get(ROUTER)
        if leash is not None:
            leash.send(to_router_codec.encode_checked(message))

    def _child_of(self, worker: int) -> Child | None:
        return next((child for child in self._children.values() if child.worker == worker), None)

    def _signal(self, worker: int, signum: int) -> None:
        child = self._child_of(worker)
        if child is not None:
            child.kill(signum)

    def _record(self, event: str, fields: dict[str, Any]) -> None:
        if not (self.log.quiet and event in NOT_A_PROBLEM):
            self.log.event(event, fields)

    # What operators want.

    def _wanted(self, connection: Connection, wanted: Wanted) -> None:
        door = self._door
        assert door is not None
        drain_s = (self.config.farm.drain_timeout_ms + self.config.farm.stop_timeout_ms) / 1000 + 4
        match wanted:
            case StatusWanted():
                self._ask_router(connection, StatusAsked(self._questions), status_wanted=True)
            case InspectWanted(worker):
                self._ask_router(connection, InspectAsked(self._questions, worker), status_wanted=False)
            case StopWanted(now):
                self._events.append(StopAsked(now, "farm stop"))
                door.answer(connection, {"pid": os.getpid(), "limit_s": drain_s})
            case DrainWanted():
                if self._follow(connection, DrainAsked()):
                    door.answer(connection, {"limit_s": drain_s})
            case ScaleWanted(model, workers):
                before = self.machine.wanted(self._names.index(model)) if model in self._names else 0
                if self._follow(connection, ScaleAsked(model, workers)):
                    door.answer(connection, {"model": model, "workers": workers, "before": before})

    def _follow(self, connection: Connection, event: Event) -> bool:
        """Do it at once, so that a refusal is the answer."""
        try:
            actions = self.machine.handle(event, time.monotonic_ns())
        except ScaleRefused as refused:
            assert self._door is not None
            self._door.answer(connection, error=str(refused))
            return False
        self._perform(actions)
        return True

    def _ask_router(self, connection: Connection, question: StatusAsked | InspectAsked, *, status_wanted: bool) -> None:
        number = self._questions
        self._questions += 1
        self._asked[number] = (connection, time.monotonic_ns() + ROUTER_TELLS_NS, status_wanted)
        if self.machine.router.listening_ns is None:
            self._told(number, None)
        else:
            self._to_router(question)

    def _told(self, number: int, facts_json: str | None) -> None:
        """The router's account came, or (None) did not come in time."""
        connection, _, status_wanted = self._asked.pop(number, (None, 0, False))
        if connection is None or self._door is None:
            return
        facts: Any = None
        if facts_json is not None:
            try:
                facts = msgspec.json.decode(facts_json)
            except msgspec.MsgspecError:
                self._record("frame_refused", {"title": "router", "why": "its facts are not JSON"})
        if status_wanted:
            self._door.answer(connection, self._status(facts))
        elif facts is None:
            self._door.answer(connection, error="the router did not answer in time; `farm status` says how it is")
        else:
            self._door.answer(connection, facts)

    def _status(self, router_facts: Any) -> dict[str, Any]:
        now_ns = time.monotonic_ns()
        facts = status.farm_facts(self.machine, self._children, now_ns)
        facts["processes"] = status.add_costs(facts["processes"], self._started_ns, now_ns)
        whole = {
            "runtime_dir": self.runtime_dir.path,
            "source": self.config.source,
            "pid": os.getpid(),
            "age_s": round((now_ns - self._started_ns) / 1e9, 1),
            **facts,
            "log_lines_dropped": self.log.dropped,
            "router": router_facts,
        }
        return status.bounded(whole)

    # The end.

    def _kill_children(self) -> None:
        """Whatever is still there: at a normal end nothing."""
        for child in self._children.values():
            child.kill(signal.SIGKILL)
        for child in self._children.values():
            waiter = select.poll()
            waiter.register(child.pidfd, select.POLLIN)
            if waiter.poll(5000):
                child.reaped(os.waitpid(child.pid, 0)[1])
            child.close()
        self._children.clear()
        for leash in self._leashes.values():
            leash.close()
        if self._router_end is not None:
            self._router_end.close()


def plan_of(config: Config) -> Plan:
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


def _only_wake(signum: int, frame: object) -> None:
    """The byte in the wake-up socket is all that a signal does."""
