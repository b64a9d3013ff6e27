"""A budget for second runs, one a model: a tenth of what comes in may be run again, so that a storm of crashes
cannot double the load on the workers that are left (Google, Site Reliability Engineering, 2016, chapter 21).
"""

from __future__ import annotations

SHARE = 0.1
AT_FIRST = 64.0
"""Two full batches of the usual size: a farm that has just started must survive a worker's death too."""
MOST = 256.0
"""What a long quiet time can save up."""


class RetryBudget:
    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = AT_FIRST

    def earn(self) -> None:
        """A request was taken."""
        if self._left < MOST:
            self._left += SHARE

    def spend(self) -> bool:
        """Whether a request may run once more; if so it is paid for."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
