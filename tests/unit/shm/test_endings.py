"""Endings and reasons: numbers of the wire, so they stay what they are."""

from __future__ import annotations

import pytest

from shm.endings import FIRST_REFUSAL, Ending, Reason, source_of


def test_answers_lie_below_the_first_refusal() -> None:
    answers = {e.name for e in Ending if e < FIRST_REFUSAL}
    assert answers == {"MODEL", "RULES", "LAST_GOOD", "CONSTANT", "PREVIOUS_VERSION"}
    assert {e.name for e in Ending if e >= FIRST_REFUSAL} == {"SHED", "EXPIRED", "INVALID", "FAILED", "CANCELLED"}


def test_no_number_has_two_names() -> None:
    # IntEnum makes the second name an alias, without a word.
    assert len(Ending.__members__) == len(Ending)
    assert len(Reason.__members__) == len(Reason)


def test_a_reply_without_reason_is_ok_from_the_model() -> None:
    assert (Ending.MODEL, Reason.OK) == (0, 0)


def test_words_are_lower_case() -> None:
    assert Reason.QUEUE_FULL.code == "queue_full"
    assert source_of(Ending.LAST_GOOD) == "last_good"
    with pytest.raises(ValueError):
        source_of(15)
