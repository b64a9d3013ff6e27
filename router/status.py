"""What the router tells of itself, for `farm status`: sessions, models, workers, counters, as one JSON object."""

from __future__ import annotations

import msgspec

from router.answering import Answering
from router.crew import Crew
from router.door import Door
from router.killers import Killers
from router.machine import RouterMachine

SESSIONS_TOLD_MAX = 300
"""At some 200 characters each, with the rest, this stays inside one frame of the control lane."""


def status_facts(
    epoch: int,
    turns: int,
    machine: RouterMachine,
    door: Door,
    crew: Crew,
    answering: Answering,
    killers: Killers,
) -> str:
    open_of = {number: len(session.entries) for number, session in machine.ledger.sessions.items()}
    facts = {
        "epoch": epoch,
        "turns": turns,
        "open_requests": machine.ledger.open_count,
        "arena_mib": round(door.arena_bytes / 2**20, 3),
        "reserve_ms": machine.reserve.before_ns / 1e6,
        "poison_known": killers.count(),
        "reasons": machine.reasons(),
        "counters": machine.counters.snapshot(),
        "models": [
            {
                "name": model.config.name,
                "version": model.config.version,
                "index": model.index,
                "ready_workers": machine.roster.ready_count(model.index),
                "queued": model.queue.count,
                "running": sum(len(run.entries) for w in machine.roster.of_model(model.index) for run in w.runs),
                "batched": model.max_batch > 1,
                "rules": model.has_rules,
                **answering.facts(model.index),
                "run_p95_us": model.costs.estimate(1) / 1e3,
            }
            for model in machine.models
        ],
        "workers": [
            {
                "worker": worker.number,
                "pid": crew.links[worker.number].pid if worker.number in crew.links else 0,
                "model": machine.models[worker.model].config.name,
                "state": worker.state.name.lower(),
                # Its run is over for everybody who asked; it is killed unless it says so too.
                "told_to_stop": worker.suspect,
                "runs": worker.run_count,
                "in_hand": len(worker.runs),
                "cpus": crew.links[worker.number].cpus if worker.number in crew.links else (),
            }
            for worker in machine.roster.workers.values()
        ],
        "sessions": [
            {
                "session": client.number,
                "pid": client.pid,
                "uid": client.uid,
                "title": client.title,
                "mib": round(client.reserved_bytes / 2**20, 3),
                "open": open_of.get(client.number, 0),
                "faults": client.faults,
            }
            for client in list(door.clients.values())[:SESSIONS_TOLD_MAX]
        ],
        "session_count": len(door.clients),
    }
    return msgspec.json.encode(facts).decode()
