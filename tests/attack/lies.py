"""What a client can say that is not so, each a function from the stand and a lane to the reasons that it got."""

from __future__ import annotations

import mmap
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import zmq

from shm.client import Hello, Request, Submit, request_codec
from shm.errors import PeerGone
from shm.layout import BYTES_MAX, CODES, Tensor
from shm.limits import FRAME_BYTES_MAX, REQUESTS_MAX
from tests.attack.stand import Liar, Stand
from tests.farmprocess import wait_until

Got = Counter[str]
CENTURY_NS = 100 * 366 * 24 * 3600 * 10**9
ROW_BYTES = 256
CODE = CODES["float32"]
GIB = 2**30


def slots_out_of_its_arena(stand: Stand, lane: str) -> Got:
    with stand.client(lane, slot_count=8, slot_bytes=4096) as liar:
        places = [(8, 1), (7, 2), (0, 9), (65_535, 1), (1, 65_536), (65_535, 65_536)]
        liar.tell(*(liar.ask(slot=slot, slot_count=count) for slot, count in places))
        got = liar.ends(len(places))
        assert got == {"slot_range": len(places)}, got
        return got


def memory_of_another_client(stand: Stand, lane: str) -> Got:
    """Every way to name memory beyond its own slots; and what lies in another's never comes out of its own."""
    with stand.client(lane) as owner, stand.client(lane, slot_count=4, slot_bytes=4096) as liar:
        owner.inputs[:] = b"\x42" * len(owner.inputs)
        arena = 4 * 4096
        offsets = [4096, arena, arena - 64, 2 * arena, BYTES_MAX // 64 * 64]
        requests = [liar.ask(tensors=(Tensor(0, CODE, (1, 64), offset, ROW_BYTES),)) for offset in offsets]
        liar.tell(*requests)
        got = liar.ends(len(requests))
        assert got == {"byte_length": len(requests)}, got
        whole = arena // ROW_BYTES
        liar.tell(liar.ask(slot_count=4, rows=whole))
        got += liar.ends(1)
        assert got["ok"] == 1, got
        assert b"\x42" * 16 not in liar.outputs[:], "another client's memory came out"
        assert owner.inputs[:] == b"\x42" * len(owner.inputs)
        return got


def slots_in_flight_twice(stand: Stand, lane: str) -> Got:
    with stand.client(lane) as liar:
        liar.tell(*(liar.ask(slot=slot, slot_count=count) for slot, count in ((0, 2), (0, 1), (1, 1), (1, 3))))
        got = liar.ends(4)
        assert got == {"ok": 1, "slot_busy": 3}, got
        same = liar.ask(slot=4)
        liar.tell(same, msgspec.structs.replace(same, slot=5))
        got += liar.ends(2)
        assert got["rejected:duplicate_id"] == 1, got
        return got


def sizes_that_overflow(stand: Stand, lane: str) -> Got:
    """Offsets, lengths and shape products at the edges of 32 and 64 bits; first those that a Tensor may hold."""
    with stand.client(lane) as liar:
        most = BYTES_MAX // 64 * 64
        lies = [
            Tensor(0, CODE, (1, 64), most, ROW_BYTES),
            Tensor(0, CODE, (1, 64), 0, BYTES_MAX),
            Tensor(0, CODE, (BYTES_MAX, 64), 0, ROW_BYTES),
            Tensor(0, CODE, (2**32 + 1, 64), 0, ROW_BYTES),
            Tensor(0, CODE, (2**58, 64), 0, 0),
            Tensor(0, CODE, (0, 2**40), 0, 0),
            Tensor(0, CODE, (1,) * 32, 0, 4),
        ]
        lies = [tensor for tensor in lies if max(tensor.dims) <= BYTES_MAX]
        liar.tell(*(liar.ask(tensors=(tensor,)) for tensor in lies))
        got = liar.ends(len(lies))
        assert got.keys() <= {"byte_length", "too_large", "dimension", "rank"}, got
        beyond = [(0, CODE, [1, 64], 2**63, 256), (0, CODE, [2**64 - 1, 64], 0, 256), (0, CODE, [1] * 33, 0, 4)]
        beyond += [(0, CODE, [-1, 64], 0, 256), (0, CODE, [1, 64], -64, 256), (0, CODE, [1, 64], 0, -1)]
        liar.tell(liar.ask(rows=2**31), liar.ask(slot=1, rows=2**31 - 1))
        got += liar.ends(2)
        return got + _bad_frames(liar, beyond)


def a_dtype_that_is_none(stand: Stand, lane: str) -> Got:
    with stand.client(lane) as liar:
        known = set(CODES.values())
        wrong = [code for code in range(256) if code not in known]
        others = sorted(known - {CODE})
        liar.tell(*(liar.ask(tensors=(Tensor(0, code, (1, 64), 0, ROW_BYTES),), slot=0) for code in others))
        got = liar.ends(len(others))
        assert got == {"dtype": len(others)}, got
        return got + _bad_frames(liar, [(0, code, [1, 64], 0, 256) for code in [*wrong[:20], -1, 2**31, 2**63]])


def _bad_frames(liar: Liar, tensors: list[tuple]) -> Got:
    """Each in a frame of its own; refused one by one, as a frame or by its reason."""
    for tensor in tensors:
        honest = msgspec.msgpack.decode(request_codec.encode(Submit(liar.attached.epoch, [liar.ask()])))
        honest[2][0][7] = [tensor]
        liar.send_frame(msgspec.msgpack.encode(honest))
    got = liar.ends(len(tensors))
    assert "ok" not in got, got
    return got


def strings_that_lie(stand: Stand, lane: str) -> Got:
    """Offsets that fall, go below zero, pass the end, or cut a character; each is a worker's to find."""
    with stand.client(lane) as liar:
        shout, text = liar.index["shout"], "grüße".encode()
        lies = [
            ([0, 3, 1], text), ([-8, 1, 2], text), ([0, 2**40, 2**41], text), ([0, 2**63 - 1, 2**63 - 1], text),
            ([1, 2, 3], text), ([0, 3, len(text)], text), ([0, 1, len(text) + 1], text), ([0, 0, 2], b"\xff\xfe"),
            ([0, -(2**63), 2], text), ([2**62, 0, 0], text),
        ]  # fmt: skip
        for slot, (offsets, words) in enumerate(lies):
            where = (slot % 8) * 4096
            raw = np.array(offsets, np.int64).tobytes() + words
            liar.inputs[where : where + len(raw)] = raw
            tensor = Tensor(0, CODES["string"], (2,), 0, len(raw))
            liar.tell(liar.ask(model=shout, slot=slot % 8, rows=2, tensors=(tensor,)))
            assert liar.pump(20)
        got = liar.taken()
        assert got == {"string": len(lies)}, got
        least = [Tensor(0, CODES["string"], (2,), 0, 23), Tensor(0, CODES["string"], (2**40,), 0, 24)]
        liar.tell(*(liar.ask(model=shout, slot=n, rows=t.dims[0] % 2**31, tensors=(t,)) for n, t in enumerate(least)))
        return got + liar.ends(2)


def writes_to_what_it_gave_away(stand: Stand, lane: str) -> Got:
    """It keeps writing into its submitted slots, all over its arena; `out` it cannot write, whoever else asks."""
    with stand.client(lane, slot_count=64) as liar:
        with pytest.raises((PermissionError, OSError)):
            mmap.mmap(liar.out_fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError):
            os.pwrite(liar.out_fd, b"x", 0)
        with pytest.raises(OSError):
            os.ftruncate(liar.in_fd, 0)
        rng = np.random.default_rng(1)
        view = np.frombuffer(liar.inputs, np.uint8)
        got: Got = Counter()
        for _ in range(20):
            liar.tell(*(liar.ask(slot=slot) for slot in range(64)))
            while len(liar.replies) < 64:
                view[:] = rng.integers(0, 256, len(view), np.uint8)
                liar.pump(0)
            got += liar.taken()
        del view
        assert got.keys() <= {"ok", "predicted_late", "queue_full"}, got
        return got


def a_header_of_another_size(stand: Stand, lane: str) -> Got:
    """An arena has no header: where one would be, any number may stand, and what the farm does is the same."""
    with stand.client(lane) as liar:
        row = np.linspace(-1, 1, 64, dtype=np.float32)
        answers = set()
        for word in (0, 1, 4096, 2**31, 2**32 - 1, 2**63, 2**64 - 1):
            liar.inputs[:] = np.full(len(liar.inputs) // 8, word, np.uint64).tobytes()
            liar.inputs[5 * 4096 : 5 * 4096 + ROW_BYTES] = row.tobytes()
            liar.tell(liar.ask(slot=5))
            got = liar.ends(1)
            assert got == {"ok": 1}, got
            answers.add(liar.outputs[5 * 4096 : 5 * 4096 + ROW_BYTES])
        assert len(answers) == 1
        return Counter(ok=7)


def identities_of_others(stand: Stand, lane: str) -> Got:
    """Another DEALER with a chosen name, with guessed tokens, with a token that is in use, and with none at all."""
    unknown = stand.counters()["frames_unknown"]
    with stand.client("zeromq") as owner:
        hello = request_codec.encode(Hello(owner.attached.token, owner.attached.epoch))
        guesses = [request_codec.encode(Hello(secrets.token_bytes(16), owner.attached.epoch)) for _ in range(20)]
        submit = request_codec.encode(Submit(owner.attached.epoch, [owner.ask(id=10**6)]))
        owner.tell(owner.ask())
        assert owner.ends(1) == {"ok": 1}
        context = zmq.Context()
        try:
            for name in (b"good", b"session-1", None):
                thief = context.socket(zmq.DEALER)
                thief.linger = 0
                if name is not None:
                    thief.routing_id = name
                thief.connect(f"ipc://{owner.attached.lane_path}")
                for frame in (hello, *guesses, submit):
                    thief.send(frame)
                unknown += 2 + len(guesses)
                wait_until(lambda: stand.counters()["frames_unknown"] >= unknown, "all of it was dropped")  # noqa: B023
                assert not thief.poll(0), "a thief was answered"
                thief.close()
        finally:
            context.term()
        owner.tell(owner.ask())
        assert owner.ends(1) == {"ok": 1}, "the owner's session is not what it was"
    return Counter({"frames_unknown": 3 * (2 + len(guesses))})


def deadlines_of_zero_and_of_a_century(stand: Stand, lane: str) -> Got:
    with stand.client(lane) as liar:
        now = time.monotonic_ns()
        deadlines = [0, 1, now - 1, now + CENTURY_NS, 2**63 - 1]
        liar.tell(*(liar.ask(slot=n, deadline_ns=deadline) for n, deadline in enumerate(deadlines)))
        got = liar.ends(len(deadlines))
        assert got == {"expired_on_arrival": 3, "deadline_range": 2}, got
        return got


def frames_as_large_as_they_come(stand: Stand, lane: str) -> Got:
    """A frame of a gigabyte over ZeroMQ, written by hand; on a socket the largest that the kernel takes. It is cut."""
    with stand.client(lane) as liar:
        if lane == "zeromq":
            sent = _gigabyte(liar.attached.lane_path)
            assert sent < 16 * 2**20, f"{sent} bytes of one frame were taken"
            liar.tell(liar.ask())
            assert liar.ends(1) == {"ok": 1}
            return Counter({f"cut_after_{sent}_bytes": 1})
        size = _largest(liar.sock)
        assert size > FRAME_BYTES_MAX
        assert liar.cut_off()
        return Counter({f"cut_at_{size}_bytes": 1})


def _gigabyte(path: str) -> int:
    """Bytes of one frame that a ZMTP 3.0 peer could send before it was cut off."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect(path)
        sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\x00") + bytes(32))
        ready = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        sock.sendall(bytes([4, len(ready)]) + ready)
        greeting = 64
        while greeting > 0:
            greeting -= len(sock.recv(greeting))
        sent = -9
        try:
            sock.sendall(b"\x02" + GIB.to_bytes(8, "big"))
            sent = 0
            while sent < GIB:
                sent += sock.send(bytes(2**16))
        except (BrokenPipeError, ConnectionError):
            pass
        return max(0, sent)


def _largest(sock: socket.socket) -> int:
    so_sndbufforce = 32
    for option in (socket.SO_SNDBUF, so_sndbufforce):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, GIB)
        except PermissionError:
            pass
    size = GIB
    while size > 1:
        try:
            return sock.send(b"\x00" * size)
        except (OSError, MemoryError):
            size //= 2
    return 0


def faults_without_end(stand: Stand, lane: str) -> Got:
    """Frames that say nothing, until the session is ended for it."""
    cut = stand.counters()["clients_cut"]
    with stand.client(lane) as liar:
        for number in range(150):
            try:
                liar.send_frame(secrets.token_bytes(1 + number * 16))
            except (PeerGone, AssertionError):
                break
        assert liar.cut_off()
        wait_until(lambda: stand.counters()["clients_cut"] > cut, "it was counted")
        return Counter({"cut": 1})


def never_reads(stand: Stand, lane: str) -> Got:
    """It submits and leaves every reply where it is: when no more is kept for it, its session is ended by name."""
    cut = stand.counters()["clients_cut"]
    with stand.client(lane) as liar:
        sent = 0
        frame = request_codec.encode(Submit(liar.attached.epoch, [liar.ask(model=65_535) for _ in range(20)]))
        end = time.monotonic() + 300
        while time.monotonic() < end:
            try:
                if liar.dealer is None:
                    liar.sock.send(frame)
                else:
                    liar.dealer.send(frame, zmq.DONTWAIT)
                sent += 1
            except (BlockingIOError, zmq.Again):
                if stand.counters()["clients_cut"] > cut:
                    return Counter(cut=1, frames_sent=sent)
            except (BrokenPipeError, ConnectionError):
                return Counter(cut=1, frames_sent=sent)
    raise AssertionError(f"after {sent} frames it was not cut")


def queues_without_end(stand: Stand, lane: str, requests: int) -> Got:
    """So many requests, as fast as they can be told, each with an hour's time; all end, most of them shed.

    Honest clients have their places in the queue: one in ten of their calls may find it full, for a moment."""
    stand.refusals.add("Overloaded/queue_full")
    before = _refused(stand)
    with stand.client(lane, slot_count=16_384, slot_bytes=256) as liar:
        got: Got = Counter()
        told, slot = 0, 0
        while told < requests:
            deadline_ns = time.monotonic_ns() + 3600 * 10**9
            batch: list[Request] = []
            for _ in range(REQUESTS_MAX):
                batch.append(liar.ask(slot=slot, deadline_ns=deadline_ns))
                slot = (slot + 1) % 16_384
            liar.tell(*batch)
            told += len(batch)
            while len(liar.replies) + got.total() < told - 8 * REQUESTS_MAX:
                assert liar.pump(20)
            got += liar.taken()
            if told % (REQUESTS_MAX * 200) == 0:
                print(f"  {told} of {requests} requests", flush=True)
        liar.cancel(*range(liar.number - REQUESTS_MAX + 1, liar.number + 1))
        while got.total() < told:
            assert liar.pump(60), f"{got}, of {told}"
            got += liar.taken()
        after = _refused(stand)
        assert after[1] - before[1] <= max(10, 0.1 * (after[0] - before[0])), (before, after)
        return got


def _refused(stand: Stand) -> tuple[int, int]:
    """Of the honest calls of the attacked model: all, and those that found its queue full."""
    told = [service.told() for name, service in stand.services if name == "chain"]
    return sum(one["asked"] for one in told), sum(
        count for one in told for end, count in one["ends"].items() if end.endswith("/queue_full")
    )


LIES: tuple[Callable[[Stand, str], Got], ...] = (
    slots_out_of_its_arena,
    memory_of_another_client,
    slots_in_flight_twice,
    sizes_that_overflow,
    a_dtype_that_is_none,
    strings_that_lie,
    writes_to_what_it_gave_away,
    a_header_of_another_size,
    identities_of_others,
    deadlines_of_zero_and_of_a_century,
    frames_as_large_as_they_come,
    faults_without_end,
    never_reads,
)
