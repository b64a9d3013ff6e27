"""`python -m bench`."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from bench.cli import main


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A run that is told to end keeps what is there and ends its processes, as by Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
