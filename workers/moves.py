"""Rows of members in row form: from their slots into a batch, and a batch's outputs back into their slots.

Entry k of an arena's row view is the tensor of a one-row request in slot k. Rows of one arena move by one indexed copy
for each tensor; rows of many arenas by a loop. For 32 rows of 64 floats, both directions and working it out: one arena
9 us, 27 by a loop; eight arenas 43 us by an index each, 27 by a loop. The order of the batch is that of the members,
so that a reply can name its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from shm.errors import FrameRefused
from shm.layout import RowPlan
from shm.tensors import Array
from shm.worker import Member
from workers.arenas import Arena, Arenas
from workers.session import Session

INDEXED_MIN: Final = 12
"""Rows an arena from which on an indexed copy for each arena beats the loop."""

ONE_ARENA_MIN: Final = 4
"""The same where all rows are of one arena, and need no places in the batch."""


class Moves:
    """Where the members of one run lie.

    rows: of all members together. roomy: the declared outputs of every member fit its slots, so `scatter` may be
    called.
    """

    __slots__ = ("_arenas", "_input_plan", "_members", "_output_plan", "_parts", "_single", "_slots", "roomy", "rows")

    def __init__(self, session: Session, arenas: Arenas, members: Sequence[Member]) -> None:
        """Raises FrameRefused for slots or arenas that are not there, SegmentRefused where one cannot be mapped."""
        self._members = members
        self._input_plan = session.input_plan
        self._output_plan = session.output_plan
        self._slots = [member.slot for member in members]
        sessions = [member.session for member in members]
        row_counts = [member.rows for member in members]
        self.rows = sum(row_counts)
        by_session = {number: arenas.get(number) for number in set(sessions)}
        self._arenas = [by_session[number] for number in sessions]
        self._parts: list[tuple[Arena, Any, Any]] | None = None
        self._single = single = row_counts.count(1) == len(members)
        self.roomy = session.output_plan.row_form and self._check(session, single, by_session.values())
        least = ONE_ARENA_MIN if len(by_session) == 1 else INDEXED_MIN * len(by_session)
        if single and len(members) >= least:
            self._parts = self._indexed(by_session, sessions)

    def _check(self, session: Session, single: bool, arenas: Any) -> bool:
        """Whether the declared outputs fit. The quick way first: one row each, and the least room of all."""
        slot_count = min(member.slot_count for member in self._members)
        if single and slot_count > 0 and min(self._slots) >= 0:
            room_bytes = slot_count * min(arena.slot_bytes for arena in arenas)
            if max(session.input_row_end, session.output_row_end) <= room_bytes:
                return True
        roomy = True
        for member, arena in zip(self._members, self._arenas, strict=True):
            room_bytes = arena.room(member.slot, member.slot_count)[1]
            need_bytes = session.input_plan.payload_bytes(member.rows)
            if need_bytes > room_bytes:
                raise FrameRefused(f"inputs of {need_bytes} bytes were named in slots of {room_bytes}")
            roomy = roomy and session.output_plan.payload_bytes(member.rows) <= room_bytes
        return roomy

    def _indexed(self, by_session: dict[int, Arena], sessions: list[int]) -> list[tuple[Arena, Any, Any]]:
        """(arena, places in the batch, slots) for each arena."""
        slots = np.array(self._slots, np.intp)
        if len(by_session) == 1:
            return [(self._arenas[0], slice(None), slots)]
        numbers = np.array(sessions)
        parts = []
        for number, arena in by_session.items():
            places = np.flatnonzero(numbers == number)
            parts.append((arena, places, slots[places]))
        return parts

    def gather(self, inputs: Sequence[Array]) -> None:
        """Copy the members' rows into these arrays of `rows` rows. Raises FrameRefused."""
        try:
            if self._parts is None:
                self._loop(inputs, self._input_plan, out=False)
                return
            for arena, places, slots in self._parts:
                for array, view in zip(inputs, arena.in_rows(self._input_plan), strict=True):
                    array[places] = view[slots]
        except IndexError as error:
            raise FrameRefused(f"slots were named that an arena does not have: {error}") from error

    def scatter(self, outputs: Sequence[Array]) -> None:
        """Copy these declared outputs of `rows` rows to the members' slots. Only when `roomy`, after `gather`."""
        assert self.roomy
        if self._parts is None:
            self._loop(outputs, self._output_plan, out=True)
            return
        for arena, places, slots in self._parts:
            for array, view in zip(outputs, arena.out_rows(self._output_plan), strict=True):
                view[slots] = array[places]

    def _loop(self, arrays: Sequence[Array], plan: RowPlan, *, out: bool) -> None:
        if not self._single:
            self._loop_any(arrays, plan, out=out)
            return
        views = {arena.session: arena.out_rows(plan) if out else arena.in_rows(plan) for arena in set(self._arenas)}
        slots = self._slots
        # The innermost loop is the hot one: 0.22 us a row and tensor this way, 0.6 with the tensors inside.
        for index, array in enumerate(arrays):
            lanes = [views[member.session][index] for member in self._members]
            if out:
                for row, (lane, slot) in enumerate(zip(lanes, slots, strict=True)):
                    lane[slot] = array[row]
            else:
                for row, (lane, slot) in enumerate(zip(lanes, slots, strict=True)):
                    array[row] = lane[slot]

    def _loop_any(self, arrays: Sequence[Array], plan: RowPlan, *, out: bool) -> None:
        row = 0
        for member, arena in zip(self._members, self._arenas, strict=True):
            end = row + member.rows
            for array, there in zip(arrays, arena.arrays(plan, member, out=out), strict=True):
                if out:
                    there[...] = array[row:end]
                else:
                    array[row:end] = there
            row = end
