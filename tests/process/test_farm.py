"""`farm.Farm`: a whole farm inside somebody's program."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import farm
from farm import embedded
from tests.farmprocess import alive, gone, wait_until

pytestmark = pytest.mark.slow

HOLD = """
import sys, farm
running = farm.Farm(workers=1)
print(running.endpoint, *[row["pid"] for row in running.status()["processes"]], flush=True)
sys.stdin.read()
"""


def pids_of(running):
    return [row["pid"] for row in running.status()["processes"]]


def test_a_request_is_answered_and_nothing_is_left():
    golden = embedded.load_golden()
    with farm.Farm({"wdbc": embedded.MODEL_PATH}, workers=1) as running:
        pids, endpoint = pids_of(running), running.endpoint
        with running.client() as client:
            reply = client.infer("wdbc", {"features": golden.features[:1]}, deadline_ms=5000)
        np.testing.assert_allclose(np.ravel(reply.outputs["malignant"]), golden.malignant[:1], rtol=1e-4, atol=1e-6)
        assert len(pids) == 3
    assert gone(pids)
    assert not os.path.exists(endpoint)


async def test_an_async_client_is_given_too():
    with farm.Farm(workers=1) as running:
        async with running.async_client() as client:
            features = embedded.load_golden().features[:1]
            reply = await client.infer("wdbc", {"features": features}, deadline_ms=5000)
            assert reply.source == "model"


def test_the_embedded_default_is_served_without_models_and_says_nothing(capfd):
    with farm.Farm() as running:
        assert running.status()["wanted"] == {"wdbc": 2}
    told = capfd.readouterr()
    assert not told.out and not told.err


def test_it_keeps_a_directory_that_was_named(tmp_path):
    with farm.Farm(workers=1, runtime_dir=tmp_path) as running:
        assert running.endpoint == str(tmp_path)
    assert tmp_path.exists() and not list(tmp_path.iterdir())


def test_a_configuration_file_may_be_given(tmp_path):
    path = tmp_path / "farm.toml"
    path.write_text(f'[models.fraud]\npath = "{embedded.MODEL_PATH}"\nworkers = 1\nversion = 7\n')
    with farm.Farm(config=path, deadline_ms=77) as running:
        assert [row["title"] for row in running.status()["processes"]][-1] == "worker 0 fraud v7"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"wrkers": 3}, "no option 'wrkers'; did you mean 'workers'?"),
        ({"workers": "many"}, '[models.wdbc] workers = "many": it must be a whole number from 0 to 1024'),
        ({"isolation": "none"}, 'isolation = "none": it must be one of "same-uid", "group"'),
        ({"models": {"a": "/nothing.onnx"}}, 'Farm(): [models.a] path = "/nothing.onnx": No such file'),
        ({"models": {"a": "/nothing.onnx"}, "config": "x.toml"}, "models and config were both given"),
        ({"config": "/nothing.toml"}, "/nothing.toml: No such file"),
        ({"pin": object()}, "an option is of a kind that no configuration holds"),
    ],
)
def test_a_wrong_configuration_comes_back_as_a_config_error(arguments, said):
    with pytest.raises(farm.ConfigError) as caught:
        farm.Farm(**arguments)
    assert said in str(caught.value)


def test_a_model_that_cannot_be_loaded_comes_back_with_the_reason(tmp_path, capfd):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(farm.Unavailable) as caught:
        farm.Farm({"bad": path})
    assert f"model bad cannot be served from {path}: " in str(caught.value)
    assert "INVALID_PROTOBUF" in str(caught.value)
    capfd.readouterr()


def test_stop_may_be_called_again_and_in_a_forked_child_does_nothing():
    with farm.Farm(workers=1) as running:
        pids = pids_of(running)
        child = multiprocessing.get_context("fork").Process(target=running.stop)
        child.start()
        child.join(20)
        assert child.exitcode == 0
        child.close()
        assert all(alive(pid) for pid in pids)
        assert running.status()["state"] == "ready"
        running.stop()
        running.stop()
        assert gone(pids)
        with pytest.raises(farm.Unavailable):
            running.status()


def test_it_outlives_the_thread_that_made_it():
    made = []
    thread = threading.Thread(target=lambda: made.append(farm.Farm(workers=1)))
    thread.start()
    thread.join(60)
    with made[0] as running:
        assert running.status()["state"] == "ready"


def test_a_killed_supervisor_leaves_nothing_after_stop():
    with farm.Farm(workers=1) as running:
        pids = pids_of(running)
        os.kill(running.pid, signal.SIGKILL)
        wait_until(lambda: gone(pids), "its processes have ended")
    assert not os.path.exists(running.endpoint)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_program_that_made_it(signum):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        endpoint, *pids = program.stdout.readline().split()
        program.send_signal(signum)
        program.wait(30)
        wait_until(lambda: gone(map(int, pids)), "its processes have ended")
        wait_until(lambda: not os.path.exists(endpoint), "its directory is gone")


def test_a_services_own_router_and_workers_disturb_nothing(tmp_path, monkeypatch):
    """The service's packages come first on its path, and are imported by it."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for name in ("router", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "main.py").write_text(
        "import router, workers\nimport farm\nassert router.MINE and workers.MINE\n"
        "with farm.Farm(workers=1) as running, running.client() as client:\n"
        "    print(client.wait_ready(10), running.status()['state'])\n"
    )
    told = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.stdout.endswith("ready\n"), told.stderr


def test_a_temporary_directory_with_a_long_name_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 60)))
    Path(str(tmp_path / ("x" * 60))).mkdir()
    with farm.Farm(workers=1) as running:
        assert len(running.endpoint) < 70
    shutil.rmtree(tmp_path / ("x" * 60))
    assert not os.path.exists(running.endpoint)
