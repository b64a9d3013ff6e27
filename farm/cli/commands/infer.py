"""`farm infer`: one request from files, as a service would send it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from farm.cli.verb import Verbs, add_json, add_runtime_dir, describe, positive_ms, print_json
from farm.errors import InvalidRequest

if TYPE_CHECKING:
    from farm.client.reply import Reply


def add(verbs: Verbs) -> None:
    parser = describe(
        verbs,
        "infer",
        "send one request whose inputs lie in .npy files",
        "farm infer wdbc --input features=record.npy\nfarm infer fraud --input x=x.npy --input n=n.npy --json",
        run,
    )
    parser.add_argument("model", metavar="MODEL", help="a model's name, as `farm status` lists them")
    parser.add_argument(
        "--input", action="append", default=[], metavar="NAME=FILE.npy", type=_named_file, help="once for each input"
    )
    parser.add_argument("--deadline-ms", type=positive_ms, metavar="MS", help="default: what the model's is")
    add_json(parser, "outputs and account")
    add_runtime_dir(parser)


def run(arguments: argparse.Namespace) -> int:
    import numpy as np

    import farm
    from farm import control

    # A farm that is starting, or whose router is being replaced, is found all the same; the client then waits.
    runtime_dir = control.find(arguments.runtime_dir)
    inputs = {}
    for name, path in arguments.input:
        try:
            inputs[name] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InvalidRequest(f"--input {name}={path}: no .npy file that can be read: {error}") from error
        if not isinstance(inputs[name], np.ndarray):
            raise InvalidRequest(f"--input {name}={path}: an archive of several arrays; save one with numpy.save")
    with farm.Client(runtime_dir) as client:
        reply = client.infer(arguments.model, inputs, deadline_ms=arguments.deadline_ms)
    if arguments.json:
        print_json(_as_json(reply))
    else:
        _show(reply)
    return 0


def _show(reply: Reply) -> None:
    for name, array in reply.outputs.items():
        print(f"{name}: {array.dtype}{list(array.shape)}")
        print("  " + str(array).replace("\n", "\n  "))
    who = reply.source if reply.rule is None else f"{reply.source}, rule {reply.rule}"
    print(f"by {who}, reason {reply.reason}", end="")
    print("" if reply.decision is None else f", decision {reply.decision}")
    stages = ", ".join(f"{name} {duration_ns / 1e6:.3f}" for name, duration_ns in reply.stages.items())
    print(f"{reply.model} v{reply.model_version}, request {reply.request_id}; ms: {stages}")


def _as_json(reply: Reply) -> dict[str, Any]:
    return {
        "outputs": {
            name: {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.tolist()}
            for name, array in reply.outputs.items()
        },
        "source": reply.source,
        "reason": reply.reason,
        "rule": reply.rule,
        "decision": reply.decision,
        "model": reply.model,
        "model_version": reply.model_version,
        "request_id": reply.request_id,
        "stages_ns": reply.stages,
    }


def _named_file(text: str) -> tuple[str, str]:
    # Names of inputs may hold `=`, files' names seldom do; but what comes first is what people expect.
    name, sign, path = text.partition("=")
    if not sign or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: it must be NAME=FILE.npy")
    return name, path
