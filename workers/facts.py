"""What a worker sees of itself, for `farm status` and for tests that prove where tensors are read."""

from __future__ import annotations

import json
import os
from typing import Any, Final

import setproctitle

from workers.arenas import Arenas
from workers.runner import Runner
from workers.session import ORT_VERSION, Session

ARENAS_MAX: Final = 200
"""Named in full; the frame holds 64 KiB."""


def facts(session: Session, runner: Runner, arenas: Arenas) -> str:
    """A JSON object."""
    seen: dict[str, Any] = {
        "pid": os.getpid(),
        "title": setproctitle.getproctitle(),
        "threads": threads(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "ort_version": ORT_VERSION,
        "independent_rows": session.signature.independent_rows,
        "rss_bytes": rss_bytes(),
        "fd_count": len(os.listdir("/proc/self/fd")),
        "arena_count": len(arenas),
        "arenas": arenas.facts()[:ARENAS_MAX],
        **runner.facts(),
    }
    return json.dumps(seen)


def threads() -> list[str]:
    """The names of this process's threads, ONNX Runtime's included."""
    names = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as comm:
                names.append(comm.read().strip())
        except FileNotFoundError:
            continue  # it ended while we looked
    return sorted(names)


def rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
