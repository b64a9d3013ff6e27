"""One line an event on stderr: `event key=value ...`. Workers say little; what is counted is in Done and Inspected."""

from __future__ import annotations

import time
from typing import Final

from shm.lines import Lines

SELDOM_S: Final = 10.0

_lines = Lines()
_last: dict[str, tuple[float, int]] = {}


def log(event: str, **fields: object) -> None:
    """Values with blanks are quoted, line ends become blanks, so that a line stays a line."""
    parts = [event]
    for key, value in fields.items():
        text = " ".join(str(value).split())
        parts.append(f'{key}="{text}"' if " " in text or not text else f"{key}={text}")
    _lines.write(" ".join(parts))


def log_seldom(event: str, **fields: object) -> None:
    """At most one line of this event in SELDOM_S: what a client can cause at any rate must not fill the log."""
    now = time.monotonic()
    said, unsaid = _last.get(event, (-SELDOM_S, 0))
    if now - said < SELDOM_S:
        _last[event] = (said, unsaid + 1)
        return
    _last[event] = (now, 0)
    log(event, unsaid=unsaid, **fields)
