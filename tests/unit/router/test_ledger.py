"""The ledger: which slots are in flight, from a request's opening to its close; and what a turn's outbox gathers."""

from __future__ import annotations

import pytest

from router import events as ev
from router.ledger import Entry, Ledger, State
from router.outbox import Outbox
from shm.client import Reply
from tests.unit.router.build import NOW, request


def opened(ledger: Ledger, number: int, slot: int, count: int = 1) -> Entry:
    asked = request(number, slot=slot, slot_count=count)
    entry = Entry(ledger.sessions[1], asked, NOW, asked.deadline_ns, 16, None)
    ledger.open(entry)
    ledger.check_invariants()
    return entry


@pytest.fixture
def ledger() -> Ledger:
    made = Ledger(1)
    made.attach(1, 8, 256)
    return made


def is_free(ledger: Ledger, slot: int, count: int = 1) -> bool:
    return ledger.slots_free(ledger.sessions[1], request(99, slot=slot, slot_count=count))


@pytest.mark.parametrize("count", [1, 3])
def test_a_requests_slots_are_in_flight_until_it_is_closed(ledger, count):
    entry = opened(ledger, 1, 2, count)
    assert [slot for slot in range(8) if not is_free(ledger, slot)] == list(range(2, 2 + count))
    ledger.close(entry)
    ledger.check_invariants()
    assert is_free(ledger, 0, 8)
    assert ledger.open_count == 0


@pytest.mark.parametrize(
    ("slot", "count", "free"), [(0, 2, True), (1, 2, False), (3, 1, False), (4, 2, True), (0, 8, False)]
)
def test_a_run_of_slots_is_free_only_if_every_one_is(ledger, slot, count, free):
    opened(ledger, 1, 2, 2)
    assert is_free(ledger, slot, count) is free


def test_the_first_slot_of_an_arena_is_a_slot(ledger):
    opened(ledger, 1, 0)
    assert not is_free(ledger, 0)
    assert not is_free(ledger, 0, 3)
    assert is_free(ledger, 1, 7)


def test_open_requests_are_counted_by_model():
    ledger = Ledger(3)
    ledger.attach(1, 8, 256)
    for number, model in ((1, 2), (2, 0), (3, 2)):
        asked = request(number, slot=number, model=model)
        ledger.open(Entry(ledger.sessions[1], asked, NOW, asked.deadline_ns, 16, None))
    assert (ledger.open_count, ledger.open_of) == (3, [1, 0, 2])
    ledger.close(ledger.sessions[1].entries[3])
    assert (ledger.open_count, ledger.open_of) == (2, [1, 0, 1])


def test_a_session_begins_with_all_of_its_slots_and_nothing_open(ledger):
    session = ledger.attach(7, 5, 128)
    assert (session.number, session.slot_count, session.slot_bytes, session.busy) == (7, 5, 128, bytearray(5))
    assert (session.entries, session.lost, session.tokens, session.tokens_ns) == ({}, False, 0, 0)
    with pytest.raises(AssertionError):
        ledger.attach(7, 5, 128)


def test_a_request_begins_queued_and_nothing_is_held_against_it():
    asked = request(3)
    made = Entry(Ledger(1).attach(1, 8, 256), asked, NOW, NOW + 9, 16, "shape")
    assert (made.model, made.arrived_ns, made.due_ns, made.payload_bytes, made.shape) == (0, NOW, NOW + 9, 16, "shape")
    assert (made.state, made.run, made.killers) == (State.QUEUED, None, ())
    assert (made.dispatched_ns, made.retried, made.alone, made.cancelled) == (0, False, False, False)


def test_nothing_is_closed_twice(ledger):
    entry = opened(ledger, 1, 2)
    ledger.close(entry)
    with pytest.raises(AssertionError):
        ledger.close(entry)


def test_a_session_is_forgotten_only_when_it_is_lost_and_nothing_of_it_is_open(ledger):
    session = ledger.sessions[1]
    entry = opened(ledger, 1, 2)
    with pytest.raises(AssertionError):
        ledger.forget(session)
    session.lost = True
    with pytest.raises(AssertionError):
        ledger.forget(session)
    ledger.close(entry)
    ledger.forget(session)
    assert ledger.sessions == {}


def test_the_outbox_gathers_a_turn_and_a_release_never_comes_before_its_reply():
    outbox = Outbox()
    outbox.release(1, 7)
    outbox.reply(1, Reply(7, 0))
    outbox.act(ev.CloseArena(2))
    outbox.reply(1, Reply(8, 0))
    assert outbox.collect() == [
        ev.CloseArena(2),
        ev.SendReplies(1, [Reply(7, 0), Reply(8, 0)]),
        ev.SendRelease(1, [7]),
    ]
    assert outbox.is_empty()
    assert outbox.collect() == []
