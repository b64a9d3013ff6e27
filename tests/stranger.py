"""A process of another user: started as root, it loads what it needs, becomes that user, and does one thing.

`python tests/stranger.py UID GROUPS VERB ARGUMENT...`; GROUPS are numbers with commas, the first the primary one. One
line of JSON says what came of it.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import farm
import farm.client
from farm import control
from shm import paths, seqpacket
from shm.control import StatusWanted

PR_SET_DUMPABLE = 4
NOBODY = 65_534


def call(uid: int, groups: list[int], verb: str, *arguments: str) -> dict[str, Any]:
    """Do it in such a process; what it said."""
    done = subprocess.run(
        _command(uid, groups, verb, *arguments), capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def start(uid: int, groups: list[int], verb: str, *arguments: str) -> subprocess.Popen[str]:
    """Of a verb that says its line and then waits for the end of standard input."""
    pipe = subprocess.PIPE
    return subprocess.Popen(_command(uid, groups, verb, *arguments), stdin=pipe, stdout=pipe, text=True)


def _command(uid: int, groups: list[int], verb: str, *arguments: str) -> list[str]:
    told = ",".join(map(str, groups))
    return [sys.executable, str(Path(__file__)), str(uid), told, verb, *arguments]


def infer(endpoint: str, model: str) -> dict[str, Any]:
    """An ordinary client; how its request ended, and whether `out` can be had for writing by another way."""
    try:
        with farm.Client(endpoint, slot_count=4, slot_bytes=4096) as client:
            client.wait_ready(timeout=20)
            reply = client.infer(model, np.ones((1, 2), np.float32), deadline_ms=10_000)
            return {"source": reply.source}
    except farm.FarmError as error:
        return {"error": type(error).__name__, "reason": error.reason, "message": str(error)}


def reopen(endpoint: str) -> dict[str, Any]:
    from tests.routerharness import RawClient

    client = RawClient(endpoint, lane="direct")
    mine = os.memfd_create("mine")
    try:
        return {"mine": _opens(mine), "out": _opens(client.out_fd), "in": _opens(client.in_fd)}
    finally:
        os.close(mine)
        client.close()


def _opens(fd: int) -> str:
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
    except OSError as error:
        return type(error).__name__
    return "opened"


def operate(endpoint: str) -> dict[str, Any]:
    try:
        return {"pid": control.ask(endpoint, StatusWanted())["processes"][0]["pid"]}
    except farm.FarmError as error:
        return {"error": type(error).__name__, "message": str(error)}


def plant(directory: str) -> dict[str, Any]:
    """A farm's directory before the farm's user makes one."""
    os.makedirs(os.path.dirname(paths.attach_path(directory)), 0o755)
    global planted
    planted = seqpacket.listen(paths.attach_path(directory), 0o666)
    return {"planted": directory}


planted: Any = None
VERBS = {"infer": infer, "reopen": reopen, "operate": operate, "plant": plant}

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent.parent))
    import tests.routerharness  # noqa: F401 - while it can still be read

    who, told_groups, what, *given = sys.argv[1:]
    wanted = [int(word) for word in told_groups.split(",")]
    os.setgroups(wanted[1:])
    os.setgid(wanted[0])
    os.setuid(int(who))
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)
    print(json.dumps(VERBS[what](*given)), flush=True)
    if what == "plant":
        sys.stdin.read()
