"""Every cell of the table, seven failures by six behaviours: it can be had, or it is refused by name and why."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from router.config import Behaviour, ModelConfig, OnConfig
from router.fallback import FAILURES, table
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
