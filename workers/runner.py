"""One run, from its members to its Done: views on the slots, the session, the outputs. No socket, no thread.

Three ways lead through a run. Measured with a 64-128-64-1 MLP of one row, on a core shared with others:

- *In place.* One member whose inputs and outputs the signature lays out: a run prepared on its slots' addresses and
  kept for the next request in the same slots (clients use slots last in, first out, so few occur). Nothing is copied
  at any size, and it is the fastest way at any size: 3.9 us against 5.6 for `session.run` and 0.4 for the copy of its
  outputs. All around it takes 2.4 us, codec included; to prepare it takes 20 us, once for each slot.
- *Together.* Several members: `workers.together`.
- *Alone.* Everything else: inputs still in place unless `private` or strings, outputs copied, or bound for this one
  run from BIND_BYTES_MIN on.

When a run with bound outputs fails it is done again unbound: a model may return other shapes than it declares. A model
that is found to do so is never bound again, and each request that meets it fails by name (`workers.declared`).
"""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

from shm import seqpacket
from shm.endings import Reason
from shm.errors import SegmentRefused, TensorRefused
from shm.layout import slots_for
from shm.tensors import Array
from shm.worker import RAN, SKIPPED, TERMINATED, Copies, Done, Member, MemberDone, Run
from workers.arenas import Arena, Arenas
from workers.feeds import addresses_of, feed_of
from workers.guard import Guard
from workers.log import log_seldom
from workers.outputs import OutputWriter, Turn
from workers.session import Bound, ModelFailed, Session
from workers.together import Ends, NotJoined, Together
from workers.watch import Current

BIND_BYTES_MIN: Final = 256 * 1024
"""Outputs of a request with descriptors are bound from this size on: to bind for one run costs 7 us, the two copies
that it saves 9 us at 256 KiB, 32 at 1 MiB, and 3 at 64 KiB."""

_NO_FDS: Final[list[int]] = []


class _Terminated(Exception):
    """The run was told to stop, and did."""


class Runner:
    """Runs what it is given, one run at a time. `current` is replaced with each new router."""

    def __init__(
        self,
        session: Session,
        arenas: Arenas,
        current: Current,
        *,
        output_bytes_max: int,
        guard: Guard | None = None,
    ) -> None:
        self.current = current
        self.guard = guard
        self.run_count = 0
        self._session = session
        self._arenas = arenas
        self._writer = OutputWriter(session, output_bytes_max, guard)
        self._together = Together(session, arenas, self._writer, guard)
        self.buffers = self._together.buffers
        inputs, outputs = session.input_plan, session.output_plan
        self._in_place = inputs.fits and all(inputs.row_bytes)
        self._free_rows = inputs.row_form or outputs.row_form
        self.in_place_copies = Copies(inputs_in_place=len(inputs.specs), outputs_in_place=len(outputs.specs))
        self._last: Run | None = None
        self._last_addresses: tuple[int, ...] = ()

    def run(self, run: Run, *, was_bound: bool = False) -> tuple[Done, list[int]]:
        """The run's end, and the descriptors that travel with it: the caller's to send and to close.

        `was_bound`: its prepared run has been tried and has failed.

        Raises:
            FrameRefused: it names slots or an arena that are not there.
        """
        started_ns = time.monotonic_ns()
        if not self.current.begin(run.run):
            return Done(run.run, TERMINATED, started_ns, started_ns), _NO_FDS
        try:
            if started_ns > run.not_after_ns:
                return Done(run.run, SKIPPED, started_ns, started_ns), _NO_FDS
            self.run_count += 1
            self._last = run
            if self._goes_in_place(run) and not was_bound:
                bound = self._prepared(run.members[0])
                if bound is not None:
                    was_bound = True
                    self._last_addresses = bound.addresses
                    try:
                        self._session.run_bound(bound)
                    except ModelFailed:
                        pass  # the model's error, a terminate or another shape: the unbound run tells
                    else:
                        ends = self.guarded(bound)
                        return Done(run.run, RAN, started_ns, time.monotonic_ns(), ends, self.in_place_copies), _NO_FDS
            return self._run_members(run, started_ns, was_bound=was_bound)
        finally:
            self.current.end()
            if self._arenas.over:
                self._arenas.trim()

    def guarded(self, bound: Bound) -> list[MemberDone]:
        """What a prepared run that went well comes to: nothing to say, unless the guard does not let it pass."""
        refused = self.guard.refuse(bound.outputs) if self.guard is not None else None
        return [] if refused is None else [Turn().failed(Reason.GUARD, refused)]

    def note(self, run_count: int, last: Run, bound: Bound) -> None:
        """So many prepared runs have been done without `run`, this one last."""
        self.run_count += run_count
        self._last = last
        self._last_addresses = bound.addresses

    def forget(self) -> None:
        """Keep no address of a mapping that is being dropped."""
        self._last = None
        self._last_addresses = ()

    def facts(self) -> dict[str, Any]:
        """The last run, for Inspect."""
        last = self._last
        told = None
        if last is not None:
            told = {
                "run": last.run,
                "private": last.private,
                "members": [[m.session, m.slot, m.slot_count, m.rows] for m in last.members],
                "input_addresses": list(self._last_addresses),
            }
        return {"run_count": self.run_count, "outputs_bound": self._session.outputs_bound, "last_run": told}

    def _goes_in_place(self, run: Run) -> bool:
        return self._in_place and self._session.outputs_bound and len(run.members) == 1 and not run.private

    def _prepared(self, member: Member) -> Bound | None:
        """The run prepared on this member's slots; None where it has to go another way."""
        if member.tensors is not None or (self._free_rows and not member.rows):
            return None
        try:
            arena = self._arenas.get(member.session)
        except SegmentRefused:
            return None  # reported where it is run alone
        key = member.slot << 32 | member.rows
        bound = arena.bound.get(key)
        if bound is not None and member.slot_count >= bound.slot_count:
            return bound
        room_bytes = arena.room(member.slot, member.slot_count)[1]
        output_bytes = self._session.output_plan.payload_bytes(member.rows)
        if output_bytes > room_bytes:
            return None
        inputs = arena.arrays(self._session.input_plan, member, out=False)
        bound = self._session.bind(inputs, arena.arrays(self._session.output_plan, member, out=True))
        input_bytes = self._session.input_plan.payload_bytes(member.rows)
        bound.slot_count = slots_for(max(input_bytes, output_bytes), arena.slot_bytes)
        self._arenas.keep(arena, key, bound)
        return bound

    def _run_members(self, run: Run, started_ns: int, *, was_bound: bool) -> tuple[Done, list[int]]:
        turn = Turn()
        try:
            ends = self._ends(run, turn, was_bound=was_bound)
        except _Terminated:
            seqpacket.close_all(turn.fds)
            return Done(run.run, TERMINATED, started_ns, time.monotonic_ns()), _NO_FDS
        except BaseException:
            seqpacket.close_all(turn.fds)
            raise
        done = []
        if any(end is not None for end in ends):
            done = [MemberDone() if end is None else end for end in ends]
        return Done(run.run, RAN, started_ns, time.monotonic_ns(), done, turn.copies()), turn.fds

    def _ends(self, run: Run, turn: Turn, *, was_bound: bool) -> Ends:
        members = run.members
        if len(members) > 1 or (run.private and members[0].rows and self._together.gathers(members)):
            try:
                ends = self._together.run(members, turn)
            except NotJoined:
                pass
            except ModelFailed as error:
                self._stop_if_terminated()
                if len(members) > 1:
                    log_seldom("batch_failed", run=run.run, members=len(members), reason=error)
            else:
                self._last_addresses = self._together.addresses
                return ends
        ends = []
        for member in members:
            self._stop_if_terminated()
            ends.append(self._alone(member, turn, private=run.private, was_bound=was_bound))
        return ends

    def _stop_if_terminated(self) -> None:
        if self.current.terminated:
            raise _Terminated

    def _alone(self, member: Member, turn: Turn, *, private: bool, was_bound: bool) -> MemberDone | None:
        """One member in one run. `was_bound`: a run with bound outputs has just failed with it."""
        try:
            arena = self._arenas.get(member.session)
            feed = feed_of(self._session, arena, member, private, turn)
            self._last_addresses = addresses_of(feed)
            if self._bindable_once(arena, member, feed):
                bound = self._run_bound_once(arena, member, feed)
                if bound is not None:
                    turn.outputs_left(len(self._session.output_names))
                    refused = self.guard.refuse(bound.outputs) if self.guard is not None else None
                    return None if refused is None else turn.failed(Reason.GUARD, refused)
                was_bound = True
            outputs = [np.asarray(output) for output in self._session.run(feed)]
        except TensorRefused as error:
            return turn.failed(Reason(error.reason), error)
        except SegmentRefused as error:
            return turn.failed(Reason.MODEL_ERROR, f"the arena could not be mapped: {error}")
        except ModelFailed as error:
            self._stop_if_terminated()
            return turn.failed(Reason.MODEL_ERROR, error)
        except MemoryError as error:
            return turn.failed(Reason.MODEL_ERROR, self._session.told(error))
        if was_bound and not self._writer.as_declared(outputs, member.rows):
            self._session.unbind_outputs()
        return self._writer.write(arena, member, outputs, turn)

    def _bindable_once(self, arena: Arena, member: Member, feed: dict[str, Array]) -> bool:
        """Whether this member's declared outputs are large enough to be bound for one run, and fit its slots."""
        session = self._session
        if not session.outputs_bound or member.tensors is None or len(feed) != len(session.input_names):
            return False
        payload_bytes = session.output_plan.payload_bytes(member.rows)
        if not BIND_BYTES_MIN <= payload_bytes <= arena.room(member.slot, member.slot_count)[1]:
            return False
        return all(array.size and array.dtype.kind != "O" for array in feed.values())

    def _run_bound_once(self, arena: Arena, member: Member, feed: dict[str, Array]) -> Bound | None:
        """None: it failed; the unbound run tells why."""
        outputs = arena.arrays(self._session.output_plan, member, out=True)
        bound = self._session.bind([feed[name] for name in self._session.input_names], outputs)
        try:
            self._session.run_bound(bound)
        except ModelFailed:
            return None
        return bound
