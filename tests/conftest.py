"""For every test: temporary files at a short path, and no test leaves anything behind.

What counts as left behind: a child process, a descriptor, a mapping of a memory file, a socket file under the temporary
directory, a Python thread. A test is judged against what was there when it began, so a farm that a module shares is
the module's own, and is judged at the module's end in the same way.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
# `bench` is no part of the wheel. At the end of the path, so that an installed farm is found before the checkout.
sys.path.append(str(ROOT))

INSTALLED = os.environ.get("SHMFARM_TEST_INSTALLED") == "1"
if not INSTALLED:
    # What tests start finds the checkout too, wherever it is started.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

SETTLE_S = 5.0
"""How long what a test closed may take to be gone: threads end, the kernel reaps."""

_failed = pytest.StashKey[bool]()
_temporary = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        # Under nohup every child would ignore it too. A handler keeps this process alive and is not inherited.
        signal.signal(signal.SIGHUP, lambda *_: None)
    # A Unix socket path holds 107 bytes; pytest's own directories use up most of them.
    directory = tempfile.mkdtemp(prefix="t-")
    config.stash[_temporary] = directory
    tempfile.tempdir = directory
    os.environ["TMPDIR"] = directory
    if config.option.basetemp is None:
        config.option.basetemp = os.path.join(directory, "p")
    for variable in ("FARM_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        # A farm that happens to run for this user is none of the tests' business.
        os.environ.pop(variable, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_temporary], ignore_errors=True)


def pytest_sessionstart() -> None:
    if not INSTALLED:
        return
    import farm

    where = Path(str(farm.__file__))
    if "site-packages" not in where.parts or ROOT / "farm" in where.parents:
        pytest.exit(f"the wheel is what is tested here, but farm came from {where}", returncode=4)


@pytest.fixture(scope="session")
def farm_command() -> list[str]:
    """How a person starts it: the script beside this Python, or the module where nothing is installed."""
    script = Path(sys.executable).parent / "farm"
    return [str(script)] if INSTALLED or script.exists() else [sys.executable, "-m", "farm"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing() -> Iterator[None]:
    before = Left.now()
    yield
    judge(before, "this module")


@pytest.fixture(autouse=True)
def _leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    before = Left.now()
    yield
    # A failed test's traceback keeps its frames, and so whatever they opened, alive.
    if not request.node.stash.get(_failed, False):
        judge(before, "this test")


class Left(NamedTuple):
    """What a process has that a test could leave behind, each in words that name it."""

    children: frozenset[str]
    descriptors: frozenset[str]
    mappings: frozenset[str]
    sockets: frozenset[str]
    threads: frozenset[threading.Thread]

    @classmethod
    def now(cls) -> Left:
        return cls(_children(), _descriptors(), _mappings(), _sockets(), frozenset(threading.enumerate()))

    def beyond(self, before: Left) -> list[str]:
        found = []
        for kind, have, had in zip(self._fields, self, before, strict=True):
            found += [f"{kind}: {extra}" for extra in sorted(map(str, have - had))]
        return found


def judge(before: Left, who: str) -> None:
    """Wait until nothing is left, as long as it may take; then say what is."""
    left = Left.now().beyond(before)
    if not left:
        return
    gc.collect()
    end = time.monotonic() + SETTLE_S
    while left and time.monotonic() < end:
        time.sleep(0.01)
        left = Left.now().beyond(before)
    if left:
        pytest.fail(f"{who} left behind:\n  " + "\n  ".join(left), pytrace=False)


def _children() -> frozenset[str]:
    found = set()
    for task in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{task}/children").read_text().split()
        except OSError:
            continue
        for pid in pids:
            try:
                name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            found.add(f"{pid} ({name or 'ended, not waited for'})")
    return frozenset(found)


def _descriptors() -> frozenset[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        if fd in {"0", "1", "2"}:
            continue  # pytest's own capturing moves these about
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that listed
        found.add(f"{fd} ({target})")
    return frozenset(found)


def _mappings() -> frozenset[str]:
    with open("/proc/self/maps") as lines:
        return frozenset(line.strip() for line in lines if "/memfd:" in line)


def _sockets() -> frozenset[str]:
    found: set[str] = set()
    pending = [tempfile.gettempdir()]
    while pending:
        directory = pending.pop()
        try:
            entries = list(os.scandir(directory))
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif not entry.is_file(follow_symlinks=False):
                try:
                    mode = entry.stat(follow_symlinks=False).st_mode
                except OSError:
                    continue
                if stat.S_ISSOCK(mode):
                    found.add(entry.path)
    return frozenset(found)
