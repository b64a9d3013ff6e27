"""Pin this process to its CPUs, before threads start: they inherit the mask."""

from __future__ import annotations

import os
from collections.abc import Sequence

from workers.log import log


def pin(cpus: Sequence[int]) -> None:
    """Run on these CPUs only; empty: leave it to the kernel. A mask that cannot be set costs a log line, no more: a
    cpuset may have shrunk since the supervisor planned."""
    if not cpus:
        return
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        log("affinity_refused", cpus=",".join(map(str, cpus)), error=error.strerror)
