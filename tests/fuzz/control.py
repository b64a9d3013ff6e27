"""The control socket: whatever an operator's frames are, each connection gets one Answer and is closed."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from farm.supervisor.door import Connection, Door
from shm import seqpacket
from shm.control import Answer, answer_codec
from shm.errors import PeerGone
from tests.contract.messages import MESSAGES, encoded


class Stand:
    """One door for all inputs."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="fuzz-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.path = f"{folder}/control.sock"
        self.watched: dict[int, Callable[[], None]] = {}
        self.asked: list[Any] = []
        self.door = Door(self.path, self.watched.__setitem__, self.watched.pop, self._ask, lambda: 0)
        self.listener = next(iter(self.watched))

    def _ask(self, connection: Connection, wanted: Any) -> None:
        self.asked.append(wanted)
        self.door.answer(connection, {"wanted": type(wanted).__name__})


_stand: list[Stand] = []


def seeds() -> list[bytes]:
    return [encoded(name) for name in MESSAGES if name.startswith("wanted.")]


def run(content: bytes) -> None:
    if not _stand:
        _stand.append(Stand())
    at = _stand[0]
    at.asked.clear()
    sock = seqpacket.connect(at.path)
    with sock:
        sock.setblocking(False)
        at.watched[at.listener]()
        (fd,) = at.watched.keys() - {at.listener}
        if content:
            seqpacket.send(sock, content)
            at.watched[fd]()
            got = seqpacket.receive(sock)
            assert got is not None, "a command got no answer"
            answer = answer_codec.decode(got[0])
            assert isinstance(answer, Answer)
            assert (answer.error is None) == bool(at.asked)
    if fd in at.watched:
        try:
            at.watched[fd]()
        except PeerGone:
            pass
    assert at.watched.keys() == {at.listener}, "a connection is left"
