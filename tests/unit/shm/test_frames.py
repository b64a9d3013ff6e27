"""Frames: whatever bytes come, a codec gives a message of its lane or FrameRefused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shm.client import Request, Submit, request_codec
from shm.errors import FrameRefused
from shm.frames import Codec
from shm.limits import FRAME_BYTES_MAX, REQUESTS_MAX
from tests.contract.messages import CODECS, MESSAGES
from tests.unit.shm.strategies import quick

FRAMES = {name: CODECS[name.split(".")[0]].encode(message) for name, message in MESSAGES.items()}


def decode_anything(codec: Codec[Any], frame: bytes) -> None:
    try:
        message = codec.decode(frame)
    except FrameRefused:
        return
    # What passes is a whole message: it can be said again, and then says the same.
    assert codec.decode(codec.encode(message)) == message


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A frame of some message, changed in a few places: bytes replaced, cut out, put in, doubled."""
    name = draw(st.sampled_from(sorted(FRAMES)))
    frame = bytearray(FRAMES[name])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.integers(0, 3)):
            case 0 if at < len(frame):
                frame[at] = draw(st.integers(0, 255))
            case 1:
                del frame[at : at + draw(st.integers(1, 8))]
            case 2:
                frame[at:at] = draw(st.binary(min_size=1, max_size=8))
            case 3:
                frame[at:at] = frame[at : at + draw(st.integers(1, 16))]
    return name.split(".")[0], bytes(frame)


@pytest.mark.slow
@settings(quick, max_examples=500)
@given(mutated())
def test_a_mutated_frame_is_a_message_or_refused(case: tuple[str, bytes]) -> None:
    decode_anything(CODECS[case[0]], case[1])


@settings(quick, max_examples=200)
@given(st.sampled_from(sorted(CODECS)), st.binary(max_size=64))
@example("request", b"")
@example("request", b"\x93\x11\x07\xdd\xff\xff\xff\xff")
@example("request", b"\xdd\xff\xff\xff\xff")
@example("request", b"\x91" * 50_000)
@example("run", b"\xc7\xff\x01")
@example("to_router", b"\x95\x01\x00\xa1\xff\xa0")
def test_any_bytes_are_a_message_or_refused(lane: str, frame: bytes) -> None:
    decode_anything(CODECS[lane], frame)


@pytest.mark.parametrize("name", sorted(FRAMES))
def test_a_frame_that_is_cut_short_or_goes_on_is_refused(name: str) -> None:
    codec, frame = CODECS[name.split(".")[0]], FRAMES[name]
    for size in range(len(frame)):
        with pytest.raises(FrameRefused):
            codec.decode(frame[:size])
    with pytest.raises(FrameRefused):
        codec.decode(frame + b"\xc0")


@pytest.mark.parametrize("name", sorted(FRAMES))
def test_a_message_with_a_field_too_many_is_refused(name: str) -> None:
    raw = msgspec.msgpack.decode(FRAMES[name])
    with pytest.raises(FrameRefused):
        CODECS[name.split(".")[0]].decode(msgspec.msgpack.encode([*raw, 0]))


def test_a_message_of_another_direction_is_refused() -> None:
    with pytest.raises(FrameRefused, match="could not be read"):
        CODECS["reply"].decode(FRAMES["request.Submit"])


def test_a_frame_past_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameRefused, match=f"the largest is {FRAME_BYTES_MAX}"):
        request_codec.decode(bytes(FRAME_BYTES_MAX + 1))
    with pytest.raises(FrameRefused, match="could not be read"):
        request_codec.decode(bytes(FRAME_BYTES_MAX))


def test_what_grows_with_its_content_is_checked_before_it_is_sent() -> None:
    codec: Codec[Any] = Codec(bytes)
    room = FRAME_BYTES_MAX - 5
    assert len(codec.encode_checked(bytes(room))) == FRAME_BYTES_MAX
    with pytest.raises(FrameRefused, match="was to be sent"):
        codec.encode_checked(bytes(room + 1))


def test_requests_are_counted() -> None:
    request = Request(1, 0, 1, 0, 1, 1)
    full = Submit(1, [request] * REQUESTS_MAX)
    frame = request_codec.encode(full)
    assert len(frame) <= FRAME_BYTES_MAX
    assert request_codec.decode(frame) == full
    with pytest.raises(FrameRefused):
        request_codec.decode(request_codec.encode(Submit(1, [request] * (REQUESTS_MAX + 1))))


def test_a_view_on_a_buffer_that_is_used_again_can_be_decoded() -> None:
    frame = FRAMES["run.Run"]
    buffer = bytearray(frame) + bytes(64)
    message = CODECS["run"].decode(memoryview(buffer)[: len(frame)])
    buffer[:] = bytes(len(buffer))
    assert message == MESSAGES["run.Run"]
