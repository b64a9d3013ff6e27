"""Pressure on processes that run: a limit lowered while a block lasts, a control group of one's own."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.farmprocess import wait_until

PIDS_ROOT = Path("/sys/fs/cgroup/pids")


@contextlib.contextmanager
def limited(pid: int, kind: int, soft: int) -> Iterator[None]:
    """A soft limit of a running process, as it was before at the block's end."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, before)


def room_for(pid: int, count: int) -> int:
    """The limit on open files at which a process can open so many more."""
    taken = {int(fd) for fd in os.listdir(f"/proc/{pid}/fd")}
    number = 0
    while True:
        if number not in taken:
            if not count:
                return number
            count -= 1
        number += 1


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def tasks(pids: list[int]) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)


@contextlib.contextmanager
def pids_group(name: str) -> Iterator[Path]:
    """A control group that counts tasks. Skips the test where there is none to be had."""
    group = PIDS_ROOT / name
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no pids control group can be made here: {error}")
    try:
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()
