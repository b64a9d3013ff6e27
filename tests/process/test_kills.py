"""Death of anyone is routine: clients, workers, the router and the supervisor are killed under load, at random moments.

Services in processes of their own keep asking meanwhile, each call judged by `tests.asking`: one end a call, the right
answer or an error that fits, none later than its deadline and a bound (`tests.killing`). Then everything is back at its
level. `KILL_SEED=n` repeats the moments of a run.
"""

from __future__ import annotations

import shutil

import pytest

from tests import models
from tests.crowd import Service, answers, write_script
from tests.farmprocess import Serving, gone, wait_until
from tests.killing import FITS_LONG, FITS_SHORT, WAYS, judge, siege

pytestmark = pytest.mark.slow

KILLS = 20
TOGETHER = 6
GONE_S_MAX = 1.0
"""Of every process of a farm whose supervisor was killed."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("lane", "max_batch"), [("direct", 1), ("zeromq", 32)])
def test_every_request_of_survivors_ends_rightly_and_nothing_is_left_of_the_dead(tmp_path, lane, max_batch):
    """With batches of one every answer is compared bit for bit, else those of runs that had one member."""
    with siege(tmp_path, [(lane, way) for way in WAYS], max_batch=max_batch) as besieged:
        for kill in (besieged.client, besieged.worker, besieged.router):
            for _ in range(KILLS):
                kill()
            besieged.go_on()
            besieged.wait_level(len(WAYS))
        for service in besieged.services:
            told = service.told()
            assert max_batch > 1 or told["exact"] == answers(told)


@pytest.mark.timeout(120)
def test_client_worker_and_router_may_die_at_one_moment(tmp_path):
    # Only here a request can be there at two deaths of workers.
    fits = FITS_LONG | {"RunFailed/poison"}
    with siege(tmp_path, [("direct", "threads"), ("zeromq", "submit")], fits) as besieged:
        for _ in range(TOGETHER):
            besieged.together()
        besieged.go_on(fits)
        besieged.wait_level(2)


@pytest.mark.parametrize("lane", ["direct", "zeromq"])
def test_clients_outlive_a_killed_supervisor_and_find_the_next_farm(tmp_path, farm_command, lane):
    model = models.slow(tmp_path / "chain.onnx", nodes=40, size=64)
    fits = FITS_SHORT | {"client/unavailable", "client/timeout"}
    scripts = []
    for fallback in (False, True):
        folder = tmp_path / f"{fallback}"
        folder.mkdir()
        scripts.append(write_script(folder, model, [200.0], fallback=fallback))
    runtime_dir = tmp_path / "run"

    def serve():
        return Serving(farm_command, runtime_dir, str(model), "--workers", "2")

    with (
        serve() as first,
        Service(str(runtime_dir), lane, "threads", scripts[0]) as plain,
        Service(str(runtime_dir), lane, "asyncio", scripts[1]) as covered,
    ):
        first.ready()
        for service in (plain, covered):
            wait_until(lambda service=service: answers(service.told()) > 20, "it has had answers")
        first.process.kill()
        wait_until(lambda: gone(first.pids), "every process of the farm has ended", GONE_S_MAX)
        for service, end in ((plain, "200 Unavailable/unavailable"), (covered, "200 client/unavailable")):
            wait_until(
                lambda service=service, end=end: service.told()["ends"].get(end, 0) > 10, f"calls ended {end}", 10
            )
        with serve() as second:
            second.ready()
            for service in (plain, covered):
                had = answers(service.told())
                wait_until(lambda service=service, had=had: answers(service.told()) > had + 20, "it is answered again")
            for service in (plain, covered):
                told = service.finish()
                judge(told, fits_short=fits)
                assert told["open"] == 0
            assert second.stop() == 0
            assert gone(second.pids)
    shutil.rmtree(runtime_dir, ignore_errors=True)
