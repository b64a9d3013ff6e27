"""One frame, one message: encode and decode with bounds, for every lane alike.

Each lane's module names its messages (tagged, array-like msgspec structs) and makes one `Codec` a direction.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from shm.errors import FrameRefused
from shm.limits import FRAME_BYTES_MAX

M = TypeVar("M")


class Codec(Generic[M]):
    """Encoder and decoder of one direction of a lane. Made once; not safe for threads."""

    __slots__ = ("_decoder", "_encoder", "encode")

    def __init__(self, messages: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(messages)
        self.encode = self._encoder.encode

    def decode(self, frame: bytes | memoryview) -> M:
        """The message in a frame.

        Raises:
            FrameRefused: too large, not msgpack, or not one of this direction's messages. msgspec lets a
                UnicodeDecodeError and a RecursionError out beside its own errors.
        """
        if len(frame) > FRAME_BYTES_MAX:
            raise FrameRefused(f"a frame of {len(frame)} bytes came; the largest is {FRAME_BYTES_MAX}")
        try:
            return self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FrameRefused(f"a frame could not be read: {error}") from error

    def encode_checked(self, message: M) -> bytes:
        """Encode what may grow with its content.

        Raises:
            FrameRefused: the frame passes the limit.
        """
        frame = self._encoder.encode(message)
        if len(frame) > FRAME_BYTES_MAX:
            raise FrameRefused(f"a frame of {len(frame)} bytes was to be sent; the largest is {FRAME_BYTES_MAX}")
        return frame
