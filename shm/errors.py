"""Errors of the shared layer. `farm.errors` turns those that reach a service into its own."""

from __future__ import annotations


class ShmError(Exception):
    """Base of everything that this layer raises on purpose."""


class FrameRefused(ShmError):
    """A frame that is too large, not msgpack, or not a message of its lane."""


class PeerGone(ShmError):
    """The other end of a socket is closed: end of file, reset or broken pipe."""


class SegmentRefused(ShmError):
    """Memory could not be had, or a descriptor that was handed over is not what it should be."""


class NoRoom(ShmError):
    """No run of free slots is long enough just now; one may be when replies come in."""


class TooLarge(ShmError):
    """More bytes than the whole arena has: waiting will not help."""


class TensorRefused(ShmError):
    """An array does not fit its declared name, dtype, rank or dimensions.

    `reason` is a `Reason`; the message names the tensor, what was expected and what came.
    """

    def __init__(self, reason: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason
