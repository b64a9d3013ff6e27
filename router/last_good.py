"""The last answers of one model, by the request's key: what the behaviour `last_good` answers from.

A copy of each answer that was given to a request with a key, if it is small enough to travel inside a reply; the one
that was used longest ago goes first. Keys are a client's own words, so a user's answers are found by that user alone.
Time comes in: nothing here reads a clock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from router.answers import Made
from router.config import LastGoodConfig

ENTRY_BYTES: Final = 540
"""What an entry of one output takes beyond its outputs: 535 bytes by `tracemalloc`, with a key of 16 characters."""

Key = tuple[int, str]
"""The client's uid, and what it named."""


class _Kept(NamedTuple):
    at_ns: int
    rows: int
    made: Made
    charged_bytes: int


class LastGood:
    """Answers of one model. `bytes_kept` counts against `mib_max`."""

    def __init__(self, config: LastGoodConfig) -> None:
        self._age_ns = int(config.max_age_ms * 1e6)
        self._keys_max = config.keys_max
        self._bytes_max = config.mib_max * 1024 * 1024
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self.bytes_kept = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: Key, rows: int, made: Made, now_ns: int) -> None:
        """Remember this answer in place of the one before."""
        self._drop(key)
        charged = ENTRY_BYTES + len(key[1]) + len(made[1])
        self._kept[key] = _Kept(now_ns, rows, made, charged)
        self.bytes_kept += charged
        while len(self._kept) > self._keys_max or self.bytes_kept > self._bytes_max:
            self._drop(next(iter(self._kept)))

    def find(self, key: Key, rows: int, now_ns: int) -> Made | None:
        """The last answer for the key, if it is young enough and has as many rows."""
        kept = self._kept.get(key)
        if kept is None or kept.rows != rows:
            return None
        if now_ns - kept.at_ns > self._age_ns:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept.made

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.bytes_kept -= kept.charged_bytes
