"""What the farm is measured against: a bare ZeroMQ round trip over the same two hops, with the same model behind it.

Client DEALER → Python router (ROUTER and ROUTER) → worker DEALER, multipart frames with the tensor's bytes in them; no
checks, no deadlines, no batching, no shared memory. This is what one writes in an afternoon, and it is fast.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import zmq


def route(front: str, back: str, workers: int) -> None:
    """Hand each request to the worker that has waited longest."""
    context = zmq.Context()
    clients, crew = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    clients.bind(front)
    crew.bind(back)
    idle: list[bytes] = []
    poller = zmq.Poller()
    poller.register(crew, zmq.POLLIN)
    listening = False
    while True:
        if bool(idle) != listening:
            listening = bool(idle)
            if listening:
                poller.register(clients, zmq.POLLIN)
            else:
                poller.unregister(clients)
        ready = dict(poller.poll())
        if crew in ready:
            worker, *rest = crew.recv_multipart()
            idle.append(worker)
            if len(rest) == 2:
                clients.send_multipart(rest)
        if clients in ready and idle:
            client, payload = clients.recv_multipart()
            crew.send_multipart([idle.pop(0), client, payload])


def work(back: str, model: str, columns: int) -> None:
    """Answer each request with the first output's bytes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    socket: Any = zmq.Context().socket(zmq.DEALER)
    socket.connect(back)
    socket.send_multipart([b"ready"])
    while True:
        client, payload = socket.recv_multipart()
        rows = np.frombuffer(payload, np.float32).reshape(-1, columns)
        socket.send_multipart([client, session.run(None, {name: rows})[0].tobytes()])


class Bare:
    """Router and workers as processes; `endpoint` is where a DEALER connects. Ends them on exit."""

    def __init__(self, model: str, columns: int, workers: int) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bare-")
        self.endpoint = f"ipc://{self._directory.name}/front"
        back = f"ipc://{self._directory.name}/back"
        module = [sys.executable, "-m", "bench.bare"]
        self._processes = [subprocess.Popen([*module, "route", self.endpoint, back, str(workers)])]
        self._processes += [subprocess.Popen([*module, "work", back, model, str(columns)]) for _ in range(workers)]

    def __enter__(self) -> Bare:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._directory.cleanup()


if __name__ == "__main__":
    if sys.argv[1] == "route":
        route(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
