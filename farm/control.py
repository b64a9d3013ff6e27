"""The asking side of the control socket: find a farm, ask it one thing, get its answer."""

from __future__ import annotations

import os
import select
import time
from typing import Any

import msgspec

from farm.errors import FarmError, Unavailable
from shm import paths, seqpacket
from shm.control import (
    DrainWanted,
    InspectWanted,
    ScaleWanted,
    StatusWanted,
    StopWanted,
    answer_codec,
    wanted_codec,
)
from shm.errors import FrameRefused, PeerGone, ShmError

Wanted = StatusWanted | ScaleWanted | DrainWanted | StopWanted | InspectWanted

ANSWER_TIMEOUT_S = 5.0
"""A supervisor answers in milliseconds, and within one second when its router is silent."""

LOOK_S = 0.05
"""Between two looks at a state that is being waited for: a look costs the farm some milliseconds."""


def find(runtime_dir: str | None = None) -> str:
    """The runtime directory of a farm that listens: the one named, else the first usual one where a farm is.

    Raises:
        Unavailable: none listens; the message lists the directories that were tried.
    """
    tried = [os.path.abspath(runtime_dir)] if runtime_dir else paths.runtime_dir_candidates()
    for candidate in tried:
        try:
            seqpacket.connect(paths.control_path(candidate)).close()
        except ShmError:
            continue
        return candidate
    raise Unavailable(
        f"no farm was found; tried {', '.join(tried)}. Start one with `farm serve`, or name its directory with "
        f"--runtime-dir or ${paths.RUNTIME_DIR_VARIABLE}",
        reason="no_farm",
        retryable=True,
    )


def ask(runtime_dir: str, wanted: Wanted, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
    """The farm's answer.

    Raises:
        Unavailable: nobody listens there, or no answer came in time.
        FarmError: the farm will not do it; the message says why.
    """
    facts, _ = ask_and_hold(runtime_dir, wanted, timeout_s, hold=False)
    return facts


def ask_and_hold(
    runtime_dir: str, wanted: Wanted, timeout_s: float = ANSWER_TIMEOUT_S, *, hold: bool = True
) -> tuple[dict[str, Any], int | None]:
    """Like `ask`; with the answer a descriptor that becomes readable when the supervisor's process has ended."""
    silent = Unavailable(f"the farm at {runtime_dir} does not answer; is it stopped or very busy?", reason="silent")
    try:
        sock = seqpacket.connect(paths.control_path(runtime_dir))
    except ShmError as error:
        raise Unavailable(str(error), reason="no_farm", retryable=True) from error
    with sock:
        pidfd = seqpacket.peer_pidfd(sock) if hold else None
        try:
            seqpacket.send(sock, wanted_codec.encode(wanted))
            got = seqpacket.receive_within(sock, timeout_s)
            if got is None:
                raise silent
            answer = answer_codec.decode(got[0])
        except PeerGone:
            _close(pidfd)
            raise silent from None
        except FrameRefused as error:
            _close(pidfd)
            raise Unavailable(f"the farm at {runtime_dir} speaks differently: {error}", reason="protocol") from error
        except BaseException:
            _close(pidfd)
            raise
    if answer.error is not None:
        _close(pidfd)
        raise FarmError(answer.error, reason="refused")
    facts: dict[str, Any] = msgspec.json.decode(answer.facts)
    return facts, pidfd


def status(runtime_dir: str) -> dict[str, Any]:
    return ask(runtime_dir, StatusWanted())


def wait_for(runtime_dir: str | None, states: frozenset[str], timeout_s: float) -> dict[str, Any] | None:
    """Look until the farm is in one of these states; its status then, None when the time was up.

    A farm that is not there (yet) is waited for too.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            facts = status(find(runtime_dir))
            if facts["state"] in states:
                return facts
        except Unavailable:
            pass
        left = end - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(LOOK_S, left))


def wait_gone(pidfd: int | None, timeout_s: float) -> bool:
    """Whether the process behind a descriptor of `ask_and_hold` ended in time. Closes the descriptor."""
    if pidfd is None:
        return True
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def _close(pidfd: int | None) -> None:
    if pidfd is not None:
        os.close(pidfd)
