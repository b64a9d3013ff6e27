"""A Terminate ends the run that it names and no other, and the end of file ends any."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from shm import seqpacket
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


def test_watcher_hears_terminate_and_end_of_file():
    ours, theirs = seqpacket.pair()
    options = Options()
    current = Current(options)
    watcher = Watcher(theirs, current)
    try:
        assert current.begin(5)
        assert seqpacket.send(ours, watch_codec.encode(Terminate(5)))
        wait_for(lambda: options.terminate)
        current.end()
        assert current.begin(6)
        ours.close()
        wait_for(lambda: options.terminate)
    finally:
        ours.close()
        watcher.close()


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
    timer = threading.Thread(target=lambda: (wait_for(lambda: r.current._run == 77), r.current.terminate(77)))
    timer.start()
    start = time.monotonic()
    done, _ = r.runner.run(Run(77, 2**62, batch))
    assert time.monotonic() - start < 5.0
    timer.join()
    assert done.status == TERMINATED and done.members == []
    assert r.run(client.rows(r.session, 0, x[:1])).status == RAN
