"""The slot protocol as a small model, searched exhaustively: who may write to a slot, and when it is given back.

Two clients with one slot each; two workers with up to two runs in hand each; every interleaving of: ask, dispatch, a
run's end and the word of it, a deadline (the reply says held), a client's death, SIGKILL sent, a worker lost (its
socket ended), a worker gone (its process ended), and a new request in a slot that is free again. A worker writes to
the slot of its run from dispatch on until it has ended the run or is gone; in between it may be killed or lost and
write all the same.

`Design.RIGHT` is the design: the reply gives the slot back only if no worker has it, else the word of the run's end or
the worker's being gone does. The two others are the shortcuts that tempt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple


class Design(IntEnum):
    RIGHT = 0
    FREED_ON_TIMEOUT = 1
    FREED_ON_SIGKILL = 2


IN_HAND_MAX = 2


class Slot(IntEnum):
    FREE = 0
    QUEUED = 1
    RUNNING = 2
    HELD = 3
    """Answered, and the run still going."""
    CLOSED = 4
    """Its client is dead and its memory has been taken back."""


class Worker(IntEnum):
    READY = 0
    KILLED = 1
    """SIGKILL is sent; the kernel has not acted yet."""
    LOST = 2
    """Its socket has ended."""
    GONE = 3


class World(NamedTuple):
    """slots: state of each. runs: the slots of the runs that the router takes each worker to have in hand, in order.
    writes: slots that each worker writes to, one for each run that it was sent and has not ended. said: how many words
    of a run's end are in the worker's socket. dead: whether each slot's client has died."""

    slots: tuple[Slot, ...]
    runs: tuple[tuple[int, ...], ...]
    writes: tuple[tuple[int, ...], ...]
    said: tuple[int, ...]
    workers: tuple[Worker, ...]
    dead: tuple[bool, ...]


class Violation(NamedTuple):
    rule: str
    path: tuple[str, ...]


def start(slots: int = 2, workers: int = 2) -> World:
    return World(
        (Slot.FREE,) * slots,
        ((),) * workers,
        ((),) * workers,
        (0,) * workers,
        (Worker.READY,) * workers,
        (False,) * slots,
    )


def steps(world: World, design: Design) -> Iterator[tuple[str, World]]:
    """Everything that can happen next."""
    yield from _client_steps(world)
    for worker in range(len(world.workers)):
        yield from _worker_steps(world, worker)
        yield from _router_steps(world, worker, design)


def _client_steps(world: World) -> Iterator[tuple[str, World]]:
    for slot, state in enumerate(world.slots):
        if state is Slot.FREE and not world.dead[slot]:
            yield f"ask in {slot}", _slot(world, slot, Slot.QUEUED)
        if state is Slot.QUEUED:
            yield f"deadline of {slot} in the queue", _slot(world, slot, Slot.FREE)
        if not world.dead[slot]:
            died = world._replace(dead=_with(world.dead, slot, True))
            # What is queued is dropped; the memory goes once no run has it.
            if state in (Slot.QUEUED, Slot.FREE):
                died = _slot(died, slot, Slot.CLOSED)
            elif state is Slot.RUNNING:
                died = _slot(died, slot, Slot.HELD)
            yield f"client of {slot} dies", died


def _worker_steps(world: World, worker: int) -> Iterator[tuple[str, World]]:
    """What it does by itself. Killed and lost ones still run until the kernel has ended them."""
    state = world.workers[worker]
    if world.writes[worker] and state is not Worker.GONE:
        ended = world._replace(writes=_with(world.writes, worker, world.writes[worker][1:]))
        yield (
            f"worker {worker} ends its run and says so",
            ended._replace(said=_with(world.said, worker, world.said[worker] + 1)),
        )
    if state in (Worker.READY, Worker.KILLED):
        yield f"socket of worker {worker} ends", world._replace(workers=_with(world.workers, worker, Worker.LOST))


def _router_steps(world: World, worker: int, design: Design) -> Iterator[tuple[str, World]]:
    state, runs = world.workers[worker], world.runs[worker]
    if state is Worker.READY and len(runs) < IN_HAND_MAX:
        for slot, has in enumerate(world.slots):
            if has is Slot.QUEUED:
                sent = world._replace(
                    runs=_with(world.runs, worker, (*runs, slot)),
                    writes=_with(world.writes, worker, (*world.writes[worker], slot)),
                )
                yield f"dispatch {slot} to worker {worker}", _slot(sent, slot, Slot.RUNNING)
    for slot in runs:
        if world.slots[slot] is Slot.RUNNING:
            if design is Design.FREED_ON_TIMEOUT:
                yield f"deadline of {slot} in a run", _over(world, worker, (slot,), rerun=False)
            else:
                yield f"deadline of {slot} in a run", _slot(world, slot, Slot.HELD)
    if runs and world.said[worker] and state in (Worker.READY, Worker.KILLED):
        heard = world._replace(said=_with(world.said, worker, world.said[worker] - 1))
        yield f"word of worker {worker} that {runs[0]} ended", _over(heard, worker, runs[:1], rerun=False)
    if state is Worker.READY and any(world.slots[slot] is Slot.HELD for slot in runs):
        killed = world._replace(workers=_with(world.workers, worker, Worker.KILLED))
        if design is Design.FREED_ON_SIGKILL:
            killed = _over(killed, worker, runs, rerun=True)
        yield f"SIGKILL to worker {worker}", killed
    if state is Worker.LOST:
        # The last word that a worker sent may be lost with it; a run that had ended is then run again.
        gone = world._replace(
            workers=_with(world.workers, worker, Worker.GONE),
            writes=_with(world.writes, worker, ()),
            said=_with(world.said, worker, 0),
        )
        yield f"worker {worker} is gone", _over(gone, worker, runs, rerun=True)
    if state is Worker.GONE:
        yield f"worker {worker} is replaced", world._replace(workers=_with(world.workers, worker, Worker.READY))


def _over(world: World, worker: int, ended: tuple[int, ...], *, rerun: bool) -> World:
    """The worker has these runs no more: answer or run again who waits, give back what was held."""
    kept = tuple(slot for slot in world.runs[worker] if slot not in ended)
    world = world._replace(runs=_with(world.runs, worker, kept))
    for slot in ended:
        if world.slots[slot] is Slot.RUNNING and rerun:
            world = _slot(world, slot, Slot.QUEUED)
        else:
            world = _slot(world, slot, Slot.CLOSED if world.dead[slot] else Slot.FREE)
    return world


def broken(world: World) -> str | None:
    """The rule that this world breaks, None where all is well."""
    writers = [slot for slots in world.writes for slot in slots]
    if len(writers) != len(set(writers)):
        return "a slot is written by two"
    for slot in writers:
        if world.slots[slot] in (Slot.FREE, Slot.QUEUED):
            return "a slot that the client may write is written by a worker"
        if world.slots[slot] is Slot.CLOSED:
            return "memory that was taken back is written"
    return None


def search(design: Design, slots: int = 2, workers: int = 2) -> tuple[dict[World, list[World]], Violation | None]:
    """Breadth first through every world that can be reached: the shortest way to a violation, if there is one.

    Returns: successors of each world that was looked at, and the violation.
    """
    first = start(slots, workers)
    reached: dict[World, tuple[World | None, str]] = {first: (None, "")}
    successors: dict[World, list[World]] = {}
    pending = deque([first])
    while pending:
        world = pending.popleft()
        rule = broken(world)
        if rule is not None:
            return successors, Violation(rule, _path(reached, world))
        successors[world] = following = []
        for name, after in steps(world, design):
            following.append(after)
            if after not in reached:
                reached[after] = (world, name)
                pending.append(after)
    return successors, None


def never_free(successors: dict[World, list[World]]) -> list[World]:
    """Worlds from which a slot of a living client can never become free again, or a dead one's memory never returns."""
    came_from: dict[World, list[World]] = {world: [] for world in successors}
    for world, following in successors.items():
        for after in following:
            came_from[after].append(world)
    stuck: set[World] = set()
    for slot in range(len(next(iter(successors)).slots)):
        good = {world for world in successors if world.slots[slot] in (Slot.FREE, Slot.CLOSED)}
        pending = deque(good)
        while pending:
            for before in came_from[pending.popleft()]:
                if before not in good:
                    good.add(before)
                    pending.append(before)
        stuck |= successors.keys() - good
    return list(stuck)


def _path(reached: dict[World, tuple[World | None, str]], world: World) -> tuple[str, ...]:
    names = []
    here: World | None = world
    while here is not None:
        here, name = reached[here]
        if name:
            names.append(name)
    return tuple(reversed(names))


def _with(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


def _slot(world: World, slot: int, state: Slot) -> World:
    return world._replace(slots=_with(world.slots, slot, state))
