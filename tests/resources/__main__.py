"""`python -m tests.resources`: ten thousand attaches and detaches, and a storm of signals, on a farm of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import farm
from tests import models
from tests.crowd import in_process
from tests.killing import QUICK
from tests.resources.attaching import attach_and_detach
from tests.resources.interrupting import interrupt

EXAMPLE = "example: python -m tests.resources --count 10000 --storm-s 60 --seed 1 --json resources.json"
PROGRESS_S = 10.0


def storm(running: farm.Farm, model: Path, seconds: float) -> dict[str, Any]:
    """Ask while every process of the farm is interrupted; each answer compared with ONNX Runtime in this process."""
    x = np.random.default_rng(5).standard_normal((1, 64)).astype(np.float32)
    expected = in_process(model).run(None, {"x": x})[0]
    rows = running.status()["processes"]
    stop = threading.Event()
    sent: list[int] = []
    thread = threading.Thread(target=lambda: sent.append(interrupt(rows, stop)))
    asked = wrong = 0
    refused: dict[str, int] = {}
    started = told = time.monotonic()
    with running.client() as client:
        client.wait_ready(timeout=20)
        thread.start()
        try:
            while time.monotonic() < started + seconds:
                asked += 1
                try:
                    reply = client.infer("m", {"x": x}, deadline_ms=5000)
                except farm.FarmError as error:
                    refused[str(error.reason)] = refused.get(str(error.reason), 0) + 1
                else:
                    wrong += not np.array_equal(next(iter(reply.outputs.values())), expected)
                if time.monotonic() > told + PROGRESS_S:
                    told = time.monotonic()
                    print(f"storm: {asked} asked, {started + seconds - told:.0f} s left", file=sys.stderr)
        except KeyboardInterrupt:
            pass
        finally:
            stop.set()
            thread.join()
    living = {row["pid"] for row in running.status()["processes"]}
    died = len({row["pid"] for row in rows} - living)
    took_s = round(time.monotonic() - started, 1)
    return {"signals": sent[0], "asked": asked, "wrong": wrong, "refused": refused, "died": died, "seconds": took_s}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.resources",
        description="Attach and detach clients, then interrupt every process of a farm while it is asked. Ctrl-C ends "
        "the part that goes on and keeps what it has found. Exit code 1: something is above its level, or wrong.",
        epilog=EXAMPLE,
    )
    parser.add_argument("--count", type=int, default=10_000, help="clients that attach and detach (10000)")
    parser.add_argument("--storm-s", type=float, default=60.0, help="seconds of signals (60)")
    parser.add_argument("--seed", type=int, default=1, help="which clients come, and what they do (1)")
    parser.add_argument("--json", type=Path, help="write the summary to this file too")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = models.mlp(folder / "m.onnx")
        running = stack.enter_context(farm.Farm({"m": model}, workers=2, **QUICK))
        attached = attach_and_detach(running, options.count, options.seed)
        storms = storm(running, model, options.storm_s)
    summary = {"attaches": attached._asdict(), "storm": storms}
    text = json.dumps(summary, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return int(bool(attached.above or attached.refused or storms["wrong"] or storms["refused"] or storms["died"]))


if __name__ == "__main__":
    sys.exit(main())
