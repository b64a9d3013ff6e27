"""`python -m router scale|status|drain`: the farm's commands, for those who look for them here."""

from __future__ import annotations

import sys

from farm.cli import ROUTER_VERBS, main

if __name__ == "__main__":
    sys.exit(main(prog="python -m router", verbs=ROUTER_VERBS))
