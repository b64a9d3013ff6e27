"""When a waiting thread stays awake for its answer, and when it does not."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest

from farm.client.spin import Spin
from farm.errors import InvalidRequest

US = 1000


@pytest.fixture
def pipe() -> Iterator[tuple[select.poll, int]]:
    """A poller over a pipe's reading end, and its writing end."""
    reading, writing = os.pipe()
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    yield poller, writing
    os.close(reading)
    os.close(writing)


@pytest.fixture(autouse=True)
def _two_cpus_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def taught(spin_us: int, *waits_us: int) -> Spin:
    spin = Spin(spin_us)
    for wait_us in waits_us:
        spin.waited(wait_us * US)
    return spin


def looks(spin: Spin, pipe: tuple[select.poll, int]) -> bool:
    """Whether it finds what is ready already: who does not look out finds nothing."""
    poller, writing = pipe
    os.write(writing, b"x")
    return bool(spin.look(poller, 1_000_000))


def test_nobody_looks_out_before_answers_have_been_quick(pipe):
    assert not looks(taught(200), pipe)
    assert looks(taught(200, *[100] * 10), pipe)


def test_slow_answers_end_the_look_out(pipe):
    assert not looks(taught(200, *[100] * 10, 5000, 5000), pipe)


def test_the_look_out_ends_with_its_time_or_the_callers(pipe):
    poller, _ = pipe
    assert taught(200, *[100] * 10).look(poller, 1_000_000) == []
    assert taught(10_000, *[100] * 50).look(poller, 0) == []


def test_a_process_with_other_threads_does_not_look_out(pipe, monkeypatch):
    spin = taught(200, *[100] * 10)
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not looks(spin, pipe)


def test_one_cpu_or_no_time_never_looks_out(pipe, monkeypatch):
    assert not looks(taught(0, *[0] * 10), pipe)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert not looks(taught(200, *[100] * 10), pipe)


def test_a_look_out_out_of_range_is_refused_by_name():
    from farm.client import Client

    for wrong in (-1, 10_001, 1.5):
        with pytest.raises(InvalidRequest, match=r"spin_us is .* from 0 to 10000"):
            Client(spin_us=wrong)  # type: ignore[arg-type]
