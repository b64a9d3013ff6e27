"""What one turn wants done, gathered: actions in order, then one SendReplies and one SendRelease a client."""

from __future__ import annotations

from router import events as ev
from shm.client import Reply


class Outbox:
    __slots__ = ("_actions", "_releases", "_replies")

    def __init__(self) -> None:
        self._actions: list[ev.Action] = []
        self._replies: dict[int, list[Reply]] = {}
        self._releases: dict[int, list[int]] = {}

    def act(self, action: ev.Action) -> None:
        self._actions.append(action)

    def reply(self, session: int, reply: Reply) -> None:
        replies = self._replies.get(session)
        if replies is None:
            self._replies[session] = [reply]
        else:
            replies.append(reply)

    def release(self, session: int, request_id: int) -> None:
        self._releases.setdefault(session, []).append(request_id)

    def forget(self, session: int) -> None:
        """Nobody is there to get what was gathered for this client."""
        self._replies.pop(session, None)
        self._releases.pop(session, None)

    def collect(self) -> list[ev.Action]:
        """All of the turn; the outbox is empty after it. A Release never comes before its reply."""
        actions, self._actions = self._actions, []
        if self._replies:
            for session, replies in self._replies.items():
                actions.append(ev.SendReplies(session, replies))
            self._replies = {}
        if self._releases:
            actions.extend([ev.SendRelease(session, ids) for session, ids in self._releases.items()])
            self._releases = {}
        return actions

    def is_empty(self) -> bool:
        return not (self._actions or self._replies or self._releases)
