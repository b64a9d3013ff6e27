"""`farm demo`: see it work."""

from __future__ import annotations

import argparse

from farm.cli.verb import Verbs, describe


def add(verbs: Verbs) -> None:
    describe(
        verbs,
        "demo",
        "start a farm on the embedded model, send it real records, print what came, stop it",
        "farm demo",
        run,
    )


def run(arguments: argparse.Namespace) -> int:
    from farm import demo

    return demo.main()
