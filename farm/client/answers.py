"""The end of a request as its caller sees it: a Reply, from the router or from its own fallback, or an error."""

from __future__ import annotations

from typing import Final

from farm.client.reply import Batch, Reply
from farm.client.tickets import Ticket
from farm.errors import RunFailed, refusal
from shm import client as wire
from shm.endings import FIRST_REFUSAL, Ending, Reason, source_of
from shm.errors import TensorRefused
from shm.tensors import Buffer

_SOURCES: Final = {int(ending): source_of(ending) for ending in Ending if ending < FIRST_REFUSAL}
_WORDS: Final = {int(reason): reason.code for reason in Reason}


def conclude(
    ticket: Ticket, reply: wire.Reply, received_ns: int, out: Buffer, slot_bytes: int, overflow: Buffer | None
) -> None:
    """End a ticket with the router's reply. `out`: the client's mapping, in which the ticket's slots lie."""
    if reply.ending >= FIRST_REFUSAL:
        _refuse(ticket, reply, received_ns)
        return
    served = ticket.served
    assert served is not None and served.outputs is not None
    room_bytes = ticket.slot_count * slot_bytes
    try:
        if ticket.leased and ticket.run is not None:
            outputs = served.outputs.view(reply, room_bytes, ticket.run.outputs, overflow)
        else:
            outputs = served.outputs.copy(reply, out, ticket.slot * slot_bytes, room_bytes, overflow)
    except TensorRefused as error:
        ticket.fail(
            RunFailed(
                f"the answer to request {ticket.request_id} cannot be read: {error}",
                reason=Reason.MODEL_ERROR.code,
                request_id=ticket.request_id,
                model=ticket.model,
            )
        )
        return
    options = ticket.options
    ticket.answer(
        Reply(
            outputs=outputs,
            source=_SOURCES[reply.ending],
            reason=_WORDS.get(reply.reason) or str(reply.reason),
            model=ticket.model,
            model_version=served.version,
            request_id=ticket.request_id,
            stages=stages_of(ticket, reply.stages, received_ns),
            rule=reply.rule,
            decision=reply.decision,
            key=options.key,
            trace=options.trace,
            batch=Batch(reply.run, reply.row, reply.run_rows) if reply.run_rows else None,
        )
    )


def _refuse(ticket: Ticket, reply: wire.Reply, received_ns: int) -> None:
    # The router gave up in time what this client's own timer would have found a moment later: the same ending.
    if reply.ending == Ending.EXPIRED and ticket.options.fallback is not None:
        ticket.answer(own_answer(ticket, Reason.TIMEOUT.code, received_ns))
        return
    ticket.fail(
        refusal(
            reply.ending,
            reply.reason,
            reply.message,
            retry_after_ms=reply.retry_after_ms,
            request_id=ticket.request_id,
            model=ticket.model,
        )
    )


def own_answer(ticket: Ticket, reason: str, now_ns: int) -> Reply:
    """The client's own answer, from the request's `fallback`."""
    served = ticket.served
    assert ticket.options.fallback is not None
    return Reply(
        outputs=ticket.options.fallback,
        source="client",
        reason=reason,
        model=ticket.model,
        model_version=served.version if served is not None else 0,
        request_id=ticket.request_id,
        stages=stages_of(ticket, None, now_ns),
        key=ticket.options.key,
        trace=ticket.options.trace,
    )


def stages_of(ticket: Ticket, told: wire.Stages | None, received_ns: int) -> dict[str, int]:
    """Nanoseconds per stage; see `Reply.stages`."""
    entered_ns, sent_ns = ticket.entered_ns, ticket.sent_ns
    if told is None or not sent_ns:
        stages = {"client": sent_ns - entered_ns} if sent_ns else {}
        stages["total"] = received_ns - entered_ns
        return stages
    arrived_ns, queue_ns = told.arrived_ns, told.queue_ns
    if told.run_ns:
        inside_ns = queue_ns + told.to_worker_ns + told.run_ns + told.from_worker_ns
        return {
            "client": sent_ns - entered_ns,
            "to_router": arrived_ns - sent_ns,
            "queue": queue_ns,
            "to_worker": told.to_worker_ns,
            "run": told.run_ns,
            "from_worker": told.from_worker_ns,
            "to_client": received_ns - arrived_ns - inside_ns,
            "total": received_ns - entered_ns,
        }
    return {
        "client": sent_ns - entered_ns,
        "to_router": arrived_ns - sent_ns,
        "queue": queue_ns,
        "to_client": received_ns - arrived_ns - queue_ns,
        "total": received_ns - entered_ns,
    }
