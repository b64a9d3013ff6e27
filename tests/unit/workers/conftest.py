"""An arena with its client, and a runner over it, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm import segment, tensors
from shm.layout import STRING, Tensor, place
from shm.tensors import Array
from shm.worker import ArenaOpened, Done, Member, Run
from workers.arenas import Arenas
from workers.config import GuardConfig, SessionConfig
from workers.guard import Guard
from workers.runner import Runner
from workers.session import Session, load
from workers.watch import Current

FAR_NS = 2**62


class Client:
    """The client's and the router's side of one arena: writes requests, reads answers."""

    def __init__(self, number: int, slot_count: int, slot_bytes: int) -> None:
        self.number = number
        self.slot_bytes = slot_bytes
        size = slot_count * slot_bytes
        self.opened = ArenaOpened(number, slot_count, slot_bytes)
        self.fds = (segment.create_sealed("test-in", size), segment.create_sealed("test-out", size))
        self.inside = segment.map_memory(self.fds[0], size, writable=True)
        self.outside = segment.map_memory(self.fds[1], size, writable=False)

    def rows(self, session: Session, slot: int, *arrays: Array, slot_count: int = 1) -> Member:
        """A request in row form or of fixed shapes."""
        plan = session.input_plan
        rows = len(arrays[0]) if plan.row_form else 0
        start = slot * self.slot_bytes
        for offset, array, spec in zip(plan.offsets(rows), arrays, plan.specs, strict=True):
            tensors.write(self.inside, start + offset, array, spec.dtype)
        return Member(self.number, slot, slot_count, rows)

    def described(self, session: Session, slot: int, feed: dict[str, Array], *, slot_count: int = 1) -> Member:
        """A request that carries its tensors."""
        order = [i for i, spec in enumerate(session.signature.inputs) if spec.name in feed]
        specs = [session.signature.inputs[i] for i in order]
        arrays = [feed[spec.name] for spec in specs]
        words = [
            tensors.encode_strings(s.name, a) if s.dtype == STRING else None for s, a in zip(specs, arrays, strict=True)
        ]
        sizes = [tensors.payload_bytes(a, s.dtype, w) for a, s, w in zip(arrays, specs, words, strict=True)]
        offsets, total = place(sizes)
        assert total <= slot_count * self.slot_bytes
        for offset, array, spec, word in zip(offsets, arrays, specs, words, strict=True):
            tensors.write(self.inside, slot * self.slot_bytes + offset, array, spec.dtype, word)
        described = tuple(
            Tensor(i, s.dtype, a.shape, o, n)
            for i, s, a, o, n in zip(order, specs, arrays, offsets, sizes, strict=True)
        )
        leading = {a.shape[:1] for a in arrays}
        rows = leading.pop()[0] if len(leading) == 1 and () not in leading else 0
        return Member(self.number, slot, slot_count, rows, described)

    def declared(self, session: Session, member: Member) -> list[Array]:
        """The declared outputs in a member's slots."""
        plan = session.output_plan
        start = member.slot * self.slot_bytes
        return [
            tensors.view(self.outside, start + offset, spec.dtype, plan.dims(i, member.rows)).copy()
            for i, (offset, spec) in enumerate(zip(plan.offsets(member.rows), plan.specs, strict=True))
        ]


class Rig:
    """A loaded model, its runner, and clients with arenas."""

    def __init__(
        self,
        path: Path,
        *,
        output_bytes_max: int = 2**24,
        arenas_max: int = 8,
        independent: bool = True,
        guard: GuardConfig | None = None,
    ):
        self.session = load(str(path), SessionConfig())
        self.session.with_independent_rows(independent)
        self.arenas = Arenas(arenas_max)
        self.current = Current(self.session.options)
        self.runner = Runner(
            self.session,
            self.arenas,
            self.current,
            output_bytes_max=output_bytes_max,
            guard=None if guard is None else Guard(guard, self.session.signature),
        )
        self.fds: list[int] = []
        self._count = 0

    def client(self, slot_count: int = 64, slot_bytes: int = 1024) -> Client:
        self._count += 1
        client = Client(self._count, slot_count, slot_bytes)
        self.arenas.open(client.opened, client.fds)
        return client

    def run(self, *members: Member, private: bool = False, not_after_ns: int = FAR_NS) -> Done:
        """Descriptors that come with the Done are in `fds`, closed at the end."""
        self._count += 1
        done, fds = self.runner.run(Run(self._count, not_after_ns, list(members), [], private))
        self.fds += fds
        return done

    def outputs(self, client: Client, member: Member, done: Done, index: int = 0) -> list[Array]:
        """A member's outputs, wherever they are."""
        if not done.members:
            return client.declared(self.session, member)
        end = done.members[index]
        assert end.reason == 0, end.message
        if end.outputs is None:
            return client.declared(self.session, member)
        buffer, base = client.outside, member.slot * client.slot_bytes
        if end.inline is not None:
            buffer, base = end.inline, 0
        elif end.overflow_bytes:
            fd = self.fds[sum(bool(e.overflow_bytes) for e in done.members[:index])]
            segment.check(fd, end.overflow_bytes)
            buffer, base = segment.map_memory(fd, end.overflow_bytes, writable=False), 0
        return [
            tensors.read_strings("", buffer, base + t.offset, t.payload_bytes, t.dims)
            if t.dtype == STRING
            else tensors.view(buffer, base + t.offset, t.dtype, t.dims).copy()
            for t in end.outputs
        ]

    def close(self) -> None:
        from shm.seqpacket import close_all

        self.runner.forget()
        self.arenas.close_all()
        close_all(self.fds)


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    """Makes rigs from model files."""
    rigs = []

    def make(path: Path, **options: Any) -> Rig:
        rigs.append(Rig(path, **options))
        return rigs[-1]

    yield make
    for each in rigs:
        each.close()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)
