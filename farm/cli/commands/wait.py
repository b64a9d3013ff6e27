"""`farm wait`: return once a request would be answered."""

from __future__ import annotations

import argparse

from farm import control, exits
from farm.cli import complain
from farm.cli.verb import Verbs, add_runtime_dir, describe, positive_seconds
from shm import paths

TIMEOUT_S = 60.0


def add(verbs: Verbs) -> None:
    parser = describe(
        verbs,
        "wait",
        "wait until a farm is ready",
        "farm wait --timeout 10\nfarm serve my.onnx & farm wait",
        run,
        "A farm that has not been started yet is waited for too.",
    )
    parser.add_argument(
        "--timeout", type=positive_seconds, default=TIMEOUT_S, metavar="S", help=f"seconds (default: {TIMEOUT_S:g})"
    )
    add_runtime_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    facts = control.wait_for(arguments.runtime_dir, frozenset({"ready"}), arguments.timeout)
    if facts is None:
        where = arguments.runtime_dir or ", ".join(paths.runtime_dir_candidates())
        return complain(
            f"no farm was ready within {arguments.timeout:g} s; looked at {where}. `farm status` says more",
            exits.NOT_READY,
        )
    print(f"ready: {', '.join(facts['wanted'])}, attach at {facts['runtime_dir']}")
    return 0
