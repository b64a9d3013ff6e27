"""One run, from its members to its Done: views on the slots, the session, the outputs. No socket, no thread.

Four ways lead through a run. They were measured with a 64-128-64-1 MLP of one row, on two shared cores:

- *In place.* One member whose inputs and outputs the signature lays out: a run prepared on its slots' addresses and
  kept for the next request in the same slots (clients use slots last in, first out, so few occur). Nothing is copied,
  at any size: 4.5 us, against 6.4 for run and 0.4 for the copy of its outputs. To prepare it takes 7 us more.
- *Together.* Several members: rows gathered into warm buffers (`workers.buffers`), or concatenated where they carry
  descriptors; run once; scattered. When the batch fails, each member runs alone: one bad row fails alone.
- *Alone.* Everything else: inputs still in place unless `private` or strings, outputs copied, or bound from
  BIND_BYTES_MIN on.

When a run with bound outputs fails it is done again unbound: a model may return other shapes than it declares, and the
client gets what the session returns. A model that is found to do so is never bound again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from shm import seqpacket, tensors
from shm.endings import Reason
from shm.errors import FrameRefused, SegmentRefused, TensorRefused
from shm.layout import STRING
from shm.tensors import Array
from shm.worker import RAN, SKIPPED, TERMINATED, Copies, Done, Member, MemberDone, Run
from workers.arenas import Arena, Arenas
from workers.buffers import Batch, Buffers, gather, scatter
from workers.log import log
from workers.outputs import OutputWriter, Turn, sliced
from workers.session import ORT_ERRORS, Bound, Session
from workers.watch import Current

BIND_BYTES_MIN: Final = 256 * 1024
"""Outputs of a request with descriptors are bound from this size on: to bind for one run costs 7 us, the two copies
that it saves 9 us at 256 KiB, 32 at 1 MiB, and 3 at 64 KiB."""

_NO_FDS: Final[list[int]] = []


class _Terminated(Exception):
    """The run was told to stop, and did."""


class _NotJoined(Exception):
    """These members cannot be one batch: each runs alone."""


_FALL_BACK: Final[tuple[type[Exception], ...]] = (_NotJoined, *ORT_ERRORS)


class Runner:
    """Runs what it is given, one run at a time. `current` is replaced with each new router."""

    def __init__(self, session: Session, arenas: Arenas, current: Current, *, output_bytes_max: int) -> None:
        self.current = current
        self.buffers = Buffers(session)
        self.run_count = 0
        self._session = session
        self._arenas = arenas
        self._writer = OutputWriter(session, output_bytes_max)
        inputs, outputs = session.input_plan, session.output_plan
        self._in_place = inputs.fits and outputs.fits and all(inputs.row_bytes) and all(outputs.row_bytes)
        self._row_form = inputs.fits and inputs.row_form
        self._free_rows = inputs.row_form or outputs.row_form
        self._outputs_bound = outputs.fits and all(outputs.row_bytes)
        self._in_place_copies = Copies(inputs_in_place=len(inputs.specs), outputs_in_place=len(outputs.specs))
        self._last: Run | None = None
        self._last_addresses: tuple[int, ...] = ()

    def run(self, run: Run) -> tuple[Done, list[int]]:
        """The run's end, and the descriptors that travel with it: the caller's to send and to close.

        Raises:
            FrameRefused: it names slots or an arena that are not there.
        """
        started_ns = time.monotonic_ns()
        if started_ns > run.not_after_ns:
            return Done(run.run, SKIPPED, started_ns, started_ns), _NO_FDS
        current = self.current
        if not current.begin(run.run):
            return Done(run.run, TERMINATED, started_ns, started_ns), _NO_FDS
        self.run_count += 1
        self._last = run
        members = run.members
        bound: Bound | None = None
        try:
            if self._in_place and len(members) == 1 and not run.private:
                bound = self._bound(members[0])
                if bound is not None:
                    self._last_addresses = bound.addresses
                    try:
                        self._session.run_bound(bound)
                    except ORT_ERRORS:
                        pass  # the model's error, a terminate or another shape: done again unbound, we shall know
                    else:
                        return Done(run.run, RAN, started_ns, time.monotonic_ns(), [], self._in_place_copies), _NO_FDS
            return self._run_members(run, started_ns, bound is not None)
        finally:
            current.end()

    def forget(self) -> None:
        """Keep no address of a mapping that is being dropped."""
        self._last = None
        self._last_addresses = ()

    def facts(self) -> dict[str, Any]:
        """The last run, for Inspect."""
        last = self._last
        return {
            "run_count": self.run_count,
            "outputs_bound": self._outputs_bound,
            "last_run": None
            if last is None
            else {
                "run": last.run,
                "private": last.private,
                "members": [[m.session, m.slot, m.slot_count, m.rows] for m in last.members],
                "input_addresses": list(self._last_addresses),
            },
        }

    # in place

    def _bound(self, member: Member) -> Bound | None:
        """The run prepared on this member's slots; None where it has to go another way."""
        if member.tensors is not None or (self._free_rows and not member.rows):
            return None
        try:
            arena = self._arenas.get(member.session)
        except SegmentRefused:
            return None  # reported in the slow way
        key = member.slot << 32 | member.rows
        bound = arena.bound.get(key)
        if bound is not None and member.slot + member.slot_count <= arena.slot_count:
            return bound
        room_bytes = arena.room(member.slot, member.slot_count)[1]
        if self._session.output_plan.payload_bytes(member.rows) > room_bytes:
            return None
        bound = self._session.bind(
            arena.arrays(self._session.input_plan, member, out=False),
            list(arena.arrays(self._session.output_plan, member, out=True)),
        )
        self._arenas.keep(arena, key, bound)
        return bound

    def _unbind(self) -> None:
        log("outputs_unbound", reason="the model returns other shapes than it declares")
        self._in_place = False
        self._outputs_bound = False
        self.buffers.unbind_outputs()
        self._arenas.forget_bound()

    # the other ways

    def _run_members(self, run: Run, started_ns: int, was_bound: bool) -> tuple[Done, list[int]]:
        turn = Turn()
        try:
            ends = self._ends(run, turn, was_bound)
        except _Terminated:
            seqpacket.close_all(turn.fds)
            return Done(run.run, TERMINATED, started_ns, time.monotonic_ns()), _NO_FDS
        done = []
        if any(end is not None for end in ends):
            done = [MemberDone() if end is None else end for end in ends]
        return Done(run.run, RAN, started_ns, time.monotonic_ns(), done, turn.copies()), turn.fds

    def _ends(self, run: Run, turn: Turn, was_bound: bool) -> Sequence[MemberDone | None]:
        members = run.members
        if len(members) > 1 or (run.private and self._row_form and members[0].tensors is None and members[0].rows):
            try:
                return self._together(members, run.private, turn)
            except _NotJoined:
                pass
            except ORT_ERRORS:
                self._stop_if_terminated()
                if len(members) > 1:
                    log("batch_failed", run=run.run, members=len(members))
        ends = []
        for member in members:
            self._stop_if_terminated()
            ends.append(self._alone(member, run.private, turn, was_bound))
        return ends

    def _stop_if_terminated(self) -> None:
        if self.current.terminated:
            raise _Terminated

    def _alone(self, member: Member, private: bool, turn: Turn, was_bound: bool) -> MemberDone | None:
        """One member in one run. `was_bound`: a run with bound outputs has just failed with it."""
        try:
            arena = self._arenas.get(member.session)
            feed = self._feed(arena, member, private, turn)
            self._last_addresses = tuple(tensors.address(a) for a in feed.values() if a.dtype.kind != "O")
            if self._bindable_once(arena, member, feed):
                if self._run_bound_once(arena, member, feed):
                    turn.counts[3] += len(self._session.output_names)
                    return None
                was_bound = True
            self._stop_if_terminated()
            outputs = self._session.run(feed)
        except TensorRefused as error:
            return turn.failed(Reason(error.reason), error)
        except SegmentRefused as error:
            return turn.failed(Reason.MODEL_ERROR, f"the arena could not be mapped: {error}")
        except ORT_ERRORS as error:
            self._stop_if_terminated()
            return turn.failed(Reason.MODEL_ERROR, error)
        outputs = [np.asarray(output) for output in outputs]
        if was_bound and not self._writer.as_declared(outputs, member.rows):
            self._unbind()
        return self._writer.write(arena, member, outputs, turn)

    def _bindable_once(self, arena: Arena, member: Member, feed: dict[str, Array]) -> bool:
        """Whether this member's declared outputs are large enough to be bound for one run, and fit its slots."""
        if not self._outputs_bound or member.tensors is None or len(feed) != len(self._session.input_names):
            return False
        payload_bytes = self._session.output_plan.payload_bytes(member.rows)
        if not BIND_BYTES_MIN <= payload_bytes <= arena.room(member.slot, member.slot_count)[1]:
            return False
        return all(array.size and array.dtype.kind != "O" for array in feed.values())

    def _run_bound_once(self, arena: Arena, member: Member, feed: dict[str, Array]) -> bool:
        """False: it failed; run unbound to learn why."""
        outputs = list(arena.arrays(self._session.output_plan, member, out=True))
        try:
            self._session.run_bound(self._session.bind([feed[n] for n in self._session.input_names], outputs))
        except ORT_ERRORS:
            return False
        return True

    def _feed(self, arena: Arena, member: Member, private: bool, turn: Turn) -> dict[str, Array]:
        """A member's inputs by name: views on its slots, or private copies."""
        specs = self._session.signature.inputs
        feed = {}
        if member.tensors is None:
            arrays = arena.arrays(self._session.input_plan, member, out=False)
            feed = {spec.name: array for spec, array in zip(specs, arrays, strict=True)}
        else:
            start, room_bytes = arena.room(member.slot, member.slot_count)
            for tensor in member.tensors:
                if tensor.offset + tensor.payload_bytes > room_bytes:
                    raise TensorRefused(Reason.BYTE_LENGTH, "a tensor passes its slots")
                name = specs[tensor.index].name
                where = start + tensor.offset
                if tensor.dtype == STRING:
                    feed[name] = tensors.read_strings(name, arena.in_map, where, tensor.payload_bytes, tensor.dims)
                    turn.input_copied(1, tensor.payload_bytes)
                else:
                    feed[name] = tensors.view(arena.in_map, where, tensor.dtype, tensor.dims)
        for name, array in feed.items():
            if array.dtype.kind == "O":
                continue
            if private:
                feed[name] = array.copy()
                turn.input_copied(1, array.nbytes)
            else:
                turn.counts[0] += 1
        return feed

    def _together(self, members: list[Member], private: bool, turn: Turn) -> Sequence[MemberDone | None]:
        """All members in one run. Raises _NotJoined, or one of ORT_ERRORS when the batch fails."""
        try:
            arenas = [self._arenas.get(member.session) for member in members]
        except SegmentRefused as error:
            raise _NotJoined from error
        if self._row_form and all(member.tensors is None for member in members):
            return self._gathered(members, arenas, turn)
        return self._concatenated(members, arenas, private, turn)

    def _gathered(self, members: list[Member], arenas: list[Arena], turn: Turn) -> Sequence[MemberDone | None]:
        session = self._session
        rows = sum(member.rows for member in members)
        batch = self.buffers.batch(rows)
        roomy = self._check_rooms(members, arenas)
        gather(session, batch, members, arenas)
        turn.input_copied(len(members) * len(batch.inputs), rows * sum(session.input_plan.row_bytes))
        if batch.bound is not None:
            self._last_addresses = batch.bound.addresses
        outputs = self._run_batch(batch)
        plan = session.output_plan
        declared = outputs is batch.outputs or self._writer.as_declared(outputs, rows)
        if declared and plan.row_form and roomy:
            scatter(session, outputs, members, arenas)
            turn.output_copied(len(members) * len(outputs), rows * sum(plan.row_bytes))
            return ()
        return self._split(members, arenas, outputs, rows, turn)

    def _check_rooms(self, members: list[Member], arenas: list[Arena]) -> bool:
        """Whether every member's declared outputs fit its slots.

        Raises:
            FrameRefused: slots that are not there, or inputs that pass them.
        """
        need: dict[int, tuple[int, int]] = {}
        roomy = True
        for member, arena in zip(members, arenas, strict=True):
            room_bytes = arena.room(member.slot, member.slot_count)[1]
            sizes = need.get(member.rows)
            if sizes is None:
                sizes = need[member.rows] = (
                    self._session.input_plan.payload_bytes(member.rows),
                    self._session.output_plan.payload_bytes(member.rows),
                )
            if sizes[0] > room_bytes:
                raise FrameRefused(f"{sizes[0]} bytes of inputs were named in slots of {room_bytes}")
            roomy = roomy and sizes[1] <= room_bytes
        return roomy

    def _run_batch(self, batch: Batch) -> list[Array]:
        if batch.bound is not None and batch.outputs is not None:
            try:
                self._session.run_bound(batch.bound)
                return batch.outputs
            except ORT_ERRORS:
                self._stop_if_terminated()
            outputs = [np.asarray(output) for output in self._session.run(batch.feed)]
            if not self._writer.as_declared(outputs, batch.rows):
                self._unbind()
            return outputs
        return [np.asarray(output) for output in self._session.run(batch.feed)]

    def _concatenated(
        self, members: list[Member], arenas: list[Arena], private: bool, turn: Turn
    ) -> Sequence[MemberDone | None]:
        """Members with descriptors, joined along their first dimension."""
        parts: list[dict[str, Array]] = []
        ends: list[MemberDone | None] = [None] * len(members)
        joined = []
        before = list(turn.counts)
        try:
            for i, (member, arena) in enumerate(zip(members, arenas, strict=True)):
                try:
                    feed = self._feed(arena, member, False, turn)
                except TensorRefused as error:
                    ends[i] = turn.failed(Reason(error.reason), error)
                    continue
                if not self._joins(feed, member, parts):
                    raise _NotJoined
                parts.append(feed)
                joined.append(i)
            if not parts:
                return ends
            feed = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            self._last_addresses = tuple(tensors.address(a) for a in feed.values() if a.dtype.kind != "O")
            outputs = [np.asarray(output) for output in self._session.run(feed)]
        except _FALL_BACK:
            turn.counts[:] = before  # each member is read again, and counted then
            raise
        in_place = turn.counts[0] - before[0]
        turn.counts[0] = before[0]
        turn.input_copied(in_place, sum(a.nbytes for a in feed.values() if a.dtype.kind != "O"))
        some = [members[i] for i in joined]
        rows = sum(member.rows for member in some)
        for i, end in zip(joined, self._split(some, [arenas[i] for i in joined], outputs, rows, turn), strict=True):
            ends[i] = end
        return ends

    def _joins(self, feed: dict[str, Array], member: Member, parts: list[dict[str, Array]]) -> bool:
        """Every required input and no other, each with this member's rows, all else as in the first member."""
        if len(feed) != sum(not s.optional for s in self._session.signature.inputs):
            return False
        if any(s.optional and s.name in feed for s in self._session.signature.inputs):
            return False
        first = parts[0] if parts else feed
        return all(
            array.ndim > 0
            and array.shape[0] == member.rows
            and name in first
            and array.shape[1:] == first[name].shape[1:]
            for name, array in feed.items()
        )

    def _split(
        self, members: Sequence[Member], arenas: Sequence[Arena], outputs: list[Array], rows: int, turn: Turn
    ) -> list[MemberDone | None]:
        """Each member's rows of a batch's outputs, written one by one."""
        if any(output.ndim == 0 or output.shape[0] != rows for output in outputs):
            log("batch_not_split", reason="an output has no row for each row of the inputs")
            raise _NotJoined
        ends = []
        row = 0
        for member, arena in zip(members, arenas, strict=True):
            ends.append(self._writer.write(arena, member, sliced(outputs, row, member.rows), turn))
            row += member.rows
        return ends
