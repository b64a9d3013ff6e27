"""Every open request, who asked, and which slots it holds: the router's only truth about memory.

An `Entry` is opened when a request is taken and closed when two things have happened: it was answered, and no worker
may write to its slots any more. Between them it is *held*. The slots of a session are marked in one bytearray; nothing
in shared memory says who owns a slot.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from shm.client import Request

if TYPE_CHECKING:
    from router.roster import RunInHand


class State(IntEnum):
    """QUEUED → RUNNING → CLOSED, with HELD (answered, its run still going) on the way where time ran out."""

    QUEUED = 0
    RUNNING = 1
    HELD = 2
    CLOSED = 3


class Session:
    """One attached client."""

    __slots__ = ("busy", "denied", "entries", "lost", "number", "slot_bytes", "slot_count", "tokens", "tokens_ns")

    def __init__(self, number: int, slot_count: int, slot_bytes: int, denied: frozenset[int] = frozenset()) -> None:
        self.number = number
        self.denied = denied
        """Models that it may not ask for."""
        self.slot_count = slot_count
        self.slot_bytes = slot_bytes
        self.busy = bytearray(slot_count)
        self.entries: dict[int, Entry] = {}
        self.lost = False
        self.tokens = 0.0
        """Requests that it may still send now, as of `tokens_ns`, where the rate of clients is limited."""
        self.tokens_ns = 0


class Entry:
    """One open request."""

    __slots__ = (
        "alone",
        "arrived_ns",
        "cancelled",
        "dispatched_ns",
        "due_ns",
        "killers",
        "model",
        "payload_bytes",
        "request",
        "retried",
        "run",
        "sequence",
        "session",
        "shape",
        "state",
    )

    def __init__(
        self, session: Session, request: Request, arrived_ns: int, due_ns: int, payload_bytes: int, shape: object
    ) -> None:
        self.session = session
        self.request = request
        self.model = request.model
        self.arrived_ns = arrived_ns
        self.due_ns = due_ns
        self.payload_bytes = payload_bytes
        self.shape = shape
        self.dispatched_ns = 0
        self.state = State.QUEUED
        self.run: RunInHand | None = None
        self.sequence = 0
        """Its place in the queue among those due at the same time."""
        self.killers: tuple[int, ...] = ()
        """The workers that died, or had to be stopped, while they ran it."""
        self.retried = False
        self.alone = False
        self.cancelled = False


class Ledger:
    """Sessions and their open entries, with the one door through which each is opened and closed."""

    __slots__ = ("open_count", "open_of", "sessions")

    def __init__(self, model_count: int) -> None:
        self.sessions: dict[int, Session] = {}
        self.open_count = 0
        self.open_of = [0] * model_count
        """Open entries of each model."""

    def attach(self, number: int, slot_count: int, slot_bytes: int, denied: frozenset[int] = frozenset()) -> Session:
        assert number not in self.sessions
        session = Session(number, slot_count, slot_bytes, denied)
        self.sessions[number] = session
        return session

    def slots_free(self, session: Session, request: Request) -> bool:
        """Whether none of the request's slots is in flight. The range has been checked."""
        if request.slot_count == 1:
            return not session.busy[request.slot]
        return session.busy.find(1, request.slot, request.slot + request.slot_count) < 0

    def open(self, entry: Entry) -> None:
        session, request = entry.session, entry.request
        if request.slot_count == 1:
            session.busy[request.slot] = 1
        else:
            session.busy[request.slot : request.slot + request.slot_count] = b"\x01" * request.slot_count
        session.entries[request.id] = entry
        self.open_count += 1
        self.open_of[request.model] += 1

    def close(self, entry: Entry) -> None:
        """Answered, and no worker may write to its slots."""
        session, request = entry.session, entry.request
        assert entry.state is not State.CLOSED
        entry.state = State.CLOSED
        entry.run = None
        if request.slot_count == 1:
            session.busy[request.slot] = 0
        else:
            session.busy[request.slot : request.slot + request.slot_count] = bytes(request.slot_count)
        del session.entries[request.id]
        self.open_count -= 1
        self.open_of[request.model] -= 1

    def forget(self, session: Session) -> None:
        """The session is over and nothing of it is open."""
        assert session.lost
        assert not session.entries
        del self.sessions[session.number]

    def check_invariants(self) -> None:
        """Every busy slot belongs to exactly one open entry, and every open entry's slots are busy."""
        count = 0
        for session in self.sessions.values():
            marked = bytearray(session.slot_count)
            for number, entry in session.entries.items():
                request = entry.request
                assert number == request.id
                assert entry.state is not State.CLOSED
                assert (entry.run is not None) == (entry.state in (State.RUNNING, State.HELD)), entry.state
                for slot in range(request.slot, request.slot + request.slot_count):
                    assert not marked[slot], "two open entries share a slot"
                    marked[slot] = 1
            assert marked == session.busy, "busy slots and open entries disagree"
            assert not (session.lost and any(e.state is State.QUEUED for e in session.entries.values()))
            count += len(session.entries)
        assert count == self.open_count == sum(self.open_of)
