"""What a person sees while it runs: what is on, how far along, about how much longer. One line a step on stderr."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """planned_s: a first guess of all of it; what has been done corrects it. stream: None is standard error."""

    def __init__(self, planned_s: float = 0.0, stream: TextIO | None = None, *, silent: bool = False) -> None:
        self._planned_s = planned_s
        self._done_s = 0.0
        self._began_s = time.monotonic()
        self._stream = stream
        self._silent = silent

    def plan(self, more_s: float) -> None:
        self._planned_s += more_s

    def say(self, text: str) -> None:
        if not self._silent:
            print(text, file=self._stream or sys.stderr, flush=True)

    def step(self, text: str, planned_s: float) -> None:
        """A part is over that had been planned to take so long."""
        self._done_s += planned_s
        percent = min(100.0, 100 * self._done_s / self._planned_s) if self._planned_s else 100.0
        self.say(f"[{percent:3.0f} %, about {clock(self.left_s())} left] {text}")

    def left_s(self) -> float:
        """Plans are off by about the same factor all the way."""
        took_s = time.monotonic() - self._began_s
        factor = took_s / self._done_s if self._done_s else 1.0
        return max(0.0, (self._planned_s - self._done_s) * factor)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
