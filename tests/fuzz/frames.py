"""Decoding of every lane: the first byte picks the lane, the rest is the frame."""

from __future__ import annotations

from shm.errors import FrameRefused
from tests.contract.messages import CODECS, MESSAGES, encoded

LANES = sorted(CODECS)


def seeds() -> list[bytes]:
    return [bytes([LANES.index(name.split(".")[0])]) + encoded(name) for name in MESSAGES]


def run(content: bytes) -> None:
    if not content:
        return
    codec = CODECS[LANES[content[0] % len(LANES)]]
    try:
        message = codec.decode(content[1:])
    except FrameRefused:
        return
    # What passes is a whole message: it can be said again, and then says the same. NaN does not travel.
    assert codec.decode(codec.encode(message)) == message
