"""Models that lie, in a real farm: each is refused or limited by name, and a model beside them goes on answering.

A service in a process of its own asks the honest model all the while, and compares each answer bit for bit with ONNX
Runtime's in one process. Each liar starts without a worker, since a farm is not started with a model that cannot be
served; its worker is asked for once the farm serves.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import farm
from farm import control, exits
from shm.control import ScaleWanted
from tests import lyingmodels, models
from tests.crowd import Service, answers, write_script
from tests.farmprocess import Serving, gone, wait_until

pytestmark = pytest.mark.slow

FAR_MS = 20_000.0
MEMORY_MIB = 256
ONE = np.ones((1, 2), np.float32)

BESIDE = "tensors beside the model must lie in its folder or below, and not behind a link"
UNLOADABLE = {
    "truncated": "it is no ONNX file, or was cut short",
    "broken": "it is no ONNX file, or was cut short",
    "empty": "it is empty",
    "folder": "it is a folder",
    "fifo": "it is a FIFO",
    "gone": "No such file or directory",
    "custom": "custom operators are not loaded",
    "dtype": r"Type \(tensor\(int64\)\) of output arg \(y\)",
    "upward": BESIDE,
    "absolute": BESIDE,
    "linked": BESIDE,
    "past": "out of bounds or can not be read in full",
}
"""What the refusal of each has to say."""


def config(folder: Path, tables: dict[str, str], **farm_options: object) -> Path:
    """These, and the honest model unless the farm is not to be ready anyway, in a file."""
    models.mlp(folder / "good.onnx")
    lines = ["[farm]", "restart_delay_ms = 200", "restart_delay_ms_max = 1000", "pin = false"]
    lines += [f"{key} = {value}" for key, value in farm_options.items()]
    if "liar" not in tables:
        lines += ["[models.good]", 'path = "good.onnx"', "workers = 1", "max_batch = 1"]
    for name, table in tables.items():
        lines += [f"[models.{name}]", f'path = "{name}.onnx"', table]
    path = folder / "farm.toml"
    path.write_text("\n".join(lines))
    return path


@contextmanager
def asked_meanwhile(running: Serving, folder: Path) -> Iterator[None]:
    """The honest model is asked during the block; at its end each answer was right, and there were some since."""
    script = write_script(folder, folder / "good.onnx", [FAR_MS])
    router = [row["pid"] for row in running.status()["processes"] if row["role"] == "router"]
    with Service(running.runtime_dir, "direct", "submit", script) as service:
        wait_until(lambda: answers(service.told()) > 10, "the honest model answers")
        yield
        before = answers(service.told())
        wait_until(lambda: answers(service.told()) > before + 10, "the honest model still answers")
        told = service.finish()
    assert told["wrong"] == told["failed"] == []
    assert set(told["ends"]) == {f"{FAR_MS:g} model/ok"}
    assert told["exact"] == answers(told)
    assert router == [row["pid"] for row in running.status()["processes"] if row["role"] == "router"]


def scale(running: Serving, name: str, workers: int) -> None:
    control.ask(running.runtime_dir, ScaleWanted(name, workers))


def words_of(running: Serving, pattern: str) -> str:
    """The next line of the farm's log in which this is found."""
    while True:
        line = running.line("")
        if re.search(pattern, line):
            return line


def write_what_cannot_be_loaded(folder: Path) -> None:
    """Each of UNLOADABLE; `gone` is not there."""
    (folder / "weights.bin").write_bytes(bytes(16))
    (folder.parent / "beyond.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to("../beyond.bin")
    lyingmodels.truncated(folder / "truncated.onnx")
    models.broken(folder / "broken.onnx")
    (folder / "empty.onnx").touch()
    (folder / "folder.onnx").mkdir()
    os.mkfifo(folder / "fifo.onnx")
    lyingmodels.custom_operator(folder / "custom.onnx")
    lyingmodels.other_dtype(folder / "dtype.onnx")
    lyingmodels.external(folder / "upward.onnx", "../beyond.bin")
    lyingmodels.external(folder / "absolute.onnx", folder / "weights.bin")
    lyingmodels.external(folder / "linked.onnx", "link.bin")
    lyingmodels.external(folder / "past.onnx", "weights.bin", offset=1 << 40)


@pytest.mark.timeout(180)
def test_what_cannot_be_loaded_is_refused_by_name_and_the_honest_model_goes_on(tmp_path, farm_command):
    folder = tmp_path / "models"
    folder.mkdir()
    # At start all are honest: what is no file at all would not be let in.
    for name in UNLOADABLE:
        models.identity(folder / f"{name}.onnx", "float32")
    file = config(folder, dict.fromkeys(UNLOADABLE, "workers = 0"))
    with Serving(farm_command, tmp_path / "run", "--config", str(file)) as running:
        running.ready()
        for name in UNLOADABLE:
            (folder / f"{name}.onnx").unlink()
        write_what_cannot_be_loaded(folder)
        with asked_meanwhile(running, folder), farm.Client(running.runtime_dir) as client:
            for name, said in UNLOADABLE.items():
                scale(running, name, 1)
                line = words_of(running, f"farm: load_failed .*model={name} ")
                assert f"file={folder / name}.onnx" in line
                assert re.search(said, line), line
                with pytest.raises(farm.FarmError) as caught:
                    client.infer(name, ONE, deadline_ms=50)
                assert caught.value.reason == "no_worker"
                scale(running, name, 0)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (models.broken, "it is no ONNX file, or was cut short"),
        (lyingmodels.crashing_at_load, "3 workers died before one was ready, the last by signal SIGFPE"),
        (lyingmodels.endless_always, r"no worker became ready within .* s; raise .farm. start_timeout_s"),
    ],
)
def test_a_farm_whose_model_cannot_be_served_gives_up_by_name_at_its_start(tmp_path, farm_command, write, said):
    path = write(tmp_path / "liar.onnx")
    # The router has to be there within the same time.
    file = config(tmp_path, {"liar": "workers = 1"}, start_timeout_s=8.0 if "timeout" in said else 60.0)
    with Serving(farm_command, tmp_path / "run", "--config", str(file)) as running:
        assert running.ended() == exits.GAVE_UP
    assert not (tmp_path / "run").exists()
    (line,) = [line for line in running.lines if "model liar " in line]
    assert str(path) in line and re.search(said, line), line


@pytest.mark.timeout(180)
def test_what_crashes_or_never_ends_at_its_load_is_tried_again_alone(tmp_path, farm_command):
    lyingmodels.crashing_at_load(tmp_path / "crash.onnx")
    lyingmodels.endless_always(tmp_path / "endless.onnx")
    file = config(tmp_path, dict.fromkeys(["crash", "endless"], "workers = 0"), start_timeout_s=8.0)
    with Serving(farm_command, tmp_path / "run", "--config", str(file)) as running:
        running.ready()
        with asked_meanwhile(running, tmp_path):
            scale(running, "crash", 1)
            scale(running, "endless", 1)
            words_of(running, "farm: worker_silent .*model=endless ")
            words_of(running, 'farm: worker_died .*model=endless .*how="signal SIGKILL"')
            assert sum("model=crash " in line and "SIGFPE" in line for line in running.lines) >= 2
            for name in ("crash", "endless"):
                scale(running, name, 0)
            wait_until(lambda: running.status()["state"] == "ready", "the farm is whole again")
        assert running.stop() == exits.OK


@pytest.fixture(scope="module")
def lying(tmp_path_factory, farm_command):
    """A farm of models that load well and lie at their runs, with the honest one; each has one worker."""
    folder = tmp_path_factory.mktemp("lying")
    lyingmodels.endless(folder / "endless.onnx")
    lyingmodels.endless(folder / "growing.onnx", grows=True)
    models.grown_output(folder / "sized.onnx")
    lyingmodels.crashing(folder / "crash.onnx")
    lyingmodels.other_width(folder / "width.onnx")
    models.other_shape(folder / "rows.onnx")
    limited = f"workers = 1\nmemory_mib = {MEMORY_MIB}\nhang_ms = 300"
    file = config(folder, dict.fromkeys(["endless", "growing", "sized", "crash", "width", "rows"], limited))
    with Serving(farm_command, folder / "run", "--config", str(file)) as running:
        running.ready()
        with farm.Client(running.runtime_dir) as client:
            client.infer("rows", ONE, deadline_ms=FAR_MS)
            yield running, client, folder
        assert running.stop() == exits.OK
    shutil.rmtree(folder / "run", ignore_errors=True)


def worker_of(running: Serving, name: str) -> int:
    return next(row["pid"] for row in running.status()["processes"] if row.get("model") == name)


def failed(client: farm.Client, name: str, inputs: object) -> farm.FarmError:
    with pytest.raises(farm.FarmError) as caught:
        client.infer(name, inputs, deadline_ms=FAR_MS)
    return caught.value


def test_a_run_that_takes_memory_without_bound_fails_by_name_and_its_worker_goes_on(lying):
    running, client, folder = lying
    pids = [worker_of(running, name) for name in ("growing", "sized")]
    with asked_meanwhile(running, folder):
        for _ in range(5):
            for name, inputs in [("growing", np.full((1, 2), 9e9, np.float32)), ("sized", np.array([1 << 40]))]:
                error = failed(client, name, inputs)
                assert (type(error), error.reason) == (farm.RunFailed, "model_error")
                assert f"more memory than the {MEMORY_MIB} MiB that memory_mib in the model's section" in str(error)
            assert np.array_equal(client.infer("growing", ONE, deadline_ms=FAR_MS).outputs["y"], ONE)
            assert np.array_equal(client.infer("sized", np.array([3]), deadline_ms=FAR_MS).outputs["y"], np.ones(3))
    assert pids == [worker_of(running, name) for name in ("growing", "sized")]


def test_a_run_that_never_ends_is_stopped_and_its_caller_told_in_time(lying):
    running, client, folder = lying
    with asked_meanwhile(running, folder):
        for _ in range(3):
            with pytest.raises(farm.FarmError) as caught:
                client.infer("endless", np.full((1, 2), 9e9, np.float32), deadline_ms=FAR_MS)
            # The second time the input is known.
            assert isinstance(caught.value, farm.RunFailed) and caught.value.reason == "poison", caught.value
            assert "died of this" in str(caught.value) and "or hung in it" in str(caught.value)
            wait_until(
                lambda: client.infer("endless", ONE, deadline_ms=FAR_MS).source == "model", "the next one is answered"
            )


@pytest.mark.parametrize("count", [1, 3])
def test_another_shape_than_declared_is_a_failure_that_names_both(lying, count):
    running, client, folder = lying
    x = np.arange(count, dtype=np.float32).reshape(count, 1)
    with asked_meanwhile(running, folder):
        for width in (2, 1, 5, 1):
            inputs = {"x": x, "k": np.array([1, width])}
            if width == 1:
                assert np.array_equal(client.infer("width", inputs, deadline_ms=FAR_MS).outputs["y"], x)
                continue
            error = failed(client, "width", inputs)
            assert (type(error), error.reason) == (farm.RunFailed, "model_error")
            assert "output 'y': the model declares float32 [N, 1]" in str(error)
            assert f"returned float32 [{count}, {width}]" in str(error)
        lost = np.array([[1, 2], [-3, 4]], np.float32)
        error = failed(client, "rows", lost)
        assert "declares float32 [N, 2] with N = 2 and returned float32 [1, 2]" in str(error)
        assert np.array_equal(client.infer("rows", abs(lost), deadline_ms=FAR_MS).outputs["y"], abs(lost))


def test_a_run_that_crashes_its_worker_is_refused_as_poison_after_two(lying):
    running, client, folder = lying
    with asked_meanwhile(running, folder):
        error = failed(client, "crash", np.full((1, 2), lyingmodels.LEAST))
        assert (type(error), error.reason) == (farm.RunFailed, "poison")
        words_of(running, 'farm: worker_died .*model=crash .*how="signal SIGFPE"')
        wait_until(lambda: "crash" in {row.get("model") for row in running.status()["processes"]}, "it is replaced")
        reply = client.infer("crash", np.array([[4, -5]]), deadline_ms=FAR_MS)
        assert np.array_equal(reply.outputs["y"], [[-4, 5]])


def test_workers_are_ended_first_when_the_host_has_no_memory_left(lying):
    running, _, _ = lying
    scores = {
        row["title"]: int(Path(f"/proc/{row['pid']}/oom_score_adj").read_text())
        for row in running.status()["processes"]
    }
    own = int(Path("/proc/self/oom_score_adj").read_text())
    for title, score in scores.items():
        assert score == (min(1000, own + 500) if title.startswith("worker") else own), title


def test_no_process_of_theirs_is_left(tmp_path, farm_command):
    lyingmodels.endless(tmp_path / "endless.onnx")
    file = config(tmp_path, {"endless": "workers = 1\nhang_ms = 60000"}, drain_timeout_ms=200, stop_timeout_ms=500)
    with Serving(farm_command, tmp_path / "run", "--config", str(file)) as running:
        running.ready()
        with farm.Client(running.runtime_dir) as client:
            client.wait_ready(30)
            client.submit("endless", np.full((1, 2), 9e9, np.float32), deadline_ms=60_000)
            wait_until(
                lambda: any(worker["in_hand"] for worker in running.status()["router"]["workers"]), "it is running"
            )
            running.process.send_signal(signal.SIGTERM)
            assert running.ended() == exits.OK
        assert gone(running.pids)
