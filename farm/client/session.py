"""One attached session: its two memory files, its slots, its lane and what is in flight on it. It waits for nothing.

A slot comes back in three cases only: a reply that is not `held`, a Release, and the end of the session, which ends
the whole arena with it. So `flight` keeps a request until the router has replied, also when its caller is long gone.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from farm.client.answers import conclude
from farm.client.attach import Welcome, welcome_codec
from farm.client.catalog import Catalog
from farm.client.lane import Lane, ZeroMQLane
from farm.client.tickets import Ticket
from shm import client as wire
from shm import segment, seqpacket
from shm.endings import Reason
from shm.errors import NoRoom, SegmentRefused, TensorRefused
from shm.frames import Codec
from shm.layout import slots_for
from shm.limits import FRAME_BYTES_MAX
from shm.slots import SlotPool

Heard = wire.Replies | wire.Release | wire.Rejected


def nobody() -> None:
    pass


class Session:
    """From a granted attach to its end.

    Raises:
        SegmentRefused: the arena is not what it should be; descriptors and socket are closed.
    """

    def __init__(self, welcome: Welcome, lane: Callable[[Welcome], Lane], born_ns: int) -> None:
        attached = welcome.attached
        self.epoch = attached.epoch
        self.slot_bytes = attached.slot_bytes
        self.slot_count = attached.slot_count
        self.socket = welcome.socket
        try:
            self.inbound, self.out = _map_arena(welcome.descriptors, attached.slot_count * attached.slot_bytes)
        except SegmentRefused:
            welcome.socket.close()
            raise
        self.lane = lane(welcome)
        self.catalog = Catalog(welcome.models)
        self.greeting: bytes | None = None
        """The lane's first frame, until it is sent: a ZeroMQ peer has to say which session it is."""
        if attached.lane == ZeroMQLane.name:
            self.greeting = wire.request_codec.encode(wire.Hello(attached.token, attached.epoch))
        self.blocked_ns = born_ns if self.greeting is not None else 0
        """Since when the lane takes nothing, 0 while it does. ZeroMQ's takes nothing until it is connected."""
        self.lost = ""
        """Why this session is over; it is then good for reading alone."""
        self.stirred = True
        """Slots, models or the session itself are new: those who wait may find room now."""
        self.flight: dict[int, Ticket] = {}
        self.held: dict[int, Ticket] = {}
        self.awaiting: dict[int, tuple[Ticket, wire.Reply, int]] = {}
        """Replies whose memory file has not come yet."""
        self.returned: deque[tuple[int, int]] = deque()
        """Runs that leases let go of, from any thread."""
        self.nudge: Callable[[], None] = nobody
        """Called after something was returned."""
        self._overflows: dict[int, mmap.mmap] = {}
        self._pool = SlotPool(attached.slot_count)
        self._pool_lock = threading.Lock()
        # Codecs of a session's own: those of the wire's module are not safe for several clients' threads.
        self._encode = Codec[Any](wire.Hello | wire.Submit | wire.Cancel).encode
        self._replies: Codec[Heard] = Codec(Heard)
        self._told = welcome_codec()

    # slots

    def slots_of(self, payload_bytes: int, room_bytes: int) -> int:
        """How many slots a request takes. Outputs that would not fit the whole arena come by other ways.

        Raises:
            TensorRefused: not even the inputs fit the arena.
        """
        if room_bytes <= self.slot_bytes:
            return 1
        count = slots_for(room_bytes, self.slot_bytes)
        if count > self.slot_count:
            count = slots_for(payload_bytes, self.slot_bytes)
            if count > self.slot_count:
                raise TensorRefused(
                    Reason.TOO_LARGE,
                    f"inputs of {payload_bytes} bytes do not fit the client's {self.slot_count} slots of "
                    f"{self.slot_bytes} bytes; make the client with more slots or larger ones",
                )
        return count

    def acquire(self, slot_count: int) -> int:
        """The first of so many slots, -1 when there is no such run now. Safe from any thread."""
        with self._pool_lock:
            while self.returned:
                self._pool.release(*self.returned.popleft())
            try:
                return self._pool.acquire(slot_count)
            except NoRoom:
                return -1

    def put_back(self, slot: int, slot_count: int) -> None:
        """Slots that no request of ours uses. Safe from any thread."""
        with self._pool_lock:
            self._pool.release(slot, slot_count)

    def give_back(self, ticket: Ticket) -> None:
        """The farm has let go of a request's slots, or never saw them."""
        if ticket.run is not None:
            ticket.run.let_go()
            ticket.run = None
        else:
            self.put_back(ticket.slot, ticket.slot_count)
        ticket.session = None
        self.stirred = True

    def free_count(self) -> int:
        with self._pool_lock:
            while self.returned:
                self._pool.release(*self.returned.popleft())
            return self._pool.free_count

    # frames out

    def submit_frames(self, tickets: Sequence[Ticket]) -> list[tuple[bytes, Sequence[Ticket]]]:
        """Submit frames for these requests; more than one where a frame would be too large."""
        frame = self._encode(
            wire.Submit(
                self.epoch,
                [
                    wire.Request(
                        t.request_id,
                        t.served.index if t.served is not None else 0,
                        t.deadline_ns,
                        t.slot,
                        t.slot_count,
                        t.rows,
                        t.options.priority,
                        t.described,
                        t.options.key,
                        t.options.trace,
                    )
                    for t in tickets
                ],
            )
        )
        if len(frame) <= FRAME_BYTES_MAX or len(tickets) == 1:
            return [(frame, tickets)]
        half = len(tickets) // 2
        return self.submit_frames(tickets[:half]) + self.submit_frames(tickets[half:])

    def cancel_frame(self, ids: list[int]) -> bytes:
        return self._encode(wire.Cancel(ids))

    # frames in

    def decode(self, frame: bytes) -> Heard:
        return self._replies.decode(frame)

    def hear(self) -> wire.Model | wire.Overflow | None:
        """The next frame of the attach socket, taken in; None when there is none now.

        Raises:
            PeerGone: the router is gone, or ended this session.
            FrameRefused, SegmentRefused: it sent what no router sends.
        """
        got = self.lane.hear()
        if got is None:
            return None
        frame, descriptors = got
        try:
            message = self._told.decode(frame)
            if isinstance(message, wire.Model):
                self.catalog.update(message)
                self.stirred = True
                return message
            if isinstance(message, wire.Overflow):
                if len(descriptors) != 1:
                    raise SegmentRefused(f"an overflow came with {len(descriptors)} descriptors instead of 1")
                segment.check(descriptors[0], message.payload_bytes)
                self._overflows[message.id] = segment.map_memory(descriptors[0], message.payload_bytes, writable=False)
                return message
        finally:
            seqpacket.close_all(descriptors)
        raise SegmentRefused(f"the router sent {type(message).__name__} after attach")

    def overflowed(self, request_id: int) -> Ticket | None:
        """The ticket whose reply waited for this memory file, now ended; None while the reply has not come."""
        awaited = self.awaiting.pop(request_id, None)
        if awaited is None:
            if request_id not in self.flight:
                del self._overflows[request_id]  # nobody waits for it any more
            return None
        ticket, reply, received_ns = awaited
        ended = not ticket.done
        if ended:
            self._conclude(ticket, reply, received_ns)
        else:
            del self._overflows[request_id]
        if not reply.held:
            self.give_back(ticket)
        return ticket if ended else None

    def replied(self, reply: wire.Reply, received_ns: int) -> Ticket | None:
        """Take one reply in: slots come back, outputs are read. Returns the ticket when this ended it."""
        ticket = self.flight.pop(reply.id, None)
        if ticket is None:
            return None
        ended = not ticket.done
        if ended and reply.overflow and reply.id not in self._overflows:
            # The slots stay: should the router die before the memory file comes, they hold the inputs to send again.
            self.awaiting[reply.id] = (ticket, reply, received_ns)
            if reply.held:
                self.held[reply.id] = ticket
            return None
        if ended:
            self._conclude(ticket, reply, received_ns)
        elif reply.overflow:
            self._overflows.pop(reply.id, None)
        if reply.held:
            self.held[reply.id] = ticket
        else:
            self.give_back(ticket)
        return ticket if ended else None

    def released(self, request_id: int) -> None:
        ticket = self.held.pop(request_id, None)
        if ticket is not None:
            self.give_back(ticket)

    def _conclude(self, ticket: Ticket, reply: wire.Reply, received_ns: int) -> None:
        overflow = self._overflows.pop(reply.id, None) if reply.overflow else None
        conclude(ticket, reply, received_ns, self.out, self.slot_bytes, overflow)

    def close(self) -> None:
        """Close lane and socket. The mappings go with the last array that looks into them."""
        self.lane.close()
        self.socket.close()
        self.nudge = nobody
        self._overflows.clear()
        for ticket in (*self.flight.values(), *self.held.values()):
            ticket.session = ticket.run = None
        self.flight.clear()
        self.held.clear()
        self.awaiting.clear()


def _map_arena(descriptors: Sequence[int], payload_bytes: int) -> tuple[mmap.mmap, mmap.mmap]:
    """`in` for writing, `out` for reading, all pages faulted in. The descriptors are closed: a mapping has its own."""
    try:
        for fd in descriptors:
            segment.check(fd, payload_bytes)
        inbound = segment.map_memory(descriptors[0], payload_bytes, writable=True, populate=True)
        out = segment.map_memory(descriptors[1], payload_bytes, writable=False, populate=True)
    finally:
        seqpacket.close_all(descriptors)
    return inbound, out
