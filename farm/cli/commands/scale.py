"""`farm scale`: more or fewer workers of a model."""

from __future__ import annotations

import argparse

from farm import control
from farm.cli.verb import Verbs, add_runtime_dir, describe
from shm.control import ScaleWanted
from shm.limits import NAME_BYTES_MAX

WORKERS_MAX = 1024


def add(verbs: Verbs) -> None:
    parser = describe(
        verbs,
        "scale",
        "set how many workers a model has",
        "farm scale wdbc=4",
        run,
        "New workers take requests once they are warm; those that go finish what they have first.",
    )
    parser.add_argument("wanted", metavar="MODEL=N", type=_model_and_count, help="the model's name and its new number")
    add_runtime_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    model, workers = arguments.wanted
    facts = control.ask(control.find(arguments.runtime_dir), ScaleWanted(model, workers))
    print(f"{facts['model']}: {facts['before']} -> {facts['workers']} workers; `farm status` shows them come and go")
    return 0


def _model_and_count(text: str) -> tuple[str, int]:
    model, _, count = text.rpartition("=")
    if not model or len(model) > NAME_BYTES_MAX or not count.isdecimal() or int(count) > WORKERS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r}: it must be MODEL=N, such as wdbc=4, N from 0 to {WORKERS_MAX}")
    return model, int(count)
