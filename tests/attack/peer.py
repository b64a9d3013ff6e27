"""One hostile peer, a process of its own: `peer.py KIND RUNTIME_DIR COUNT SEED` tells in one line of JSON how it went.

It speaks ZMTP by hand, since no library sends what is sent here. `seconds` and `mib` are until it was cut off;
`seconds` is null when it never was, within LIMIT_S and BYTES_MAX.
"""

from __future__ import annotations

import json
import os
import random
import resource
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from shm import paths, seqpacket
from shm.client import Attach, Attached, Hello, attach_codec, request_codec, welcome_codec
from shm.errors import PeerGone
from shm.limits import PROTOCOL_VERSION

LIMIT_S = 15.0
BYTES_MAX = 2 * 1024**3
WINDOW = 2500
"""Connections that a flood keeps open at once: more than a backlog, or all would be closed before they are accepted."""

MIB = 1024 * 1024
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
ZMTP2 = b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00\x00\x04junk"


def ready(identity: bytes = b"") -> bytes:
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", identity)):
        body += bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
    return bytes([4, len(body)]) + body


def frame(payload: bytes, more: bool = False) -> bytes:
    if len(payload) < 256:
        return bytes([more, len(payload)]) + payload
    return bytes([2 | more]) + len(payload).to_bytes(8, "big") + payload


def lane_of(runtime_dir: str) -> str:
    """The newest lane's socket."""
    service = Path(runtime_dir) / paths.SERVICE_DIR
    lanes = [path for path in service.iterdir() if path.is_socket() and path.name != "attach.sock"]
    return str(max(lanes, key=lambda path: path.stat().st_mtime))


def connected(path: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A full backlog makes it wait, as it does anyone."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.connect(path)
    sock.settimeout(LIMIT_S)
    return sock


def shaken(path: str, identity: bytes = b"") -> socket.socket:
    """A connection after the whole handshake."""
    sock = connected(path)
    sock.sendall(GREETING + ready(identity))
    got = b""
    while len(got) < len(GREETING) + 2:
        more = sock.recv(4096)
        if not more:
            raise ConnectionResetError
        got += more
    return sock


def attached(runtime_dir: str) -> tuple[socket.socket, Attached]:
    sock = seqpacket.connect(paths.attach_path(runtime_dir))
    assert seqpacket.send(sock, attach_codec.encode(Attach(PROTOCOL_VERSION, 8, 4096, "zeromq", "hostile")))
    got = seqpacket.receive_within(sock, LIMIT_S, 2)
    assert got is not None
    seqpacket.close_all(got[1])
    welcome = welcome_codec.decode(got[0])
    assert isinstance(welcome, Attached), welcome
    return sock, welcome


def send_until_cut(sock: socket.socket, block: bytes) -> dict[str, object]:
    """The block again and again, every byte of it: a block cut short would be another attack."""
    began, sent, left = time.monotonic(), 0, memoryview(block)
    while time.monotonic() - began < LIMIT_S and sent < BYTES_MAX:
        try:
            count = sock.send(left)
        except OSError:
            return {"seconds": time.monotonic() - began, "mib": sent / MIB}
        sent += count
        left = left[count:] if count < len(left) else memoryview(block)
    return {"seconds": None, "mib": sent / MIB}


def wait_until_cut(socks: list[socket.socket]) -> dict[str, object]:
    """The time of the last of them."""
    began, open_now = time.monotonic(), set(socks)
    poll = select.poll()
    by_fd = {sock.fileno(): sock for sock in socks}
    for fd in by_fd:
        poll.register(fd, select.POLLIN | select.POLLHUP)
    while open_now and time.monotonic() - began < LIMIT_S:
        for fd, _ in poll.poll(100):
            try:
                more = by_fd[fd].recv(65536)
            except OSError:
                more = b""
            if not more:
                poll.unregister(fd)
                open_now.discard(by_fd[fd])
    took = None if open_now else time.monotonic() - began
    return {"seconds": took, "mib": 0.0, "connections": len(socks), "left": len(open_now)}


def endless(runtime_dir: str, block: bytes, known: bool) -> dict[str, object]:
    """Parts without a last one, by a peer with a session or without."""
    if not known:
        with shaken(lane_of(runtime_dir)) as sock:
            return send_until_cut(sock, block)
    keep, welcome = attached(runtime_dir)
    with keep, shaken(welcome.lane_path) as sock:
        sock.sendall(frame(request_codec.encode(Hello(welcome.token, welcome.epoch))))
        return send_until_cut(sock, block)


def silent(runtime_dir: str, count: int, first: bytes) -> dict[str, object]:
    path = lane_of(runtime_dir)
    socks = []
    for _ in range(count):
        socks.append(connected(path))
        try:
            socks[-1].sendall(first)
        except OSError:
            pass
    return wait_until_cut(socks)


def squatters(runtime_dir: str, count: int, chance: random.Random) -> dict[str, object]:
    """Names of their own choice, the form of libzmq's own names among them, and a Submit under each."""
    path, socks = lane_of(runtime_dir), []
    for number in range(count):
        identity = chance.randbytes(5) if number % 2 else b"\0" + chance.randbytes(4)
        try:
            socks.append(shaken(path, identity))
            socks[-1].sendall(frame(b"\x93\x11\x07\x90"))
        except OSError:
            pass
    return wait_until_cut(socks)


def knocking(path: str, count: int, chance: random.Random) -> dict[str, object]:
    """Connections on a SEQPACKET socket that say nothing, or what is no frame."""
    socks = []
    for number in range(count):
        sock = None
        end = time.monotonic() + LIMIT_S
        while sock is None and time.monotonic() < end:
            try:
                sock = seqpacket.connect(path)
            except PeerGone:
                time.sleep(0.001)  # the backlog is full
        assert sock is not None
        sock.setblocking(False)
        socks.append(sock)
        if number % 2:
            try:
                sock.send(chance.randbytes(64))
            except OSError:
                pass
    return wait_until_cut(socks)


def flood(runtime_dir: str, count: int, chance: random.Random) -> dict[str, object]:
    """One connection after another, each with something else to begin with; the oldest of the window is closed."""
    path = lane_of(runtime_dir)
    firsts = [
        b"",
        GREETING[:10],
        GREETING,
        GREETING + ready() + frame(b"junk"),
        GREETING + ready(b"me") + frame(b"junk"),
        GREETING + ready() + frame(b"", more=True) * 500,
        b"\x01\x00",
        ZMTP2,
        bytes(range(256)),
    ]
    began, told = time.monotonic(), time.monotonic()
    window: deque[socket.socket] = deque()
    for number in range(1, count + 1):
        sock = connected(path)
        sock.setblocking(False)
        try:
            sock.send(chance.choice(firsts))
        except OSError:
            pass
        window.append(sock)
        if len(window) > WINDOW:
            window.popleft().close()
        if time.monotonic() - told > 5:
            told = time.monotonic()
            left = (told - began) / number * (count - number)
            print(f"{number} of {count} connections, some {left:.0f} s left", file=sys.stderr, flush=True)
    took = time.monotonic() - began
    return {**wait_until_cut(list(window)), "connections": count, "flood_seconds": took}


KINDS: dict[str, Callable[[str, int, random.Random], dict[str, object]]] = {
    "endless": lambda folder, count, chance: endless(folder, frame(bytes(8192), True) * 64, False),
    "endless-session": lambda folder, count, chance: endless(folder, frame(bytes(8192), True) * 64, True),
    "empty": lambda folder, count, chance: endless(folder, frame(b"", True) * 65536, False),
    "empty-session": lambda folder, count, chance: endless(folder, frame(b"", True) * 65536, True),
    "parts-session": lambda folder, count, chance: endless(folder, frame(b"", True) * 65536 + frame(b""), True),
    "silent": lambda folder, count, chance: silent(folder, count, b""),
    "half-open": lambda folder, count, chance: silent(folder, count, GREETING[:11]),
    "no-hello": lambda folder, count, chance: silent(folder, count, GREETING + ready()),
    "zmtp1": lambda folder, count, chance: silent(folder, count, b"\x01\x00" + b"\x05\x00junk"),
    "zmtp2": lambda folder, count, chance: silent(
        folder, count, b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00\x00\x04junk"
    ),
    "squatters": squatters,
    "attach": lambda folder, count, chance: knocking(paths.attach_path(folder), count, chance),
    "control": lambda folder, count, chance: knocking(paths.control_path(folder), min(count, 24), chance),
    "flood": flood,
}


def main() -> None:
    kind, runtime_dir, count, seed = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(json.dumps(KINDS[kind](runtime_dir, int(count), random.Random(int(seed)))), flush=True)


if __name__ == "__main__":
    assert os.path.isdir(sys.argv[2]), sys.argv[2]
    main()
