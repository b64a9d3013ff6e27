"""`farm drain`: take no new requests, finish the open ones, stay up."""

from __future__ import annotations

import argparse
import time

from farm import control, exits
from farm.cli import complain
from farm.cli.verb import Verbs, add_runtime_dir, describe
from shm.control import DrainWanted


def add(verbs: Verbs) -> None:
    parser = describe(
        verbs,
        "drain",
        "take no new requests and finish the open ones",
        "farm drain && farm stop",
        run,
        "Returns when none is open. The farm stays up and answers new requests with `draining`; there is no way back "
        "but to stop it and start another.",
    )
    add_runtime_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    runtime_dir = control.find(arguments.runtime_dir)
    started = time.monotonic()
    facts = control.ask(runtime_dir, DrainWanted())
    if control.wait_for(runtime_dir, frozenset({"drained", "stopping"}), facts["limit_s"]) is None:
        return complain(f"not drained within {facts['limit_s']:g} s; `farm status` shows what is open", exits.NOT_READY)
    print(f"drained after {time.monotonic() - started:.2f} s; `farm stop` ends the farm")
    return 0
