"""The `farm` command: one verb, one module under `farm.cli.commands`.

Each of those has `add(verbs)`, which describes the verb to argparse, and `run(arguments)`, which gives an exit code.
What a verb needs beyond the standard library it imports when it runs: `farm status` must not wait for numpy.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from farm import exits
from farm.errors import ConfigError, FarmError, Unavailable

VERBS = ("serve", "status", "infer", "scale", "drain", "stop", "wait", "demo", "config")
ROUTER_VERBS = ("status", "scale", "drain")
"""What `python -m router` offers: the same code, for those who look for it there."""


def main(argv: Sequence[str] | None = None, *, prog: str = "farm", verbs: Sequence[str] = VERBS) -> int:
    """Run one command; gives its exit code. Errors are one line on standard error, never a traceback."""
    parser = parser_of(prog, verbs)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its message, or the help
        return exits.USAGE if stop.code else exits.OK
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # `farm status | head`: the reader has what it wanted. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exits.OK
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except ConfigError as error:
        return complain(error, exits.HELD if error.reason == "runtime_dir_held" else exits.USAGE)
    except Unavailable as error:
        return complain(error, exits.NO_FARM)
    except FarmError as error:
        return complain(error, exits.REFUSED)
    except ImportError as error:
        # A part of the product that is not installed, or a stranger that shadows it; both say what to do.
        return complain(error, exits.USAGE)


def parser_of(prog: str = "farm", verbs: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The whole command line, for `main` and for the tests of its help."""
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in exits.MEANINGS.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description="A farm of ONNX Runtime workers on this host: shared-memory tensors, deadlines that hold.",
        epilog=f"exit codes:\n{codes}\n\nexample:\n  {prog} {verbs[0]} --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if prog == "farm":
        parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    into = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    for verb in verbs:
        import_module(f"farm.cli.commands.{verb}").add(into)
    return parser


def complain(error: object, code: int) -> int:
    """One line on standard error."""
    print("farm:", " ".join(str(error).split()), file=sys.stderr)
    return code


class _Version(argparse.Action):
    """Looked up only when it is asked for: the installed packages' metadata take 15 ms to read."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"shmfarm {version('shmfarm')}")
        except PackageNotFoundError:
            print("shmfarm, from a checkout")
        parser.exit()
