"""The words that a test scripts with: `fake.shed()`, `fake.rules(...)` and so on, one for each way to end."""

from __future__ import annotations

from typing import Any

from farm.errors import AttachRefused, ProtocolMismatch
from farm.testing.endings import Raised, Scripted, Silent, Values, answered, refused
from shm.endings import Ending, Reason


class Endings:
    """Base of `FakeFarm`. All take `after_ms`, how long the farm takes to say so; past the deadline the client's own
    timer is first. `outputs` are output name to value, or one array; one number or one row stands for every row.
    `reason` is a word of `shm.endings.Reason`."""

    # answers

    @staticmethod
    def answer(outputs: Values | Any = None, *, after_ms: float = 0.0) -> Scripted:
        """By the model. No outputs: what its function or signature gives; so `answer()` in a script skips one."""
        return answered(Ending.MODEL, outputs, "ok", after_ms=after_ms)

    @staticmethod
    def rules(
        outputs: Values | Any,
        *,
        rule: str | None = None,
        decision: str | None = None,
        reason: str = "timeout",
        after_ms: float = 0.0,
    ) -> Scripted:
        """By rule, since the model's answer could not be there in time."""
        return answered(Ending.RULES, outputs, reason, rule=rule, decision=decision, after_ms=after_ms)

    @staticmethod
    def last_good(outputs: Values | Any, *, reason: str = "timeout", after_ms: float = 0.0) -> Scripted:
        """An earlier answer of the model for the same key."""
        return answered(Ending.LAST_GOOD, outputs, reason, after_ms=after_ms)

    @staticmethod
    def constant(outputs: Values | Any, *, reason: str = "timeout", after_ms: float = 0.0) -> Scripted:
        """The answer that the farm's configuration names."""
        return answered(Ending.CONSTANT, outputs, reason, after_ms=after_ms)

    @staticmethod
    def previous_version(
        outputs: Values | Any, *, version: int, reason: str = "timeout", after_ms: float = 0.0
    ) -> Scripted:
        """By an older version of the model."""
        return answered(Ending.PREVIOUS_VERSION, outputs, reason, version=version, after_ms=after_ms)

    # refusals of the farm

    @staticmethod
    def shed(
        *, reason: str = "queue_full", retry_after_ms: int = 0, message: str | None = None, after_ms: float = 0.0
    ) -> Scripted:
        """`Overloaded`."""
        return refused(Ending.SHED, reason, retry_after_ms=retry_after_ms, message=message, after_ms=after_ms)

    @staticmethod
    def expired(*, reason: str = "timeout", message: str | None = None, after_ms: float = 0.0) -> Scripted:
        """`DeadlineExceeded`, said by the router; a caller's fallback answers instead."""
        return refused(Ending.EXPIRED, reason, message=message, after_ms=after_ms)

    @staticmethod
    def invalid(*, reason: str = "dimension", message: str | None = None, after_ms: float = 0.0) -> Scripted:
        """`InvalidRequest`, or `ModelNotFound` for `unknown_model` and `unknown_version`."""
        return refused(Ending.INVALID, reason, message=message, after_ms=after_ms)

    @staticmethod
    def failed(reason: str = "model_error", *, message: str | None = None, after_ms: float = 0.0) -> Scripted:
        """`RunFailed`: `worker_died`, `poison`, `model_error`, `guard` and their like."""
        return refused(Ending.FAILED, reason, message=message, after_ms=after_ms)

    @staticmethod
    def cancelled(*, message: str | None = None, after_ms: float = 0.0) -> Scripted:
        """`Cancelled`, as when the farm was told so."""
        return refused(Ending.CANCELLED, "cancelled", message=message, after_ms=after_ms)

    # what the client finds itself

    @staticmethod
    def silence() -> Scripted:
        """No answer: `DeadlineExceeded` by the client's timer, or the caller's fallback, source `client`."""
        return Silent()

    @staticmethod
    def unavailable() -> Scripted:
        """No farm takes the request until its deadline: `Unavailable`, or the caller's fallback."""
        return Silent(why=Reason.UNAVAILABLE)

    @staticmethod
    def no_free_slot() -> Scripted:
        """No slot comes back until the deadline: `NoFreeSlot`, or the caller's fallback."""
        return Silent(why=Reason.NO_FREE_SLOT)

    @staticmethod
    def attach_refused(
        *, reason: str = "budget", message: str = "the farm does not let this client in", retry_after_ms: int = 0
    ) -> Scripted:
        """`AttachRefused`, as at a client's first request."""
        again = retry_after_ms > 0
        return Raised(
            error=AttachRefused(message, reason=reason, retryable=again, retry_after_ms=retry_after_ms or None)
        )

    @staticmethod
    def protocol_mismatch(*, message: str = "client and farm speak different protocol versions") -> Scripted:
        """`ProtocolMismatch`, as at a client's first request."""
        return Raised(error=ProtocolMismatch(message, reason=Reason.PROTOCOL.code))
