"""The free list against a model that is too simple to be wrong: a set of free slots."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.errors import NoRoom, TooLarge
from shm.slots import SlotPool
from tests.unit.shm.strategies import quick

steps = st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.integers(0, 1000)), max_size=120)


@settings(quick, max_examples=120)
@given(st.integers(1, 24), steps)
def test_pool_gives_and_takes_as_a_set_of_free_slots_would(slot_count: int, steps: list[tuple[bool, int, int]]) -> None:
    pool = SlotPool(slot_count)
    free = set(range(slot_count))
    held: list[tuple[int, int]] = []
    for acquires, count, choice in steps:
        if acquires:
            runs = [s for s in range(slot_count) if {*range(s, s + count)} <= free]
            try:
                slot = pool.acquire(count)
            except NoRoom:
                assert not runs, "there was a run"
                assert count <= slot_count
                continue
            except TooLarge:
                assert count > slot_count
                continue
            assert slot in runs, "a slot was given twice, or is not there"
            free -= {*range(slot, slot + count)}
            held.append((slot, count))
        elif held:
            slot, count = held.pop(choice % len(held))
            pool.release(slot, count)
            free |= {*range(slot, slot + count)}
        assert pool.free_count == len(free)
        # Stale entries are bounded.
        assert len(pool._stack) <= 4 * slot_count + 6
    for slot, count in held:
        pool.release(slot, count)
    assert sorted(pool.acquire(1) for _ in range(slot_count)) == list(range(slot_count))
    with pytest.raises(NoRoom):
        pool.acquire(1)


def test_the_last_slot_put_back_is_the_next_one_used() -> None:
    pool = SlotPool(8)
    taken = [pool.acquire(1) for _ in range(4)]
    pool.release(taken[1], 1)
    pool.release(taken[3], 1)
    assert [pool.acquire(1), pool.acquire(1)] == [taken[3], taken[1]]


def test_a_new_pool_starts_at_the_first_slot() -> None:
    pool = SlotPool(8)
    assert [pool.acquire(1), pool.acquire(1), pool.acquire(3), pool.acquire(1)] == [0, 1, 2, 5]


def test_no_run_is_long_enough_is_another_thing_than_never() -> None:
    pool = SlotPool(4)
    first = pool.acquire(1)
    pool.acquire(2)
    with pytest.raises(NoRoom, match="no 2 consecutive slots are free"):
        pool.acquire(2)
    pool.release(first, 1)
    with pytest.raises(NoRoom, match="2 of 4 are"):
        pool.acquire(2)
    with pytest.raises(TooLarge, match="5 slots were asked for; the arena has 4"):
        pool.acquire(5)


def test_a_slot_that_is_put_back_twice_is_a_fault() -> None:
    pool = SlotPool(4)
    slot = pool.acquire(2)
    pool.release(slot, 2)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(slot, 2)
    with pytest.raises(AssertionError):
        pool.release(3, 2)
    with pytest.raises(AssertionError):
        pool.release(-1, 1)
