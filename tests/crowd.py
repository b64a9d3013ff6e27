"""Services in processes of their own that keep asking a farm: what they ask, and what they tell of it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ASKING = Path(__file__).with_name("asking.py")
ROWS = 48


def in_process(path: str | os.PathLike[str]) -> onnxruntime.InferenceSession:
    """A session as a worker makes it, in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def write_script(
    folder: Path,
    model: Path,
    deadlines_ms: list[float],
    *,
    fallback: bool = False,
    rows: np.ndarray[Any, Any] | None = None,
    **options: Any,
) -> Path:
    """What the services ask: single rows of a model with x float32[N, size] and y (or these `rows`), and the answers to
    expect. In a folder of its own for each model.

    `options`: `pause_s` between calls, and `client`, which each service gives its client.
    """
    session = in_process(model)
    if rows is None:
        size = session.get_inputs()[0].shape[1]
        rows = np.random.default_rng(11).standard_normal((ROWS, 1, size)).astype(np.float32)
    answers = np.stack([session.run(["y"], {"x": row})[0] for row in rows])
    np.savez(folder / "rows.npz", rows=rows, answers=answers)
    script = folder / "script.json"
    told = {
        "arrays": str(folder / "rows.npz"),
        "model": model.stem,
        "deadlines_ms": deadlines_ms,
        "fallback": fallback,
        **options,
    }
    script.write_text(json.dumps(told))
    return script


class Service:
    """One such process. Killed at the block's end when it has not been finished."""

    def __init__(self, endpoint: str, lane: str, way: str, script: Path) -> None:
        self.way = way
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(ASKING), endpoint, lane, way, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self._buffer = b""

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(30)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def say(self, word: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word.encode() + b"\n")
        self.process.stdin.flush()

    def line(self, limit_s: float = 20.0) -> dict[str, Any]:
        """The next line that it writes."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        end = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            assert left > 0, f"{self.way} said nothing within {limit_s} s"
            if select.select([fd], [], [], left)[0]:
                got = os.read(fd, 65536)
                assert got, f"{self.way} ended with {self.process.wait(10)}"
                self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told

    def told(self, since_ns: int | None = None) -> dict[str, Any]:
        """What has happened so far; with a moment also what has since then."""
        self.say("" if since_ns is None else f"{since_ns}")
        return self.line()

    def finish(self) -> dict[str, Any]:
        """Let it end what is open and close its client; what has happened in all."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        told = self.line()
        assert self.process.wait(20) == 0
        return told


def answers(told: dict[str, Any]) -> int:
    """How many calls the model has answered."""
    return sum(count for end, count in told["ends"].items() if end.endswith(" model/ok"))
