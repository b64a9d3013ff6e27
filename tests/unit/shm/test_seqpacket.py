"""SEQPACKET sockets: borders, limits, descriptors and ends, on real sockets."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from shm import seqpacket
from shm.errors import FrameRefused, PeerGone
from shm.limits import FRAME_BYTES_MAX

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = seqpacket.pair()
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_frames_keep_their_borders_and_their_order(pair: Pair) -> None:
    left, right = pair
    for frame in (b"one", b"two", b"x" * FRAME_BYTES_MAX):
        assert seqpacket.send(left, frame)
    assert [seqpacket.receive(right) for _ in range(3)] == [(b"one", []), (b"two", []), (b"x" * FRAME_BYTES_MAX, [])]
    assert seqpacket.receive(right) is None
    assert seqpacket.receive(right, 4) is None


def test_the_largest_frame_passes_with_descriptors(pair: Pair, pipe: tuple[int, int]) -> None:
    left, right = pair
    assert seqpacket.send(left, b"x" * FRAME_BYTES_MAX, pipe)
    got = seqpacket.receive(right, 2)
    assert got is not None
    seqpacket.close_all(got[1])
    assert (len(got[0]), len(got[1])) == (FRAME_BYTES_MAX, 2)


@pytest.mark.parametrize("fds_max", [0, 2])
def test_a_frame_past_the_limit_is_refused_and_not_cut(pair: Pair, fds_max: int) -> None:
    left, right = pair
    left.send(b"x" * (FRAME_BYTES_MAX + 1))
    with pytest.raises(FrameRefused, match="larger than"):
        seqpacket.receive(right, fds_max)
    seqpacket.send(left, b"next")
    assert seqpacket.receive(right, fds_max) == (b"next", [])


def test_descriptors_arrive_as_the_receivers_own_closed_on_exec(pair: Pair, pipe: tuple[int, int]) -> None:
    left, right = pair
    assert seqpacket.send(left, b"two ends", pipe)
    got = seqpacket.receive(right, 2)
    assert got is not None
    frame, fds = got
    assert (frame, len(fds)) == (b"two ends", 2)
    assert not any(os.get_inheritable(fd) for fd in fds)
    os.write(fds[1], b"through")
    assert os.read(pipe[0], 7) == b"through"
    seqpacket.close_all(fds)


def test_more_descriptors_than_expected_are_refused_and_closed(pair: Pair, pipe: tuple[int, int]) -> None:
    left, right = pair
    seqpacket.send(left, b"many", [pipe[0]] * 5)
    before = open_fds()
    with pytest.raises(FrameRefused, match="list of descriptors"):
        seqpacket.receive(right, 2)
    assert open_fds() == before


def test_descriptors_that_nobody_expects_are_dropped(pair: Pair, pipe: tuple[int, int]) -> None:
    left, right = pair
    before = open_fds()
    seqpacket.send(left, b"frame", pipe)
    assert seqpacket.receive(right) == (b"frame", [])
    assert open_fds() == before


def test_as_many_descriptors_as_the_kernel_passes(pair: Pair, pipe: tuple[int, int]) -> None:
    left, right = pair
    assert seqpacket.send(left, b"most", [pipe[0]] * seqpacket.FDS_MAX)
    got = seqpacket.receive(right, seqpacket.FDS_MAX)
    assert got is not None
    seqpacket.close_all(got[1])
    assert len(got[1]) == seqpacket.FDS_MAX


@pytest.mark.parametrize("fds_max", [0, 1])
def test_the_end_of_the_other_side_is_said_on_both_ways(pair: Pair, fds_max: int) -> None:
    left, right = pair
    seqpacket.send(left, b"last")
    left.close()
    assert seqpacket.receive(right, fds_max) == (b"last", [])
    with pytest.raises(PeerGone):
        seqpacket.receive(right, fds_max)
    with pytest.raises(PeerGone):
        seqpacket.send(right, b"nobody")
    with pytest.raises(PeerGone):
        seqpacket.send(right, b"nobody", [0])


def test_a_full_buffer_is_said_and_nothing_is_sent(pair: Pair) -> None:
    left, right = pair
    frame = b"x" * FRAME_BYTES_MAX
    sent = 0
    while seqpacket.send(left, frame):
        sent += 1
        assert sent < 1000
    assert sent >= 1
    for _ in range(sent):
        assert seqpacket.receive(right) == (frame, [])
    assert seqpacket.receive(right) is None
    assert seqpacket.send(left, frame)


def test_too_many_descriptors_on_their_way_are_said_like_a_full_buffer() -> None:
    class Busy:
        def sendmsg(self, *_: object) -> int:
            raise OSError(errno.ETOOMANYREFS, "too many references")

    assert not seqpacket.send(cast(socket.socket, Busy()), b"frame", [0])


def test_descriptors_are_duplicated_all_or_none(pipe: tuple[int, int]) -> None:
    before = open_fds()
    with pytest.raises(OSError, match="Bad file descriptor"):
        seqpacket.duplicate([*pipe, -1])
    assert open_fds() == before


def test_waiting_takes_its_limit_and_no_longer(pair: Pair) -> None:
    start = time.monotonic()
    assert seqpacket.receive_within(pair[1], 0.02) is None
    assert 0.02 <= time.monotonic() - start < 5
    seqpacket.send(pair[0], b"there")
    assert seqpacket.receive_within(pair[1], 0.0) == (b"there", [])
    pair[0].close()
    with pytest.raises(PeerGone):
        seqpacket.receive_within(pair[1], 5)


def test_ends_of_a_pair_do_not_block_and_close_on_exec(pair: Pair) -> None:
    for end in pair:
        assert not end.getblocking()
        assert not end.get_inheritable()
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= FRAME_BYTES_MAX


def test_a_socket_that_cannot_hold_a_frame_is_made_to(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    seqpacket.require_frame_room(pair[0])
    assert seqpacket.send(pair[0], b"x" * FRAME_BYTES_MAX)


def test_who_connects_is_known_by_the_kernels_word(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with seqpacket.listen(path, 0o600) as listener:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with seqpacket.connect(path) as ours:
            theirs, _ = listener.accept()
            with theirs:
                assert seqpacket.peer_credentials(theirs) == (os.getpid(), os.geteuid(), os.getegid())
                pidfd = seqpacket.peer_pidfd(theirs)
                assert pidfd is not None
                os.close(pidfd)
                assert seqpacket.send(ours, b"hello")
                assert seqpacket.receive_within(theirs, 5) == (b"hello", [])
    os.unlink(path)


def test_listening_takes_the_place_of_a_dead_listener(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    seqpacket.listen(path, 0o600).close()
    with pytest.raises(PeerGone, match="nobody answers at"):
        seqpacket.connect(path)
    with seqpacket.listen(path, 0o660):
        seqpacket.connect(path).close()
    os.unlink(path)


def test_nobody_there_is_said_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(PeerGone, match=r"nobody answers at .*/none"):
        seqpacket.connect(str(tmp_path / "none"))


def test_a_path_that_no_socket_can_have_is_refused_with_what_to_do() -> None:
    long = "/" + "x" * seqpacket.PATH_BYTES_MAX
    seqpacket.check_path(long[:-1])
    for call in (lambda: seqpacket.connect(long), lambda: seqpacket.listen(long, 0o600)):
        with pytest.raises(FrameRefused, match="choose a shorter runtime directory"):
            call()


def test_a_listener_that_cannot_be_made_leaves_no_descriptor(tmp_path: Path) -> None:
    before = open_fds()
    with pytest.raises(OSError):
        seqpacket.listen(str(tmp_path / "none" / "s"), 0o600)
    assert open_fds() == before
