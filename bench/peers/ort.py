"""ONNX Runtime in processes of its own with nothing around it: the physical limit that any server of the model has.

Each process runs the session over and over on a batch that lies ready: `servers/ort_server.py`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from time import monotonic_ns, sleep

import numpy as np

from bench.peers import load
from bench.peers.processes import Children
from bench.target import Case, Load, Measured, TargetFailed, Watcher

READY_S = 30.0
END_S = 10.0


class OrtPeer:
    """processes: how many; None: as many as the case has workers. batch: rows of a run, each counted as an answer."""

    def __init__(self, name: str, processes: int | None, batch: int = 1) -> None:
        self.name = name
        self._processes = processes
        self._batch = batch
        self._children: Children | None = None

    def refuses(self, case: Case, load: Load) -> str | None:
        if len(case.models) > 1:
            return "runs one model only"
        if load.open_loop:
            return "is a limit of throughput and of one run's time; it has no queue for an open loop"
        if self._batch > 1 and not case.models[0].batched:
            return "would put rows together that may not share a run"
        return None

    def prepare(self) -> None:
        pass

    def start(self, case: Case) -> None:
        count = self._processes or case.workers
        model = case.models[0]
        told = json.dumps({"path": model.path, "input": model.input, "batch": self._batch})
        rows = model.one()
        self._children = Children(self.name)
        np.save(self._children.path("row.npy"), rows)
        for _ in range(count):
            self._children.spawn("servers/ort_server.py", told, str(self._children.path("row.npy")))
        try:
            self._children.wait_words(b"ready", READY_S)
        except TargetFailed:
            self.stop()
            raise

    def drive(self, load_: Load, watcher: Watcher) -> Measured:
        assert self._children is not None
        begin_ns = monotonic_ns() + int((load.LEAD_S + load_.warm_s) * 1e9)
        end_ns = begin_ns + int(load_.seconds * 1e9)
        with tempfile.TemporaryDirectory(prefix="ort-") as directory:
            paths = [Path(directory) / str(n) for n in range(len(self._children.processes))]
            for process, path in zip(self._children.processes, paths, strict=True):
                self._children.tell(process, f"{end_ns} {path}")
            watcher.begin(begin_ns)
            sleep(max(0.0, (end_ns - monotonic_ns()) / 1e9))
            watcher.end()
            self._children.wait_words(b"done", END_S)
            runs = np.concatenate([np.fromfile(path, np.int64).reshape(-1, 2) for path in paths])
        runs = np.repeat(runs, self._batch, axis=0)
        sent, done = runs.T
        tape = np.stack([sent, sent, sent, done, np.full(len(runs), load.ANSWERED)], axis=1)
        return load.measured(self.name, load_, begin_ns, tape, None)

    def pids(self) -> dict[int, str]:
        return self._children.pids("session") if self._children is not None else {}

    def stop(self) -> None:
        children, self._children = self._children, None
        if children is not None:
            children.end()
