"""Inputs that kill workers: known again when they come again, and refused for a while.

An input is known by a digest of its bytes. To hash every request would cost each of them for the sake of a few, so what
a request costs depends on how like a killer it looks: nothing while there is none; a look at model and rows; where
these are the same, one at the first bytes (1 us); then at shapes and a digest of a few KiB (10 us); and only where that
is the same too, a digest of the whole.

Of requests that nobody has checked yet nothing is believed: what is read is bounded by the sizes of a killer.
An input is a killer for the user who sent it only: a client may write another user's input over the one that killed,
and so would have that refused.
Time comes in: nothing here reads a clock.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from router.arena import Arena
from shm.client import Request
from shm.layout import RowPlan, Tensor

INPUT_BYTES_MAX: Final = 4 * 1024 * 1024
"""The largest input that is copied and hashed: 6 ms of the router's loop, when two workers have just died."""
HEAD_BYTES: Final = 64
"""Of the first tensor, compared as they are."""
SAMPLE_BYTES: Final = 1024
"""Of each end of each tensor."""
TURN_BYTES: Final = 4 * 1024 * 1024
"""What arriving requests may have hashed in one turn. Beyond, who looks like a killer down to the sample is taken for
one: it is most likely the same request, sent again by everybody at once."""
KNOWN_MAX: Final = 64
"""The oldest goes."""

Shape = tuple[tuple[int, int, tuple[int, ...], int], ...]
"""Index, dtype, dims and bytes of each tensor, by index."""


class Input(NamedTuple):
    """A copy of one request's input. `parts`: the bytes of each tensor in `tensors`, which are ordered by index."""

    rows: int
    tensors: tuple[Tensor, ...]
    parts: tuple[bytes, ...]
    digest: bytes


class _Killer(NamedTuple):
    uid: int
    model: int
    rows: int
    head: bytes
    shape: Shape
    sample: bytes
    digest: bytes
    until_ns: int


def tensors_of(request: Request, inputs: RowPlan) -> tuple[Tensor, ...]:
    """Where the inputs of a request lie, by index, whether it says so or leaves it to the signature."""
    if request.tensors is not None:
        return tuple(sorted(request.tensors, key=_index))
    sizes, offsets = inputs.sizes(request.rows), inputs.offsets(request.rows)
    return tuple(
        Tensor(index, spec.dtype, inputs.dims(index, request.rows), offsets[index], sizes[index])
        for index, spec in enumerate(inputs.specs)
    )


def input_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.payload_bytes for tensor in tensors)


def copy_input(request: Request, inputs: RowPlan, arena: Arena) -> Input | None:
    """None: larger than INPUT_BYTES_MAX."""
    tensors = tensors_of(request, inputs)
    if input_bytes(tensors) > INPUT_BYTES_MAX:
        return None
    parts = tuple(arena.read_part(request.slot, tensor.offset, tensor.payload_bytes) for tensor in tensors)
    return Input(request.rows, tensors, parts, _digest(parts))


class Poison:
    """Known killers of all models. `known` is empty as long as there is nothing to look for."""

    def __init__(self, poison_ms: float) -> None:
        self._lasts_ns = int(poison_ms * 1e6)
        self.known: deque[_Killer] = deque()
        self._left_bytes = TURN_BYTES
        self._turn = -1

    def learn(self, model: int, killer: Input, now_ns: int, uid: int) -> None:
        """Two workers died of it: refuse it from now on."""
        self.forget(now_ns)
        self.known.append(
            _Killer(
                uid,
                model,
                killer.rows,
                killer.parts[0][:HEAD_BYTES] if killer.parts else b"",
                _shape(killer.tensors),
                _digest([_ends(part) for part in killer.parts]),
                killer.digest,
                now_ns + self._lasts_ns,
            )
        )
        if len(self.known) > KNOWN_MAX:
            self.known.popleft()

    def find(
        self, requests: Sequence[Request], plan_of: dict[int, RowPlan], arena: Arena, turn: int, now_ns: int, uid: int
    ) -> frozenset[int]:
        """Ids of those that are known killers of this user. `plan_of`: the inputs of models that have a signature."""
        self.forget(now_ns)
        if turn != self._turn:
            self._turn, self._left_bytes = turn, TURN_BYTES
        models = {killer.model for killer in self.known if killer.uid == uid}
        return frozenset(
            request.id
            for request in requests
            if request.model in models and self._kills(request, plan_of[request.model], arena, uid)
        )

    def _kills(self, request: Request, inputs: RowPlan, arena: Arena, uid: int) -> bool:
        named = (uid, request.model, request.rows)
        like = [killer for killer in self.known if (killer.uid, killer.model, killer.rows) == named]
        if not like:
            return False
        # By the signature the first tensor lies at the start.
        first = min(request.tensors, key=_index).offset if request.tensors else 0
        head = arena.read_part(request.slot, first, HEAD_BYTES)
        like = [killer for killer in like if head.startswith(killer.head)]
        if not like:
            return False
        tensors = tensors_of(request, inputs)
        shape = _shape(tensors)
        like = [killer for killer in like if killer.shape == shape]
        if not like:
            return False
        ends = []
        for tensor in tensors:
            size = tensor.payload_bytes
            head = arena.read_part(request.slot, tensor.offset, min(size, SAMPLE_BYTES))
            tail = arena.read_part(request.slot, tensor.offset + max(0, size - SAMPLE_BYTES), min(size, SAMPLE_BYTES))
            ends.append(head + tail)
        sample = _digest(ends)
        like = [killer for killer in like if killer.sample == sample]
        if not like:
            return False
        self._left_bytes -= input_bytes(tensors)
        if self._left_bytes < 0:
            return True
        digest = _digest([arena.read_part(request.slot, tensor.offset, tensor.payload_bytes) for tensor in tensors])
        return any(killer.digest == digest for killer in like)

    def forget(self, now_ns: int) -> None:
        """Those whose time is over. They were learnt in the order in which they end."""
        while self.known and self.known[0].until_ns <= now_ns:
            self.known.popleft()


def _index(tensor: Tensor) -> int:
    return tensor.index


def _shape(tensors: Iterable[Tensor]) -> Shape:
    return tuple((tensor.index, tensor.dtype, tensor.dims, tensor.payload_bytes) for tensor in tensors)


def _ends(part: bytes) -> bytes:
    return part[:SAMPLE_BYTES] + part[max(0, len(part) - SAMPLE_BYTES) :]


def _digest(parts: Iterable[bytes]) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(part)
    return made.digest()
