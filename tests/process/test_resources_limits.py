"""Descriptors, memory files, address space, processes and threads run out in a farm that works, and come back.

Who is attached is answered all the while, rightly; what cannot be had is refused by name, or made up for; when the
pressure is over, so are its traces.
"""

from __future__ import annotations

import os
import resource
import signal

import numpy as np
import pytest

import farm
from farm.errors import AttachRefused, FarmError, Unavailable
from tests import models
from tests.crowd import in_process
from tests.farmprocess import alive, wait_until
from tests.killing import QUICK, whole
from tests.pressure import address_space, limited, pids_group, room_for, tasks

pytestmark = pytest.mark.slow

LONG_MS = 20_000
ROWS = np.random.default_rng(3).standard_normal((16, 1, 64)).astype(np.float32)


@pytest.fixture
def model(tmp_path):
    return models.mlp(tmp_path / "m.onnx")


@pytest.fixture
def right(model):
    """Asks and compares with ONNX Runtime in this process."""
    session = in_process(model)
    expected = [session.run(None, {"x": row})[0] for row in ROWS]

    def ask(client, count=16):
        for row, answer in list(zip(ROWS, expected, strict=True))[:count]:
            reply = client.infer("m", {"x": row}, deadline_ms=LONG_MS)
            assert reply.source == "model"
            np.testing.assert_array_equal(next(iter(reply.outputs.values())), answer)

    return ask


def pids(running):
    found = {}
    for row in running.status()["processes"]:
        found.setdefault(row["role"], []).append(row["pid"])
    return found


def attach(running, limit_s=20.0):
    """Another client, which has been let in."""
    client = running.client()
    try:
        client.wait_ready(timeout=limit_s)
    except BaseException:
        client.close()
        raise
    return client


@pytest.mark.parametrize("free", [0, 1, 2, 4, 5])
def test_a_router_without_descriptors_refuses_by_name_and_answers_who_is_attached(model, right, free):
    with farm.Farm({"m": model}, workers=1, **QUICK) as running, attach(running) as client:
        right(client)
        (router,) = pids(running)["router"]
        open_before = len(os.listdir(f"/proc/{router}/fd"))
        with limited(router, resource.RLIMIT_NOFILE, room_for(router, free)):
            refused = None
            try:
                attach(running, limit_s=20 if free else 1).close()
            except (AttachRefused, Unavailable) as error:
                refused = error
            assert (refused is None) == (free == 5), "an attach takes five"
            if refused is not None:
                assert refused.reason in {"budget", "unavailable"}
            if isinstance(refused, AttachRefused):
                assert refused.retryable
                assert "descriptor" in str(refused) or "open files" in str(refused)
            right(client)
            assert alive(router)
        with attach(running) as late:
            right(late)
            right(client)
        wait_until(lambda: len(os.listdir(f"/proc/{router}/fd")) <= open_before, "all are given back")


def test_a_router_that_gets_no_memory_refuses_with_the_figures(model, right):
    with farm.Farm({"m": model}, workers=1, **QUICK) as running, attach(running) as client:
        (router,) = pids(running)["router"]
        before = running.status()["router"]["arena_mib"]
        # Growing a memory file is growing a file.
        with limited(router, resource.RLIMIT_FSIZE, 4096):
            with pytest.raises(AttachRefused, match=r"bytes of memory could not be had") as refused:
                attach(running)
            assert refused.value.retryable
            right(client)
        with attach(running) as late:
            right(late)
        wait_until(lambda: running.status()["router"]["arena_mib"] == before, "what was begun is given back")


def test_a_worker_that_cannot_map_an_arena_fails_those_requests_alone(model, right):
    with farm.Farm({"m": model}, workers=1, **QUICK) as running, attach(running) as client, attach(running) as late:
        right(client)
        (worker,) = pids(running)["worker"]
        with limited(worker, resource.RLIMIT_AS, address_space(worker)):
            with pytest.raises(FarmError) as refused:
                late.infer("m", {"x": ROWS[0]}, deadline_ms=LONG_MS)
            assert refused.value.reason in {"model_error", "worker_died", "poison"}, refused.value
            right(client)
        right(late)
        right(client)


@pytest.mark.parametrize("role", ["worker", "router"])
def test_a_supervisor_without_descriptors_lives_and_replaces_the_dead_when_it_has_some(model, right, role):
    with farm.Farm({"m": model}, workers=2, **QUICK) as running, attach(running) as client:
        found = pids(running)
        (supervisor,) = found["supervisor"]
        victim = found[role][0]
        with limited(supervisor, resource.RLIMIT_NOFILE, room_for(supervisor, 0)):
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: not os.path.exists(f"/proc/{victim}"), "it was collected")
            if role == "worker":
                right(client)
            else:
                with pytest.raises(FarmError):
                    client.infer("m", {"x": ROWS[0]}, deadline_ms=500)
            assert alive(supervisor)
        wait_until(lambda: whole(running, without=[victim]), "it was replaced")
        right(client)


@pytest.mark.parametrize("tasks_left", [0, 1])
def test_a_worker_that_gets_no_process_or_no_thread_is_made_up_for(model, right, tasks_left):
    with (
        pids_group(f"farm-{os.getpid()}-{tasks_left}") as group,
        farm.Farm({"m": model}, workers=2, **QUICK) as running,
        attach(running) as client,
    ):
        found = pids(running)
        everybody = [pid for each in found.values() for pid in each]
        for pid in everybody:
            (group / "cgroup.procs").write_text(str(pid))
        victim = found["worker"][0]
        left = tasks([pid for pid in everybody if pid != victim])
        (group / "pids.max").write_text(str(left + tasks_left))
        os.kill(victim, signal.SIGKILL)
        refused = group / "pids.events"
        wait_until(lambda: int(refused.read_text().split()[1]) > 0, "the kernel has refused some")
        right(client)
        assert alive(found["supervisor"][0])
        assert alive(found["router"][0])
        (group / "pids.max").write_text("max")
        wait_until(lambda: whole(running, without=[victim]), "it was replaced")
        right(client)
