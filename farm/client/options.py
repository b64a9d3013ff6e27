"""What a caller may ask for beside model and inputs, checked once at the door."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from farm.client.endpoint import Endpoint
from farm.errors import InvalidRequest
from shm.layout import ALIGNMENT
from shm.limits import DEADLINE_NS_MAX, KEY_CHARS_MAX, PRIORITY_MAX, SLOT_COUNT_MAX

Outputs = dict[str, npt.NDArray[Any]]
NS_PER_MS: Final = 1_000_000
SLOT_BYTES_MAX: Final = 2**30
TITLE_CHARS_MAX: Final = 64
LANES: Final = ("auto", "zeromq", "direct")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a client was made with."""

    endpoint: Endpoint | None
    lane: str
    slot_count: int
    slot_bytes: int
    title: str


class Options(NamedTuple):
    """Of one request. `fallback` is a copy that the client owns."""

    priority: int = 0
    key: str | None = None
    trace: str | None = None
    fallback: Outputs | None = None


DEFAULTS: Final = Options()


def check_settings(endpoint: Endpoint | None, lane: str, slot_count: int, slot_bytes: int, title: str) -> Settings:
    """Raises:
    InvalidRequest: a value is out of range; the message names it and the range.
    """
    if lane not in LANES:
        raise refused(f"lane is {lane!r}; it must be one of {', '.join(LANES)}")
    if not _is_whole(slot_count) or not 1 <= slot_count <= SLOT_COUNT_MAX:
        raise refused(f"slot_count is {slot_count!r}; it must be a whole number from 1 to {SLOT_COUNT_MAX}")
    if not _is_whole(slot_bytes) or not ALIGNMENT <= slot_bytes <= SLOT_BYTES_MAX or slot_bytes % ALIGNMENT:
        raise refused(f"slot_bytes is {slot_bytes!r}; it must be a multiple of {ALIGNMENT} up to {SLOT_BYTES_MAX}")
    return Settings(
        endpoint=endpoint, lane=lane, slot_count=slot_count, slot_bytes=slot_bytes, title=title[:TITLE_CHARS_MAX]
    )


def check_options(priority: int, key: str | None, trace: str | None, fallback: Mapping[str, Any] | None) -> Options:
    """Raises:
    InvalidRequest: a value is out of range; the message names it and the range.
    """
    if not _is_whole(priority) or not 0 <= priority <= PRIORITY_MAX:
        raise refused(f"priority is {priority!r}; it must be a whole number from 0 to {PRIORITY_MAX}", "priority_range")
    for name, text in (("key", key), ("trace", trace)):
        if text is not None and (not isinstance(text, str) or len(text) > KEY_CHARS_MAX):
            raise refused(f"{name} is {text!r}; it must be a str of at most {KEY_CHARS_MAX} characters")
    return Options(int(priority), key, trace, None if fallback is None else check_fallback(fallback))


def check_fallback(fallback: Mapping[str, Any]) -> Outputs:
    """A private copy of the outputs that the client itself may answer with."""
    if not isinstance(fallback, Mapping) or not fallback:
        raise refused(f"fallback is {fallback!r}; it must be a dict of output name to array, with at least one output")
    copies = {}
    for name, value in fallback.items():
        if not isinstance(name, str):
            raise refused(f"fallback has the key {name!r}; its keys must be output names")
        try:
            copies[name] = np.array(value)
        except (ValueError, TypeError) as error:
            raise refused(f"fallback[{name!r}] makes no array: {error}") from error
    return copies


def deadline_ns_of(deadline_ms: float) -> int:
    """The duration that a caller named, in nanoseconds."""
    try:
        if math.isfinite(deadline_ms):
            duration_ns = int(deadline_ms * NS_PER_MS)
            if 0 < duration_ns <= DEADLINE_NS_MAX:
                return duration_ns
    except TypeError:
        pass
    raise refused(
        f"deadline_ms is {deadline_ms!r}; it must be above 0 and at most {DEADLINE_NS_MAX // NS_PER_MS}",
        "deadline_range",
    )


def refused(message: str, reason: str = "usage") -> InvalidRequest:
    return InvalidRequest(message, reason=reason)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
