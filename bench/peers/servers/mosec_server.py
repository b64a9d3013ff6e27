"""mosec with raw bytes in and out; with `batch` its dynamic batching at its least waiting time, 1 ms."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import onnxruntime as ort
from mosec import Server, Worker  # type: ignore[import-not-found]

PEER = json.loads(os.environ["PEER"])


class Inference(Worker):  # type: ignore[misc]
    """One process; with batching `forward` gets a list."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(PEER["path"], options, providers=["CPUExecutionProvider"])

    def deserialize(self, data: bytes) -> Any:
        return np.frombuffer(data, np.float32).reshape(-1, PEER["columns"])

    def serialize(self, data: Any) -> bytes:
        return bytes(data.tobytes())

    def forward(self, data: Any) -> Any:
        if not PEER["batch"]:
            return self.session.run(None, {PEER["input"]: data})[0]
        rows = data[0] if len(data) == 1 else np.concatenate(data)
        return list(self.session.run(None, {PEER["input"]: rows})[0])


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", str(PEER["port"]), "--path", PEER["directory"] + "/mosec"]
    sys.argv += ["--log-level", "error", "--timeout", "60000", "--max-request-size", str(64 * 2**20)]
    server = Server()
    if PEER["batch"]:
        server.append_worker(Inference, num=PEER["workers"], max_batch_size=PEER["max_batch"], max_wait_time=1)
    else:
        server.append_worker(Inference, num=PEER["workers"])
    server.run()
