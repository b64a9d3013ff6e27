"""Exit codes of the `farm` command. `farm --help` and docs/OPERATIONS.md print this table."""

from __future__ import annotations

OK = 0
REFUSED = 1
USAGE = 2
NO_FARM = 3
NOT_READY = 4
GAVE_UP = 5
HELD = 6
INTERRUPTED = 130

MEANINGS = {
    OK: "done; for `serve`: stopped as asked, drained or not",
    REFUSED: "the farm answered with an error",
    USAGE: "wrong usage or configuration, or the server extra is not installed",
    NO_FARM: "no farm was found, or it does not answer",
    NOT_READY: "not ready, drained or stopped within the time that was given",
    GAVE_UP: "`serve` gave up: a worker or the router never became ready",
    HELD: "a living farm holds the runtime directory",
    INTERRUPTED: "interrupted from the keyboard",
}
