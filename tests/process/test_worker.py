"""A worker process over its leash: ready, runs in place, loses its router, takes the next, stops."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import farm
from shm import segment, seqpacket, tensors
from shm.control import LoadFailed, RouterBorn, WorkerConfigured, from_worker_codec, to_worker_codec
from shm.layout import RowPlan
from shm.worker import (
    ArenaOpened,
    ArenasClosed,
    Done,
    Inspect,
    Inspected,
    Member,
    Ready,
    Run,
    Stop,
    Terminate,
    done_codec,
    run_codec,
    watch_codec,
)
from tests import models
from workers.config import WorkerConfig

FAR_NS = 2**62
WAIT_S = 20.0

LAUNCH = Path(farm.__file__).parent / "launch.py"


class Router:
    """The router's ends of one life: run and watch socket."""

    def __init__(self, leash: socket.socket, epoch: int) -> None:
        self.run, theirs_run = seqpacket.pair()
        self.watch, theirs_watch = seqpacket.pair()
        assert seqpacket.send(
            leash, to_worker_codec.encode(RouterBorn(epoch)), [theirs_run.fileno(), theirs_watch.fileno()]
        )
        theirs_run.close()
        theirs_watch.close()

    def tell(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        assert seqpacket.send(self.run, run_codec.encode(message), fds)

    def hear(self) -> Any:
        got = seqpacket.receive_within(self.run, WAIT_S, fds_max=200)
        assert got is not None, "the worker said nothing"
        seqpacket.close_all(got[1])
        return done_codec.decode(got[0])

    def inspect(self) -> dict[str, Any]:
        self.tell(Inspect(1))
        told = self.hear()
        assert isinstance(told, Inspected)
        return json.loads(told.facts)

    def close(self) -> None:
        self.run.close()
        self.watch.close()


class Worker:
    """The supervisor's side: the process and its leash."""

    def __init__(self, path: Path, home: Path, **config: Any) -> None:
        self.leash, theirs = seqpacket.pair()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "OPENBLAS_", "OMP_"))}
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(LAUNCH), "worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            process_group=0,
            env=environment | {"HOME": str(home), "XDG_CACHE_HOME": ""},
        )
        theirs.close()
        worker = WorkerConfig(name="m", path=str(path), **config)
        frame = to_worker_codec.encode(WorkerConfigured(2, msgspec.json.encode(worker).decode()))
        assert seqpacket.send(self.leash, frame)
        self.epoch = 0

    def router(self) -> Router:
        self.epoch += 1
        return Router(self.leash, self.epoch)

    def exit_code(self) -> int:
        return self.process.wait(WAIT_S)

    def maps(self) -> str:
        return Path(f"/proc/{self.process.pid}/maps").read_text()

    def descriptors(self) -> list[str]:
        folder = Path(f"/proc/{self.process.pid}/fd")
        return [os.readlink(folder / name) for name in os.listdir(folder)]

    def close(self) -> None:
        self.leash.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Arena:
    """A client's arena, for one float32[N, 64] model."""

    def __init__(self, session: int) -> None:
        self.opened = ArenaOpened(session, 8, 512)
        self.fds = (segment.create_sealed("farm-in", 4096), segment.create_sealed("farm-out", 4096))
        self.inside = segment.map_memory(self.fds[0], 4096, writable=True)
        self.outside = segment.map_memory(self.fds[1], 4096, writable=False)

    def write(self, slot: int, x: Any) -> Member:
        tensors.write(self.inside, slot * 512, x, 1)
        return Member(self.opened.session, slot, 1, len(x))

    def answer(self, member: Member) -> Any:
        return tensors.view(self.outside, member.slot * 512, 1, (member.rows, 1)).copy()

    def close(self) -> None:
        seqpacket.close_all(self.fds)
        self.inside.close()
        self.outside.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    started = []

    def make(path: Path, **config: Any) -> Worker:
        home = tmp_path / "home"
        home.mkdir()
        started.append(Worker(path, home, **config))
        return started[-1]

    yield make
    for worker in started:
        worker.close()


def stderr_of(worker: Worker) -> str:
    assert worker.process.stderr is not None
    return worker.process.stderr.read().decode()


@pytest.mark.slow
def test_worker_outlives_its_routers(start, tmp_path):
    """One story, since a start costs: ready and quiet, in place, another router, arenas dropped, Stop."""
    cpu = min(os.sched_getaffinity(0))
    worker = start(models.mlp(tmp_path / "m.onnx"), max_batch=4, cpus=(cpu,))
    router, arena = worker.router(), Arena(7)
    x = np.random.default_rng(5).standard_normal((1, 64)).astype(np.float32)
    try:
        ready = router.hear()
        assert isinstance(ready, Ready)
        assert (ready.worker, ready.model, ready.version) == (2, "m", 1)
        assert ready.signature.independent_rows and RowPlan(ready.signature.inputs).fits
        assert [cost.rows for cost in ready.costs] == [1, 2, 4] and all(cost.run_ns > 0 for cost in ready.costs)

        member = arena.write(3, x)
        router.tell(Run(1, FAR_NS, [member], [arena.opened]), arena.fds)
        done = router.hear()
        assert isinstance(done, Done) and (done.run, done.status, done.members) == (1, 0, [])
        first = arena.answer(member)
        assert 0 < first[0, 0] < 1 and done.started_ns <= done.finished_ns

        seen = router.inspect()
        assert seen["title"] == "farm: worker 2 m v1" and seen["affinity"] == [cpu]
        assert seen["last_run"]["input_addresses"] == [seen["arenas"][0]["in_address"] + 3 * 512]
        assert f"{seen['arenas'][0]['in_address']:x}-" in worker.maps()
        # The main thread and the watcher: one intra-op thread is the main one, and telemetry has none.
        assert len(seen["threads"]) == 2 and "farm-watch" in seen["threads"]
        assert not [d for d in worker.descriptors() if ".db" in d or "onnxruntime" in d]
        assert list((tmp_path / "home").iterdir()) == []

        router.tell(ArenasClosed([7]))
        assert router.inspect()["arena_count"] == 0
        assert "memfd:farm" not in worker.maps()
        router.tell(Run(2, FAR_NS, [member], [arena.opened]), arena.fds)
        assert router.hear().status == 0

        router.close()  # a dead router's kernel does just this
        router = worker.router()
        assert isinstance(router.hear(), Ready)
        seen = router.inspect()
        assert seen["arena_count"] == 0 and seen["last_run"] is None and len(seen["threads"]) == 2
        assert "memfd:farm" not in worker.maps() and not [d for d in worker.descriptors() if "memfd" in d]

        other = Arena(1)
        try:
            member = other.write(0, x)
            router.tell(Run(1, FAR_NS, [member], [other.opened]), other.fds)
            assert router.hear().status == 0
            assert other.answer(member).tobytes() == first.tobytes()
        finally:
            other.close()
        router.tell(Stop())
        assert worker.exit_code() == 0
    finally:
        router.close()
        arena.close()


@pytest.mark.slow
def test_run_is_terminated_by_number_and_by_the_routers_end(start, tmp_path):
    worker = start(models.slow(tmp_path / "m.onnx", nodes=3000, size=16), max_batch=1)
    router = worker.router()
    size = 40_000 * 64
    opened = ArenaOpened(1, 1, size)
    fds = (segment.create_sealed("farm-in", size), segment.create_sealed("farm-out", size))
    try:
        router.hear()
        run = Run(5, FAR_NS, [Member(1, 0, 1, 40_000)], [opened])
        router.tell(run, fds)
        assert seqpacket.send(router.watch, watch_codec.encode(Terminate(4)))
        assert seqpacket.send(router.watch, watch_codec.encode(Terminate(5)))
        done = router.hear()
        assert (done.run, done.status) == (5, 2)
        router.tell(Run(6, FAR_NS, [Member(1, 0, 1, 1)]))
        assert router.hear().status == 0

        router.tell(Run(7, FAR_NS, [Member(1, 0, 1, 40_000)]))
        router.close()
        router = worker.router()
        got = seqpacket.receive_within(router.run, 2.0)
        assert got is not None, "the run of a dead router was not given up"
        worker.leash.close()
        assert worker.exit_code() == 0
        assert "supervisor_gone" in stderr_of(worker)
    finally:
        router.close()
        seqpacket.close_all(fds)


@pytest.mark.slow
def test_slow_router_loses_no_done(start, tmp_path):
    worker = start(models.mlp(tmp_path / "m.onnx"), max_batch=1)
    router, arena = worker.router(), Arena(1)
    try:
        router.hear()
        member = arena.write(0, np.ones((1, 64), np.float32))
        router.tell(Run(0, FAR_NS, [member], [arena.opened]), arena.fds)
        sent = 1
        poller = select.poll()
        poller.register(router.run, select.POLLOUT)
        # Both buffers are full once ours stays so: the worker waits for room for a Done.
        while poller.poll(200):
            if seqpacket.send(router.run, run_codec.encode(Run(sent, FAR_NS, [member]))):
                sent += 1
        assert [router.hear().run for _ in range(sent)] == list(range(sent))
        router.tell(Stop())
        assert worker.exit_code() == 0
    finally:
        router.close()
        arena.close()


@pytest.mark.slow
def test_model_that_cannot_be_loaded_is_reported_with_the_reason(start, tmp_path):
    worker = start(models.broken(tmp_path / "bad.onnx"))
    got = seqpacket.receive_within(worker.leash, WAIT_S)
    assert got is not None
    failed = from_worker_codec.decode(got[0])
    assert isinstance(failed, LoadFailed)
    assert "bad.onnx" in failed.message and "INVALID_PROTOBUF" in failed.message
    assert worker.exit_code() == 3
    assert stderr_of(worker).startswith("load_failed worker=2 model=m reason=")
