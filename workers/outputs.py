"""From what a session returned to what a client gets: into its slots, into the frame, or into a file of its own.

Outputs of another shape or type than the model declares are no answer (`workers.declared`). Those that the signature
lays out go to the offsets that it gives. Others (a free dimension, strings) carry descriptors and go, in this order:
into the member's room in `out`; into the frame, up to INLINE_BYTES_MAX a member and INLINE_TOTAL_MAX a frame; into a
sealed memory file, up to a limit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from shm import segment, tensors
from shm.endings import Reason
from shm.errors import SegmentRefused, TensorRefused
from shm.layout import CODES, STRING, Tensor, place
from shm.limits import FRAME_BYTES_MAX, INLINE_BYTES_MAX, MESSAGE_CHARS_MAX
from shm.tensors import NUMPY, Array, Buffer
from shm.worker import Copies, Member, MemberDone
from workers.arenas import Arena
from workers.declared import refuse_outputs
from workers.guard import Guard
from workers.session import Session

INLINE_TOTAL_MAX: Final = 96 * 1024
"""Leaves a quarter of the largest frame to descriptors and messages."""

_HEADS_MAX: Final = FRAME_BYTES_MAX - INLINE_TOTAL_MAX - 2048
_DONE_BYTES: Final = 32
"""A member's end without descriptors, inline bytes and message, rounded up."""


class Turn:
    """What one run has put into its Done so far, and what it copied. The descriptors are the sender's to close."""

    __slots__ = ("_heads_bytes", "_inline_bytes", "counts", "fds")

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.counts = [0, 0, 0, 0, 0, 0]
        self._inline_bytes = 0
        self._heads_bytes = 0

    def copies(self) -> Copies:
        return Copies(*self.counts)

    def input_left(self) -> None:
        """An input is read where the client wrote it."""
        self.counts[0] += 1

    def inputs_were_copied(self, count: int, payload_bytes: int) -> None:
        """So many that were counted as left have been copied after all."""
        self.counts[0] -= count
        self.input_copied(count, payload_bytes)

    def outputs_left(self, count: int) -> None:
        """ONNX Runtime wrote these outputs where the client reads them."""
        self.counts[3] += count

    def input_copied(self, count: int, payload_bytes: int) -> None:
        self.counts[1] += count
        self.counts[2] += payload_bytes

    def output_copied(self, count: int, payload_bytes: int) -> None:
        self.counts[4] += count
        self.counts[5] += payload_bytes

    def take_inline(self, payload_bytes: int) -> bool:
        if payload_bytes > INLINE_BYTES_MAX or self._inline_bytes + payload_bytes > INLINE_TOTAL_MAX:
            return False
        self._inline_bytes += payload_bytes
        return True

    def take_head(self, head_bytes: int) -> bool:
        if self._heads_bytes + head_bytes > _HEADS_MAX:
            return False
        self._heads_bytes += head_bytes
        return True

    def failed(self, reason: Reason, message: object) -> MemberDone:
        """An end without outputs. The message is cut where many of them would pass the frame."""
        text = " ".join(str(message).split())[:MESSAGE_CHARS_MAX]
        for cut in (MESSAGE_CHARS_MAX, 160, 0):
            text = text[:cut]
            if self.take_head(_DONE_BYTES + len(text.encode("utf-8", "replace"))):
                break
        return MemberDone(reason=reason, message=text or None)


class OutputWriter:
    """Writes members' outputs. One a session; keeps nothing between runs."""

    def __init__(self, session: Session, output_bytes_max: int, guard: Guard | None = None) -> None:
        self._session = session
        self._plan = session.output_plan
        self._output_bytes_max = output_bytes_max
        self._guard = guard

    def as_declared(self, outputs: Sequence[Array], rows: int) -> bool:
        """Whether these are what the signature and `rows` say."""
        plan = self._plan
        if not plan.fits:
            return False
        for index, (spec, array) in enumerate(zip(plan.specs, outputs, strict=True)):
            if array.dtype != NUMPY[spec.dtype] or array.shape != plan.dims(index, rows):
                return False
        return True

    def write(self, arena: Arena, member: Member, outputs: Sequence[Array], turn: Turn) -> MemberDone | None:
        """Put one member's outputs where they belong; None: as declared, in its slots."""
        as_declared = self.as_declared(outputs, member.rows)
        if not as_declared and (lie := refuse_outputs(self._session.signature, member, outputs)) is not None:
            return turn.failed(Reason.MODEL_ERROR, lie)
        if self._guard is not None and (refused := self._guard.refuse(outputs)) is not None:
            return turn.failed(Reason.GUARD, refused)
        start, room_bytes = arena.room(member.slot, member.slot_count)
        if as_declared:
            offsets, total = place(self._plan.sizes(member.rows))
            if total <= room_bytes:
                for spec, offset, array in zip(self._plan.specs, offsets, outputs, strict=True):
                    tensors.write(arena.out_map, start + offset, array, spec.dtype)
                turn.output_copied(len(outputs), sum(self._plan.sizes(member.rows)))
                return None
        try:
            return self._describe(arena, start, room_bytes, outputs, turn)
        except TensorRefused as error:
            return turn.failed(Reason.MODEL_ERROR, error)
        except MemoryError as error:
            return turn.failed(Reason.MODEL_ERROR, self._session.told(error))

    def _describe(self, arena: Arena, start: int, room_bytes: int, outputs: Sequence[Array], turn: Turn) -> MemberDone:
        codes = []
        encoded: list[list[bytes] | None] = []
        sizes = []
        for name, array in zip(self._session.output_names, outputs, strict=True):
            code = STRING if array.dtype.kind in "OUS" else CODES[array.dtype.name]
            words = tensors.encode_strings(name, array) if code == STRING else None
            codes.append(code)
            encoded.append(words)
            sizes.append(tensors.payload_bytes(array, code, words))
        offsets, total = place(sizes)
        described = tuple(
            Tensor(i, codes[i], tuple(array.shape), offsets[i], sizes[i]) for i, array in enumerate(outputs)
        )
        if not turn.take_head(_DONE_BYTES + sum(32 + 9 * len(t.dims) for t in described)):
            return turn.failed(Reason.OUTPUT_TOO_LARGE, "the run's outputs have more descriptors than a frame holds")

        def write_to(buffer: Buffer, base: int) -> None:
            for array, code, words, offset in zip(outputs, codes, encoded, offsets, strict=True):
                tensors.write(buffer, base + offset, array, code, words)
            turn.output_copied(len(outputs), sum(sizes))

        if total <= room_bytes:
            write_to(arena.out_map, start)
            return MemberDone(outputs=described)
        if turn.take_inline(total):
            inline = bytearray(total)
            write_to(inline, 0)
            return MemberDone(outputs=described, inline=bytes(inline))
        if total > self._output_bytes_max:
            return turn.failed(
                Reason.OUTPUT_TOO_LARGE,
                f"the outputs take {total} bytes, the farm carries {self._output_bytes_max} (output_mib_max)",
            )
        try:
            fd = segment.create_sealed("farm-output", total)
        except SegmentRefused as error:
            return turn.failed(Reason.OUTPUT_TOO_LARGE, error)
        try:
            mapping = segment.map_memory(fd, total, writable=True, populate=True)
        except SegmentRefused as error:
            os.close(fd)
            return turn.failed(Reason.OUTPUT_TOO_LARGE, error)
        turn.fds.append(fd)
        write_to(mapping, 0)
        return MemberDone(outputs=described, overflow_bytes=total)
