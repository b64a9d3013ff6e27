"""Where a farm's runtime directory is, for those who make it and those who look for it. No directory is made here."""

from __future__ import annotations

import os
import tempfile

RUNTIME_DIR_VARIABLE = "FARM_RUNTIME_DIR"
SERVICE_DIR = "service"
CONTROL_DIR = "control"
QUARANTINE_DIR = "quarantine"


def runtime_dir_candidates() -> list[str]:
    """Directories to try, the first first: the variable alone when it is set, else the usual places by uid."""
    named = os.environ.get(RUNTIME_DIR_VARIABLE)
    if named:
        return [os.path.abspath(named)]
    uid = os.geteuid()
    candidates = []
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session:
        candidates.append(os.path.join(os.path.abspath(session), "shmfarm"))
    candidates.append(f"/run/shmfarm-{uid}")
    candidates.append(os.path.join(tempfile.gettempdir(), f"shmfarm-{uid}"))
    return candidates


def attach_path(runtime_dir: str) -> str:
    """The socket that clients attach to."""
    return os.path.join(runtime_dir, SERVICE_DIR, "attach.sock")


def lane_path(runtime_dir: str, epoch: int) -> str:
    """The ZeroMQ socket of one life of the router: a new path each, so that an old peer never reaches a new router."""
    return os.path.join(runtime_dir, SERVICE_DIR, f"requests-{epoch}.sock")


def quarantine_path(runtime_dir: str) -> str:
    """The folder for inputs that killed workers. It is there once there are any, and stays when the farm ends."""
    return os.path.join(runtime_dir, QUARANTINE_DIR)


def control_path(runtime_dir: str) -> str:
    """The socket that operators' commands go to."""
    return os.path.join(runtime_dir, CONTROL_DIR, "control.sock")


def lock_path(runtime_dir: str) -> str:
    return os.path.join(runtime_dir, CONTROL_DIR, "lock")
