"""The farm's log: one line an event, on standard error, never waiting for whoever reads it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shm.lines import Lines

NOT_A_PROBLEM = frozenset(
    {"cpus", "worker_ready", "worker_ended", "router_ended", "scaled", "drain_started", "drained", "stopping"}
)
"""Left out when the farm runs inside somebody's program."""


class Log:
    """Writes to a descriptor; lines that it would not take at once are dropped and counted."""

    def __init__(self, fd: int = 2, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._lines = Lines(fd)

    @property
    def dropped(self) -> int:
        return self._lines.dropped

    def event(self, name: str, fields: Mapping[str, str | int | float]) -> None:
        """`farm: worker_died worker=3 model=wdbc how="signal SIGKILL"`; when quiet, problems only."""
        if not (self.quiet and name in NOT_A_PROBLEM):
            self.line("farm: " + " ".join([name, *(f"{key}={_shown(value)}" for key, value in fields.items())]))

    def line(self, text: str) -> None:
        self._lines.write(text)


def _shown(value: str | int | float) -> str:
    text = str(value)
    return msgspec.json.encode(text).decode() if not text or set(text) & set(' "=\t') else text
