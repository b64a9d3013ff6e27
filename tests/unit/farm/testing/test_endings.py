"""Each way to end, as a service under test meets it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import farm
from farm.testing import FakeFarm, FakeMisused
from shm.endings import Reason

SIGNATURE = {"inputs": {"x": ("float32", ["N", 4])}, "outputs": {"y": ("float32", ["N", 1]), "label": ("str", ["N"])}}
ROWS = np.ones((3, 4), np.float32)
SOME = {"y": 0.5, "label": "odd"}
FALLBACK = {"y": [[9.0]]}


@pytest.fixture
def fake():
    with FakeFarm({"m": SIGNATURE}) as fake:
        yield fake


@pytest.fixture
def client(fake):
    with fake.client() as client:
        yield client


def raised(client, kind, **options):
    with pytest.raises(kind) as caught:
        client.infer("m", ROWS, **options)
    error = caught.value
    assert type(error) is kind
    assert (error.model, error.request_id) == ("m", 1)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert again.__dict__ == error.__dict__ and str(again) == str(error)
    return error


@pytest.mark.parametrize(
    ("ending", "kind", "reason", "retryable"),
    [
        (FakeFarm.shed(), farm.Overloaded, "queue_full", True),
        (FakeFarm.shed(reason="draining"), farm.Overloaded, "draining", True),
        (FakeFarm.expired(), farm.DeadlineExceeded, "timeout", True),
        (FakeFarm.expired(reason="expired_on_arrival"), farm.DeadlineExceeded, "expired_on_arrival", True),
        (FakeFarm.invalid(reason="slot_busy"), farm.InvalidRequest, "slot_busy", False),
        (FakeFarm.invalid(reason="unknown_version"), farm.ModelNotFound, "unknown_version", False),
        (FakeFarm.failed("worker_died"), farm.RunFailed, "worker_died", True),
        (FakeFarm.failed("poison"), farm.RunFailed, "poison", False),
        (FakeFarm.failed(), farm.RunFailed, "model_error", False),
        (FakeFarm.cancelled(), farm.Cancelled, "cancelled", False),
        (FakeFarm.silence(), farm.DeadlineExceeded, "timeout", True),
        (FakeFarm.unavailable(), farm.Unavailable, "unavailable", True),
        (FakeFarm.no_free_slot(), farm.NoFreeSlot, "no_free_slot", True),
        (FakeFarm.attach_refused(), farm.AttachRefused, "budget", False),
        (FakeFarm.protocol_mismatch(), farm.ProtocolMismatch, "protocol", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusal_raises_its_error(fake, client, ending, kind, reason, retryable):
    fake.script("m", ending)
    error = raised(client, kind)
    assert (error.reason, error.retryable) == (reason, retryable)
    assert Reason[error.reason.upper()]
    assert client.infer("m", ROWS).source == "model"


def test_shed_says_when_to_come_back(fake, client):
    fake.script("m", fake.shed(retry_after_ms=5, message="later"))
    error = raised(client, farm.Overloaded)
    assert (error.retry_after_ms, str(error)) == (5, "later")


def test_refused_attach_says_when_to_come_back(fake, client):
    fake.script("m", fake.attach_refused(reason="clients_full", retry_after_ms=100))
    error = raised(client, farm.AttachRefused)
    assert (error.reason, error.retryable, error.retry_after_ms) == ("clients_full", True, 100)


@pytest.mark.parametrize(
    ("ending", "source", "reason"),
    [
        (FakeFarm.answer(SOME), "model", "ok"),
        (FakeFarm.rules(SOME), "rules", "timeout"),
        (FakeFarm.rules(SOME, reason="predicted_late"), "rules", "predicted_late"),
        (FakeFarm.last_good(SOME), "last_good", "timeout"),
        (FakeFarm.constant(SOME, reason="no_worker"), "constant", "no_worker"),
        (FakeFarm.previous_version(SOME, version=7), "previous_version", "timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_answer_says_who_gave_it_and_why(fake, client, ending, source, reason):
    fake.script("m", ending)
    reply = client.infer("m", ROWS, key="k", trace="t")
    assert (reply.source, reply.reason, reply.key, reply.trace) == (source, reason, "k", "t")
    assert reply.model_version == (7 if source == "previous_version" else 1)
    assert (reply.batch is not None) == (source == "model")
    assert reply.outputs["y"].tolist() == [[0.5]] * 3
    assert reply.outputs["y"].dtype == np.float32
    assert reply.outputs["label"].tolist() == ["odd"] * 3


def test_rules_name_rule_and_decision(fake, client):
    fake.script("m", fake.rules(SOME, rule="big", decision="refer"))
    reply = client.infer("m", ROWS)
    assert (reply.rule, reply.decision) == ("big", "refer")


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (FakeFarm.silence(), "timeout"),
        (FakeFarm.expired(), "timeout"),
        (FakeFarm.answer(after_ms=5000), "timeout"),
        (FakeFarm.no_free_slot(), "timeout"),
        (FakeFarm.unavailable(), "unavailable"),
    ],
    ids=["silence", "expired", "late", "no_free_slot", "unavailable"],
)
def test_fallback_answers_where_the_farm_does_not(fake, client, ending, reason):
    fake.script("m", ending)
    reply = client.infer("m", ROWS, fallback=FALLBACK)
    assert (reply.source, reply.reason) == ("client", reason)
    assert reply.outputs["y"].tolist() == [[9.0]]


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (FakeFarm.shed(), farm.Overloaded),
        (FakeFarm.failed(), farm.RunFailed),
        (FakeFarm.invalid(), farm.InvalidRequest),
        (FakeFarm.attach_refused(), farm.AttachRefused),
    ],
    ids=["shed", "failed", "invalid", "attach_refused"],
)
def test_fallback_hides_no_other_ending(fake, client, ending, kind):
    fake.script("m", ending)
    raised(client, kind, fallback=FALLBACK)


def test_script_is_used_in_order_and_then_the_model_answers_again(fake, client):
    fake.script("m", fake.failed(), fake.answer())
    fake.script("m", fake.rules(SOME))
    raised(client, farm.RunFailed)
    assert [client.infer("m", ROWS).source for _ in range(3)] == ["model", "rules", "model"]
    assert fake.unused == {}


def test_what_no_request_met_is_unused(fake, client):
    fake.script("m", fake.answer(), fake.silence())
    client.infer("m", ROWS)
    assert fake.unused == {"m": [fake.silence()]}


def test_always_stands_behind_the_script_until_it_is_taken_back(fake, client):
    fake.always("m", fake.constant(SOME))
    fake.script("m", fake.rules(SOME))
    assert [client.infer("m", ROWS).source for _ in range(3)] == ["rules", "constant", "constant"]
    fake.always("m", None)
    assert client.infer("m", ROWS).source == "model"


def test_stopped_farm_is_unavailable_and_comes_back(fake, client):
    client.wait_ready()
    fake.stop()
    assert "stopped" in str(raised(client, farm.Unavailable, deadline_ms=5))
    with pytest.raises(farm.Unavailable):
        client.models()
    with pytest.raises(farm.Unavailable):
        client.wait_ready(timeout=1)
    assert client.infer("m", ROWS, fallback=FALLBACK).reason == "unavailable"
    fake.start()
    assert client.infer("m", ROWS).source == "model"


def test_model_without_workers_is_overloaded_and_not_ready(fake, client):
    fake.set_ready("m", False)
    assert raised(client, farm.Overloaded).reason == "no_worker"
    with pytest.raises(farm.Unavailable, match=r"not ready within 2 s: m \(version 1\)"):
        client.wait_ready(timeout=2)
    assert client.models()[0].signature is None
    fake.set_ready("m")
    client.wait_ready()
    assert client.infer("m", ROWS).source == "model"


@pytest.mark.parametrize(
    ("misuse", "says"),
    [
        (lambda fake: fake.script("n", fake.silence()), r"no model 'n'; it has \['m'\]"),
        (lambda fake: fake.always("n", None), "no model 'n'"),
        (lambda fake: fake.script("m", "shed"), "'shed' is no ending"),
        (lambda fake: fake.script("m", fake.answer({"y": 1})), r"answers with \['y'\]; its signature has the outputs"),
        (lambda fake: fake.script("m", fake.answer(1.0)), "one array, but it has 2 outputs"),
        (lambda fake: fake.shed(reason="full"), "no reason 'full'; there are ok, queue_full"),
        (lambda fake: fake.shed(reason="timeout"), "shed has no reason 'timeout'; it has queue_full"),
        (lambda fake: fake.failed("dtype"), "failed has no reason 'dtype'; it has worker_died"),
        (lambda fake: fake.answer(after_ms=-1), "after_ms is -1"),
    ],
)
def test_script_that_no_farm_could_follow_is_refused_at_once(fake, misuse, says):
    with pytest.raises(FakeMisused, match=says):
        misuse(fake)
    assert fake.unused == {}


def test_misuse_is_nothing_that_a_service_catches():
    assert not issubclass(FakeMisused, (farm.FarmError, ValueError))


def test_error_of_a_function_is_the_requests_ending(fake, client):
    def refuses(inputs):
        raise farm.RunFailed("the guard said no", reason="guard")

    fake.add("m", refuses, signature=SIGNATURE)
    assert raised(client, farm.RunFailed).reason == "guard"


def test_other_exceptions_of_a_function_reach_the_test_and_leave_nothing_behind(fake):
    def broken(inputs):
        raise KeyError("z")

    fake.add("m", broken, signature=SIGNATURE)
    with fake.client(slot_count=1) as client:
        for _ in range(3):
            with pytest.raises(KeyError):
                client.infer("m", ROWS)
            with pytest.raises(KeyError):
                client.submit("m", ROWS)
        assert client.completions() == []
