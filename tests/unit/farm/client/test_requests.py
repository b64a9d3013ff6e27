"""What goes in comes out: data of every form, through slots, inline and overflow; refusals by name; options."""

from __future__ import annotations

import numpy as np
import pytest

import farm.errors as errors
from shm.endings import Ending, Reason
from tests.fakemodels import model, spec

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def test_answer_is_the_callers_own_copy(client, router):
    first = client.infer("double", {"x": X}, deadline_ms=5000)
    np.testing.assert_array_equal(first.outputs["y"], X * 2)
    first.outputs["y"][...] = 0
    second = client.infer("double", X)
    np.testing.assert_array_equal(second.outputs["y"], X * 2)
    assert (second.source, second.reason, second.model, second.model_version) == ("model", "ok", "double", 1)
    assert second.batch.rows == 2
    assert client.free_slots() == 256


def test_stages_add_up_to_the_total(client):
    stages = client.infer("double", X).stages
    assert list(stages) == [
        "client", "to_router", "queue", "to_worker", "run", "from_worker", "to_client", "total",
    ]  # fmt: skip
    assert stages.pop("total") == sum(stages.values())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4), np.float32),
        X[::-1],
        np.asfortranarray(X),
        X.astype(">f4"),
        np.arange(16, dtype=np.float32).reshape(4, 4)[:, ::-1][::2],
    ],
    ids=["no rows", "reversed", "fortran", "big-endian", "strided"],
)
def test_array_of_any_layout_arrives_right(client, array):
    np.testing.assert_array_equal(client.infer("double", {"x": array}).outputs["y"], array * 2)


def test_python_lists_take_the_declared_dtype(client):
    reply = client.infer("double", [[1, 2, 3, 4]])
    assert reply.outputs["y"].dtype == np.float32
    np.testing.assert_array_equal(reply.outputs["y"], [[2, 4, 6, 8]])


def test_strings_arrive_in_both_directions(client):
    texts = np.array(["grün", "", "日本", "plain"], object)
    assert client.infer("shout", texts).outputs["u"].tolist() == ["GRÜN", "", "日本", "PLAIN"]
    assert client.infer("shout", np.array(["fixed"])).outputs["u"].tolist() == ["FIXED"]


def test_scalar_and_no_input_and_names_that_are_no_identifiers(client):
    assert client.infer("point", np.int64(41)).outputs["y"] == 42
    assert client.infer("nothing", {}).outputs["y"].tolist() == [1, 2]
    inputs = {"a b": np.ones((2, 2)), "k": np.array([1, 2])}
    assert client.infer("sum", inputs).outputs["s"].tolist() == [3, 4]
    assert client.infer("pair", {"a": np.ones((2, 2), np.float32), "k": np.array([1, 2])}).outputs["s"].tolist() == [
        3,
        4,
    ]


def test_optional_input_may_be_given_left_out_or_none(client):
    inputs = {"a b": np.ones((1, 2)), "k": np.array([0])}
    assert client.infer("sum", inputs).outputs["s"].tolist() == [2]
    assert client.infer("sum", {**inputs, "bias": None}).outputs["s"].tolist() == [2]
    assert client.infer("sum", {**inputs, "bias": np.array([0.5])}).outputs["s"].tolist() == [2.5]


def test_request_larger_than_a_slot_takes_a_run_of_them(client, router):
    rows = np.random.default_rng(1).random((5000, 4), np.float32)
    np.testing.assert_array_equal(client.infer("double", rows).outputs["y"], rows * 2)
    assert router.requests[-1].slot_count == 5
    assert client.free_slots() == 256


@pytest.mark.parametrize("count", [3, 5000, 200_000], ids=["inline", "inline, larger", "overflow"])
def test_outputs_of_any_size_arrive(client, count):
    for _ in range(3):
        answer = client.infer("many", np.int64(count)).outputs["y"]
        np.testing.assert_array_equal(answer, np.arange(count, dtype=np.float32))
        answer[:1] = 7  # the caller's own
    assert client.free_slots() == 256


@pytest.mark.parametrize(
    ("name", "inputs", "reason", "words"),
    [
        ("double", {"x": X.astype(np.float64)}, "dtype", "'x': expected float32, got float64"),
        ("double", {"x": X[0]}, "rank", "'x': expected rank 2"),
        ("double", {"x": X[:, :3]}, "dimension", "dimension 1 to be 4, got 3"),
        ("double", {"y": X}, "extra_input", "'y' is unknown; expected x: float32[N, 4]"),
        ("double", {}, "missing_input", "'x' is missing"),
        ("sum", X, "usage", "has 3 inputs"),
        ("pair", {"a": np.ones((2, 2), np.float32), "k": np.array([1])}, "dimension", "number of rows"),
        ("shout", np.array([b"\xff", 3], object), "string", "expected str elements, got int"),
        ("double", np.zeros((300_000, 4), np.float32), "too_large", "do not fit the client's 256 slots"),
        ("double", {"x": object()}, "dtype", "'x'"),
    ],
)
def test_wrong_input_is_refused_by_name_and_costs_no_slot(client, router, name, inputs, reason, words):
    client.infer("double", X)
    with pytest.raises(errors.InvalidRequest) as caught:
        client.infer(name, inputs)
    assert caught.value.reason == reason
    assert words in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert client.free_slots() == 256
    assert len(router.requests) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"deadline_ms": 0}, "deadline_ms is 0; it must be above 0 and at most 86400000"),
        ({"deadline_ms": float("nan")}, "deadline_ms is nan"),
        ({"deadline_ms": 1e12}, "at most 86400000"),
        ({"deadline_ms": "soon"}, "deadline_ms is 'soon'"),
        ({"priority": 8}, "priority is 8; it must be a whole number from 0 to 7"),
        ({"priority": -1}, "priority is -1"),
        ({"key": "k" * 129}, "at most 128 characters"),
        ({"trace": 5}, "trace is 5"),
        ({"fallback": {}}, "fallback"),
        ({"fallback": [1]}, "dict of output name to array"),
    ],
)
def test_option_out_of_range_is_refused_with_its_range(client, options, words):
    with pytest.raises(errors.InvalidRequest, match=None) as caught:
        client.infer("double", X, **options)
    assert words in str(caught.value)


def test_options_reach_the_router_and_come_back(client, router):
    reply = client.infer("double", X, priority=3, key="card 7", trace="t-1", deadline_ms=1000)
    assert (reply.key, reply.trace) == ("card 7", "t-1")
    request = router.requests[0]
    assert (request.priority, request.key, request.trace) == (3, "card 7", "t-1")
    assert request.id == reply.request_id


def test_model_default_deadline_counts_from_the_calls_entry(client, router):
    client.infer("double", X)
    client.infer("double", X, deadline_ms=1000)
    default, named = router.requests
    assert default.deadline_ns - named.deadline_ns > 3_500_000_000


def test_unknown_model_or_version_lists_what_there_is(client):
    with pytest.raises(errors.ModelNotFound, match=r"no model 'dubble' here; there are: double \(version 1, live\)"):
        client.infer("dubble", X)
    with pytest.raises(errors.ModelNotFound, match="no version 9") as caught:
        client.infer("double", X, version=9)
    assert caught.value.reason == "unknown_version"


def test_version_is_a_number_an_alias_or_the_latest_that_is_ready(client, router):
    io = [spec("x", "float32", "N", 4)], [spec("y", "float32", "N", 4)]
    client.infer("double", X)
    router.tell(model(20, "double", *io, version=2, aliases=("canary",)))
    router.tell(model(21, "double", *io, version=3, ready=False))
    router.until(lambda: len([m for m in client.models() if m.name == "double"]) == 3)
    asked = {None: 20, "latest": 20, "live": 0, "canary": 20, 1: 0, 2: 20}
    for version in asked:
        router.mode = "hold"
        client.submit("double", X, version=version)
        kept = client.until(lambda: router.kept)
        assert kept[0][1].model == asked[version], version
        router.reply(kept[0][1].id, ending=Ending.FAILED, reason=Reason.MODEL_ERROR)
        router.kept.clear()
        assert len(client.completions(5)) == 1


@pytest.mark.parametrize(
    ("ending", "reason", "raised"),
    [
        (Ending.SHED, Reason.QUEUE_FULL, errors.Overloaded),
        (Ending.EXPIRED, Reason.TIMEOUT, errors.DeadlineExceeded),
        (Ending.INVALID, Reason.DTYPE, errors.InvalidRequest),
        (Ending.INVALID, Reason.UNKNOWN_VERSION, errors.ModelNotFound),
        (Ending.FAILED, Reason.WORKER_DIED, errors.RunFailed),
        (Ending.CANCELLED, Reason.CANCELLED, errors.Cancelled),
    ],
)
def test_every_refusal_raises_its_own_error(client, router, ending, reason, raised):
    router.mode = "hold"
    ticket = client.submit("double", X, key="k")
    client.until(lambda: router.kept)
    router.reply(ticket.request_id, ending=ending, reason=reason, message="because", retry_after_ms=7)
    (ended,) = client.completions(5)
    with pytest.raises(raised, match="because") as caught:
        ended.result()
    assert (caught.value.reason, caught.value.retry_after_ms) == (reason.code, 7)
    assert (caught.value.request_id, caught.value.model) == (ticket.request_id, "double")
    assert client.free_slots() == 256


@pytest.mark.parametrize(
    ("ending", "reason", "rule", "decision"),
    [
        (Ending.RULES, Reason.TIMEOUT, "amount", "review"),
        (Ending.LAST_GOOD, Reason.GUARD, None, None),
        (Ending.CONSTANT, Reason.QUEUE_FULL, None, None),
    ],
)
def test_answer_that_is_not_the_models_says_who_answered(client, router, ending, reason, rule, decision):
    router.mode = "hold"
    client.submit("double", X)
    client.until(lambda: router.kept)
    router.answer_kept(ending=ending, reason=reason, rule=rule, decision=decision, inline=True)
    reply = client.completions(5)[0].result()
    assert (reply.source, reply.reason) == (ending.name.lower(), reason.code)
    assert (reply.rule, reply.decision) == (rule, decision)
    np.testing.assert_array_equal(reply.outputs["y"], X * 2)
