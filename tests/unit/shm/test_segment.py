"""Memory files: they keep their size, their pages and their rights, and leave nothing."""

from __future__ import annotations

import errno
import gc
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shm import segment
from shm.errors import SegmentRefused

PAGE = os.sysconf("SC_PAGESIZE")
Keep = Callable[[int], int]


@pytest.fixture
def keep() -> Iterator[Keep]:
    """Closes at the end what it was given."""
    kept: list[int] = []

    def keeper(fd: int) -> int:
        kept.append(fd)
        return fd

    yield keeper
    for fd in kept:
        os.close(fd)


def test_a_memory_file_is_private_and_closed_on_exec(keep: Keep) -> None:
    fd = keep(segment.create("x"))
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    assert not os.get_inheritable(fd)


def test_allocation_reserves_real_pages(keep: Keep) -> None:
    fd = keep(segment.create("x"))
    segment.allocate(fd, 0, PAGE)
    segment.allocate(fd, PAGE, 3 * PAGE)
    about = os.fstat(fd)
    assert (about.st_size, about.st_blocks * 512) == (4 * PAGE, 4 * PAGE)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel answers when there is none; asking it for too much in earnest would end others' processes."""

    def refuse(fd: int, offset: int, payload_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)


@pytest.mark.usefixtures("no_memory")
def test_memory_that_cannot_be_had_is_an_error_with_figures(keep: Keep) -> None:
    with pytest.raises(SegmentRefused, match=r"4096 bytes of memory could not be had: No space"):
        segment.allocate(keep(segment.create("x")), 0, 4096)


def test_more_than_a_file_can_have_is_refused_too(keep: Keep) -> None:
    with pytest.raises(SegmentRefused, match="could not be had"):
        segment.allocate(keep(segment.create("x")), 2**62, 2**62)


def test_an_interrupted_allocation_is_gone_on_with(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    fd, allocate, left = keep(segment.create("x")), os.posix_fallocate, [InterruptedError(), OSError(errno.EINTR, "x")]

    def interrupted(fd: int, offset: int, payload_bytes: int) -> None:
        if left:
            raise left.pop()
        allocate(fd, offset, payload_bytes)

    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    segment.allocate(fd, 0, PAGE)
    assert os.fstat(fd).st_size == PAGE


def test_no_descriptor_left_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(SegmentRefused, match="check the limit on open files"):
        segment.create("x")


def test_a_sealed_file_can_neither_shrink_nor_grow_nor_be_sealed_again(keep: Keep) -> None:
    fd = keep(segment.create_sealed("x", 2 * PAGE))
    for size in (PAGE, 0, 3 * PAGE):
        with pytest.raises(PermissionError):
            os.truncate(fd, size)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 2 * PAGE)
    with pytest.raises(PermissionError):
        segment.seal(fd)
    assert os.fstat(fd).st_size == 2 * PAGE


def test_a_file_without_bytes_can_be_made(keep: Keep) -> None:
    fd = keep(segment.create_sealed("x", 0))
    segment.check(fd, 0)


@pytest.mark.usefixtures("no_memory")
def test_making_one_that_fails_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SegmentRefused):
        segment.create_sealed("x", PAGE)
    assert os.listdir("/proc/self/fd") == before


def test_the_other_side_cannot_write(keep: Keep) -> None:
    fd = keep(segment.create_sealed("x", PAGE))
    read_only = keep(segment.reopen_read_only(fd))
    assert not os.get_inheritable(read_only)
    segment.check(read_only, PAGE)
    with pytest.raises(OSError):
        os.pwrite(read_only, b"x", 0)
    with pytest.raises(SegmentRefused):
        segment.map_memory(read_only, PAGE, writable=True)
    mapping = segment.map_memory(read_only, PAGE, writable=False)
    os.pwrite(fd, b"seen", 0)
    assert mapping[:4] == b"seen"
    with pytest.raises(TypeError):
        mapping[0] = 1
    mapping.close()


@pytest.mark.parametrize("populate", [False, True])
def test_what_one_mapping_writes_another_reads(keep: Keep, populate: bool) -> None:
    fd = keep(segment.create_sealed("x", PAGE))
    with (
        segment.map_memory(fd, PAGE, writable=True, populate=populate) as writer,
        segment.map_memory(fd, PAGE, writable=False, populate=populate) as reader,
    ):
        writer[100:105] = b"bytes"
        assert reader[100:105] == b"bytes"


def test_a_mapping_past_the_file_is_refused(keep: Keep) -> None:
    fd = keep(segment.create_sealed("x", PAGE))
    with pytest.raises(SegmentRefused, match="could not be mapped"):
        segment.map_memory(fd, 2 * PAGE, writable=False)


def test_descriptors_that_were_handed_over_are_not_trusted(keep: Keep, tmp_path: Path) -> None:
    good = keep(segment.create_sealed("x", PAGE))
    segment.check(good, PAGE)
    with pytest.raises(SegmentRefused, match=f"of {PAGE} bytes was handed over, {PAGE + 1} were named"):
        segment.check(good, PAGE + 1)
    growing = keep(segment.create("x"))
    segment.allocate(growing, 0, PAGE)
    with pytest.raises(SegmentRefused, match="can still change size"):
        segment.check(growing, PAGE)
    plain = keep(os.open(tmp_path / "plain", os.O_CREAT | os.O_RDWR))
    with pytest.raises(SegmentRefused, match="no memory file"):
        segment.check(plain, 0)
    ends = os.pipe()
    with pytest.raises(SegmentRefused, match="no memory file"):
        segment.check(keep(ends[0]), keep(ends[1]) * 0)


def test_a_punched_file_keeps_its_size_and_no_memory(keep: Keep) -> None:
    fd = keep(segment.create_sealed("x", 4 * PAGE))
    with segment.map_memory(fd, 4 * PAGE, writable=True) as mapping:
        mapping[:4] = b"data"
        segment.punch(fd, 4 * PAGE)
        assert mapping[:4] == bytes(4)
    # Reading has put one page of zeros back at most.
    assert os.fstat(fd).st_size == 4 * PAGE
    segment.punch(fd, 4 * PAGE)
    assert os.fstat(fd).st_blocks == 0


def test_punching_what_is_no_memory_file_is_an_error() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError):
        segment.punch(writer, PAGE)
    os.close(reader)
    os.close(writer)


def test_punching_leaves_the_collector_nothing(keep: Keep) -> None:
    fd = keep(segment.create("x"))
    segment.punch(fd, PAGE)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            segment.punch(fd, PAGE)
        assert gc.collect() == 0
    finally:
        gc.enable()
