"""LitServe with JSON, the body that it reads by itself; its faster queue (ZeroMQ) is on."""

import json
import os
from typing import Any

import litserve as ls  # type: ignore[import-not-found]
import numpy as np
import onnxruntime as ort

PEER = json.loads(os.environ["PEER"])


class Inference(ls.LitAPI):  # type: ignore[misc]
    """One process of two; with batching `predict` gets stacked rows."""

    def setup(self, device: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(PEER["path"], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, Any]) -> Any:
        return np.array(request["rows"], np.float32)

    def predict(self, rows: Any) -> Any:
        return self.session.run(None, {PEER["input"]: rows})[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"outputs": output.tolist()}


if __name__ == "__main__":
    server = ls.LitServer(
        Inference(), accelerator="cpu", devices=1, workers_per_device=PEER["workers"], timeout=False, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=PEER["port"],
        num_api_servers=PEER["workers"],
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
