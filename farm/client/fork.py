"""Clients in a forked child: each forgets its parent's session and attaches anew at its next use."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forgetful(Protocol):
    def _after_fork(self) -> object:
        """Start anew, with locks of its own; what is returned is kept for the child's life."""


_clients: weakref.WeakSet[Forgetful] = weakref.WeakSet()
_kept: list[object] = []
"""ZeroMQ's objects of the parent. Finalising them here would close the parent's descriptors under ZeroMQ's threads,
which a child does not have, and hang."""


def remember(client: Forgetful) -> None:
    _clients.add(client)


def _in_child() -> None:
    for client in list(_clients):
        _kept.append(client._after_fork())


os.register_at_fork(after_in_child=_in_child)
