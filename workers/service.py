"""A worker's process: load and warm one model, then serve one router after another until told to stop.

A life: WorkerConfigured on the leash, load, warm-up, then for each RouterBorn (with a run and a watch socket): Ready,
runs, until end of file. In between the model stays warm, and no mapping and no descriptor of the old router's arenas
is kept. Usual runs never come up to here (`workers.lane`). A run's Done is sent before the next frame is read, so the
two runs that a router may have here end in order.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from typing import Final

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import msgspec
import setproctitle

from shm import seqpacket
from shm.control import LoadFailed, RouterBorn, WorkerConfigured, from_worker_codec, to_worker_codec
from shm.endings import Reason
from shm.errors import FrameRefused, PeerGone
from shm.worker import (
    ArenasClosed,
    Inspect,
    Inspected,
    MemberDone,
    Ready,
    Run,
    RunCost,
    Stop,
    done_codec,
)
from workers import probe
from workers.affinity import pin
from workers.arenas import Arenas
from workers.config import WorkerConfig
from workers.facts import facts
from workers.guard import Guard, GuardRefused
from workers.lane import Lane
from workers.log import log
from workers.memory import MIB, explain, go_first, limit
from workers.runner import Runner
from workers.session import LoadRefused, Session, load
from workers.warmup import warm_up
from workers.watch import Current, Watcher

EXIT_STOPPED: Final = 0
EXIT_FAILED: Final = 1
EXIT_LOAD_FAILED: Final = 3

ROUTER_WAIT_S: Final = 30.0
"""Without a router for so long the supervisor has other plans, or none."""

GC_THRESHOLD: Final = 50_000
"""The hot path makes no cycles and what it allocates it frees, so the count of surviving objects stays far below this.
Errors may leave cycles in tracebacks; those are found after so many, in a young generation that is small because
everything from the start is frozen."""


def main(leash: socket.socket) -> int:
    """Serve until Stop, or until the supervisor is gone. The exit code."""
    got = seqpacket.receive_within(leash, ROUTER_WAIT_S)
    if got is None:
        log("worker_not_configured")
        return EXIT_FAILED
    configured = to_worker_codec.decode(got[0])
    if not isinstance(configured, WorkerConfigured):
        raise FrameRefused("the first frame on a worker's leash was no WorkerConfigured")
    config = msgspec.json.decode(configured.config, type=WorkerConfig)
    setproctitle.setproctitle(f"farm: worker {configured.worker} {config.name} v{config.version}")
    pin(config.cpus)
    go_first()
    limit(config.memory_mib)
    try:
        worker = Worker(leash, configured.worker, config)
    except (LoadRefused, MemoryError) as error:
        if isinstance(error, MemoryError):
            error = LoadRefused(f"{config.path}: {explain(config.memory_mib)}")
        log("load_failed", worker=configured.worker, model=config.name, reason=error)
        seqpacket.send(leash, from_worker_codec.encode(LoadFailed(str(error)[:4096])))
        return EXIT_LOAD_FAILED
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 10)
    try:
        return worker.serve()
    except PeerGone:
        log("supervisor_gone", worker=configured.worker)
        return EXIT_STOPPED
    except FrameRefused as error:
        log("frame_refused", worker=configured.worker, error=error)
        return EXIT_FAILED
    finally:
        worker.leave()


class Worker:
    """One warm model and the router that it serves now."""

    def __init__(self, leash: socket.socket, number: int, config: WorkerConfig) -> None:
        """Load, probe, warm up. Raises LoadRefused."""
        self._leash = leash
        self._number = number
        self._config = config
        start_ns = time.monotonic_ns()
        self._session = load(config.path, config.session, config.memory_mib)
        self._load_ns = time.monotonic_ns() - start_ns
        self._session.with_independent_rows(_independent(self._session, config))
        guard = None
        if config.guard is not None:
            try:
                guard = Guard(config.guard, self._session.signature)
            except GuardRefused as refused:
                raise LoadRefused(f"{config.path}: guard: {refused}") from refused
        self._arenas = Arenas(config.arenas_max)
        self._runner = Runner(
            self._session,
            self._arenas,
            Current(self._session.options),
            output_bytes_max=config.output_mib_max * MIB,
            guard=guard,
        )
        self._costs: list[RunCost] = warm_up(self._session, self._runner.buffers, config.max_batch)
        self._run: socket.socket | None = None
        self._watcher: Watcher | None = None

    def serve(self) -> int:
        """Router after router. Raises PeerGone when the supervisor is gone."""
        while True:
            got = seqpacket.receive_within(self._leash, ROUTER_WAIT_S, fds_max=2)
            if got is None:
                log("no_router", worker=self._number, waited_s=ROUTER_WAIT_S)
                return EXIT_FAILED
            frame, fds = got
            born = to_worker_codec.decode(frame)
            if not isinstance(born, RouterBorn) or len(fds) != 2:
                seqpacket.close_all(fds)
                raise FrameRefused("expected RouterBorn with two sockets on the leash")
            run, watch = (socket.socket(fileno=fd) for fd in fds)
            watch.setblocking(False)
            watcher = self._join(run, watch)
            try:
                self._serve_router(run)
                return EXIT_STOPPED
            except PeerGone:
                if not watcher.leash_spoke:
                    log("router_gone", worker=self._number, epoch=born.epoch)
            finally:
                self.leave()

    def leave(self) -> None:
        """Keep nothing of this router: no run, no thread, no socket, no mapping."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        if self._run is not None:
            self._run.close()
            self._run = None
        self._runner.forget()
        self._arenas.close_all()

    def _join(self, run: socket.socket, watch: socket.socket) -> Watcher:
        self._run = run
        # A fresh one: an old watcher's last word must not reach the new router's runs.
        self._runner.current = Current(self._session.options)
        self._watcher = Watcher(watch, self._runner.current, self._leash, run)
        return self._watcher

    def _serve_router(self, run: socket.socket) -> None:
        """Until Stop. Raises PeerGone: the router is gone, or something is on the leash."""
        config = self._config
        lane = Lane(run, self._session, self._arenas, self._runner)
        ready = Ready(self._number, config.name, config.version, self._session.signature, self._costs, self._load_ns)
        lane.send(done_codec.encode_checked(ready))
        while True:
            message, fds, was_bound = lane.next()
            if type(message) is Run:
                self._run_one(lane, message, fds, was_bound=was_bound)
                continue
            seqpacket.close_all(fds)
            if type(message) is ArenasClosed:
                self._runner.forget()
                self._arenas.close(message.sessions)
            elif type(message) is Inspect:
                told = Inspected(message.number, facts(self._session, self._runner, self._arenas))
                lane.send(done_codec.encode_checked(told))
            elif type(message) is Stop:
                return

    def _run_one(self, lane: Lane, run: Run, fds: list[int], *, was_bound: bool) -> None:
        if run.opened or fds:
            if len(fds) != 2 * len(run.opened):
                seqpacket.close_all(fds)
                raise FrameRefused(f"{len(run.opened)} arenas were opened with {len(fds)} descriptors")
            for i, opened in enumerate(run.opened):
                self._arenas.open(opened, (fds[2 * i], fds[2 * i + 1]))
        done, out_fds = self._runner.run(run, was_bound=was_bound)
        try:
            if not done.members:
                lane.send(done_codec.encode(done), out_fds)
                return
            try:
                frame = done_codec.encode_checked(done)
            except FrameRefused as error:
                log("done_too_large", run=run.run, error=error)
                seqpacket.close_all(out_fds)
                out_fds = []
                refused = MemberDone(reason=Reason.OUTPUT_TOO_LARGE)
                ends = [m if m.reason == 0 and m.outputs is None else refused for m in done.members]
                frame = done_codec.encode_checked(msgspec.structs.replace(done, members=ends))
            lane.send(frame, out_fds)
        finally:
            seqpacket.close_all(out_fds)


def _independent(session: Session, config: WorkerConfig) -> bool:
    """Whether rows of several requests may run as one batch: declared, or found out."""
    if config.session.batching == "off" or config.max_batch == 1:
        return False
    if config.session.batching == "on":
        reason = probe.eligible(session)
        if reason is not None:
            log("not_batchable", model=config.name, reason=reason)
        return reason is None
    found, reason = probe.independent_rows(session)
    if not found:
        log("not_batchable", model=config.name, reason=reason)
    return found
