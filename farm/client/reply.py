"""What a service gets: the outputs, and an honest account of who answered, why, and where the time went."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt


class Batch(NamedTuple):
    """The run that answered: its number, this request's first row in it, and all its rows.

    With the other requests of the run it repeats the answer bit for bit in one process.
    """

    run: int
    row: int
    rows: int


class Reply:
    """One answer.

    Attributes:
        outputs: output name to array; the caller's own copy, except from a lease, where they are read-only views.
        source: `model`, `rules`, `last_good`, `constant`, `previous_version`, or `client` (its own `fallback`).
        reason: why that source answered: `ok` for the model, else a word such as `timeout`.
        rule, decision: which rule answered, and the decision that it names; None otherwise.
        model, model_version: who was asked.
        stages: nanoseconds per stage: `client` (entry to send), `to_router`, `queue`, `to_worker`, `run`,
            `from_worker`, `to_client`, and `total`. A stage that did not happen is not there.
        request_id, key, trace: the request's.
        batch: which run answered, None when no run did.
    """

    __slots__ = (
        "batch",
        "decision",
        "key",
        "model",
        "model_version",
        "outputs",
        "reason",
        "request_id",
        "rule",
        "source",
        "stages",
        "trace",
    )

    def __init__(
        self,
        *,
        outputs: dict[str, npt.NDArray[Any]],
        source: str,
        reason: str,
        model: str,
        model_version: int,
        request_id: int,
        stages: dict[str, int],
        rule: str | None = None,
        decision: str | None = None,
        key: str | None = None,
        trace: str | None = None,
        batch: Batch | None = None,
    ) -> None:
        self.outputs = outputs
        self.source = source
        self.reason = reason
        self.rule = rule
        self.decision = decision
        self.model = model
        self.model_version = model_version
        self.request_id = request_id
        self.stages = stages
        self.key = key
        self.trace = trace
        self.batch = batch

    def __repr__(self) -> str:
        return f"Reply(#{self.request_id} {self.model} v{self.model_version} by {self.source}, reason {self.reason})"
