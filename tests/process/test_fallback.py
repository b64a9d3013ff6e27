"""Each failure with each answer of the farm's own, on a real farm: stopped and killed workers, models that raise.

`quick` looks a row up in a table of ten: an index past it raises, and the guard does not let the last rows pass.
`slow` takes 0.1 s for 64 rows, so that it is predicted late.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import farm
from farm import control, exits
from shm.control import ScaleWanted
from tests import models
from tests.farmprocess import Serving, wait_until

pytestmark = pytest.mark.slow

FAILURES = ("timeout", "predicted_late", "shed", "no_worker", "worker_died", "model_error", "guard")
FAR_MS = 20_000.0
KEY = "customer"
KEPT, GUARDED, RAISING = 3, 9, 99
"""Indices that `quick` answers, that its guard refuses, and that it raises for."""
ANSWERS = {"rules": 0.25, "constant": 0.5}
SLOW_ROWS = 64
ATTEMPTS = 5


def table(steps: list[str]) -> dict[str, list[str]]:
    return dict.fromkeys(FAILURES, steps)


def served(folder: Path, steps: list[str], **options: Any) -> farm.Farm:
    """A farm of one worker a model, whose table says `steps` for everything."""
    shared = {
        "on": table(steps),
        "rules": {"rules": [{"name": "always", "answer": {"y": ANSWERS["rules"]}, "decision": "refer"}]},
        "constant": {"y": ANSWERS["constant"]},
        "hang_ms": 60_000,
        "batching": "off",
        "queue_requests": 1,
    }
    return farm.Farm(
        {
            "quick": {
                "path": models.gather(folder / "quick.onnx"),
                "guard": {"ranges": {"y": [0, 2 * GUARDED - 1]}},
                **shared,
            },
            "slow": {"path": models.slow_score(folder / "slow.onnx"), **shared},
        },
        workers=1,
        pin=False,
        prefetch_runs=1,
        **options,
    )


class Case:
    """One farm with one client, and ways to make requests of `quick` fail."""

    def __init__(self, running: farm.Farm, client: farm.Client) -> None:
        self.running = running
        self.client = client

    def warm(self) -> None:
        """Have answers for the key, and whatever a client makes at first use."""
        self.ask_slow(FAR_MS)
        ticket = self.client.submit("quick", np.array([KEPT]), deadline_ms=FAR_MS, key=KEY)
        assert self.client.completions(20) == [ticket]

    def ask(self, index: int = KEPT, deadline_ms: float = FAR_MS, key: str | None = KEY) -> farm.Reply:
        return self.client.infer("quick", np.array([index]), deadline_ms=deadline_ms, key=key)

    def ask_slow(self, deadline_ms: float) -> farm.Reply:
        x = np.full((SLOW_ROWS, 256), 0.5, np.float32)
        return self.client.infer("slow", x, deadline_ms=deadline_ms, key=KEY)

    def worker(self, model: str = "quick") -> dict[str, Any] | None:
        router = self.running.status()["router"]
        found = [w for w in router["workers"] if w["model"] == model and w["state"] == "ready"]
        return found[0] if found else None

    def whole(self) -> None:
        """A worker of each model is ready, and idle."""
        for model in ("quick", "slow"):
            wait_until(lambda model=model: (w := self.worker(model)) and not w["in_hand"], f"{model} is ready")

    def stopped(self) -> int:
        """The pid of `quick`'s worker, which does nothing more."""
        worker = self.worker()
        assert worker is not None
        os.kill(worker["pid"], signal.SIGSTOP)
        return int(worker["pid"])

    def fail(self, failure: str) -> farm.Reply:
        """On a machine that stalls for longer than the router's reserve the client's own timer is first: then again."""
        for _ in range(ATTEMPTS):
            self.whole()
            try:
                reply: farm.Reply = getattr(self, failure)()
                return reply
            except farm.DeadlineExceeded as error:
                if "gave no answer within" not in str(error):
                    raise
        raise AssertionError(f"{ATTEMPTS} times the client's own timer was first")

    # One for each failure: what the request ends with

    def timeout(self) -> farm.Reply:
        pid = self.stopped()
        try:
            return self.ask(deadline_ms=60)
        finally:
            os.kill(pid, signal.SIGCONT)

    def predicted_late(self) -> farm.Reply:
        return self.ask_slow(deadline_ms=20)

    def shed(self) -> farm.Reply:
        pid = self.stopped()
        try:
            # One in the worker's hands, one in the queue.
            tickets = [self.client.submit("quick", np.array([0]), deadline_ms=FAR_MS) for _ in range(2)]
            return self.ask()
        finally:
            os.kill(pid, signal.SIGCONT)
            left = set(tickets)
            while left:
                left -= set(self.client.completions(20))

    def no_worker(self) -> farm.Reply:
        control.ask(self.running.endpoint, ScaleWanted("quick", 0))
        try:
            wait_until(lambda: self.worker() is None, "it is gone")
            return self.ask(deadline_ms=60)
        finally:
            control.ask(self.running.endpoint, ScaleWanted("quick", 1))

    def worker_died(self) -> farm.Reply:
        pid = self.stopped()
        ticket = self.client.submit("quick", np.array([KEPT]), deadline_ms=FAR_MS, key=KEY)
        wait_until(lambda: (w := self.worker()) and w["in_hand"], "it has the request")
        os.kill(pid, signal.SIGKILL)
        assert self.client.completions(20) == [ticket]
        return ticket.result()

    def model_error(self) -> farm.Reply:
        return self.ask(RAISING)

    def guard(self) -> farm.Reply:
        return self.ask(GUARDED)


REASONS = {failure: {failure} for failure in FAILURES} | {"shed": {"queue_full"}}


@pytest.fixture(scope="module", params=["rules", "last_good", "constant"])
def answering(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Case]]:
    with served(tmp_path_factory.mktemp("models"), [request.param]) as running, running.client() as client:
        client.wait_ready(20)
        case = Case(running, client)
        case.warm()
        yield request.param, case


@pytest.fixture(scope="module")
def rejecting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with served(tmp_path_factory.mktemp("models"), ["reject"]) as running, running.client() as client:
        client.wait_ready(20)
        case = Case(running, client)
        case.warm()
        yield case


@pytest.mark.parametrize("failure", FAILURES)
def test_the_configured_answer_comes_instead_and_says_why(answering, failure):
    source, case = answering
    reply = case.fail(failure)
    assert (reply.source, reply.reason in REASONS[failure]) == (source, True), reply
    assert (reply.rule, reply.decision) == (("always", "refer") if source == "rules" else (None, None))
    shape = (SLOW_ROWS, 1) if failure == "predicted_late" else (1, 2)
    assert reply.outputs["y"].shape == shape
    if source != "last_good":
        np.testing.assert_array_equal(reply.outputs["y"], np.full(shape, ANSWERS[source], np.float32))
    elif failure != "predicted_late":
        np.testing.assert_array_equal(reply.outputs["y"], [[2 * KEPT, 2 * KEPT + 1]])


ERRORS = {
    "timeout": (farm.DeadlineExceeded, "timeout"),
    "predicted_late": (farm.Overloaded, "predicted_late"),
    "shed": (farm.Overloaded, "queue_full"),
    "no_worker": (farm.DeadlineExceeded, "no_worker"),
    "worker_died": (farm.RunFailed, "worker_died"),
    "model_error": (farm.RunFailed, "model_error"),
    "guard": (farm.RunFailed, "guard"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_row_that_says_reject_refuses_by_the_reason(rejecting, failure):
    kind, reason = ERRORS[failure]
    with pytest.raises(kind) as caught:
        rejecting.fail(failure)
    assert caught.value.reason == reason
    if kind is farm.Overloaded:
        assert caught.value.retry_after_ms
    if failure == "guard":
        assert "output 'y' is 18 in row 0, place [0]; it must be from 0 to 17" in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (
            "[[models.quick.rules.rules]]\nname = 'low'\nwhen = 'index <'\nanswer = {y = 0.0}\n",
            r"fallback_refused {file}: model quick: rule 'low': Failed to parse .*:1:8: ",
        ),
        (
            "[[models.quick.rules.rules]]\nname = 'low'\nwhen = 'idx < 1'\nanswer = {y = 0.0}\n",
            r"fallback_refused {file}: model quick: rule 'low': 'idx' is no feature; known are index",
        ),
        ("[models.quick.constant]\nz = 1.0\n", r"fallback_refused {file}: model quick: constant: .* lacks output 'y'"),
        ("[models.quick.guard.ranges]\nz = [0, 1]\n", r"load_failed .*guard: ranges\.z: the model has no such output"),
    ],
    ids=["rule_compiles", "rule_fits", "constant_fits", "guard_fits"],
)
def test_a_farm_that_would_have_no_answer_when_time_runs_out_does_not_start(tmp_path, farm_command, rest, said):
    models.gather(tmp_path / "quick.onnx")
    file = tmp_path / "farm.toml"
    file.write_text('[models.quick]\npath = "quick.onnx"\n' + rest)
    with Serving(farm_command, tmp_path / "run", "--config", str(file)) as serving:
        assert serving.ended() == exits.GAVE_UP
    pattern = said.replace("{file}", re.escape(str(file)))
    assert [line for line in serving.lines if re.match(pattern, line)], serving.lines


def test_without_a_last_answer_the_next_step_is_tried(tmp_path):
    with served(tmp_path, ["last_good", "rules"]) as running, running.client() as client:
        client.wait_ready(20)
        case = Case(running, client)
        assert case.ask(RAISING).source == "rules"
        case.ask(KEPT)
        assert case.ask(RAISING).source == "last_good"
        assert case.ask(RAISING, key=None).source == "rules"
        assert case.ask(RAISING, key="somebody else").source == "rules"
        counters = running.status()["router"]["counters"]
        assert (counters["answers_rules"], counters["answers_last_good"]) == (3, 1)


def test_a_failed_run_is_tried_again_where_the_table_says_so_and_then_refused(tmp_path):
    path = models.gather(tmp_path / "quick.onnx")
    on = {"model_error": ["retry", "reject"], "guard": ["retry", "reject"]}
    with farm.Farm({"quick": {"path": path, "on": on}}, workers=1, pin=False) as running, running.client() as client:
        client.wait_ready(20)
        before = running.status()["router"]["counters"]["runs"]
        with pytest.raises(farm.RunFailed) as caught:
            client.infer("quick", np.array([RAISING]), deadline_ms=FAR_MS)
        assert caught.value.reason == "model_error"
        assert running.status()["router"]["counters"]["runs"] == before + 2


def test_how_often_rules_agree_with_the_model_is_in_the_status(tmp_path):
    """Of ten rows the rule is right about those below 5."""
    rules = {
        "sample_every": 1,
        "agree": {"y": {"threshold": 10.0}},
        "rules": [{"name": "low", "answer": {"y": 0.0}}],
    }
    path = models.gather(tmp_path / "quick.onnx")
    with farm.Farm({"quick": {"path": path, "rules": rules}}, workers=1, pin=False) as running:
        with running.client() as client:
            client.wait_ready(20)
            for index in range(10):
                assert client.infer("quick", np.array([index]), deadline_ms=FAR_MS).source == "model"
        router = running.status()["router"]
    (model,) = router["models"]
    assert (model["rules_compared"], model["rules_agree_share"]) == (10, 0.5)
    assert (router["counters"]["rules_compared"], router["counters"]["rules_agreed"]) == (10, 5)
    assert 0 < model["rules_row_us"] < 50
