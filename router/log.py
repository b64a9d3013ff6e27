"""The router's log: what `logging` gives it, line by line, on standard error, never waiting for whoever reads it."""

from __future__ import annotations

import logging

from shm.lines import Lines


class LogLines(logging.Handler):
    """The handler of `logging`'s root. A traceback is several lines."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = Lines()

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._lines.write(line)
