"""The post: clients' frames in as events, replies out as frames, whichever lane a session has.

A frame that cannot be taken is a fault of its client alone: it is told, counted, and after too many of them its session
ends. No reply is dropped while a session lives; a session that does not take its replies is cut.
"""

from __future__ import annotations

from collections.abc import Callable

from router import events as ev
from router.counters import Counters
from router.door import Client
from router.lanes import Lane
from shm.client import Cancel, Hello, Rejected, Release, Replies, Reply, Submit, reply_codec, request_codec
from shm.endings import Reason
from shm.errors import FrameRefused
from shm.limits import FRAME_BYTES_MAX, MESSAGE_CHARS_MAX


class Post:
    """`client_of(session)`: None when it is over. `cut(session, why)` ends one."""

    def __init__(
        self,
        epoch: int,
        faults_max: int,
        counters: Counters,
        client_of: Callable[[int], Client | None],
        cut: Callable[[int, str], None],
    ) -> None:
        self.lanes: dict[int, Lane] = {}
        self._epoch = epoch
        self._faults_max = faults_max
        self._counters = counters
        self._client_of = client_of
        self._cut = cut
        self._encode = reply_codec.encode

    def read(self, session: int, frame: bytes) -> ev.RequestsArrived | ev.RequestsCancelled | None:
        """What a frame says, None when it is a fault."""
        self._counters.frames_in += 1
        try:
            message = request_codec.decode(frame)
        except FrameRefused as refused:
            self.reject(session, Reason.FRAME, str(refused))
            return None
        if type(message) is Submit:
            if message.epoch == self._epoch:
                return ev.RequestsArrived(session, message.requests)
            self.reject(session, Reason.STALE_EPOCH, f"this is epoch {self._epoch}, not {message.epoch}")
        elif type(message) is Cancel:
            return ev.RequestsCancelled(session, message.ids)
        elif type(message) is Hello:
            self.reject(session, Reason.FRAME, "a session says Hello once, and only on the ZeroMQ lane")
        return None

    def reject(self, session: int, reason: int, message: str) -> None:
        """Tell a client that a frame of its was not taken."""
        self._counters.frames_rejected += 1
        client = self._client_of(session)
        if client is None:
            return
        client.faults += 1
        if client.faults > self._faults_max:
            self._cut(session, "too many frames that could not be taken")
        else:
            self._send(session, self._encode(Rejected(reason, message[:MESSAGE_CHARS_MAX])))

    def send_replies(self, session: int, replies: list[Reply]) -> None:
        """One frame; more only where inline outputs make it too large."""
        frame = self._encode(Replies(replies))
        if len(frame) > FRAME_BYTES_MAX and len(replies) > 1:
            middle = len(replies) // 2
            self.send_replies(session, replies[:middle])
            self.send_replies(session, replies[middle:])
            return
        self._counters.replies_out += len(replies)
        self._send(session, frame)

    def release(self, action: ev.SendRelease) -> None:
        self._send(action.session, self._encode(Release(action.ids)))

    def _send(self, session: int, frame: bytes) -> None:
        lane = self.lanes.get(session)
        if lane is None:
            return
        self._counters.frames_out += 1
        if not lane.send(session, frame):
            self._cut(session, "a reply could not be queued: it does not read")
