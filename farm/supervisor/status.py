"""What `farm status` shows: the supervisor's processes with their costs, and the router's own account."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from farm.supervisor.door import FACTS_CHARS_MAX
from farm.supervisor.host import process_costs
from farm.supervisor.machine import Machine
from farm.supervisor.spawning import ROUTER, Child


def farm_facts(machine: Machine, children: Mapping[int, Child], now_ns: int) -> dict[str, Any]:
    """What the supervisor knows by itself; `processes` without their costs."""
    return {
        "state": machine.state,
        "ready": machine.ready,
        "epoch": machine.router.epoch,
        "wanted": {model.name: machine.wanted(index) for index, model in enumerate(machine.plan.models)},
        "processes": [_facts_of(machine, child, now_ns) for child in children.values()],
        "restarts": max(machine.router.restarts, 0) + sum(max(seat.restarts, 0) for seat in machine.staff.seats),
        "waiting": [
            {
                "role": "worker",
                "model": machine.plan.models[seat.model].name,
                "last_end": seat.last_end,
                "replaced_in_ms": max(0, seat.due_ns - now_ns) // 1_000_000,
            }
            for seat in machine.staff.seats
            if not seat.alive
        ],
    }


def add_costs(processes: list[dict[str, Any]], started_ns: int, now_ns: int) -> list[dict[str, Any]]:
    """The table with the supervisor first and every process's memory, threads, descriptors and CPU time: about a
    millisecond each, so this is done for a person who looks and not for one who waits."""
    own = {
        "pid": os.getpid(),
        "role": "supervisor",
        "title": "supervisor",
        "state": "running",
        "age_s": _seconds(now_ns - started_ns),
        "restarts": 0,
    }
    return [{**facts, **process_costs(facts["pid"])} for facts in [own, *processes]]


def bounded(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts, in a size that fits an Answer: of very large farms the longest lists lose their end, and say so."""
    while len(msgspec.json.encode(facts)) > FACTS_CHARS_MAX:
        places: list[tuple[int, dict[str, Any], str]] = []
        for owner in (facts, facts.get("router")):
            if isinstance(owner, dict):
                places += [
                    (len(msgspec.json.encode(value)), owner, key)
                    for key, value in owner.items()
                    if isinstance(value, list) and value
                ]
        if not places:
            return {"error": "this farm's status does not fit an answer"}
        _, owner, key = max(places, key=lambda place: place[0])
        kept = owner[key][: len(owner[key]) // 2]
        left_out = f"{key}_left_out"
        owner[left_out] = owner.get(left_out, 0) + len(owner[key]) - len(kept)
        owner[key] = kept
    return facts


def _facts_of(machine: Machine, child: Child, now_ns: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"pid": child.pid, "title": child.title, "age_s": _seconds(now_ns - child.spawned_ns)}
    if child.worker == ROUTER:
        state = "listening" if machine.router.listening_ns is not None else "starting"
        return {**facts, "role": "router", "state": state, "restarts": machine.router.restarts}
    seat = machine.staff.by_worker(child.worker)
    if seat is None:
        return {**facts, "role": "worker", "worker": child.worker, "state": "ending", "restarts": 0}
    return {
        **facts,
        "role": "worker",
        "worker": child.worker,
        "model": machine.plan.models[seat.model].name,
        "state": seat.state.value,
        "cpus": list(seat.cpus),
        "restarts": seat.restarts,
    }


def _seconds(duration_ns: int) -> float:
    return round(duration_ns / 1e9, 1)
