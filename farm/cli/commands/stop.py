"""`farm stop`: end a farm from anywhere."""

from __future__ import annotations

import argparse

from farm import control, exits
from farm.cli import complain
from farm.cli.verb import Verbs, add_runtime_dir, describe
from shm.control import StopWanted


def add(verbs: Verbs) -> None:
    parser = describe(
        verbs,
        "stop",
        "finish what is open, then end the farm",
        "farm stop --runtime-dir /run/farm",
        run,
        "Returns when it has ended. Sent again meanwhile it ends the farm at once.",
    )
    add_runtime_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    facts, pidfd = control.ask_and_hold(control.find(arguments.runtime_dir), StopWanted())
    if not control.wait_gone(pidfd, facts["limit_s"]):
        return complain(
            f"the farm (pid {facts['pid']}) has not ended within {facts['limit_s']:g} s; `farm stop` again ends it now",
            exits.NOT_READY,
        )
    print("stopped")
    return 0
