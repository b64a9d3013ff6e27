"""The children and their leashes: spawned, introduced to each other, listened to, reaped."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import msgspec

from farm.config import Config, router_config, worker_config
from farm.errors import ConfigError
from farm.supervisor import events as ev
from farm.supervisor import spawning
from farm.supervisor.leash import Leash
from farm.supervisor.loop import Loop
from farm.supervisor.spawning import ROUTER, Child
from shm import seqpacket
from shm.control import (
    Beat,
    Drained,
    RouterBorn,
    RouterConfigured,
    RouterListening,
    Told,
    WorkerBecameReady,
    WorkerConfigured,
    WorkerSpawned,
    from_router_codec,
    from_worker_codec,
    to_router_codec,
    to_worker_codec,
)
from shm.errors import FrameRefused, PeerGone

KILLED_WITHIN_MS = 5000
"""What SIGKILL has not ended by then is stuck in the kernel."""

CONFIG_CHARS_MAX = 120_000
"""`shm.control.Json` takes no more; a rule has some 100."""

SPAWN_FAILED = 127
"""The exit status that stands for a child that never was, as shells have it."""


class Children:
    """Every living child by pid.

    Args:
        happened: takes each event that a child causes.
        told: takes the router's answer to a question: its number and the facts.
        record: takes a line for the log.

    Raises:
        ConfigError: the configuration does not fit into a frame.
    """

    def __init__(
        self,
        config: Config,
        runtime_dir: str,
        loop: Loop,
        happened: Callable[[ev.Event], None],
        told: Callable[[int, str], None],
        record: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.living: dict[int, Child] = {}
        self._config = config
        self._runtime_dir = runtime_dir
        self._loop = loop
        self._happened, self._told, self._record = happened, told, record
        self._names = list(config.models)
        self._router_json = msgspec.json.encode(router_config(config)).decode()
        if len(self._router_json) > CONFIG_CHARS_MAX:
            raise ConfigError(
                f"{config.source}: models and rules together take {len(self._router_json)} characters, the router can "
                f"be told {CONFIG_CHARS_MAX}: shorten the rules, or serve the models from two farms"
            )
        self._router_leash: Leash | None = None
        """There before the router is: what it is to hear first waits in it."""
        self._router_end: socket.socket | None = None

    def prepare_router(self, epoch: int) -> None:
        """The next router's leash, with its configuration as the first frame."""
        if self._router_end is not None and self._router_leash is not None:
            self._router_end.close()
            self._router_leash.close()
        self._router_leash = self._router_end = None
        try:
            self._router_leash, self._router_end = spawning.pair()
        except OSError as error:
            # No descriptor is left: `spawn_router` will not find one, and that counts as its death.
            self._record("spawn_failed", {"title": "router", "why": str(error)})
            return
        self.tell_router(RouterConfigured(epoch, self._runtime_dir, self._router_json))

    def spawn_router(self) -> None:
        theirs, self._router_end = self._router_end, None
        if theirs is None or self._router_leash is None:
            self._ended(ROUTER, SPAWN_FAILED)
        elif not self._spawn(ROUTER, "router", self._router_leash, theirs):
            self._router_leash = None

    def spawn_worker(self, order: ev.SpawnWorker) -> None:
        name = self._names[order.model]
        title = f"worker {order.worker} {name} v{self._config.models[name].version}"
        try:
            leash, theirs = spawning.pair()
        except OSError as error:
            self._record("spawn_failed", {"title": title, "why": str(error)})
            self._ended(order.worker, SPAWN_FAILED)
            return
        told = msgspec.json.encode(worker_config(self._config, name, order.cpus)).decode()
        leash.send(to_worker_codec.encode_checked(WorkerConfigured(order.worker, told)))
        if self._spawn(order.worker, title, leash, theirs):
            self.introduce(order)

    def introduce(self, order: ev.SpawnWorker | ev.IntroduceWorker) -> None:
        """Two socket pairs, one for runs and one to watch by; each side gets one end of both."""
        child = self._child_of(order.worker)
        if child is None or self._router_leash is None:
            # Without a router's leash there is none coming; whoever makes the next one introduces everybody.
            return
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            pairs = [seqpacket.pair()]
            pairs.append(seqpacket.pair())
            (router_run, worker_run), (router_watch, worker_watch) = pairs
            born = to_worker_codec.encode(RouterBorn(order.epoch))
            child.leash.send(born, [worker_run.fileno(), worker_watch.fileno()])
            spawned = to_router_codec.encode(WorkerSpawned(order.worker, child.pid, order.model, order.cpus))
            self._router_leash.send(spawned, [router_run.fileno(), router_watch.fileno(), child.pidfd])
        except OSError as error:
            # Nobody would ever ask it: end it, and its successor is introduced when there are descriptors again.
            self._record("introduction_failed", {"title": child.title, "pid": child.pid, "why": str(error)})
            child.kill(signal.SIGKILL)
        finally:
            for pair in pairs:
                for end in pair:
                    end.close()

    def tell_router(self, message: Any) -> None:
        if self._router_leash is not None:
            self._router_leash.send(to_router_codec.encode_checked(message))

    def signal(self, worker: int, signum: int) -> None:
        child = self._child_of(worker)
        if child is not None:
            child.kill(signum)

    def flush(self) -> None:
        """Send what waits; look for room only where something still does."""
        for child in self.living.values():
            if child.leash.wants_write:
                child.leash.flush()
            self._loop.want_room(child.leash.sock.fileno(), child.leash.wants_write)

    def reap(self) -> None:
        """Collect every child that ended; as process 1 of a container also those that are not ours."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.living.get(pid)
            if child is not None:
                code = child.reaped(wait_status)
                # Its last words first: a LoadFailed explains the exit status.
                self._read(child)
                self._forget(child)
                self._ended(child.worker, code)

    def kill_all(self) -> None:
        """Whatever is still there; at a normal end nothing is."""
        for child in self.living.values():
            child.kill(signal.SIGKILL)
        for child in list(self.living.values()):
            poller = select.poll()
            poller.register(child.pidfd, select.POLLIN)
            if poller.poll(KILLED_WITHIN_MS):
                child.reaped(os.waitpid(child.pid, 0)[1])
            self._forget(child)
        if self._router_leash is not None:
            self._router_leash.close()
        if self._router_end is not None:
            self._router_end.close()

    def _spawn(self, worker: int, title: str, leash: Leash, theirs: socket.socket) -> bool:
        try:
            popen = spawning.spawn("router" if worker == ROUTER else "worker", theirs)
            child = Child(popen, leash, worker, title, time.monotonic_ns())
        except OSError as error:
            self._record("spawn_failed", {"title": title, "why": str(error)})
            leash.close()
            self._ended(worker, SPAWN_FAILED)
            return False
        finally:
            theirs.close()
        self.living[child.pid] = child
        self._loop.watch(leash.sock.fileno(), lambda: self._read(child))
        return True

    def _ended(self, worker: int, code: int) -> None:
        how = spawning.ended_how(code)
        self._happened(ev.RouterDied(code, how) if worker == ROUTER else ev.WorkerDied(worker, how))

    def _forget(self, child: Child) -> None:
        del self.living[child.pid]
        self._loop.unwatch(child.leash.sock.fileno())
        if child.leash is self._router_leash:
            self._router_leash = None
        child.close()

    def _read(self, child: Child) -> None:
        while True:
            try:
                got = seqpacket.receive(child.leash.sock)
                if got is None:
                    return
                if child.worker == ROUTER:
                    self._router_said(from_router_codec.decode(got[0]))
                else:
                    self._happened(ev.LoadRefused(child.worker, from_worker_codec.decode(got[0]).message))
            except PeerGone:
                # Its end is reported by the kernel too; this descriptor would only stay readable.
                self._loop.unwatch(child.leash.sock.fileno())
                return
            except FrameRefused as error:
                self._record("frame_refused", {"title": child.title, "pid": child.pid, "why": str(error)})

    def _router_said(self, message: RouterListening | Beat | WorkerBecameReady | Drained | Told) -> None:
        match message:
            case Beat():
                self._happened(ev.BeatCame())
            case RouterListening(epoch):
                self._happened(ev.RouterListened(epoch))
            case WorkerBecameReady(worker):
                self._happened(ev.WorkerReported(worker))
            case Drained(refused):
                self._happened(ev.DrainEnded(refused))
            case Told(number, facts):
                self._told(number, facts)

    def _child_of(self, worker: int) -> Child | None:
        return next((child for child in self.living.values() if child.worker == worker), None)
