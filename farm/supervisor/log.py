"""The farm's log: one line an event, on standard error, never waiting for whoever reads it."""

from __future__ import annotations

import os
import select
from collections.abc import Mapping

import msgspec

LINE_BYTES_MAX = 4096
"""PIPE_BUF: a pipe that polls writable takes so many bytes at once, without a wait and unmixed with other writers."""

NOT_A_PROBLEM = frozenset(
    {"cpus", "worker_ready", "worker_ended", "router_ended", "scaled", "drain_started", "drained", "stopping"}
)
"""Left out when the farm runs inside somebody's program."""


class Log:
    """Writes to a descriptor; lines that it would not take at once are dropped and counted."""

    def __init__(self, fd: int = 2, *, quiet: bool = False) -> None:
        self._fd = fd
        self.quiet = quiet
        self.dropped = 0
        self._poller = select.poll()
        self._poller.register(fd, select.POLLOUT)

    def event(self, name: str, fields: Mapping[str, str | int | float]) -> None:
        """`farm: worker_died worker=3 model=wdbc how="signal SIGKILL"`; when quiet, problems only."""
        if not (self.quiet and name in NOT_A_PROBLEM):
            self.line("farm: " + " ".join([name, *(f"{key}={_shown(value)}" for key, value in fields.items())]))

    def line(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")[: LINE_BYTES_MAX - 1].replace(b"\n", b" ") + b"\n"
        events = self._poller.poll(0)
        if not events or events[0][1] & (select.POLLERR | select.POLLNVAL):
            self.dropped += 1
            return
        try:
            os.write(self._fd, data)
        except OSError:
            self.dropped += 1


def _shown(value: str | int | float) -> str:
    text = str(value)
    return msgspec.json.encode(text).decode() if not text or set(text) & set(' "=\t') else text
