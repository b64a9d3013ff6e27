"""Lanes carry frames between attached clients and the router: the same frames on each.

*ZeroMQ* (`zeromq`) is the public one, for any language that can receive a descriptor over a Unix socket; *direct* is
the attach socket itself. A session has one lane for its life. `router.service` sends through this protocol; frames that
come are handed to it as (session, frame).
"""

from __future__ import annotations

from typing import Protocol


class Lane(Protocol):
    name: str

    def send(self, session: int, frame: bytes) -> bool:
        """False when the frame cannot be queued: that client does not read."""

    def end(self, session: int) -> None:
        """The session is over: what still comes from it is dropped and counted."""
