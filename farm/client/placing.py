"""A request into slots: which model, which layout, which run; and out of an old arena into a new one."""

from __future__ import annotations

from typing import Final

from farm.client.inputs import write
from farm.client.runs import LeasedRun
from farm.client.session import Session
from farm.client.tickets import Grant, Ticket
from farm.errors import Unavailable
from shm.endings import Reason

PLACED: Final = 0
NO_ROOM: Final = 1
"""No run of slots is free now."""
NOT_READY: Final = 2
"""The router does not know the model's signature yet."""


def place(session: Session, ticket: Ticket) -> int:
    """Give a request its slots and write its inputs there. Safe from any thread.

    Raises:
        TensorRefused: the inputs do not fit the model or the arena.
        ModelNotFound: there is no such model or version.
        Unavailable: sent again to a router that has another signature for the model.
    """
    if ticket.session is not None:
        return _move(session, ticket)
    if ticket.resent:
        raise _not_again(ticket, "and the answer was on its way")
    catalog = session.catalog
    served = catalog.found.get((ticket.model, ticket.version)) or catalog.find(ticket.model, ticket.version)
    ticket.served = served
    if not ticket.explicit_deadline:
        ticket.deadline_ns = ticket.entered_ns + served.deadline_ns
    if served.inputs is None:
        return NOT_READY
    if isinstance(ticket, Grant):
        return _grant(session, ticket)
    packed = served.inputs.pack(ticket.inputs)
    layout = packed.layout
    slot_count = session.slots_of(layout.payload_bytes, layout.room_bytes)
    slot = session.acquire(slot_count)
    if slot < 0:
        return NO_ROOM
    try:
        write(session.inbound, slot * session.slot_bytes, packed)
    except BaseException:
        session.put_back(slot, slot_count)
        raise
    ticket.slot = slot
    ticket.slot_count = slot_count
    ticket.rows = layout.rows
    ticket.described = layout.described
    ticket.payload_bytes = layout.payload_bytes
    ticket.session = session
    return PLACED


def _grant(session: Session, grant: Grant) -> int:
    assert grant.served is not None and grant.served.inputs is not None
    layout, grant.indexes = grant.served.inputs.lay_out(grant.shapes)
    slot_count = session.slots_of(layout.payload_bytes, layout.room_bytes)
    slot = session.acquire(slot_count)
    if slot < 0:
        return NO_ROOM
    grant.run = LeasedRun(session, slot, slot_count)
    grant.slot = slot
    grant.slot_count = slot_count
    grant.rows = layout.rows
    grant.described = layout.described
    grant.payload_bytes = layout.payload_bytes
    grant.offsets = layout.offsets
    grant.session = session
    grant.granted()
    return PLACED


def _move(session: Session, ticket: Ticket) -> int:
    """The router died: the same request, under the same id, from the old arena into the new one."""
    old, before = ticket.session, ticket.served
    assert old is not None and before is not None
    served = session.catalog.find(before.name, before.version)
    if served.inputs is None:
        return NOT_READY
    if served.model.signature != before.model.signature:
        raise _not_again(ticket, f"and {before.name} version {before.version} now has another signature")
    room_bytes = ticket.slot_count * old.slot_bytes
    slot_count = session.slots_of(ticket.payload_bytes, room_bytes)
    slot = session.acquire(slot_count)
    if slot < 0:
        return NO_ROOM
    source = ticket.slot * old.slot_bytes
    target = slot * session.slot_bytes
    inbound = memoryview(session.inbound)
    inbound[target : target + ticket.payload_bytes] = memoryview(old.inbound)[source : source + ticket.payload_bytes]
    ticket.served = served
    ticket.slot = slot
    ticket.slot_count = slot_count
    ticket.session = session
    if ticket.run is not None:
        # The block owns the run in the old arena; in the new one only the farm, and then the reply's views.
        ticket.run = LeasedRun(session, slot, slot_count)
    return PLACED


def _not_again(ticket: Ticket, why: str) -> Unavailable:
    return Unavailable(
        f"the router was replaced, {why}: make the request anew",
        reason=Reason.UNAVAILABLE.code,
        retryable=True,
        request_id=ticket.request_id,
        model=ticket.model,
    )
