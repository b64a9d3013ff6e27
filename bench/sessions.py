"""ONNX Runtime with no server at all: threads or processes that call `session.run` themselves.

Four ways to share sessions among callers, as services do it: one session for all threads, one for each, one behind a
lock, one in each process. `case.workers` says how many callers there are. Beside the farm they tell what a host's cores
can do and what the GIL takes from it.

As a program, `python -m bench.sessions JOB`, it is one such process: a generator that calls no server.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import Any

import msgspec

from bench import recorder
from bench.crew import Crew, environment
from bench.generator import Job, inputs_of, wait_for_begin
from bench.tape import MODEL, Tape
from bench.target import Case, Load, Measured, Model, TargetFailed, Watcher

MODES = ("session-shared", "session-per-thread", "session-locked", "session-per-process")

START_S = 60.0

Lock = contextlib.AbstractContextManager[Any]


class SessionTarget:
    """name: one of MODES. The callers are the server too: their CPU is the server's."""

    def __init__(self, directory: str, name: str) -> None:
        self.name = name
        self._directory = directory
        self._case: Case | None = None
        self._pids: list[int] = []

    def refuses(self, case: Case, load: Load) -> str | None:
        if load.open_loop:
            return "callers that run the session themselves have no open loop"
        return "calls one model only" if len(case.models) > 1 else None

    def prepare(self) -> None:
        pass

    def start(self, case: Case) -> None:
        """In a process that ends again: what a service of its own would wait for."""
        with tempfile.NamedTemporaryFile(prefix="model-", suffix=".json", dir=self._directory) as file:
            file.write(msgspec.json.encode(case.models[0]))
            file.flush()
            command = [sys.executable, "-P", "-m", "bench.sessions", "first", file.name]
            try:
                done = subprocess.run(command, env=environment(), timeout=START_S, check=False)
            except subprocess.TimeoutExpired:
                raise TargetFailed(f"ONNX Runtime gave no answer within {START_S:g} s") from None
        if done.returncode:
            raise TargetFailed("ONNX Runtime gave no answer; its last words are on standard error")
        self._case = case

    def drive(self, load: Load, watcher: Watcher) -> Measured:
        assert self._case is not None
        parts = self._case.workers if self.name == "session-per-process" else 1
        load = msgspec.structs.replace(load, in_flight=self._case.workers)
        with tempfile.TemporaryDirectory(prefix="run-", dir=self._directory) as directory:
            jobs = [
                Job(
                    endpoint=self.name,
                    models=self._case.models,
                    load=load,
                    part=part,
                    parts=parts,
                    tape=str(Path(directory) / f"tape-{part}"),
                    slot_count=1,
                    slot_bytes=64,
                )
                for part in range(parts)
            ]
            with Crew(jobs, directory, module="bench.sessions") as crew:
                self._pids = crew.pids
                tapes, begin_ns, _ = crew.run(watcher)
            self._pids = []
        return recorder.measured(
            target=self.name,
            load=load,
            begin_ns=begin_ns,
            due=tapes.due,
            sent=tapes.sent,
            done=tapes.done,
            code=tapes.code,
            names=tapes.names,
            stream=tapes.stream,
        )

    def pids(self) -> dict[int, str]:
        return dict.fromkeys(self._pids, "callers")

    def stop(self) -> None:
        self._case = None


def make_session(path: str) -> Any:
    """As a worker of the farm has it: one thread, which does not spin."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    if sys.argv[1] == "first":
        model = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=Model)
        make_session(model.path).run(None, {model.input: model.one()})
        return
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    callers = 1 if job.parts > 1 else job.load.in_flight
    path = job.models[0].path
    one = make_session(path)
    lock: Lock = threading.Lock() if job.endpoint == "session-locked" else contextlib.nullcontext()
    own = job.endpoint == "session-per-thread"
    inputs = inputs_of(job)[0]
    feeds = [{job.models[0].input: each} for each in inputs]
    tapes: list[list[tuple[int, int]]] = [[] for _ in range(callers)]
    start = threading.Event()
    end_ns = 0

    def call(run: Callable[..., Any], kept: list[tuple[int, int]]) -> None:
        run(None, feeds[0])
        start.wait()
        number = 0
        done_ns = monotonic_ns()
        while done_ns < end_ns:
            sent_ns = monotonic_ns()
            with lock:
                run(None, feeds[number % len(feeds)])
            done_ns = monotonic_ns()
            kept.append((sent_ns, done_ns))
            number += 1

    threads = [
        threading.Thread(target=call, args=((make_session(path) if own else one).run, kept), daemon=True)
        for kept in tapes
    ]
    for thread in threads:
        thread.start()
    end_ns = wait_for_begin() + int(job.load.seconds * 1e9)
    began_s = time.process_time()
    start.set()
    for thread in threads:
        thread.join()
    tape = Tape()
    for sent_ns, done_ns in (moment for kept in tapes for moment in kept):
        tape.add(sent_ns, sent_ns, done_ns, MODEL, 0)
    tape.save(job.tape, cpu_s=time.process_time() - began_s, gc_pauses_ms=[])


if __name__ == "__main__":
    main()
