"""Golden bytes: each message is exactly these bytes, and these bytes are exactly that message."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import msgspec
import pytest

from shm import client, control, worker
from shm.limits import PROTOCOL_VERSION
from tests.contract.messages import CLIENT_LANES, CODECS, MESSAGES, encoded, golden

VERSION, GOLDEN = golden()
WRITE_ANEW = "`python -m tests.contract.messages` writes golden.txt anew"


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
    assert VERSION == PROTOCOL_VERSION, f"golden.txt is of protocol {VERSION}; {WRITE_ANEW}"


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
