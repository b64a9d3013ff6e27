"""Several members in one run: rows gathered into warm buffers, or tensors with descriptors concatenated.

A batch that fails raises, and the runner runs each member alone: one bad row fails alone. Members that do not go
together (other lengths, an optional input given) raise NotJoined, to the same end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shm.endings import Reason
from shm.errors import SegmentRefused, TensorRefused
from shm.tensors import Array
from shm.worker import Member, MemberDone
from workers.arenas import Arena, Arenas
from workers.buffers import Buffers
from workers.feeds import addresses_of, feed_of
from workers.guard import Guard
from workers.log import log_seldom
from workers.moves import Moves
from workers.outputs import OutputWriter, Turn
from workers.session import ModelFailed, Session

Ends = Sequence[MemberDone | None]
"""One for each member, None where its declared outputs are in its slots; or empty, when that is so for all."""


class NotJoined(Exception):
    """These members cannot be one batch: each runs alone."""


class Together:
    """Runs batches. `addresses`: where the inputs of the last one lay."""

    def __init__(self, session: Session, arenas: Arenas, writer: OutputWriter, guard: Guard | None) -> None:
        self.buffers = Buffers(session)
        self.addresses: tuple[int, ...] = ()
        self._session = session
        self._arenas = arenas
        self._writer = writer
        self._guard = guard
        self._row_form = session.input_plan.fits and session.input_plan.row_form
        self._required = [spec.name for spec in session.signature.inputs if not spec.optional]

    def gathers(self, members: Sequence[Member]) -> bool:
        """Whether these need no descriptors and have rows to gather."""
        return self._row_form and all(member.tensors is None for member in members)

    def run(self, members: Sequence[Member], turn: Turn) -> Ends:
        """All members in one run; their inputs are copied. Raises NotJoined, ModelFailed or FrameRefused."""
        try:
            if self.gathers(members):
                return self._gathered(members, turn)
            return self._concatenated(members, turn)
        except (SegmentRefused, MemoryError) as error:
            raise NotJoined from error

    def _gathered(self, members: Sequence[Member], turn: Turn) -> Ends:
        session = self._session
        moves = Moves(session, self._arenas, members)
        rows = moves.rows
        batch = self.buffers.batch(rows)
        moves.gather(batch.inputs)
        turn.input_copied(len(members) * len(batch.inputs), rows * sum(session.input_plan.row_bytes))
        self.addresses = batch.addresses
        outputs = batch.run(session)
        # The whole batch at once; when something is wrong in it, each member is looked at by itself.
        passes = self._guard is None or self._guard.refuse(outputs) is None
        if passes and moves.roomy and (outputs is batch.outputs or self._writer.as_declared(outputs, rows)):
            moves.scatter(outputs)
            turn.output_copied(len(members) * len(outputs), rows * sum(session.output_plan.row_bytes))
            return ()
        return self._split(members, outputs, rows, turn)

    def _concatenated(self, members: Sequence[Member], turn: Turn) -> Ends:
        ends: list[MemberDone | None] = [None] * len(members)
        parts: list[dict[str, Array]] = []
        joined: list[int] = []
        before = list(turn.counts)
        try:
            for i, member in enumerate(members):
                try:
                    feed = feed_of(self._session, self._arenas.get(member.session), member, False, turn)
                except TensorRefused as error:
                    ends[i] = turn.failed(Reason(error.reason), error)
                    continue
                if not self._joins(feed, member, parts[0] if parts else feed):
                    raise NotJoined
                parts.append(feed)
                joined.append(i)
            if not parts:
                return ends
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            self.addresses = addresses_of(whole)
            outputs = [np.asarray(output) for output in self._session.run(whole)]
        except (NotJoined, ModelFailed):
            turn.counts[:] = before  # each member is read again, and counted then
            raise
        turn.inputs_were_copied(
            turn.counts[0] - before[0], sum(a.nbytes for a in whole.values() if a.dtype.kind != "O")
        )
        some = [members[i] for i in joined]
        for i, end in zip(joined, self._split(some, outputs, sum(m.rows for m in some), turn), strict=True):
            ends[i] = end
        return ends

    def _joins(self, feed: dict[str, Array], member: Member, first: dict[str, Array]) -> bool:
        """Every required input and no other, each with this member's rows, all else as in the first member."""
        return len(feed) == len(self._required) and all(
            name in feed
            and feed[name].ndim > 0
            and feed[name].shape[0] == member.rows
            and feed[name].shape[1:] == first[name].shape[1:]
            for name in self._required
        )

    def _split(self, members: Sequence[Member], outputs: Sequence[Array], rows: int, turn: Turn) -> Ends:
        """Each member's rows of a batch's outputs, written one by one."""
        if any(output.ndim == 0 or output.shape[0] != rows for output in outputs):
            log_seldom("batch_not_split", reason="an output has no row for each row of the inputs")
            raise NotJoined
        ends = []
        row = 0
        for member in members:
            arena: Arena = self._arenas.get(member.session)
            ends.append(self._writer.write(arena, member, [a[row : row + member.rows] for a in outputs], turn))
            row += member.rows
        return ends
