"""Events and actions in one short line each, for a person who follows a seed."""

from __future__ import annotations

from typing import Any

from router import events as ev
from shm.client import Reply, Request
from shm.endings import Ending, Reason
from tests.sim.scenario import MS, START_NS


def tell(what: Any) -> str:
    match what:
        case ev.RequestsArrived(session, requests):
            return f"client {session} asks: " + ", ".join(map(_request, requests))
        case ev.SendReplies(session, replies):
            return f"to client {session}: " + ", ".join(map(_reply, replies))
        case ev.AnswerInstead(session, _, _, reply):
            return f"to client {session}, by a rule if one holds: {_reply(reply)}"
        case ev.Dispatch(worker, run, not_after_ns, members):
            slots = ", ".join(f"client {m.session} slots {m.slot}+{m.slot_count}" for m in members)
            return f"run {run} to worker {worker}, not after {_ms(not_after_ns)}: {slots}"
        case ev.RunFinished(worker, run, status, started_ns, finished_ns, members):
            word = ("ran", "skipped", "terminated")[status]
            wrong = [Reason(m.reason).code for m in members if m.reason]
            return f"worker {worker} {word} run {run} in {(finished_ns - started_ns) / MS:.3f} ms {wrong or ''}"
        case ev.WorkerReady(worker):
            return f"worker {worker} is ready"
    return str(what)


def _ms(at_ns: int) -> str:
    return f"{(at_ns - START_NS) / MS:.3f}"


def _request(request: Request) -> str:
    shape = "".join(f" {list(tensor.dims)}" for tensor in request.tensors or ())
    slots = f"slots {request.slot}+{request.slot_count}, {request.rows} rows{shape}"
    return f"{request.id} (model {request.model}, by {_ms(request.deadline_ns)}, {slots}, priority {request.priority})"


def _reply(reply: Reply) -> str:
    words = [Ending(reply.ending).name.lower()]
    if reply.reason:
        words.append(Reason(reply.reason).code)
    if reply.held:
        words.append("held")
    return f"{reply.id} {' '.join(words)}"
