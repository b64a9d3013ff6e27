"""Endings that the client itself finds: each names what was waited for, and what to do next."""

from __future__ import annotations

from typing import Any

from farm.client.session import Session
from farm.client.tickets import Ticket, Watch
from farm.errors import DeadlineExceeded, FarmError, ModelNotFound, NoFreeSlot, Overloaded, Unavailable
from shm.endings import Reason


def overdue(ticket: Ticket, session: Session | None, why: str) -> FarmError:
    """What an open request lacked when its time was up. `why`: why there is no session, if there is none."""
    within = f"within {(ticket.deadline_ns - ticket.entered_ns) / 1e6:.6g} ms"
    about: dict[str, Any] = {"retryable": True, "request_id": ticket.request_id, "model": ticket.model}
    if session is None:
        message = f"no farm took the request {within}: {why}"
        return Unavailable(message, reason=Reason.UNAVAILABLE.code, **about)
    if ticket.sent_ns:
        message = f"{ticket.model} gave no answer {within}; give it more time, or a fallback"
        return DeadlineExceeded(message, reason=Reason.TIMEOUT.code, **about)
    if session.blocked_ns:
        return Unavailable(f"the router took no frame {within}", reason=Reason.UNAVAILABLE.code, **about)
    if not _is_ready(ticket, session):
        message = f"no worker of {ticket.model} was ready {within}; see `farm status`, or call wait_ready first"
        return Overloaded(message, reason=Reason.NO_WORKER.code, **about)
    return NoFreeSlot(
        f"all {session.slot_count} slots of this client were taken and none came back {within}: make the client with "
        "more slots, or keep fewer requests in flight",
        reason=Reason.NO_FREE_SLOT.code,
        **about,
    )


def no_free_slot(ticket: Ticket, slot_count: int) -> NoFreeSlot:
    """For `submit`, which does not wait."""
    return NoFreeSlot(
        f"all {slot_count} slots of this client are in flight: take completions first, or make the client with more",
        reason=Reason.NO_FREE_SLOT.code,
        retryable=True,
        request_id=ticket.request_id,
        model=ticket.model,
    )


def not_there(watch: Watch, session: Session | None, why: str) -> FarmError:
    """What a condition lacked when its time was up."""
    if session is None:
        return Unavailable(f"no farm answered in time: {why}", reason=Reason.UNAVAILABLE.code, retryable=True)
    return Unavailable(watch.lacking(session), reason=Reason.NO_WORKER.code, retryable=True)


def closed_error() -> FarmError:
    return Unavailable("this client is closed; make a new one", reason=Reason.UNAVAILABLE.code)


def _is_ready(ticket: Ticket, session: Session) -> bool:
    try:
        return session.catalog.find(ticket.model, ticket.version).inputs is not None
    except ModelNotFound:
        return False
