"""An input that was there when two real workers died: refused for a while, kept for whoever looks into it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import farm
from farm import quarantine
from tests import models
from tests.farmprocess import wait_until

pytestmark = pytest.mark.slow

FAR_MS = 20_000.0
ROW = np.full((1, 64), 0.5, np.float32)


def workers_of(running: farm.Farm) -> list[dict[str, Any]]:
    return [w for w in running.status()["router"]["workers"] if w["state"] == "ready"]


def die_twice(running: farm.Farm, client: farm.Client, row: np.ndarray[Any, Any]) -> farm.FarmError:
    """Ask, and kill each worker that has the request; what it ended with."""
    wait_until(lambda: len(workers_of(running)) == 2, "both workers are ready")
    for worker in workers_of(running):
        os.kill(worker["pid"], signal.SIGSTOP)
    ticket = client.submit("m", row, deadline_ms=FAR_MS)
    for _ in range(2):
        wait_until(lambda: [w for w in workers_of(running) if w["in_hand"]], "a worker has it")
        (having,) = [w for w in workers_of(running) if w["in_hand"]]
        os.kill(having["pid"], signal.SIGKILL)
        wait_until(
            lambda having=having: having["pid"] not in {w["pid"] for w in running.status()["router"]["workers"]},
            "its death was noticed",
        )
    assert client.completions(20) == [ticket]
    with pytest.raises(farm.FarmError) as caught:
        ticket.result()
    return caught.value


def start(folder: Path, **options: Any) -> farm.Farm:
    model = {"path": models.mlp(folder / "m.onnx"), "hang_ms": 60_000}
    options = {"restart_delay_ms": 1, "restart_delay_ms_max": 1, "pin": False} | options
    return farm.Farm({"m": model}, workers=2, runtime_dir=folder / "run", **options)


@pytest.mark.parametrize("lane", ["direct", "zeromq"])
def test_it_is_kept_with_its_facts_and_refused_while_others_pass(tmp_path, lane):
    with start(tmp_path) as running, running.client(lane=lane, title="checkout") as client:
        client.wait_ready(20)
        error = die_twice(running, client, ROW)
        assert (type(error), error.reason) == (farm.RunFailed, "poison")
        wait_until(lambda: len(workers_of(running)) == 2, "the dead were replaced")
        runs = running.status()["router"]["counters"]["runs"]
        with pytest.raises(farm.RunFailed) as caught:
            client.infer("m", ROW, deadline_ms=FAR_MS)
        assert caught.value.reason == "poison"
        with running.client() as other, pytest.raises(farm.RunFailed):
            other.infer("m", ROW, deadline_ms=FAR_MS)
        counters = running.status()["router"]["counters"]
        assert (counters["runs"], counters["quarantined"], counters["quarantine_failed"]) == (runs, 1, 0)
        assert running.status()["router"]["poison_known"] == 1
        nearly = ROW.copy()
        nearly[0, 30] += 0.25
        assert client.infer("m", nearly, deadline_ms=FAR_MS).source == "model"
        assert client.infer("m", np.repeat(ROW, 2, axis=0), deadline_ms=FAR_MS).source == "model"
    # It outlives the farm, and another one starts beside it.
    (case,) = (tmp_path / "run" / "quarantine").iterdir()
    facts, inputs = quarantine.load(case)
    np.testing.assert_array_equal(inputs["x"], ROW)
    assert (facts["model"], facts["path"], facts["rows"]) == ("m", str(tmp_path / "m.onnx"), 1)
    assert len(set(facts["workers"])) == 2
    assert facts["client"] == {"pid": os.getpid(), "title": "checkout"}
    assert onnxruntime.InferenceSession(facts["path"]).run(None, inputs)[0].shape == (1, 1)
    with start(tmp_path) as running, running.client() as client:
        assert client.infer("m", ROW, deadline_ms=FAR_MS).source == "model"
    assert case.exists()


def test_it_is_taken_again_after_its_time(tmp_path):
    with start(tmp_path, poison_ms=300) as running, running.client() as client:
        client.wait_ready(20)
        assert die_twice(running, client, ROW).reason == "poison"

        def answered() -> bool:
            try:
                return client.infer("m", ROW, deadline_ms=FAR_MS).source == "model"
            except farm.RunFailed as error:
                if error.reason != "poison":
                    raise
                return False

        wait_until(answered, "it is taken again")
        assert running.status()["router"]["poison_known"] == 0


@pytest.mark.parametrize(("quarantine_mib", "failed"), [(0, 0), (16, 1)])
def test_where_nothing_can_be_kept_it_is_refused_all_the_same(tmp_path, quarantine_mib, failed):
    """A file where the folder should be stands for a disk that takes nothing."""
    with start(tmp_path, quarantine_mib=quarantine_mib) as running, running.client() as client:
        client.wait_ready(20)
        blocked = tmp_path / "run" / "quarantine"
        blocked.write_text("in the way")
        die_twice(running, client, ROW)
        with pytest.raises(farm.RunFailed) as caught:
            client.infer("m", ROW, deadline_ms=FAR_MS)
        assert caught.value.reason == "poison"
        counters = running.status()["router"]["counters"]
        assert (counters["quarantined"], counters["quarantine_failed"]) == (0, failed)
        blocked.unlink()
