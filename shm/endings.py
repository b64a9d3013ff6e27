"""How a request can end, and why. The numbers are the wire's; they are never reused.

A leaf: every process and every lane names endings with these words. `docs/PROTOCOL.md` has the table for people.
"""

from __future__ import annotations

from enum import IntEnum


class Ending(IntEnum):
    """Below 16: an answer, and who gave it. From 16 on: a refusal, named."""

    MODEL = 0
    RULES = 1
    LAST_GOOD = 2
    CONSTANT = 3
    PREVIOUS_VERSION = 4

    SHED = 16
    EXPIRED = 17
    INVALID = 18
    FAILED = 19
    CANCELLED = 20


FIRST_REFUSAL = 16


class Reason(IntEnum):
    """Why an ending is what it is. Grouped by tens."""

    OK = 0

    # The router would not take it now; the same request may be taken later.
    QUEUE_FULL = 10
    BYTES_FULL = 11
    PREDICTED_LATE = 12
    DRAINING = 13
    NO_WORKER = 14
    RATE = 15
    EVICTED = 16
    RULES_BUSY = 17
    IN_FLIGHT_FULL = 18

    # Time.
    TIMEOUT = 20
    EXPIRED_ON_ARRIVAL = 21
    CANCELLED = 22

    # The request itself is wrong.
    UNKNOWN_MODEL = 30
    UNKNOWN_VERSION = 31
    MISSING_INPUT = 32
    EXTRA_INPUT = 33
    DTYPE = 34
    RANK = 35
    DIMENSION = 36
    BYTE_LENGTH = 37
    SLOT_RANGE = 38
    SLOT_BUSY = 39
    DUPLICATE_ID = 40
    DEADLINE_RANGE = 41
    PRIORITY_RANGE = 42
    TOO_LARGE = 43
    STRING = 44
    FRAME = 45
    STALE_EPOCH = 46
    UNKNOWN_INPUT = 47
    USAGE = 48

    # The run went wrong.
    WORKER_DIED = 50
    POISON = 51
    MODEL_ERROR = 52
    GUARD = 53
    OUTPUT_TOO_LARGE = 54
    RULE_ERROR = 55

    # Between client and farm.
    UNAVAILABLE = 60
    NO_FREE_SLOT = 61
    BUDGET = 62
    CLIENTS_FULL = 63
    NOT_ALLOWED = 64
    PROTOCOL = 65
    TOO_MANY_FAULTS = 66
    UNANSWERED = 67

    @property
    def code(self) -> str:
        """The word that a person and a metric see, such as `queue_full`."""
        return self.name.lower()


def source_of(ending: int) -> str:
    """`model`, `rules` and so on for an ending that is an answer."""
    return Ending(ending).name.lower()
