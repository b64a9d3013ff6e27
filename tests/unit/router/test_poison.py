"""Inputs that kill workers: known again by their bytes alone, at no cost to requests that do not look like one."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from router import poison
from router.arena import Arena
from router.poison import INPUT_BYTES_MAX, KNOWN_MAX, Poison, copy_input
from shm import segment
from shm.client import Request
from shm.layout import RowPlan, Tensor, TensorSpec
from tests.unit.router.build import MS, request

F32 = 1
SLOT_BYTES = 64 * 1024
PLAN = RowPlan((TensorSpec("x", F32, ("N", 4096)), TensorSpec("k", 7, ("N",))))
PLANS = {0: PLAN, 1: PLAN}


class CountingArena(Arena):
    bytes_read = 0

    def read_part(self, slot: int, offset: int, payload_bytes: int) -> bytes:
        part = super().read_part(slot, offset, payload_bytes)
        CountingArena.bytes_read += len(part)
        return part


@pytest.fixture
def arena() -> Iterator[Arena]:
    fds = [segment.create_sealed(f"test-{side}", 64 * SLOT_BYTES) for side in ("in", "out")]
    made = CountingArena(fds[0], fds[1], 64, SLOT_BYTES)
    CountingArena.bytes_read = 0
    yield made
    for _ in made.empty():
        pass


def put(
    arena: Arena, number: int, x: float = 1.0, k: int = 0, *, middle: float | None = None, rows: int = 1
) -> Request:
    """A request in a slot of its own. `middle`: one value far from both ends of x."""
    values = [x] * (4096 * rows)
    if middle is not None:
        values[2048] = middle
    start = number * SLOT_BYTES
    os.pwrite(arena.in_fd, struct.pack(f"={len(values)}f", *values), start + PLAN.offsets(rows)[0])
    os.pwrite(arena.in_fd, struct.pack(f"={rows}q", *[k] * rows), start + PLAN.offsets(rows)[1])
    return request(number, rows=rows)


def taught(arena: Arena, *killers: Request, ms: float = 100) -> Poison:
    known = Poison(ms)
    for killer in killers:
        copied = copy_input(killer, PLAN, arena)
        assert copied is not None
        known.learn(0, copied, 0, USER)
    return known


USER = 1000


def found(known: Poison, arena: Arena, *asked: Request, now_ms: float = 1, turn: int = 1, uid: int = USER) -> set[int]:
    return set(known.find(asked, PLANS, arena, turn, int(now_ms * MS), uid))


def test_an_input_is_refused_only_to_the_user_whose_request_killed_with_it(arena):
    known = taught(arena, put(arena, 1, 3.0, 7))
    assert found(known, arena, put(arena, 2, 3.0, 7), uid=USER + 1) == set()
    assert found(known, arena, put(arena, 2, 3.0, 7)) == {2}


def test_the_same_input_is_known_again_wherever_it_lies_and_others_are_not(arena):
    known = taught(arena, put(arena, 1, 3.0, 7))
    asked = [put(arena, 2, 3.0, 7), put(arena, 3, 3.0, 8), put(arena, 4, 3.5, 7), put(arena, 5, 3.0, 7, middle=0.0)]
    assert found(known, arena, *asked) == {2}


def test_an_input_is_the_same_whether_its_tensors_are_described_or_not(arena):
    known = taught(arena, put(arena, 1, 3.0, 7))
    asked = put(arena, 2, 3.0, 7)
    sizes, offsets = PLAN.sizes(1), PLAN.offsets(1)
    tensors = (Tensor(1, 7, (1,), offsets[1], sizes[1]), Tensor(0, F32, (1, 4096), offsets[0], sizes[0]))
    described = Request(2, 0, asked.deadline_ns, 2, 1, 1, tensors=tensors)
    assert found(known, arena, described) == {2}


def test_what_lies_between_tensors_is_no_part_of_the_input(arena):
    narrow = RowPlan((TensorSpec("a", F32, ("N",)), TensorSpec("b", F32, ("N",))))
    os.pwrite(arena.in_fd, bytes(128), SLOT_BYTES)
    os.pwrite(arena.in_fd, b"\xff" * 128, 2 * SLOT_BYTES)
    for offset in narrow.offsets(1):
        os.pwrite(arena.in_fd, bytes(4), 2 * SLOT_BYTES + offset)
    one, other = (copy_input(request(n), narrow, arena) for n in (1, 2))
    assert one is not None and other is not None
    assert one.digest == other.digest


def test_other_models_rows_and_shapes_are_not_even_read(arena):
    known = taught(arena, put(arena, 1))
    CountingArena.bytes_read = 0
    other_model = request(3, model=1)
    no_model = request(4, model=9)
    assert found(known, arena, put(arena, 2, rows=2), other_model, no_model) == set()
    assert CountingArena.bytes_read == 0


def test_of_another_input_of_as_many_rows_only_the_first_bytes_are_read_and_then_the_ends(arena):
    known = taught(arena, put(arena, 1))
    CountingArena.bytes_read = 0
    assert found(known, arena, put(arena, 2, 5.0)) == set()
    assert CountingArena.bytes_read == poison.HEAD_BYTES
    assert found(known, arena, put(arena, 2, k=5)) == set()
    assert CountingArena.bytes_read == 2 * poison.HEAD_BYTES + 2 * poison.SAMPLE_BYTES + 2 * 8


@pytest.mark.parametrize(
    "asked",
    [
        request(2, rows=2**31),
        request(2, slot=2**30),
        request(2, tensors=(Tensor(0, F32, (1, 4096), 2**40, 16384), Tensor(1, 7, (1,), 0, 8))),
        request(2, tensors=(Tensor(63, F32, (1,), 0, 2**40),)),
        request(2, tensors=()),
    ],
)
def test_a_request_that_nobody_has_checked_reads_no_more_than_a_killer_has(arena, asked):
    known = taught(arena, put(arena, 1))
    CountingArena.bytes_read = 0
    assert found(known, arena, asked) == set()
    assert CountingArena.bytes_read <= 16392


def test_killers_are_forgotten_after_their_time(arena):
    killer = put(arena, 1)
    known = taught(arena, killer, ms=100)
    assert found(known, arena, killer, now_ms=99.9) == {1}
    assert found(known, arena, killer, now_ms=100) == set()
    assert not known.known


def test_only_so_many_killers_are_known_and_the_oldest_goes(arena):
    killers = [put(arena, 1, float(n)) and copy_input(request(1), PLAN, arena) for n in range(KNOWN_MAX + 1)]
    known = Poison(100)
    for killer in killers:
        assert killer is not None
        known.learn(0, killer, 0, USER)
    assert len(known.known) == KNOWN_MAX
    assert found(known, arena, put(arena, 2, 0.0), put(arena, 3, 1.0)) == {3}


def test_who_sends_a_killer_again_and_again_does_not_hold_up_the_loop(arena, monkeypatch):
    monkeypatch.setattr(poison, "TURN_BYTES", 3 * (16384 + 8))
    known = taught(arena, put(arena, 1))
    asked = [put(arena, n) for n in range(1, 9)]
    CountingArena.bytes_read = 0
    assert found(known, arena, *asked, turn=1) == {request.id for request in asked}
    whole, ends = 16384 + 8, 2 * poison.SAMPLE_BYTES + 16
    assert CountingArena.bytes_read == 3 * whole + 8 * (ends + poison.HEAD_BYTES)
    assert found(known, arena, put(arena, 9, middle=0.0), turn=2) == set()


def test_an_input_that_is_too_large_is_not_copied(arena):
    wide = RowPlan((TensorSpec("x", F32, ("N", INPUT_BYTES_MAX // 4)),))
    assert copy_input(request(1, rows=2), wide, arena) is None
