"""The farm's commands against a real farm, as operators type them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from farm import embedded, exits
from tests.farmprocess import Serving, gone, wait_until

pytestmark = pytest.mark.slow

THEIRS = "raise SystemExit('a stranger was run')\n"


@pytest.fixture
def run_dir(tmp_path):
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture
def farm(farm_command, run_dir):
    with Serving(farm_command, run_dir) as serving:
        yield serving.ready()


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "record.npy"
    np.save(path, embedded.load_golden().features[:2])
    return path


def test_infer_gives_the_models_answer(farm, record):
    told = farm.run("infer", "wdbc", "--input", f"features={record}", "--deadline-ms", "5000", "--json")
    assert told.returncode == exits.OK, told.stderr
    facts = json.loads(told.stdout)
    values = facts["outputs"]["malignant"]["values"]
    np.testing.assert_allclose(np.ravel(values), np.ravel(embedded.load_golden().malignant[:2]), rtol=1e-4, atol=1e-6)
    assert (facts["source"], facts["reason"], facts["model_version"]) == ("model", "ok", 1)
    printed = farm.run("infer", "wdbc", "--input", f"features={record}", "--deadline-ms", "5000")
    assert printed.returncode == exits.OK
    assert "malignant: float32[2" in printed.stdout and "by model, reason ok" in printed.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "nope"),
        (["wdbc"], "features"),
        (["wdbc", "--input", "features=nothing.npy"], "no .npy file that can be read"),
        (["wdbc", "--input", "x={record}"], "'x'"),
    ],
)
def test_infer_tells_what_is_wrong_in_one_line(farm, record, arguments, said):
    told = farm.run("infer", *[argument.format(record=record) for argument in arguments])
    assert told.returncode == exits.REFUSED
    assert said in told.stderr
    assert told.stderr.startswith("farm: ") and told.stderr.count("\n") == 1


def test_status_is_for_people_and_for_programs(farm):
    printed = farm.run("status")
    assert printed.returncode == exits.OK
    for word in ("ready: ", "PSS MiB", "supervisor", "router", "worker 1 wdbc v1", "counters"):
        assert word in printed.stdout
    facts = json.loads(farm.run("status", "--json").stdout)
    assert facts["state"] == "ready"
    assert facts["router"]["models"][0]["ready_workers"] == 2


def test_scale_up_and_down(farm):
    def ready_workers():
        facts = farm.status()
        return facts["router"]["models"][0]["ready_workers"] if facts["ready"] and facts["router"] else None

    told = farm.run("scale", "wdbc=4")
    assert told.returncode == exits.OK and "wdbc: 2 -> 4 workers" in told.stdout
    wait_until(lambda: ready_workers() == 4, "four workers are ready")
    assert farm.run("scale", "wdbc=1").returncode == exits.OK
    wait_until(lambda: len(farm.status()["processes"]) == 3, "three of them have ended")
    assert ready_workers() == 1
    facts = farm.status()
    assert facts["restarts"] == 0 and facts["wanted"] == {"wdbc": 1}
    refused = farm.run("scale", "nope=2")
    assert refused.returncode == exits.REFUSED
    assert refused.stderr == "farm: no model 'nope' here; there are: wdbc\n"


def test_drain_refuses_new_requests_and_stays_up_until_stop(farm, record, run_dir):
    told = farm.run("drain")
    assert told.returncode == exits.OK and told.stdout.startswith("drained after ")
    assert farm.status()["state"] == "drained"
    refused = farm.run("infer", "wdbc", "--input", f"features={record}")
    assert refused.returncode == exits.REFUSED
    assert "drain" in refused.stderr
    assert farm.run("scale", "wdbc=3").returncode == exits.REFUSED
    stopped = farm.run("stop")
    assert (stopped.returncode, stopped.stdout) == (exits.OK, "stopped\n")
    assert farm.ended() == exits.OK
    assert gone(farm.pids)
    assert not run_dir.exists()


def test_the_routers_command_line_does_the_same(farm):
    for arguments, said in ((["scale", "wdbc=1"], "2 -> 1"), (["status"], "up "), (["drain"], "drained after")):
        told = subprocess.run(
            [sys.executable, "-m", "router", *arguments, "--runtime-dir", farm.runtime_dir],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert told.returncode == exits.OK, told.stderr
        assert said in told.stdout


def test_wait_returns_when_a_farm_that_was_not_there_yet_is_ready(farm_command, run_dir):
    with (
        subprocess.Popen(
            [*farm_command, "wait", "--timeout", "30", "--runtime-dir", str(run_dir)], stdout=subprocess.PIPE, text=True
        ) as waiting,
        Serving(farm_command, run_dir) as serving,
    ):
        out, _ = waiting.communicate(timeout=30)
        assert (waiting.returncode, out) == (exits.OK, f"ready: wdbc, attach at {run_dir}\n")
        assert serving.stop() == exits.OK


def test_a_farm_is_found_by_the_environment(farm, record):
    environment = {**os.environ, "FARM_RUNTIME_DIR": farm.runtime_dir}
    for arguments in (["status"], ["infer", "wdbc", "--input", f"features={record}", "--deadline-ms", "5000"]):
        told = subprocess.run(
            [*farm.command, *arguments], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert told.returncode == exits.OK, told.stderr


def test_a_model_file_is_served_under_its_stem(farm_command, run_dir, tmp_path, record):
    shutil.copy(embedded.MODEL_PATH, tmp_path / "my.model.onnx")
    with Serving(farm_command, run_dir, "my.model.onnx", "--workers", "1", cwd=tmp_path) as serving:
        assert serving.line("farm ready: ") == f"farm ready: my.model v1 (1 worker), attach at {run_dir}"
        told = serving.run("infer", "my.model", "--input", f"features={record}", "--deadline-ms", "5000")
        assert told.returncode == exits.OK, told.stderr


def test_a_reader_that_has_enough_gets_no_traceback(farm):
    told = subprocess.run(
        f"{' '.join(farm.command)} status --runtime-dir {farm.runtime_dir} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert told.stdout.count("\n") == 1
    assert not told.stderr


def test_strangers_in_the_current_directory_disturb_nothing(farm_command, run_dir, tmp_path, record):
    """A service's own packages and modules of our names, in the directory in which the farm is started."""
    home = tmp_path / "service"
    for name in ("router", "workers"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text(THEIRS)
    for name in ("shm.py", "farm.py", "msgspec.py"):
        (home / name).write_text(THEIRS)
    # As the installed command does: the current directory is not on its path.
    safe = {"PYTHONSAFEPATH": "1"}
    with Serving(farm_command, run_dir, cwd=home, environment=safe) as serving:
        serving.ready()
        environment = {**os.environ, **safe}
        told = subprocess.run(
            [*farm_command, "infer", "wdbc", "--input", f"features={record}", "--deadline-ms", "5000",
             "--runtime-dir", str(run_dir)],
            cwd=home, env=environment, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert told.returncode == exits.OK, told.stderr
        assert serving.stop() == exits.OK


@pytest.mark.parametrize("name", ["router", "workers"])
def test_strangers_on_the_import_path_of_children_disturb_nothing(farm_command, run_dir, tmp_path, name):
    """PYTHONPATH reaches the children. They take their own packages all the same; the command itself says what is
    wrong, since in its process the stranger comes first."""
    home = tmp_path / "service"
    (home / name).mkdir(parents=True)
    (home / name / "__init__.py").write_text(THEIRS)
    path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    with Serving(farm_command, run_dir, cwd=tmp_path, environment={"PYTHONPATH": path}) as serving:
        assert serving.ended() == exits.USAGE
        assert serving.lines[-1].startswith(f"farm: `import {name}` finds {home / name}")
    script = "import farm\nwith farm.Farm(workers=1) as running:\n    print(running.status()['state'])"
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.stdout == "ready\n", told.stderr
