"""What a test may script: one value for each way that a request can end. They say how; `desk` makes it so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from farm.client.options import NS_PER_MS
from farm.errors import FarmError
from farm.testing.misuse import FakeMisused
from shm.endings import FIRST_REFUSAL, Ending, Reason

Values = Mapping[str, Any]

# The reasons that each refusal comes with; `Reason` groups them by tens.
_REASONS = {
    Ending.SHED: range(Reason.QUEUE_FULL, 20),
    Ending.EXPIRED: range(Reason.TIMEOUT, Reason.CANCELLED),
    Ending.INVALID: range(Reason.UNKNOWN_MODEL, 50),
    Ending.FAILED: range(Reason.WORKER_DIED, 60),
    Ending.CANCELLED: range(Reason.CANCELLED, Reason.CANCELLED + 1),
}


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """Base of all. `after_ms`: how long the farm takes; past the request's deadline the client's timer is first."""

    after_ms: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.after_ms < float("inf"):
            raise FakeMisused(f"after_ms is {self.after_ms!r}; it must be 0 or more")

    @property
    def after_ns(self) -> int:
        return int(self.after_ms * NS_PER_MS)


@dataclass(frozen=True, kw_only=True)
class Answered(Scripted):
    """A Reply. `outputs` None: what the model's function gives. `version` None: the version that was asked."""

    outputs: Values | Any = None
    ending: Ending = Ending.MODEL
    reason: Reason = Reason.OK
    rule: str | None = None
    decision: str | None = None
    version: int | None = None


@dataclass(frozen=True, kw_only=True)
class Refused(Scripted):
    """The router says no, by name."""

    ending: Ending
    reason: Reason
    message: str | None = None
    retry_after_ms: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = _REASONS[self.ending]
        if self.reason not in allowed:
            words = ", ".join(reason.code for reason in Reason if reason in allowed)
            raise FakeMisused(f"{self.ending.name.lower()} has no reason {self.reason.code!r}; it has {words}")


@dataclass(frozen=True, kw_only=True)
class Silent(Scripted):
    """Nothing comes until the client's own timer ends it. `why`: TIMEOUT, UNAVAILABLE or NO_FREE_SLOT."""

    why: Reason = Reason.TIMEOUT


@dataclass(frozen=True, kw_only=True)
class Raised(Scripted):
    """The client raises a copy of this as it is, and no fallback applies: attach was refused, versions differ."""

    error: FarmError


def reason_of(word: str) -> Reason:
    """The reason of a word such as `queue_full`."""
    for reason in Reason:
        if reason.code == word:
            return reason
    raise FakeMisused(f"there is no reason {word!r}; there are {', '.join(reason.code for reason in Reason)}")


def answered(ending: Ending, outputs: Values | Any, reason: str, **more: Any) -> Answered:
    assert ending < FIRST_REFUSAL
    return Answered(ending=ending, outputs=outputs, reason=reason_of(reason), **more)


def refused(ending: Ending, reason: str, **more: Any) -> Refused:
    assert ending >= FIRST_REFUSAL
    return Refused(ending=ending, reason=reason_of(reason), **more)
