"""One line an event on stderr: `event key=value ...`. Workers say little; what is counted is in Done and Inspected."""

from __future__ import annotations

import sys


def log(event: str, **fields: object) -> None:
    """Values with blanks are quoted, line ends become blanks, so that a line stays a line."""
    parts = [event]
    for key, value in fields.items():
        text = " ".join(str(value).split())
        parts.append(f'{key}="{text}"' if " " in text or not text else f"{key}={text}")
    sys.stderr.write(" ".join(parts) + "\n")
    sys.stderr.flush()
