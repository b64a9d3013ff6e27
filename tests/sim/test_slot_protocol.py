"""Every interleaving of the slot protocol, and of the two shortcuts that it must not take."""

from __future__ import annotations

import pytest

from tests.sim.slot_protocol import Design, never_free, search


def test_no_slot_is_written_by_two_in_any_interleaving():
    successors, violation = search(Design.RIGHT)
    assert violation is None
    assert len(successors) > 2_000, "the model has become too small to prove anything"


def test_every_slot_can_become_free_again_from_every_state():
    successors, _ = search(Design.RIGHT)
    assert never_free(successors) == []


@pytest.mark.parametrize("design", [Design.FREED_ON_TIMEOUT, Design.FREED_ON_SIGKILL])
def test_the_check_finds_what_is_wrong_with_a_shortcut(design):
    _, violation = search(design)
    assert violation is not None
    assert len(violation.path) <= 6, f"not the shortest way: {violation}"
