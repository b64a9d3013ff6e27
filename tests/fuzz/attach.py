"""The door: whatever a stranger's first frames are, it is let in or refused by name, and leaves nothing behind."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import deque
from functools import partial
from typing import Any

from router.config import ModelConfig, RouterConfig
from router.counters import Counters
from router.door import Client, Door
from router.lanes.direct import DirectLane
from shm import seqpacket
from shm.client import Attached, AttachRefused, attach_codec, welcome_codec
from shm.errors import PeerGone
from tests.contract.messages import MESSAGES, encoded

CONFIG = RouterConfig(models=[ModelConfig(name="m")], arena_budget_mib=1, client_mib_max=1)


class HandLoop:
    """The loop's part: what is to come soon is kept until it is asked for; nothing is ever late."""

    def __init__(self) -> None:
        self.soon: deque[Any] = deque()

    def call_soon(self, call: Any, *arguments: Any) -> None:
        self.soon.append(partial(call, *arguments))

    def call_later(self, _: float, call: Any, *arguments: Any) -> HandLoop:
        return self

    def cancel(self) -> None:
        pass

    def add_reader(self, *_: Any) -> None:
        pass

    remove_reader = add_writer = remove_writer = add = remove = add_reader

    def turn(self) -> None:
        while self.soon:
            self.soon.popleft()()


class Stand:
    """One door for all inputs."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="fuzz-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.loop: Any = HandLoop()
        self.direct = DirectLane(self.loop)
        self.frames = 0
        self.door = Door(
            path=f"{folder}/attach.sock",
            mode=0o600,
            lanes={"direct": "", "zeromq": f"{folder}/lane.sock"},
            epoch=7,
            config=CONFIG,
            counters=Counters(),
            loop=self.loop,
            gate=self.loop,
            allowed=lambda uid, gid: True,
            catalog=lambda: [MESSAGES["welcome.Model"]],
            on_attached=self._attached,
            on_lost=self._lost,
            on_frame=self._frame,
            direct=self.direct,
        )

    def _attached(self, client: Client, token: bytes) -> None:
        if client.lane == DirectLane.name:
            self.direct.admit(client.number, client.sock)

    def _lost(self, client: Client) -> None:
        self.direct.end(client.number)
        self.door.close_arena(client)

    def _frame(self, session: int, frame: bytes) -> None:
        self.frames += 1


_stand: list[Stand] = []


def seeds() -> list[bytes]:
    good = [encoded(name) for name in MESSAGES if name.startswith("attach.")]
    small = [attach_codec.encode(MESSAGES["attach.Attach"].__class__(1, 4, 64, lane)) for lane in ("auto", "direct")]
    return [bytes([n % 2]) + frame for n, frame in enumerate([*good, *small, b"\x91\x01", b""])]


def run(content: bytes) -> None:
    """The first byte says whether the same frame comes again."""
    if not _stand:
        _stand.append(Stand())
    at = _stand[0]
    door = at.door
    ours, theirs = seqpacket.pair()
    ours.setblocking(False)
    theirs.setblocking(False)
    door._number += 1
    client = Client(door._number, ours, 0, 0, frozenset(), None)
    door.clients[client.number] = door._half_open[client.number] = client
    client.timeout = at.loop.call_later(2, None)
    refusals = door._counters.clients_refused
    try:
        for _ in range(1 + (content[:1] == b"\x01")):
            if client.over or not content[1:]:
                break
            seqpacket.send(theirs, content[1:])
            door._readable(client)
        at.loop.turn()
        told = []
        try:
            while (got := seqpacket.receive(theirs, 4)) is not None:
                told.append(welcome_codec.decode(got[0]))
                seqpacket.close_all(got[1])
        except PeerGone:
            assert client.over
        if told:
            assert isinstance(told[0], Attached) or (isinstance(told[0], AttachRefused) and client.over), told[0]
            assert isinstance(told[0], Attached) or door._counters.clients_refused == refusals + 1
        else:
            assert client.over or not content[1:], "a frame got no word and its sender stays"
    except PeerGone:
        pass
    finally:
        door.end(client)
        theirs.close()
        at.loop.turn()
    assert not door.clients and not door._half_open and not door.arena_bytes, "something is left of a client"
