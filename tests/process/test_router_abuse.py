"""A real router process and clients that misbehave at length: whoever does not is answered in time."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from router.config import ModelConfig
from router.door import HALF_OPEN_MAX
from shm import seqpacket
from shm.client import Attach, Submit, attach_codec, request_codec
from shm.endings import Ending
from shm.errors import PeerGone
from shm.layout import Tensor
from shm.limits import PROTOCOL_VERSION
from shm.paths import attach_path
from shm.segment import create_sealed
from shm.worker import MemberDone, Run
from tests.routerharness import EPOCH, RouterHarness, wait_for

Starter = Callable[..., RouterHarness]


@pytest.fixture(params=["zeromq", "direct"])
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Starter]:
    started: list[RouterHarness] = []

    def starter(*models: ModelConfig, **options: Any) -> RouterHarness:
        started.append(RouterHarness(tmp_path, *models, lane=request.param, **options))
        return started[-1]

    yield starter
    for harness in started:
        harness.close()


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["zeromq", "direct"])
def test_a_client_that_sends_without_end_does_not_keep_others_waiting(start: Starter, lane: str) -> None:
    router = start()
    worker, client, flooder = router.worker(), router.client(), router.client(lane=lane)
    frame = request_codec.encode(Submit(EPOCH, [flooder.request(n, model=65_535) for n in range(512)]))
    for number in range(20):
        for _ in range(100):
            try:
                flooder.send_frame(frame)
            except (AssertionError, zmq.Again):
                break
        client.submit(client.request(number, deadline_ms=1000))
        worker.done(worker.next_run())
        reply = client.reply(number)
        assert reply.ending == Ending.MODEL
        while flooder.pump(0):
            flooder.replies.clear()


def test_connections_that_ask_for_nothing_keep_nobody_out(start: Starter) -> None:
    router = start()
    worker = router.worker()
    silent = []
    try:
        for _ in range(2 * HALF_OPEN_MAX):
            silent.append(wait_for(lambda: _connected(attach_path(router.runtime_dir))))
        client = router.client()
        client.submit(client.request(1))
        worker.done(worker.next_run())
        assert client.reply(1).ending == Ending.MODEL
        assert len(os.listdir(f"/proc/{router.process.pid}/fd")) < 2 * HALF_OPEN_MAX + 100
    finally:
        for sock in silent:
            sock.close()


def test_a_client_that_goes_before_its_memory_is_made_leaves_nothing(start: Starter) -> None:
    router = start()
    worker, client = router.worker(), router.client()
    client.submit(client.request(1))
    worker.done(worker.next_run())
    assert client.reply(1).ending == Ending.MODEL
    before = len(os.listdir(f"/proc/{router.process.pid}/fd"))
    mib = router.status()["arena_mib"]
    ask = attach_codec.encode(Attach(PROTOCOL_VERSION, 64, 65_536, "direct", "test"))
    path = attach_path(router.runtime_dir)
    for _ in range(10):
        leaving = [wait_for(lambda: _connected(path)) for _ in range(8)]
        for sock in leaving:
            assert seqpacket.send(sock, ask)
        for sock in leaving:
            sock.close()
    client.submit(client.request(2))
    worker.done(worker.next_run())
    assert client.reply(2).ending == Ending.MODEL
    wait_for(lambda: len(os.listdir(f"/proc/{router.process.pid}/fd")) <= before)
    wait_for(lambda: router.status()["arena_mib"] == mib)
    assert router.counter("clients_refused") == 0


def _connected(path: str) -> socket.socket | None:
    """None when the backlog is full."""
    try:
        return seqpacket.connect(path)
    except PeerGone:
        return None


@pytest.mark.slow
def test_a_client_that_leaves_memory_files_unread_is_cut_and_others_are_answered(start: Starter) -> None:
    router = start()
    worker, client, hoarder = router.worker(), router.client(), router.client(slot_count=64)
    fd = create_sealed("out", 4096)
    well = MemberDone()
    member = MemberDone(outputs=(Tensor(0, 1, (1, 2), 0, 8),), overflow_bytes=4096)
    try:
        for turn in range(20):
            if router.counter("clients_cut") == 0:
                hoarder.submit(*(hoarder.request(32 * turn + n, slot=n) for n in range(32)))
            client.submit(client.request(turn))
            while turn not in client.replies:
                run = worker.receive(0.01)
                if isinstance(run, Run):
                    mine = [m.session == client.attached.session for m in run.members]
                    worker.done(run, members=[well if m else member for m in mine], fds=[fd] * mine.count(False))
                client.pump(0.01)
            assert client.replies[turn].ending == Ending.MODEL
    finally:
        os.close(fd)
    assert [session["session"] for session in router.status()["sessions"]] == [client.attached.session]
    assert router.counter("clients_cut") == 1
