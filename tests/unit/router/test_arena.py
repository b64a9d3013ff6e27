"""Memory of clients: made and given back in steps, one a turn, whoever wants one."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import cast

from router.arena import Arena, Chores
from shm import segment


class HandLoop:
    """The loop's part of it: what was asked for soon is called when the test turns it."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()

    def call_soon(self, call: Callable[[], None]) -> HandLoop:
        self.soon.append(call)
        return self

    def cancel(self) -> None:
        self.soon.clear()

    def turn(self) -> bool:
        if self.soon:
            self.soon.popleft()()
        return bool(self.soon)


class World:
    def __init__(self) -> None:
        self.loop = HandLoop()
        self.chores = Chores(cast(asyncio.AbstractEventLoop, self.loop))
        self.seen: list[str] = []

    def work(self, name: str, steps: int) -> Iterator[None]:
        for _ in range(steps):
            self.seen.append(name)
            yield
        self.seen.append(f"{name} done")


def test_chores_take_turns_and_each_turn_has_one_step() -> None:
    world = World()
    world.chores.add(world.work("a", 2))
    assert world.seen == ["a"]
    world.chores.add(world.work("b", 1))
    assert world.seen == ["a"]
    while world.loop.turn():
        pass
    assert world.seen == ["a", "a", "b", "a done", "b done"]


def test_what_is_given_back_comes_before_what_is_wanted() -> None:
    world = World()
    world.chores.add(world.work("want", 5))
    world.chores.add(world.work("back", 2), first=True)
    for _ in range(4):
        world.loop.turn()
    assert world.seen == ["want", "back", "back", "back done", "want"]


def test_at_the_end_what_is_given_back_is_done_and_nothing_else() -> None:
    world = World()
    world.chores.add(world.work("want", 5))
    world.chores.add(world.work("back", 2), first=True)
    world.chores.finish()
    assert world.seen == ["want", "back", "back", "back done"]
    assert not world.loop.turn()


def test_an_arena_has_all_its_memory_after_filling_and_none_after_emptying() -> None:
    size = 2 * segment.STEP_BYTES + 4096
    arena = Arena.create(1, size)
    kept = [os.dup(fd) for fd in (arena.in_fd, arena.out_fd)]
    try:
        assert sum(1 for _ in arena.fill()) == 6
        for fd in kept:
            segment.check(fd, size)
            assert os.fstat(fd).st_blocks * 512 == size
        assert sum(1 for _ in arena.empty()) == 6
        for fd in kept:
            assert os.fstat(fd).st_blocks == 0
    finally:
        for fd in kept:
            os.close(fd)
