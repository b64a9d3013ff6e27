"""The handshake of attach, step by step and without waiting: connect, ask, take descriptors and models."""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from farm.client.endpoint import dial
from farm.client.options import Settings
from farm.errors import AttachRefused, FarmError, ProtocolMismatch
from shm import client as wire
from shm import seqpacket
from shm.endings import Reason
from shm.errors import FrameRefused, PeerGone
from shm.frames import Codec
from shm.limits import PROTOCOL_VERSION

DESCRIPTORS_MAX: Final = 4

Told = wire.Attached | wire.AttachRefused | wire.Model | wire.Overflow


def welcome_codec() -> Codec[Told]:
    return Codec(Told)


class Welcome(NamedTuple):
    """A granted attach. Socket and descriptors are now the taker's."""

    attached: wire.Attached
    models: list[wire.Model]
    socket: socket.socket
    descriptors: list[int]


class Attaching:
    """One attempt. Close it when it is given up.

    Raises:
        Unavailable: nobody listens at any path.
    """

    def __init__(self, settings: Settings, lane: str, started_ns: int) -> None:
        self.started_ns = started_ns
        self.socket = dial(settings.endpoint)
        self._attached: wire.Attached | None = None
        self._models: list[wire.Model] = []
        self._descriptors: list[int] = []
        # The module's own codec may be in use by another thread's client.
        self._codec = welcome_codec()
        ask = wire.Attach(PROTOCOL_VERSION, settings.slot_count, settings.slot_bytes, lane, settings.title)
        try:
            sent = seqpacket.send(self.socket, wire.attach_codec.encode(ask))
        except PeerGone:
            self.close()
            raise
        assert sent, "a new socket has room for one frame"

    def step(self) -> Welcome | None:
        """Take what has come. None while more is to come.

        Raises:
            PeerGone: the router went away meanwhile.
            FarmError: it refuses, or speaks another protocol.
        """
        while True:
            try:
                got = seqpacket.receive(self.socket, DESCRIPTORS_MAX)
                if got is None:
                    return None
                frame, descriptors = got
                self._descriptors += descriptors
                message = self._codec.decode(frame)
            except FrameRefused as error:
                raise ProtocolMismatch(
                    f"the router's answer to attach cannot be read (this client speaks protocol {PROTOCOL_VERSION}): "
                    f"{error}. Install the farm's own version of shmfarm in the service",
                    reason=Reason.PROTOCOL.code,
                ) from error
            if isinstance(message, wire.AttachRefused):
                raise _refusal(message)
            if isinstance(message, wire.Attached):
                if message.protocol != PROTOCOL_VERSION:
                    raise _mismatch(f"the router speaks protocol {message.protocol}")
                self._attached = message
            elif isinstance(message, wire.Model):
                self._models.append(message)
            if self._attached is not None and len(self._models) >= self._attached.model_count:
                return self._complete(self._attached)

    def close(self) -> None:
        self.socket.close()
        seqpacket.close_all(self._descriptors)
        self._descriptors = []

    def _complete(self, attached: wire.Attached) -> Welcome:
        if len(self._descriptors) != 2:
            raise _mismatch(f"attach brought {len(self._descriptors)} descriptors instead of 2")
        descriptors, self._descriptors = self._descriptors, []
        return Welcome(attached, self._models, self.socket, descriptors)


def _mismatch(what: str) -> ProtocolMismatch:
    return ProtocolMismatch(
        f"{what}; this client speaks protocol {PROTOCOL_VERSION}. Install the same version of shmfarm on both sides",
        reason=Reason.PROTOCOL.code,
    )


def _refusal(refused: wire.AttachRefused) -> FarmError:
    if refused.reason == Reason.PROTOCOL:
        return _mismatch(refused.message)
    try:
        reason = Reason(refused.reason).code
    except ValueError:
        reason = "attach_refused"
    return AttachRefused(
        f"the farm does not let this client in: {refused.message}",
        reason=reason,
        retryable=refused.retry_after_ms > 0,
        retry_after_ms=refused.retry_after_ms or None,
    )
