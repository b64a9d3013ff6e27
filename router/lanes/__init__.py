"""A lane carries frames between attached clients and the router; `router.service` knows no more of it than this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Lane(Protocol):
    """One way for frames. A frame is bytes of `shm.client`'s request or reply messages."""

    name: str
    path: str
    """Where a client opens this lane, empty when it needs no place of its own."""
    on_readable: Callable[[], None]
    """Set by the service: called by the loop when frames may be there."""

    def receive(self, frames_max: int) -> list[tuple[int, bytes]]:
        """Frames that are there, with the session that sent each; at most so many. Call again if it gave so many."""

    def send(self, session: int, frame: bytes) -> bool:
        """False when the frame cannot be queued: that client does not read."""

    def look_again(self) -> None:
        """After a turn that sent, or that stopped at its limit: see to it that nothing is left lying."""

    def admit(self, session: int, token: bytes) -> None:
        """From now on a peer with this token is this session."""

    def end(self, session: int) -> None:
        """The session is over: what still comes from it is dropped and counted."""

    def close(self) -> None: ...
