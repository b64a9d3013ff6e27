"""Every error a service can get from the farm. Each says what to do next and carries what a program needs."""

from __future__ import annotations

from typing import Any

from shm.endings import Ending, Reason


class FarmError(Exception):
    """Base of all.

    Attributes:
        reason: a word such as `queue_full`; the full list is in docs/PROTOCOL.md.
        retryable: whether the same request may do better later.
        retry_after_ms: how long to wait before that, None when unknown.
        request_id, model: which request, where there is one.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        retryable: bool = False,
        retry_after_ms: float | None = None,
        request_id: int | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable
        self.retry_after_ms = retry_after_ms
        self.request_id = request_id
        self.model = model

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own pickling calls the class with args alone and would lose the keywords.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[FarmError], args: tuple[Any, ...], state: dict[str, Any]) -> FarmError:
    error = kind(*args)
    error.__dict__.update(state)
    return error


class InvalidRequest(FarmError, ValueError):
    """The request is wrong in itself; sending it again will not help."""


class ModelNotFound(InvalidRequest):
    """No such model or version here; the message lists those there are."""


class Overloaded(FarmError):
    """Shed: it could not have been answered in time. Come back after `retry_after_ms`, or do without."""


class DeadlineExceeded(FarmError, TimeoutError):
    """No answer by the deadline, and no fallback was there to give one."""


class RunFailed(FarmError):
    """The model's run failed: `worker_died`, `poison`, `model_error`, `output_too_large` or `guard`."""


class NoFreeSlot(FarmError):
    """All slots of this client are taken by requests in flight. More slots, or fewer requests at a time."""


class AttachRefused(FarmError):
    """The farm is there and does not let this client in; the message has the figures."""


class Unavailable(FarmError, ConnectionError):
    """No farm answers: none was found, it stopped, or it was replaced while this request had no time left."""


class ProtocolMismatch(FarmError):
    """Client and farm speak different protocol versions; the message names both."""


class ConfigError(FarmError, ValueError):
    """A configuration that cannot be used: file, key, value and what is allowed."""


class Cancelled(FarmError):
    """The caller cancelled this request."""


_REFUSALS: dict[int, tuple[type[FarmError], bool]] = {
    Ending.SHED: (Overloaded, True),
    Ending.EXPIRED: (DeadlineExceeded, True),
    Ending.INVALID: (InvalidRequest, False),
    Ending.FAILED: (RunFailed, False),
    Ending.CANCELLED: (Cancelled, False),
}


_NEXT: dict[int, str] = {
    Ending.SHED: "come back later, allow more time, or give the model more workers",
    Ending.EXPIRED: "give it more time, a rule or a fallback",
    Ending.INVALID: "mend the request: sending it again will not help",
    Ending.FAILED: "look at the input and the model, or do without",
    Ending.CANCELLED: "ask again if it is still wanted",
}
"""What to do next, where the farm itself does not say more."""


def refusal(
    ending: int, reason: int, message: str | None, *, retry_after_ms: int = 0, request_id: int, model: str
) -> FarmError:
    """The error for an ending that is no answer."""
    kind, retryable = _REFUSALS[ending]
    if reason in (Reason.UNKNOWN_MODEL, Reason.UNKNOWN_VERSION):
        kind = ModelNotFound
    ended = f"the request to {model} ended {Ending(ending).name.lower()} ({Reason(reason).code})"
    return kind(
        message or f"{ended}; {_NEXT[ending]}",
        reason=Reason(reason).code,
        retryable=retryable or reason == Reason.WORKER_DIED,
        retry_after_ms=retry_after_ms or None,
        request_id=request_id,
        model=model,
    )
