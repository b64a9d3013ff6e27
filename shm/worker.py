"""The worker lane: two SEQPACKET socket pairs per worker, made by the supervisor and handed to both sides.

On the first, runs go out and their ends come back, in order. On the second the router tells a worker's watcher thread
to terminate the run in hand; its end of file tells that the router is gone.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from shm.client import Id, Name, Tensors, Text
from shm.frames import Codec
from shm.layout import Signature
from shm.limits import INLINE_BYTES_MAX, MEMBERS_MAX

# router to worker


class ArenaOpened(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """An arena that this worker has not yet seen; its two descriptors (`in`, `out`) travel with the Run."""

    session: Id
    slot_count: int
    slot_bytes: int


class Member(Struct, array_like=True, gc=False, frozen=True, forbid_unknown_fields=True):
    """One request's part of a run. The router has checked it against signature and arena."""

    session: Id
    slot: int
    slot_count: int
    rows: int
    tensors: Tensors | None = None


class Run(Struct, array_like=True, tag=1, frozen=True, forbid_unknown_fields=True):
    """One batch. `not_after_ns`: the latest deadline of a member; a worker that gets to it later skips it.

    `private`: copy every input before the model sees it (`isolation = "group"`).
    """

    run: Id
    not_after_ns: Id
    members: Annotated[list[Member], Meta(max_length=MEMBERS_MAX)]
    opened: Annotated[list[ArenaOpened], Meta(max_length=MEMBERS_MAX)] = []
    private: bool = False


class ArenasClosed(Struct, array_like=True, tag=2, frozen=True, forbid_unknown_fields=True):
    """Drop these mappings. Sent only when no run of this worker uses them."""

    sessions: list[Id]


class Stop(Struct, array_like=True, tag=3, frozen=True, forbid_unknown_fields=True):
    """Finish what came before this, then exit with 0."""


class Inspect(Struct, array_like=True, tag=4, frozen=True, forbid_unknown_fields=True):
    """Tell what you see of yourself."""

    number: Id


class Terminate(Struct, array_like=True, tag=8, frozen=True, forbid_unknown_fields=True):
    """Second socket only: give this run up if it is still going."""

    run: Id


# worker to router


class RunCost(Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a run of so many rows took, measured at warm-up."""

    rows: int
    run_ns: int


class Ready(Struct, array_like=True, tag=16, frozen=True, forbid_unknown_fields=True):
    """Loaded and warm. The first message on a new pair of sockets."""

    worker: Id
    model: Name
    version: int
    signature: Signature
    costs: list[RunCost]
    load_ns: int


class MemberDone(Struct, array_like=True, gc=False, frozen=True, forbid_unknown_fields=True):
    """One member's outputs, or why it has none. The fields mean what they mean in `shm.client.Reply`.

    `overflow_bytes`: not 0 when a memory file of that size travels with the Done, in the order of members.
    `reason`: 0, or MODEL_ERROR, STRING, OUTPUT_TOO_LARGE, GUARD.
    """

    reason: int = 0
    outputs: Tensors | None = None
    inline: Annotated[bytes, Meta(max_length=INLINE_BYTES_MAX)] | None = None
    overflow_bytes: int = 0
    message: Text | None = None


class Copies(Struct, array_like=True, gc=False, frozen=True, forbid_unknown_fields=True):
    """What a run copied, so that every copy is counted: how often, and bytes."""

    inputs_in_place: int = 0
    inputs: int = 0
    input_bytes: int = 0
    outputs_in_place: int = 0
    outputs: int = 0
    output_bytes: int = 0


class Done(Struct, array_like=True, tag=17, frozen=True, forbid_unknown_fields=True):
    """The end of one run. `members` is empty when every member has its declared outputs in its slots."""

    run: Id
    status: int
    started_ns: Id
    finished_ns: Id
    members: Annotated[list[MemberDone], Meta(max_length=MEMBERS_MAX)] = []
    copies: Copies = Copies()


class Inspected(Struct, array_like=True, tag=18, frozen=True, forbid_unknown_fields=True):
    """Facts about a worker, for status and tests: a JSON object as text."""

    number: Id
    facts: Annotated[str, Meta(max_length=65_536)]


RAN = 0
SKIPPED = 1
"""Not started: it was too late when its turn came."""
TERMINATED = 2
"""Stopped on request; no member has outputs."""


run_codec: Codec[Run | ArenasClosed | Stop | Inspect] = Codec(Run | ArenasClosed | Stop | Inspect)
watch_codec: Codec[Terminate] = Codec(Terminate)
done_codec: Codec[Ready | Done | Inspected] = Codec(Ready | Done | Inspected)
