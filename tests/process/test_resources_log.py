"""A log that takes nothing: a full disk, a pipe or a socket that nobody reads, one whose reader is gone.

The farm says less and works on: each of its processes has something to say here, at load, for a client that is cut,
at the router's death, and none waits for the log or dies of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

import farm
from farm import control
from farm.errors import Unavailable
from shm.errors import PeerGone
from tests import models
from tests.farmprocess import alive, gone, wait_until
from tests.routerharness import RawClient

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def unread_pipe() -> Iterator[int]:
    """Full from the start."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)


@contextlib.contextmanager
def pipe_without_a_reader() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@contextlib.contextmanager
def unread_socket() -> Iterator[int]:
    """As a service manager gives one; full from the start."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.send(b"x" * 4096)
        theirs.setblocking(True)
        yield theirs.fileno()


@contextlib.contextmanager
def socket_without_a_reader() -> Iterator[int]:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        yield theirs.fileno()


LOGS = [full_disk, unread_pipe, pipe_without_a_reader, unread_socket, socket_without_a_reader]


def state(endpoint: str) -> str:
    try:
        return str(control.status(endpoint)["state"])
    except (PeerGone, Unavailable):
        return "nobody answers"


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.__name__)
def test_a_farm_works_on_when_its_log_takes_nothing(tmp_path, farm_command, log):
    model = models.row_dependent(tmp_path / "m.onnx")  # a worker logs that its rows cannot be batched
    endpoint = str(tmp_path / "run")
    x = np.ones((1, 4), np.float32)
    with log() as fd:
        command = [*farm_command, "serve", "--runtime-dir", endpoint, str(model), "--workers", "1"]
        serving = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=fd)
        try:
            wait_until(lambda: state(endpoint) == "ready", "it is ready, though it cannot say so")
            with farm.Client(endpoint) as client:
                assert client.infer("m", {"x": x}, deadline_ms=20_000).source == "model"
                rows = control.status(endpoint)["processes"]
                pids = {row["role"]: row["pid"] for row in rows}

                offender = RawClient(endpoint, lane="direct")
                for _ in range(101):
                    offender.send_frame(b"no frame")
                wait_until(lambda: control.status(endpoint)["router"]["counters"]["clients_cut"] == 1, "it is cut")
                offender.close()
                assert client.infer("m", {"x": x}, deadline_ms=20_000).source == "model"
                assert alive(pids["router"])

                os.kill(pids["router"], signal.SIGKILL)
                wait_until(lambda: gone([pids["router"]]), "the router is gone")
                assert client.infer("m", {"x": x}, deadline_ms=20_000).source == "model"
                status = control.status(endpoint)
                assert {row["role"]: row["pid"] for row in status["processes"]}["worker"] == pids["worker"]
                assert status["log_lines_dropped"] > 0
        finally:
            serving.terminate()
            try:
                code = serving.wait(20)
            finally:
                serving.kill()
                serving.wait()
        assert code == 0
    assert gone(row["pid"] for row in rows)
