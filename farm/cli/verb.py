"""What the verbs' modules share: how one is described, and the options that many take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

Verbs = Any
"""What argparse's `add_subparsers` gives; its class is private."""


def describe(
    verbs: Verbs, name: str, help: str, example: str, run: Callable[[argparse.Namespace], int], more: str = ""
) -> argparse.ArgumentParser:
    """Add a verb with its help and at least one example."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}. {more}".strip(),
        epilog="example:\n  " + example.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_runtime_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime-dir",
        metavar="DIR",
        help="the farm's runtime directory (default: $FARM_RUNTIME_DIR, else the usual places)",
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def print_json(value: object) -> None:
    import json

    json.dump(value, sys.stdout, indent=2)
    print()


def positive_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text}: it must be a number of seconds above 0, at most 86400")
    return value


def positive_ms(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400_000:
        raise argparse.ArgumentTypeError(f"{text}: it must be a number of milliseconds above 0, at most a day")
    return value


positive_seconds.__name__ = "number of seconds"
positive_ms.__name__ = "number of milliseconds"
