"""Signals without end: whatever a process of the farm waits in is interrupted, again and again."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

PAUSE_S = 0.0005


def interrupt(rows: list[dict[str, Any]], stop: threading.Event) -> int:
    """Until `stop`: SIGCHLD to the supervisor, which handles it; SIGSTOP and SIGCONT to router and workers, after which
    the kernel ends waits of epoll, poll and timed receives with EINTR. How many were sent."""
    count = 0
    while not stop.is_set():
        for row in rows:
            if row["role"] == "supervisor":
                os.kill(row["pid"], signal.SIGCHLD)
            else:
                os.kill(row["pid"], signal.SIGSTOP)
                os.kill(row["pid"], signal.SIGCONT)
            count += 1
        time.sleep(PAUSE_S)  # not a wait for anything: the farm is to have some of the processors
    return count
