"""Services that fork: a child never uses its parent's session, and the parent never notices the child."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import farm.errors as errors
from farm.client import AsyncClient, Client
from tests.fakerouter import FakeRouter

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
IMPORTED_FROM = Path(errors.__file__).resolve().parents[1]
X = np.ones((1, 4), np.float32)
LIMIT_S = 20.0


@pytest.fixture
def runtime_dir(tmp_path):
    return str(tmp_path)


@pytest.fixture
def router(runtime_dir):
    with FakeRouter(runtime_dir) as router:
        yield router


@pytest.fixture(params=["direct", "zeromq"])
def lane(request):
    return request.param


def in_child(work: Callable[[], object]) -> None:
    """Run it in a forked child, which must end well, and in time."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
    pidfd = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([pidfd], [], [], LIMIT_S)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
    assert ended, "the child hung"
    assert os.waitstatus_to_exitcode(status) == 0


def test_child_attaches_anew_and_both_go_on(runtime_dir, router, lane):
    with Client(runtime_dir, lane=lane) as client:
        client.infer("double", X)

        def work():
            for _ in range(10):
                assert client.infer("double", X * 3, deadline_ms=5000).outputs["y"][0, 0] == 6
            client.close()

        for _ in range(3):
            in_child(work)
            assert client.infer("double", X).source == "model"
        assert len(router.asked) == 4
        assert client._engine.session.free_count() == 256


def test_requests_of_the_parent_are_not_the_childs(runtime_dir, router, lane):
    with Client(runtime_dir, lane=lane) as client:
        client.infer("double", X)
        router.mode = "hold"
        ticket = client.submit("double", X, deadline_ms=20_000)
        router.until(lambda: router.kept)

        def work():
            assert client.completions(0) == []
            assert client.completions() == []

        in_child(work)
        router.answer_kept()
        assert client.completions(5) == [ticket]


def test_lease_that_is_open_over_a_fork_is_refused_in_the_child(runtime_dir, router, lane):
    with (
        Client(runtime_dir, lane=lane) as client,
        client.lease("double", {"x": ((1, 4), "float32")}) as lease,
    ):
        lease.inputs["x"][...] = 4

        def work():
            with pytest.raises(errors.InvalidRequest, match="belongs to the parent process"):
                lease.infer()
            assert client.infer("double", X, deadline_ms=5000).outputs["y"][0, 0] == 2

        in_child(work)
        assert lease.infer().outputs["y"][0, 0] == 8


def test_fork_while_other_threads_wait(runtime_dir, router, lane):
    with Client(runtime_dir, lane=lane) as client:
        client.infer("double", X)
        stop = threading.Event()

        def ask():
            while not stop.is_set():
                client.infer("double", X, deadline_ms=20_000)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                in_child(lambda: client.infer("double", X, deadline_ms=10_000))
        finally:
            stop.set()
            for thread in threads:
                thread.join(LIMIT_S)


def test_router_death_is_seen_although_a_child_has_the_parents_past(runtime_dir, lane):
    first = FakeRouter(runtime_dir)
    with Client(runtime_dir, lane=lane) as client:
        client.infer("double", X)
        in_child(lambda: client.infer("double", X, deadline_ms=5000))
        first.close()
        with FakeRouter(runtime_dir, epoch=2):
            assert client.infer("double", X, deadline_ms=10_000).source == "model"


def test_async_client_of_the_parent_is_made_anew_in_a_childs_loop(runtime_dir, router, lane):
    client = AsyncClient(runtime_dir, lane=lane)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(client.infer("double", X))

    def work():
        async def main():
            async with client:
                assert (await client.infer("double", X * 2, deadline_ms=5000)).outputs["y"][0, 0] == 4

        asyncio.run(main())

    in_child(work)
    reply = loop.run_until_complete(client.infer("double", X, deadline_ms=5000))
    assert reply.source == "model"
    loop.run_until_complete(client.close())
    loop.close()


def test_closed_and_half_made_clients_do_not_disturb_a_child(runtime_dir, router, lane):
    kept = []
    with pytest.raises(errors.InvalidRequest) as refused:
        Client(runtime_dir, lane=lane, spin_us=-1)
    kept.append(refused)  # its traceback keeps the half-made client
    closed = Client(runtime_dir, lane=lane)
    closed.close()
    with Client(runtime_dir, lane=lane) as client:
        client.infer("double", X)

        def work():
            with pytest.raises(errors.Unavailable, match="closed"):
                closed.infer("double", X)
            client.infer("double", X, deadline_ms=5000)

        in_child(work)
        assert len(router.asked) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_multiprocessing_children_that_end_in_the_usual_way(runtime_dir, router, lane, how):
    """A whole interpreter ends, finalisers and all, with a client nobody closed; so does its child's."""
    script = textwrap.dedent(
        f"""
        import multiprocessing, sys, warnings
        import numpy as np
        from farm.client import Client

        warnings.filterwarnings("ignore", category=DeprecationWarning)
        client = Client({runtime_dir!r}, lane={lane!r})
        x = np.ones((1, 4), np.float32)

        def work(_):
            return float(client.infer("double", x, deadline_ms=10_000).outputs["y"][0, 0])

        if __name__ == "__main__":
            work(0)
            with multiprocessing.get_context({how!r}).Pool(2) as pool:
                print(pool.map(work, range(8)), work(0))
                pool.close()
                pool.join()
        """
    )
    path = Path(runtime_dir) / "service.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(IMPORTED_FROM)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.stdout == f"{[2.0] * 8} 2.0\n", done.stderr
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
