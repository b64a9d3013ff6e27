"""Who is looked at in a pass of the gate, and that nobody waits for ever behind another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest

from router.gate import Gate


class HandLoop:
    """The loop's part of it: calls the one reader when the test says so."""

    def __init__(self) -> None:
        self.read: Callable[[], None] = lambda: None

    def add_reader(self, fd: int, read: Callable[[], None]) -> None:
        self.read = read

    def remove_reader(self, fd: int) -> None:
        pass


class World:
    """A gate with sockets that are readable for good, and a list of what has happened."""

    def __init__(self, full: Callable[[], bool]) -> None:
        self.seen: list[str] = []
        self.loop = HandLoop()
        self.gate = Gate(cast(asyncio.AbstractEventLoop, self.loop), partial(self.seen.append, "turn"), full)
        self.ends: list[socket.socket] = []

    def add(self, handler: Callable[[], Any]) -> int:
        near, far = socket.socketpair()
        self.ends += [near, far]
        far.send(b"x")
        self.gate.add(near.fileno(), handler)
        return near.fileno()

    def passes(self, count: int) -> list[str]:
        for _ in range(count):
            self.loop.read()
        return self.seen


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def maker(full: Callable[[], bool] = lambda: False) -> World:
        worlds.append(World(full))
        return worlds[-1]

    yield maker
    for world in worlds:
        world.gate.close()
        for end in world.ends:
            end.close()


def test_all_that_is_ready_makes_one_turn(make: Callable[..., World]) -> None:
    world = make()
    for name in "ab":
        world.add(partial(world.seen.append, name))
    assert world.passes(1) == ["a", "b", "turn"]


def test_who_fills_every_turn_does_not_keep_others_from_theirs(make: Callable[..., World]) -> None:
    world = make(full=lambda: True)
    for name in "abc":
        world.add(partial(world.seen.append, name))
    assert [name for name in world.passes(6) if name != "turn"] == ["a", "b", "c", "a", "b", "c"]


def test_who_was_removed_before_its_turn_is_not_called(make: Callable[..., World]) -> None:
    world = make(full=lambda: True)
    world.add(partial(world.seen.append, "a"))
    removed = world.add(partial(world.seen.append, "b"))
    world.passes(1)
    world.gate.remove(removed)
    assert "b" not in world.passes(3)


def test_a_handler_that_fails_takes_no_turn_from_others(make: Callable[..., World]) -> None:
    world = make()
    world.add(partial(world.seen.append, "a"))
    world.add(partial(int, "not a number"))
    with pytest.raises(ValueError, match="not a number"):
        world.passes(1)
    assert world.seen == ["a", "turn"]
