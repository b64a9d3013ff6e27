"""PyTriton: Triton's HTTP with binary tensors in front, Python processes with ONNX Runtime behind, its batching on."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch  # type: ignore[import-not-found]
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor  # type: ignore[import-not-found]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]

PEER = json.loads(os.environ["PEER"])


class Inference:
    """The session is made in the process that uses it, at its first call."""

    def __init__(self) -> None:
        self.session: Any = None

    def run(self, rows: Any) -> list[Any]:
        if self.session is None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            self.session = ort.InferenceSession(PEER["path"], options, providers=["CPUExecutionProvider"])
        return list(self.session.run(None, {PEER["input"]: rows}))


def one() -> Any:
    inference = Inference()

    @batch  # type: ignore[untyped-decorator]
    def infer(**tensors: Any) -> list[Any]:
        return inference.run(tensors[PEER["input"]])

    return infer


if __name__ == "__main__":
    config = TritonConfig(http_address="127.0.0.1", http_port=PEER["port"], allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="peer",
            infer_func=[one() for _ in range(PEER["workers"])],
            inputs=[Tensor(dtype=np.float32, shape=(PEER["columns"],), name=PEER["input"])],
            outputs=[Tensor(dtype=np.float32, shape=(-1,), name="y")],
            config=ModelConfig(
                max_batch_size=PEER["max_batch"], batcher=DynamicBatcher(max_queue_delay_microseconds=0)
            ),
            strict=False,
        )
        triton.serve()
