"""What a request gets instead of its model's answer: one table a model, failure by behaviour, tried in order.

A failure is what went wrong in the words of the configuration (`[models.NAME.on]`); several reasons are one failure
(whatever refuses a request for want of room is `shed`). A request that came too late, was cancelled, is wrong in itself
or kills workers gets no second opinion: these reasons have no row.
"""

from __future__ import annotations

from typing import Final

from router.config import Behaviour, ModelConfig, OnConfig
from shm.endings import Reason

FAILURES: Final[tuple[str, ...]] = OnConfig.__struct_fields__

FAILURE_OF: Final[dict[int, str]] = {
    Reason.TIMEOUT: "timeout",
    Reason.PREDICTED_LATE: "predicted_late",
    Reason.QUEUE_FULL: "shed",
    Reason.BYTES_FULL: "shed",
    Reason.IN_FLIGHT_FULL: "shed",
    Reason.RATE: "shed",
    Reason.EVICTED: "shed",
    Reason.DRAINING: "shed",
    Reason.NO_WORKER: "no_worker",
    Reason.WORKER_DIED: "worker_died",
    Reason.MODEL_ERROR: "model_error",
    Reason.OUTPUT_TOO_LARGE: "model_error",
    Reason.GUARD: "guard",
}

RETRIED: Final = frozenset({"worker_died", "model_error", "guard"})
"""Failures of a run, after which another run may do better. The others are a want of time or of room."""

VERSIONED: Final = frozenset({"model_error", "guard"})
"""Failures that another version of the model may not have."""


def table(config: ModelConfig) -> dict[str, tuple[Behaviour, ...]]:
    """Every failure with what is tried, in order; what cannot be had is left out, and `reject` ends every row.

    Not set: rules where time or workers are short and where a guard spoke, a second run after a worker's death, and a
    refusal otherwise. Who is shed for want of room is told so, even where rules could answer: that is how a service
    learns to send less.
    """
    by_rules: tuple[Behaviour, ...] = ("rules",) if config.rules is not None else ()
    usual: dict[str, tuple[Behaviour, ...]] = dict.fromkeys(FAILURES, by_rules)
    usual |= {"shed": (), "model_error": (), "worker_died": ("retry", *by_rules)}
    rows: dict[str, tuple[Behaviour, ...]] = {}
    for failure in FAILURES:
        told: list[Behaviour] | None = getattr(config.on, failure)
        steps = usual[failure] if told is None else tuple(told)
        if "reject" in steps:
            steps = steps[: steps.index("reject")]
        rows[failure] = (*steps, "reject")
    return rows


def refuse(config: ModelConfig) -> str | None:
    """What is wrong with a model's table, None when nothing is; begins with the key."""
    for failure in FAILURES:
        steps: list[Behaviour] | None = getattr(config.on, failure)
        for step in steps or ():
            wrong = _wrong(config, failure, step)
            if wrong is None and steps is not None and steps.count(step) > 1:
                wrong = "is named twice"
            if wrong is None and step == "reject" and steps is not None and steps[-1] != "reject":
                wrong = "ends the row, so it must come last"
            if wrong is None and step == "retry" and steps is not None and steps[0] != "retry":
                wrong = "is another run of the same, so it must come first"
            if wrong is not None:
                return f"on.{failure}: {step!r} {wrong}"
    return None


def _wrong(config: ModelConfig, failure: str, step: Behaviour) -> str | None:
    if step == "rules" and config.rules is None:
        return "needs rules; add a section [models.NAME.rules]"
    if step == "constant" and config.constant is None:
        return "needs an answer; add a section [models.NAME.constant] with every output"
    if step == "retry" and failure not in RETRIED:
        return f"does not help here: only {', '.join(sorted(RETRIED))} can be tried again"
    if step == "previous_version":
        if failure not in VERSIONED:
            return f"does not help here: only {', '.join(sorted(VERSIONED))} may differ between versions"
        return "cannot be had: a farm serves one version of a model"
    return None
