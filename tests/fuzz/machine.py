"""The router's machine: bytes become turns of hostile requests, cancels, deaths and time; its invariants hold after
each, each request that was taken ends once, and nothing stays open when everybody has gone."""

from __future__ import annotations

import random
from itertools import chain

from router import events as ev
from shm.client import Request
from shm.layout import Tensor
from shm.limits import ID_MAX
from shm.worker import RAN, SKIPPED, TERMINATED, Copies, MemberDone
from tests.unit.router.build import FREE, MS, NOW, ROWS, Bench

SIZES = (0, 1, 2, 3, 64, 255, 256, 65_535, 2**31, 2**40, ID_MAX)
TURNS_MAX = 60


class Bytes:
    """Numbers out of the input; zeros when it is used up."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def __bool__(self) -> bool:
        return self._at < len(self._content)

    def byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1] if self._at <= len(self._content) else 0

    def size(self, most: int = ID_MAX) -> int:
        """Small ones as they are, edges beyond; never past what a frame can hold."""
        byte = self.byte()
        return min(byte if byte < 128 else SIZES[byte % len(SIZES)], most)


def seeds() -> list[bytes]:
    plain = bytes([0, 1, 1, 0, 20, 0, 1, 1, 0, 0, 3, 1, 2])
    mixed = random.Random(5)
    return [plain, plain * 4, b"", *(mixed.randbytes(n) for n in (40, 120, 300))]


def _request(source: Bytes) -> Request:
    tensors = None
    number, model, due, slot = source.size(), source.size(65_535), source.byte(), source.size(65_535)
    slot_count, rows, kind = max(1, source.size(65_536)), source.size(2**31), source.byte()
    if kind & 1:
        tensors = tuple(
            Tensor(
                source.size(63),
                source.byte() % 16 + 1,
                tuple(source.size(2**40) for _ in range(source.byte() % 4)),
                source.size(2**40),
                source.size(2**40),
            )
            for _ in range(kind >> 1 & 3)
        )
    deadline_ns = (0, ID_MAX, NOW, NOW + 100 * 365 * 86_400 * 10**9)[due % 4] if due >= 240 else NOW + due * MS
    return Request(number, model, deadline_ns, slot, slot_count, rows, kind >> 3 & 7, tensors)


class World:
    """Two clients, two workers, one signature; which requests are open, by the replies alone."""

    def __init__(self, source: Bytes) -> None:
        self.source = source
        how = source.byte()
        self.bench = Bench(workers=how & 1, signature=FREE if how & 2 else ROWS, prefetch=1 + (how >> 2 & 1))
        self.runs: dict[int, ev.Dispatch] = {}
        self.workers = set(range(1, 1 + (how & 1)))
        self.sessions = {1, 2}
        self.asked = self.ended = 0
        self.number = 10

    def turn(self, *events: ev.Event) -> None:
        for action in self.bench.turn(*events):
            match action:
                case ev.Dispatch(worker, run):
                    assert worker in self.workers, "a run for a worker that is gone"
                    self.runs[run] = action
                case ev.SendReplies(session, replies):
                    assert session in self.sessions, "a reply to a session that is over"
                    self.ended += len(replies)
                case ev.AnswerInstead() | ev.SendRejected():
                    self.ended += 1

    def step(self) -> None:
        source = self.source
        what, session = source.byte() % 10, 1 + source.byte() % 2
        if what < 4 and session in self.sessions:
            requests = [_request(source) for _ in range(1 + source.byte() % 4)]
            self.asked += len(requests)
            self.turn(ev.RequestsArrived(session, requests))
        elif what == 4:
            self.turn(ev.RequestsCancelled(session, [source.size() for _ in range(source.byte() % 4)]))
        elif what == 5:
            self.bench.now += source.byte() * MS
            self.turn(ev.TimePassed())
        elif what in (6, 7) and self.runs:
            self.finish(sorted(self.runs)[source.byte() % len(self.runs)])
        elif what == 8 and self.workers:
            self.lose(min(self.workers))
        elif what == 9:
            if source.byte() % 4 == 0 and session in self.sessions:
                self.leave(session)
            else:
                self.number += 1
                self.workers.add(self.number)
                self.bench.turn(ev.WorkerBorn(self.number, 0))
                self.turn(ev.WorkerReady(self.number, self.bench.signature, []))

    def finish(self, number: int) -> None:
        run, byte = self.runs.pop(number), self.source.byte()
        status = RAN if byte < 200 else (SKIPPED, TERMINATED)[byte % 2]
        members = [MemberDone(reason=52 if byte & 4 else 0) for _ in run.members] if byte & 2 and status == RAN else []
        now = self.bench.now
        self.turn(ev.RunFinished(run.worker, number, status, now, now + MS, members, Copies()))

    def lose(self, worker: int) -> None:
        self.turn(ev.WorkerLost(worker))
        self.runs = {number: run for number, run in self.runs.items() if run.worker != worker}
        self.workers.discard(worker)
        self.turn(ev.WorkerGone(worker))

    def leave(self, session: int) -> None:
        """What it has open ends without a reply."""
        self.sessions.discard(session)
        self.turn(ev.ClientLost(session))

    def end(self) -> None:
        while self.runs:
            self.finish(min(self.runs))
        stayed = len(self.sessions) == 2
        for worker in sorted(self.workers):
            self.lose(worker)
        self.bench.now = ID_MAX - 1
        self.turn(ev.TimePassed())
        if stayed:
            assert self.ended == self.asked, f"{self.asked} requests came, {self.ended} ended"
        for session in sorted(self.sessions):
            self.leave(session)
        ledger = self.bench.machine.ledger
        left = list(chain.from_iterable(session.entries for session in ledger.sessions.values()))
        assert not left, f"requests {left} are still open"


def run(content: bytes) -> None:
    source = Bytes(content)
    world = World(source)
    for _ in range(TURNS_MAX):
        if not source:
            break
        world.step()
    world.end()
