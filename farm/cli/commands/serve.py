"""`farm serve`: the farm itself, in the foreground."""

from __future__ import annotations

import argparse
import os
from typing import Any

from farm.cli.verb import Verbs, describe
from farm.errors import ConfigError


def add(verbs: Verbs) -> None:
    parser = describe(
        verbs,
        "serve",
        "run a farm in the foreground",
        "farm serve\nfarm serve my.onnx --workers 4\nfarm serve --config farm.toml --runtime-dir /run/farm",
        run,
        "Prints one ready line on standard error once a request would be answered. SIGTERM, Ctrl-C or `farm stop` "
        "drain and end it; a second one ends it at once. With no arguments it serves the embedded model.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL.onnx", help="one model; its name is the file's stem")
    parser.add_argument("--config", metavar="FILE", help="a TOML file; configs/farm.toml has every option")
    parser.add_argument("--runtime-dir", metavar="DIR", help="where clients and commands find this farm")
    parser.add_argument("--workers", type=int, metavar="N", help="workers of each model (default: 2)")


def run(arguments: argparse.Namespace) -> int:
    from farm import config as configuration
    from farm.supervisor import entry

    options: dict[str, Any] = {}
    if arguments.runtime_dir == "":
        raise ConfigError("--runtime-dir is empty: name a directory, or leave it out for the usual place")
    if arguments.runtime_dir is not None:
        options["runtime_dir"] = os.path.abspath(arguments.runtime_dir)
    if arguments.workers is not None:
        options["workers"] = arguments.workers
    if arguments.model is not None and arguments.config is not None:
        raise ConfigError("farm serve takes a model or --config, not both: put the model into the file")
    if arguments.model is not None:
        name = os.path.splitext(os.path.basename(arguments.model))[0]
        return entry.serve(configuration.for_models({name: arguments.model}, "farm serve", options))
    return entry.serve(configuration.load(arguments.config or configuration.EMBEDDED_PATH, options))
