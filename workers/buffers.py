"""Warm private memory for batches: rows are gathered here, run once, and scattered to their members.

For each row count there is a `Batch`: views of one set of buffers and a run prepared on them, so that a batch of a size
that has occurred before allocates nothing. Only for models in row form (`RowPlan.row_form` and `fits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shm.tensors import Array
from shm.worker import Member
from workers.arenas import Arena
from workers.session import Bound, Session, empty

KEPT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Buffers of a larger batch are made for that run and dropped."""

BATCHES_MAX: Final = 256

INDEXED_MIN: Final = 6
"""Members of one arena from which on one indexed copy beats a loop: 2.5 us against 6.9 for 32 rows of 64 floats, 1.4
against 1.0 for 4."""


class Batch:
    """Memory for `rows` rows. `bound` is None where outputs cannot be bound; then `feed` is run."""

    __slots__ = ("bound", "feed", "inputs", "outputs", "rows")

    def __init__(self, session: Session, inputs: list[Array], outputs: list[Array] | None, rows: int) -> None:
        self.rows = rows
        self.inputs = inputs
        self.outputs = outputs
        self.feed = dict(zip(session.input_names, inputs, strict=True))
        self.bound: Bound | None = None if outputs is None else session.bind(inputs, outputs)


class Buffers:
    """The batches of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._capacity = 0
        self._inputs: list[Array] = []
        self._outputs: list[Array] = []
        self._batches: dict[int, Batch] = {}
        self._row_bytes = sum(session.input_plan.row_bytes) + sum(session.output_plan.row_bytes)
        plan = session.output_plan
        self.outputs_bound = plan.row_form and plan.fits and all(plan.row_bytes)
        """Whether outputs are written by ONNX Runtime into our buffers. Cleared by `unbind_outputs`."""

    def unbind_outputs(self) -> None:
        """The model returns other shapes than it declares: let ONNX Runtime allocate its outputs."""
        self.outputs_bound = False
        self._batches.clear()

    def batch(self, rows: int) -> Batch:
        """Memory for so many rows, at least one. Valid until the next call."""
        batch = self._batches.get(rows)
        if batch is None:
            batch = self._make(rows)
        return batch

    def _make(self, rows: int) -> Batch:
        if rows * self._row_bytes > KEPT_BYTES_MAX:
            return self._over(*self._allocate(rows), rows)
        if rows > self._capacity:
            # The next power of two: a model whose batches grow row by row must not allocate at each.
            self._capacity = 1 << (rows - 1).bit_length()
            self._batches.clear()
            self._inputs, self._outputs = self._allocate(self._capacity)
        if len(self._batches) >= BATCHES_MAX:
            self._batches.clear()
        batch = self._over(self._inputs, self._outputs, rows)
        self._batches[rows] = batch
        return batch

    def _allocate(self, rows: int) -> tuple[list[Array], list[Array]]:
        signature = self._session.signature
        plans = (self._session.input_plan, self._session.output_plan)
        inputs = [empty(s.dtype, plans[0].dims(i, rows)) for i, s in enumerate(signature.inputs)]
        outputs = []
        if self.outputs_bound:
            outputs = [empty(s.dtype, plans[1].dims(i, rows)) for i, s in enumerate(signature.outputs)]
        return inputs, outputs

    def _over(self, inputs: list[Array], outputs: list[Array], rows: int) -> Batch:
        bind = self.outputs_bound and rows > 0 and all(self._session.input_plan.row_bytes)
        return Batch(self._session, [a[:rows] for a in inputs], [a[:rows] for a in outputs] if bind else None, rows)


def gather(session: Session, batch: Batch, members: Sequence[Member], arenas: Sequence[Arena]) -> None:
    """Copy every member's rows behind one another. `arenas[i]` is that of `members[i]`."""
    _move(session, batch.inputs, members, arenas, out=False)


def scatter(session: Session, outputs: Sequence[Array], members: Sequence[Member], arenas: Sequence[Arena]) -> None:
    """Copy every member's rows of declared outputs to its slots. The caller has checked each room."""
    _move(session, outputs, members, arenas, out=True)


def _move(
    session: Session, flat: Sequence[Array], members: Sequence[Member], arenas: Sequence[Arena], *, out: bool
) -> None:
    groups: dict[int, tuple[Arena, list[int], list[int]]] = {}
    row = 0
    for member, arena in zip(members, arenas, strict=True):
        rows = member.rows
        if rows == 1:
            group = groups.get(arena.session)
            if group is None:
                groups[arena.session] = group = (arena, [], [])
            group[1].append(row)
            group[2].append(member.slot)
        elif rows:
            _move_rows(session, flat, member, arena, row, out=out)
        row += rows
    for arena, places, slots in groups.values():
        views = _views(session, arena, out=out)
        for array, view in zip(flat, views, strict=True):
            if len(slots) < INDEXED_MIN:
                for where, slot in zip(places, slots, strict=True):
                    if out:
                        view[slot] = array[where]
                    else:
                        array[where] = view[slot]
            elif len(slots) == len(array):
                if out:
                    view[slots] = array
                else:
                    array[...] = view[slots]
            elif out:
                view[slots] = array[places]
            else:
                array[places] = view[slots]


def _views(session: Session, arena: Arena, *, out: bool) -> list[Array]:
    if out:
        if arena.out_rows is None:
            arena.out_rows = arena.rows_of(session.output_plan, out=True)
        return arena.out_rows
    if arena.in_rows is None:
        arena.in_rows = arena.rows_of(session.input_plan, out=False)
    return arena.in_rows


def _move_rows(session: Session, flat: Sequence[Array], member: Member, arena: Arena, row: int, *, out: bool) -> None:
    arrays = arena.arrays(session.output_plan if out else session.input_plan, member, out=out)
    for array, there in zip(flat, arrays, strict=True):
        if out:
            there[...] = array[row : row + member.rows]
        else:
            array[row : row + member.rows] = there
