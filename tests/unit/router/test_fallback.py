"""Every cell of the table, seven failures by six behaviours: it can be had, or it is refused by name and why."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from router.config import Behaviour, ModelConfig, OnConfig
from router.fallback import FAILURE_OF, FAILURES, table
from router.fallback import refuse as refused
from tests.unit.router.build import ALWAYS

BEHAVIOURS: tuple[Behaviour, ...] = get_args(Behaviour)
RUNS = {"worker_died", "model_error", "guard"}
WHOLE: dict[str, Any] = {"rules": ALWAYS, "constant": {"y": 0.0}}


def config(failure: str, *steps: Behaviour, **model: Any) -> ModelConfig:
    return ModelConfig(name="m", on=OnConfig(**{failure: list(steps)}), **model)


def why_not(failure: str, behaviour: Behaviour) -> str | None:
    """What the documents say of a cell."""
    if behaviour == "previous_version":
        return (
            "cannot be had: a farm serves one version of a model" if failure in RUNS - {"worker_died"} else "does not"
        )
    if behaviour == "retry" and failure not in RUNS:
        return "does not help here"
    return None


def test_there_are_seven_failures_and_six_behaviours():
    assert (len(FAILURES), len(BEHAVIOURS)) == (7, 6)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_cell_can_be_had_or_is_refused_by_name(failure, behaviour):
    said = refused(config(failure, behaviour, **WHOLE))
    why = why_not(failure, behaviour)
    if why is None:
        assert said is None
        expected = ("reject",) if behaviour == "reject" else (behaviour, "reject")
        assert table(config(failure, behaviour, **WHOLE))[failure] == expected
    else:
        assert said is not None
        assert said.startswith(f"on.{failure}: '{behaviour}' {why}")


@pytest.mark.parametrize(("behaviour", "needs"), [("rules", "needs rules"), ("constant", "needs an answer")])
@pytest.mark.parametrize("failure", FAILURES)
def test_what_a_behaviour_rests_on_must_be_there(failure, behaviour, needs):
    said = refused(config(failure, behaviour))
    assert said is not None and said.startswith(f"on.{failure}: '{behaviour}' {needs}")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (("rules", "rules"), "'rules' is named twice"),
        (("reject", "rules"), "'reject' ends the row, so it must come last"),
    ],
)
def test_an_order_that_means_nothing_is_refused(steps, said):
    assert refused(config("guard", *steps, **WHOLE)) == f"on.guard: {said}"


def test_without_a_word_rules_answer_where_time_or_workers_are_short():
    rows = table(ModelConfig(name="m", rules=ALWAYS))
    assert {failure for failure, steps in rows.items() if "rules" in steps} == {
        "timeout", "predicted_late", "no_worker", "worker_died", "guard",
    }  # fmt: skip
    assert rows["worker_died"][0] == "retry"
    assert all(steps[-1] == "reject" for steps in rows.values())


# Words


@pytest.mark.parametrize(
    ("failure", "steps", "model", "said"),
    [
        ("shed", ["rules"], {}, "on.shed: 'rules' needs rules; add a section [models.NAME.rules]"),
        (
            "guard",
            ["constant"],
            {},
            "on.guard: 'constant' needs an answer; add a section [models.NAME.constant] with every output",
        ),
        (
            "timeout",
            ["retry"],
            {},
            "on.timeout: 'retry' does not help here: only guard, model_error, worker_died can be tried again",
        ),
        (
            "shed",
            ["previous_version"],
            {},
            "on.shed: 'previous_version' does not help here: only guard, model_error may differ between versions",
        ),
        (
            "guard",
            ["previous_version"],
            {},
            "on.guard: 'previous_version' cannot be had: a farm serves one version of a model",
        ),
        (
            "guard",
            ["rules", "retry"],
            WHOLE,
            "on.guard: 'retry' is another run of the same, so it must come first",
        ),
        ("guard", ["reject", "last_good"], WHOLE, "on.guard: 'reject' ends the row, so it must come last"),
        ("guard", ["last_good", "rules", "last_good"], WHOLE, "on.guard: 'last_good' is named twice"),
        ("guard", ["reject", "reject"], WHOLE, "on.guard: 'reject' is named twice"),
        ("guard", ["retry", "retry"], WHOLE, "on.guard: 'retry' is named twice"),
    ],
)
def test_what_is_wrong_is_said_with_the_key_the_word_and_why(failure, steps, model, said):
    assert refused(config(failure, *steps, **model)) == said


@pytest.mark.parametrize("steps", [["retry", "last_good", "rules", "constant", "reject"], ["retry"], ["reject"]])
def test_an_order_that_means_something_is_taken(steps):
    assert refused(config("guard", *steps, **WHOLE)) is None


def test_the_first_that_is_wrong_is_told():
    on = OnConfig(shed=["last_good", "rules", "retry"], guard=["rules"])
    assert refused(ModelConfig(name="m", on=on)) == ("on.shed: 'rules' needs rules; add a section [models.NAME.rules]")


# The table


def test_a_row_ends_where_it_says_reject():
    rows = table(config("guard", "rules", "reject", **WHOLE))
    assert rows["guard"] == ("rules", "reject")


def test_what_a_model_says_of_one_failure_changes_no_other():
    usual, told = table(ModelConfig(name="m", rules=ALWAYS)), table(config("guard", "last_good", rules=ALWAYS))
    assert told["guard"] == ("last_good", "reject")
    assert {f: row for f, row in told.items() if f != "guard"} == {f: row for f, row in usual.items() if f != "guard"}


def test_without_rules_nothing_answers_but_a_death_is_tried_again():
    assert table(ModelConfig(name="m")) == {
        failure: ("retry", "reject") if failure == "worker_died" else ("reject",) for failure in FAILURES
    }


def test_with_rules_the_whole_table_is_as_documented():
    assert table(ModelConfig(name="m", rules=ALWAYS)) == {
        "timeout": ("rules", "reject"),
        "predicted_late": ("rules", "reject"),
        "shed": ("reject",),
        "no_worker": ("rules", "reject"),
        "worker_died": ("retry", "rules", "reject"),
        "model_error": ("reject",),
        "guard": ("rules", "reject"),
    }


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_has_a_reason_and_every_reason_a_failure(failure):
    assert failure in FAILURE_OF.values()
    assert set(FAILURE_OF.values()) == set(FAILURES)
