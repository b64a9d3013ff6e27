"""A Terminate ends the run that it names and no other, and the end of file ends any."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from shm import seqpacket
from shm.errors import PeerGone
from shm.worker import RAN, TERMINATED, Run, Terminate, watch_codec
from tests import models
from workers.watch import Current, Watcher


class Options:
    terminate = False


def test_terminate_hits_only_its_run():
    options = Options()
    current = Current(options)
    assert current.begin(1)
    current.terminate(2)
    assert not options.terminate
    current.terminate(1)
    assert options.terminate and current.terminated
    current.end()
    assert not options.terminate and not current.terminated


def test_terminate_that_comes_late_hits_nothing():
    options = Options()
    current = Current(options)
    assert current.begin(1)
    current.end()
    current.terminate(1)
    assert not options.terminate
    assert current.begin(3) and not current.terminated


def test_terminate_that_comes_early_keeps_its_run_from_starting():
    current = Current(Options())
    assert current.begin(1)
    current.terminate(2)
    current.end()
    assert not current.begin(2)
    assert current.begin(3)


def test_after_the_routers_end_nothing_starts():
    options = Options()
    current = Current(options)
    assert current.begin(1)
    current.abandon()
    assert options.terminate
    current.end()
    assert not options.terminate and not current.begin(2)


def test_terminates_of_earlier_runs_are_forgotten():
    current = Current(Options())
    for run in range(1, 100):
        current.terminate(run - 1)
        current.terminate(run + 1000)
        assert current.word and current.begin(run)
        current.end()
    assert not current.begin(1099)
    current.terminate(0)
    assert current.begin(2000) and not current.word


def test_terminate_between_begin_and_refusal_leaves_clean_options():
    options = Options()
    current = Current(options)
    current.run = 1  # the flat path has begun and hands the run on
    current.terminate(1)
    assert options.terminate and not current.begin(1)
    assert not options.terminate and not current.word and current.run is None
    assert current.begin(2)


class Worker:
    """What a watcher watches: the ends here are the router's and the supervisor's."""

    def __init__(self) -> None:
        self.options = Options()
        self.current = Current(self.options)
        self.watch, watch = seqpacket.pair()
        self.leash, self._leash = seqpacket.pair()
        self.run, self._run = seqpacket.pair()
        self.watcher = Watcher(watch, self.current, self._leash, self._run)

    def is_woken(self) -> bool:
        """Whether the main thread's receive would see end of file."""
        try:
            seqpacket.receive(self._run)
        except PeerGone:
            return True
        return False

    def close(self) -> None:
        self.watch.close()
        self.watcher.close()
        for each in (self.leash, self._leash, self.run, self._run):
            each.close()


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


def test_watcher_hears_terminate_and_end_of_file(worker):
    assert worker.current.begin(5)
    assert seqpacket.send(worker.watch, watch_codec.encode(Terminate(5)))
    wait_for(lambda: worker.options.terminate)
    worker.current.end()
    assert worker.current.begin(6) and not worker.is_woken()
    worker.watch.close()
    wait_for(lambda: worker.options.terminate)
    wait_for(worker.is_woken)
    assert not worker.watcher.leash_spoke


def test_word_on_the_leash_wakes_the_main_thread_and_ends_no_run(worker):
    assert worker.current.begin(5)
    assert seqpacket.send(worker.run, b"before") and seqpacket.send(worker.leash, b"born")
    wait_for(lambda: worker.watcher.leash_spoke)
    assert seqpacket.receive(worker._run) == (b"before", [])
    wait_for(worker.is_woken)
    assert not worker.options.terminate
    assert seqpacket.send(worker.watch, watch_codec.encode(Terminate(5)))
    wait_for(lambda: worker.options.terminate)


def wait_for(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("members", [1, 2])
def test_slow_run_ends_between_nodes(rig, tmp_path, members):
    r = rig(models.slow(tmp_path / "m.onnx", nodes=20_000, size=16))
    client = r.client(2, 10_000 * 64)
    x = np.zeros((10_000, 16), np.float32)
    batch = [client.rows(r.session, slot, x) for slot in range(members)]
    r.run(*[client.rows(r.session, slot, x[:1]) for slot in range(2)])
    timer = threading.Thread(target=lambda: (wait_for(lambda: r.current.run == 77), r.current.terminate(77)))
    timer.start()
    start = time.monotonic()
    done, _ = r.runner.run(Run(77, 2**62, batch))
    assert time.monotonic() - start < 5.0
    timer.join()
    assert done.status == TERMINATED and done.members == []
    assert r.run(client.rows(r.session, 0, x[:1])).status == RAN
