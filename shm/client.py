"""The client lane: attach, then requests and replies. `docs/PROTOCOL.md` has each message's limits and violations.

Attach happens on the Unix socket `attach.sock` (descriptors travel there); requests and replies on the lane that
`Attached` names. Times are absolute CLOCK_MONOTONIC nanoseconds of this host.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from shm.frames import Codec
from shm.layout import Signature, Tensor
from shm.limits import (
    ID_MAX,
    INLINE_BYTES_MAX,
    KEY_CHARS_MAX,
    MESSAGE_CHARS_MAX,
    NAME_BYTES_MAX,
    PRIORITY_MAX,
    REQUESTS_MAX,
    SLOT_COUNT_MAX,
    TENSORS_MAX,
)

Id = Annotated[int, Meta(ge=0, le=ID_MAX)]
Index = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=0, le=2**31)]
Key = Annotated[str, Meta(max_length=KEY_CHARS_MAX)]
Text = Annotated[str, Meta(max_length=MESSAGE_CHARS_MAX)]
Name = Annotated[str, Meta(max_length=NAME_BYTES_MAX)]
Tensors = Annotated[tuple[Tensor, ...], Meta(max_length=TENSORS_MAX)]


# attach socket, client to router


class Attach(Struct, array_like=True, tag=1, frozen=True, forbid_unknown_fields=True):
    """The first frame on the attach socket. The router grants this arena or refuses by name."""

    protocol: int
    slot_count: Annotated[int, Meta(ge=1, le=SLOT_COUNT_MAX)]
    slot_bytes: Annotated[int, Meta(ge=64, le=2**30)]
    lane: Annotated[str, Meta(max_length=16)]
    title: Annotated[str, Meta(max_length=64)] = ""
    """What the service calls itself, for `farm status`."""


# attach socket, router to client


class Attached(Struct, array_like=True, tag=2, frozen=True, forbid_unknown_fields=True):
    """Granted. Two descriptors come with it: `in` (read and write) and `out` (read only), each of
    `slot_count * slot_bytes`. `model_count` Model frames follow at once; later ones say what has changed."""

    protocol: int
    session: Id
    epoch: Id
    token: Annotated[bytes, Meta(min_length=16, max_length=16)]
    slot_count: int
    slot_bytes: int
    lane: str
    lane_path: Annotated[str, Meta(max_length=256)]
    model_count: Count


class AttachRefused(Struct, array_like=True, tag=3, frozen=True, forbid_unknown_fields=True):
    """Not granted; the router closes the socket after it."""

    reason: int
    message: Text
    retry_after_ms: Count = 0


class Model(Struct, array_like=True, tag=4, frozen=True, forbid_unknown_fields=True):
    """A model version as it stands now. `signature` is None until a first worker has loaded it."""

    index: Index
    name: Name
    version: Count
    ready: bool
    deadline_ns: Id
    """The deadline of a request that names none."""
    max_rows: Count
    signature: Signature | None = None
    aliases: Annotated[tuple[Name, ...], Meta(max_length=16)] = ()


class Overflow(Struct, array_like=True, tag=5, frozen=True, forbid_unknown_fields=True):
    """Outputs that fit neither slots nor a frame: a sealed memory file of `payload_bytes` comes with this. The reply
    (with `overflow` set) goes on the request's lane and may come before or after."""

    id: Id
    payload_bytes: int


# request lane, client to router


class Hello(Struct, array_like=True, tag=16, frozen=True, forbid_unknown_fields=True):
    """The first frame of a ZeroMQ peer: binds its routing id to the session that attach made."""

    token: Annotated[bytes, Meta(min_length=16, max_length=16)]
    epoch: Id


class Request(Struct, array_like=True, gc=False, frozen=True, forbid_unknown_fields=True):
    """One request. Its inputs lie in `slot_count` slots from `slot` on, and its outputs will, in `out`.

    `tensors` is None when the signature and `rows` decide the layout (`shm.layout.RowPlan`).
    """

    id: Id
    model: Index
    deadline_ns: Id
    slot: Annotated[int, Meta(ge=0, lt=SLOT_COUNT_MAX)]
    slot_count: Annotated[int, Meta(ge=1, le=SLOT_COUNT_MAX)]
    rows: Count
    priority: Annotated[int, Meta(ge=0, le=PRIORITY_MAX)] = 0
    tensors: Tensors | None = None
    key: Key | None = None
    trace: Key | None = None


class Submit(Struct, array_like=True, tag=17, gc=False, frozen=True, forbid_unknown_fields=True):
    epoch: Id
    requests: Annotated[list[Request], Meta(max_length=REQUESTS_MAX)]


class Cancel(Struct, array_like=True, tag=18, frozen=True, forbid_unknown_fields=True):
    """Nobody waits for these any more. Each still gets its one reply, which gives its slots back."""

    ids: Annotated[list[Id], Meta(max_length=REQUESTS_MAX)]


# request lane, router to client


class Stages(Struct, array_like=True, gc=False, frozen=True, forbid_unknown_fields=True):
    """Where the time went: `arrived_ns` is absolute, the others are durations; 0 where a stage did not happen."""

    arrived_ns: int = 0
    queue_ns: int = 0
    """From arrival to dispatch (or to the answer, when no worker was involved)."""
    to_worker_ns: int = 0
    run_ns: int = 0
    from_worker_ns: int = 0


class Reply(Struct, array_like=True, gc=False, frozen=True, forbid_unknown_fields=True):
    """The one end of a request.

    held: its slots are still in use and stay the farm's until Release names the id.
    outputs: None when the declared layout holds (`RowPlan` of the outputs and `rows`); else where they lie: in
        `inline` when that is not None, in the memory file of an Overflow when `overflow` is set, else in `out`.
    run, row, run_rows: which run, where in its batch, and how many rows it had: enough to repeat it bit for bit.
    """

    id: Id
    ending: int
    reason: int = 0
    held: bool = False
    rows: Count = 0
    stages: Stages | None = None
    run: Id = 0
    row: Count = 0
    run_rows: Count = 0
    outputs: Tensors | None = None
    inline: Annotated[bytes, Meta(max_length=INLINE_BYTES_MAX)] | None = None
    overflow: bool = False
    rule: Text | None = None
    decision: Text | None = None
    message: Text | None = None
    retry_after_ms: Count = 0
    last: bool = True


class Replies(Struct, array_like=True, tag=32, gc=False, frozen=True, forbid_unknown_fields=True):
    """All replies of one turn of the router to one client."""

    replies: list[Reply]


class Release(Struct, array_like=True, tag=33, frozen=True, forbid_unknown_fields=True):
    """Slots of replies that said `held` are the client's again."""

    ids: list[Id]


class Rejected(Struct, array_like=True, tag=34, frozen=True, forbid_unknown_fields=True):
    """A frame that could not be taken as a whole. After too many the session ends."""

    reason: int
    message: Text


attach_codec: Codec[Attach] = Codec(Attach)
welcome_codec: Codec[Attached | AttachRefused | Model | Overflow] = Codec(Attached | AttachRefused | Model | Overflow)
request_codec: Codec[Hello | Submit | Cancel] = Codec(Hello | Submit | Cancel)
reply_codec: Codec[Replies | Release | Rejected] = Codec(Replies | Release | Rejected)
