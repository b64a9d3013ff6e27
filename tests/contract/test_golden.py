"""Golden bytes: each message is exactly these bytes, and these bytes are exactly that message."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import msgspec
import pytest

from shm import client, control, worker
from shm.errors import FrameRefused
from shm.limits import PROTOCOL_VERSION
from tests.contract.messages import CLIENT_LANES, CODECS, MESSAGES, VERSIONS, encoded, golden

VERSION, GOLDEN = golden()
WRITE_ANEW = "`python -m tests.contract.messages` writes tests/contract/golden anew"


def tagged(module: ModuleType) -> dict[str, Any]:
    """The message classes that a module defines."""
    return {
        name: kind
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
        if kind.__struct_config__.tag is not None
    }


def what_to_do(name: str) -> str:
    if name.split(".")[0] not in CLIENT_LANES:
        return f"{name}: only parts of one farm speak this lane, so no version need be raised; {WRITE_ANEW}"
    if VERSION == PROTOCOL_VERSION:
        return (
            f"{name}: its bytes have changed, and a client of protocol {PROTOCOL_VERSION} cannot know. "
            f"Raise PROTOCOL_VERSION in shm/limits.py and mend docs/PROTOCOL.md; then {WRITE_ANEW}"
        )
    return f"{name}: the golden bytes are those of protocol {VERSION}, this is {PROTOCOL_VERSION}; {WRITE_ANEW}"


def test_golden_bytes_are_those_of_this_protocol() -> None:
    assert VERSION == PROTOCOL_VERSION, f"tests/contract/golden ends at protocol {VERSION}; {WRITE_ANEW}"


def test_golden_file_and_messages_name_the_same() -> None:
    assert sorted(GOLDEN) == sorted(MESSAGES), WRITE_ANEW


@pytest.mark.parametrize("name", MESSAGES)
def test_message_is_exactly_these_bytes(name: str) -> None:
    assert name in GOLDEN, WRITE_ANEW
    assert encoded(name).hex() == GOLDEN[name].hex(), what_to_do(name)


@pytest.mark.parametrize("name", GOLDEN)
def test_these_bytes_are_exactly_that_message(name: str) -> None:
    assert name in MESSAGES, WRITE_ANEW
    decoded = CODECS[name.split(".")[0]].decode(GOLDEN[name])
    assert type(decoded).__name__ == name.split(".")[1].rstrip("+")
    assert decoded == MESSAGES[name], what_to_do(name)


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_of_every_version_kept_are_read_rightly_or_refused(version: int) -> None:
    """Read rightly: what they say to this version is, said again, the same bytes. Nothing is half understood."""
    told, frames = golden(version)
    assert told == version
    for name, frame in frames.items():
        try:
            message = CODECS[name.split(".")[0]].decode(frame)
        except FrameRefused:
            assert version != PROTOCOL_VERSION, name
        else:
            assert type(message).__name__ == name.split(".")[1].rstrip("+"), name
            assert said_alike(frame, CODECS[name.split(".")[0]].encode(message)), f"v{version} {name} is garbled"


def said_alike(old: bytes, new: bytes) -> bool:
    """Whether a message decoded and said again has every field that came, where it came; new ones may follow."""
    before, after = msgspec.msgpack.decode(old), msgspec.msgpack.decode(new)
    return after[: len(before)] == before


def test_versions_are_kept_without_a_gap() -> None:
    assert list(range(1, PROTOCOL_VERSION + 1)) == VERSIONS, "golden frames of an older version are kept for good"


@pytest.mark.parametrize("fields", [-1, 1])
@pytest.mark.parametrize("name", ["attach.Attach", "welcome.Attached"])
def test_a_handshake_of_other_fields_is_refused(name: str, fields: int) -> None:
    raw = msgspec.msgpack.decode(encoded(name))
    required = len([f for f in msgspec.structs.fields(type(MESSAGES[name])) if f.required]) + 1
    changed = [*raw, 0] if fields > 0 else raw[: required - 1]
    with pytest.raises(FrameRefused):
        CODECS[name.split(".")[0]].decode(msgspec.msgpack.encode(changed))


@pytest.mark.parametrize("module", [client, control, worker], ids=lambda module: module.__name__)
def test_every_message_has_golden_bytes(module: ModuleType) -> None:
    kinds = tagged(module)
    assert kinds
    missing = kinds.keys() - {name.split(".")[1].rstrip("+") for name in MESSAGES}
    assert not missing, "add them to tests/contract/messages.py"


@pytest.mark.parametrize("name", [name for name in MESSAGES if not name.endswith("+")])
def test_every_field_is_away_from_its_default_somewhere(name: str) -> None:
    """Else it could move, or its default change, unseen."""
    fields = msgspec.structs.fields(type(MESSAGES[name]))
    for field in fields:
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if default is not msgspec.NODEFAULT:
            assert getattr(MESSAGES[name + "+"], field.name) != default, field.name


@pytest.mark.parametrize("lane", CODECS)
def test_tags_of_a_direction_differ(lane: str) -> None:
    tags = [type(m).__struct_config__.tag for n, m in MESSAGES.items() if n.split(".")[0] == lane and n[-1] != "+"]
    assert len(set(tags)) == len(tags)


def test_no_tag_of_the_client_lanes_is_used_twice() -> None:
    """The direct lane may one day carry all of them on one socket."""
    tags = [kind.__struct_config__.tag for kind in tagged(client).values()]
    assert len(set(tags)) == len(tags)


@pytest.mark.parametrize("raised", [False, True])
def test_a_change_of_the_client_lane_alone_asks_for_a_new_version(
    raised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.PROTOCOL_VERSION", VERSION + raised)
    assert ("Raise PROTOCOL_VERSION" in what_to_do("request.Submit")) is not raised
    assert "no version need be raised" in what_to_do("run.Run")
