"""The processes of the bare ZeroMQ peer: `zeromq_server.py proxy FRONT BACK`, or `work BACK JSON`.

Each says `ready` once it serves.
"""

import json
import sys
from typing import Any

import zmq


def proxy(front: str, back: str) -> None:
    context: Any = zmq.Context()
    clients, workers = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    clients.bind(front)
    workers.bind(back)
    print("ready", flush=True)
    zmq.proxy(clients, workers)


def work(back: str, told: dict[str, Any]) -> None:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(told["path"], options, providers=["CPUExecutionProvider"])
    name, columns = told["input"], told["columns"]
    session.run(None, {name: np.zeros((1, columns), np.float32)})
    socket: Any = zmq.Context().socket(zmq.DEALER)
    socket.connect(back)
    print("ready", flush=True)
    while True:
        client, payload = socket.recv_multipart()
        rows = np.frombuffer(payload, np.float32).reshape(-1, columns)
        socket.send_multipart([client, session.run(None, {name: rows})[0].tobytes()])


if __name__ == "__main__":
    if sys.argv[1] == "proxy":
        proxy(sys.argv[2], sys.argv[3])
    else:
        work(sys.argv[2], json.loads(sys.argv[3]))
