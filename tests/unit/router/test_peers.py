"""Who is cut from the public lane: late ones, one too many, and whoever makes the router grow."""

from __future__ import annotations

import pytest

from router.lanes.peers import (
    HELLO_WITHIN_NS,
    STRANGER_FRAMES_MAX,
    STRANGERS_MAX,
    Peer,
    Peers,
    Pressure,
    culprits,
    pressure,
)


def table(*sessions: int | None) -> Peers:
    """One connection each, its descriptor the position."""
    peers = Peers()
    for fd, session in enumerate(sessions):
        peers.accepted(fd, 1000 + fd, 0)
        if session is not None:
            peers.greeted(fd, session)
    return peers


def looks(peers: Peers, how: Pressure, unread: set[int], heard: set[int], count: int = 3) -> set[int]:
    """Descriptors found at the last of so many looks."""
    found: list[Peer] = []
    for _ in range(count):
        found = culprits(peers, how, lambda peer: peer.fd in unread, heard)
    return {peer.fd for peer in found}


def test_who_shows_no_token_in_time_is_late_and_who_does_is_not():
    peers = table(None, 7, None)
    assert peers.late(HELLO_WITHIN_NS - 1) == []
    assert [peer.fd for peer in peers.late(HELLO_WITHIN_NS)] == [0, 2]


def test_one_stranger_too_many_costs_the_oldest_its_connection():
    peers = table(7, *[None] * STRANGERS_MAX)
    in_the_way = peers.accepted(5000, 1, 0)
    assert in_the_way is not None and in_the_way.fd == 1
    peers.gone(1)
    assert peers.accepted(5000, 1, 0) is None


def test_a_stranger_that_goes_on_talking_is_cut_and_a_session_is_not_a_stranger():
    peers = table(None, 7)
    said = [peers.stranger_spoke(0) for _ in range(STRANGER_FRAMES_MAX + 1)]
    assert said[:-1] == [None] * STRANGER_FRAMES_MAX
    assert said[-1] is peers.of_fd(0)
    assert all(peers.stranger_spoke(1) is None for _ in range(100))


def test_a_number_that_is_given_again_is_another_connection():
    peers = table(7)
    peers.accepted(0, 2000, 5)
    assert peers.of_session(7) is None
    again = peers.of_fd(0)
    assert again is not None and (again.inode, again.session) == (2000, None)
    assert len(peers) == 1


def test_a_connection_that_is_gone_leaves_nothing():
    peers = table(None, 7)
    for fd in (0, 1, 99):
        peers.gone(fd)
    assert (len(peers), peers.all(), peers.strangers(), peers.of_session(7)) == (0, [], [], None)


@pytest.mark.parametrize(
    ("grown", "how"),
    [
        *[(-9, "NONE"), (49, "NONE"), (50, "WATCH"), (99, "WATCH"), (100, "STUCK"), (199, "STUCK")],
        *[(200, "BUSY"), (399, "BUSY"), (400, "ALL"), (10**9, "ALL")],
    ],
)
def test_pressure_rises_with_what_the_router_has_grown(grown, how):
    assert pressure(grown, 100) is Pressure[how]


def test_under_pressure_go_strangers_and_who_sends_but_brings_nothing():
    peers = table(None, 1, 2, 3)
    assert looks(peers, Pressure.STUCK, unread={1, 2}, heard={2, 3}) == {0, 1}


def test_one_look_that_finds_bytes_is_no_proof():
    peers = table(1)
    assert looks(peers, Pressure.STUCK, unread={0}, heard=set(), count=1) == set()
    assert looks(peers, Pressure.STUCK, unread={0}, heard=set(), count=1) == {0}


def test_what_was_found_while_there_was_no_pressure_is_forgotten():
    peers = table(1)
    looks(peers, Pressure.WATCH, unread={0}, heard=set(), count=1)
    looks(peers, Pressure.NONE, unread={0}, heard=set(), count=1)
    assert looks(peers, Pressure.STUCK, unread={0}, heard=set(), count=1) == set()


def test_under_more_pressure_go_those_with_bytes_on_the_way_too_and_at_last_everyone():
    peers = table(None, 1, 2, 3)
    assert looks(peers, Pressure.BUSY, unread={1, 2}, heard={2, 3}) == {0, 1, 2}
    assert looks(peers, Pressure.ALL, unread=set(), heard={1, 2, 3}) == {0, 1, 2, 3}


def test_half_way_to_the_bound_nobody_is_cut():
    assert looks(table(None, 1), Pressure.WATCH, unread={0, 1}, heard=set()) == set()
