"""What comes in: replies and releases on the lane, models and memory files on the attach socket."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic_ns

from farm.client.session import Session
from farm.client.tickets import Ticket
from shm import client as wire
from shm.endings import Ending, Reason
from shm.errors import FrameRefused, PeerGone, SegmentRefused

log = logging.getLogger("farm")

_OTHER_ROUTER = "another router answered"


def drain(session: Session, ended: Callable[[Ticket], None]) -> None:
    """Take everything that the lane has. `ended` gets each ticket that this ended; `session.lost` may be set after.

    All of it: what lies unread when a request's time is up is an answer that came in time and is lost. But when
    nothing is in flight any more, a lane that would tell again is not looked at in vain (4 us).
    """
    lane, flight = session.lane, session.flight
    receive = lane.receive
    try:
        while (frame := receive()) is not None:
            message = session.decode(frame)
            if isinstance(message, wire.Replies):
                now_ns = monotonic_ns()
                for reply in message.replies:
                    if reply.reason == Reason.STALE_EPOCH and reply.ending == Ending.INVALID:
                        # It stays in flight, to be sent again in the next session.
                        session.lost = _OTHER_ROUTER
                        continue
                    ticket = session.replied(reply, now_ns)
                    if ticket is not None:
                        ended(ticket)
                if not flight and lane.tells_again:
                    break
            elif isinstance(message, wire.Release):
                for request_id in message.ids:
                    session.released(request_id)
            else:
                log.warning("frame_rejected reason=%d message=%r", message.reason, message.message)
                if message.reason == Reason.STALE_EPOCH:
                    session.lost = _OTHER_ROUTER
    except FrameRefused as error:
        session.lost = str(error)
    if lane.heard() and not session.lost:
        hear_attach(session, ended)


def hear_attach(session: Session, ended: Callable[[Ticket], None]) -> None:
    """Take everything that the attach socket has; its end of file is the session's end."""
    try:
        while (message := session.hear()) is not None:
            if isinstance(message, wire.Overflow):
                ticket = session.overflowed(message.id)
                if ticket is not None:
                    ended(ticket)
    except (PeerGone, FrameRefused, SegmentRefused) as error:
        session.lost = session.lost or str(error)
        # What the lane still holds was answered in time: take it before the lane is closed.
        drain(session, ended)
