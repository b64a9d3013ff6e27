"""Answers kept by key: how many, how large together, and who goes first."""

from __future__ import annotations

from router.answers import Made
from router.config import LastGoodConfig
from router.last_good import ENTRY_BYTES, LastGood

USER = 1000


def made(payload_bytes: int = 4) -> Made:
    return (), bytes(payload_bytes)


def filled(count: int, **config: int) -> LastGood:
    kept = LastGood(LastGoodConfig(**config))
    for number in range(count):
        kept.keep((USER, str(number)), 1, made(), number)
    return kept


def test_the_one_that_was_used_longest_ago_goes_first():
    kept = filled(3, keys_max=3)
    assert kept.find((USER, "0"), 1, 10) is not None
    kept.keep((USER, "3"), 1, made(), 11)
    assert [kept.find((USER, str(n)), 1, 12) is not None for n in range(4)] == [True, False, True, True]


def test_bytes_are_bounded_with_what_an_entry_takes_beside_its_outputs():
    kept = LastGood(LastGoodConfig(mib_max=1))
    for number in range(100):
        kept.keep((USER, str(number)), 1, made(20_000), number)
    assert len(kept) == 2**20 // (20_000 + ENTRY_BYTES + 2)
    assert kept.bytes_kept <= 2**20
    assert kept.find((USER, "99"), 1, 100) is not None


def test_a_new_answer_takes_the_place_of_the_old_one():
    kept = filled(1)
    bytes_kept = kept.bytes_kept
    kept.keep((USER, "0"), 2, made(8), 5)
    assert (len(kept), kept.bytes_kept) == (1, bytes_kept + 4)
    assert kept.find((USER, "0"), 1, 5) is None
    assert kept.find((USER, "0"), 2, 5) == made(8)


def test_what_is_too_old_is_dropped_when_it_is_looked_for():
    kept = filled(1, max_age_ms=1)
    assert kept.find((USER, "0"), 1, 1_000_001) is None
    assert (len(kept), kept.bytes_kept) == (0, 0)
