"""A bare ZeroMQ service: `zmq.proxy` between a ROUTER and a DEALER, workers behind it that answer bytes with bytes.

No deadlines, no checks, no batches, no shared memory; what one has after an hour with pyzmq, and fast. Its load comes
from a Python process with as many DEALERs as there are requests in flight: a client in C would be some microseconds a
request cheaper; `python -m bench.peers.zeromq` is that process.
"""

from __future__ import annotations

import json
import sys
import time
from time import monotonic_ns
from typing import Any

import numpy as np
import zmq

from bench.peers import load
from bench.peers.processes import Children
from bench.target import Case, Load, Measured, Model, TargetFailed, Watcher

SERVER = "servers/zeromq_server.py"
READY_S = 30.0
END_S = 30.0


class ZeromqPeer:
    """A proxy and workers on ipc sockets."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._children: Children | None = None
        self._model: Model | None = None

    def refuses(self, case: Case, load: Load) -> str | None:
        if len(case.models) > 1:
            return "serves one model only"
        if case.models[0].dtype != "float32" or len(case.models[0].row) != 1:
            return "its workers here take rows of float32 only"
        if load.open_loop:
            return "its load client is Python's: it would show itself, not the server"
        return None

    def prepare(self) -> None:
        pass

    def start(self, case: Case) -> None:
        self._model = model = case.models[0]
        self._children = Children(self.name)
        front, back = f"ipc://{self._children.path('front')}", f"ipc://{self._children.path('back')}"
        told = json.dumps({"path": model.path, "input": model.input, "columns": model.row[0]})
        self._children.spawn(SERVER, "proxy", front, back)
        for _ in range(case.workers):
            self._children.spawn(SERVER, "work", back, told)
        try:
            self._children.wait_words(b"ready", READY_S)
            self.infer(model.one())
        except TargetFailed:
            self.stop()
            raise

    def infer(self, row: Any) -> Any:
        """One request, by a socket of its own."""
        assert self._children is not None
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(f"ipc://{self._children.path('front')}")
            socket.send(row.tobytes())
            if not socket.poll(int(READY_S * 1000)):
                raise TargetFailed("the ZeroMQ peer did not answer")
            return np.frombuffer(socket.recv(), np.float32)

    def drive(self, load_: Load, watcher: Watcher) -> Measured:
        assert self._children is not None and self._model is not None
        generator = Children(f"{self.name}-load")
        try:
            np.save(generator.path("row.npy"), self._model.one())
            told = {
                "front": f"ipc://{self._children.path('front')}",
                "row": str(generator.path("row.npy")),
                "tape": str(generator.path("tape")),
                "in_flight": load_.in_flight,
                "grace_ns": int((load_.deadline_ms / 1e3 + load.GRACE_S) * 1e9),
            }
            process = generator.spawn("bench.peers.zeromq", json.dumps(told))
            generator.wait_words(b"ready", READY_S)
            begin_ns = monotonic_ns() + int((load.LEAD_S + load_.warm_s) * 1e9)
            end_ns = begin_ns + int(load_.seconds * 1e9)
            generator.tell(process, str(end_ns))
            watcher.begin(begin_ns)
            time.sleep(max(0.0, (end_ns - monotonic_ns()) / 1e9))
            watcher.end()
            generator.wait_words(b"done", END_S + load_.deadline_ms / 1e3)
            tape = np.fromfile(generator.path("tape"), np.int64).reshape(-1, 5)
            cpu_s = float(generator.path("tape.cpu").read_text())
        finally:
            generator.end()
        return load.measured(self.name, load_, begin_ns, tape, cpu_s)

    def pids(self) -> dict[int, str]:
        return self._children.pids("server") if self._children is not None else {}

    def stop(self) -> None:
        children, self._children = self._children, None
        if children is not None:
            children.end()


def generate(told: dict[str, Any]) -> None:
    """One process, a socket for each request in flight."""
    payload = np.load(told["row"]).tobytes()
    context: Any = zmq.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(told["in_flight"])]
    for socket in sockets:
        socket.linger = 0
        socket.connect(told["front"])
        socket.send(payload)
        socket.recv()
    print("ready", flush=True)
    end_ns = int(sys.stdin.readline())
    began_s = time.process_time()
    records = _closed(sockets, payload, end_ns, told["grace_ns"])
    cpu_s = time.process_time() - began_s
    np.array(records, np.int64).reshape(-1, 5).tofile(told["tape"])
    with open(told["tape"] + ".cpu", "w") as file:
        file.write(str(cpu_s))
    print("done", flush=True)
    context.destroy(linger=0)


def _closed(sockets: list[Any], payload: bytes, end_ns: int, grace_ns: int) -> list[tuple[int, int, int, int, int]]:
    records = []
    poller = zmq.Poller()
    sent = {}
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
        sent[socket] = monotonic_ns()
        socket.send(payload)
    while sent and monotonic_ns() < end_ns + grace_ns:
        for socket, _ in poller.poll(100):
            socket.recv()
            now = monotonic_ns()
            at = sent.pop(socket)
            records.append((at, at, at, now, load.ANSWERED))
            if now < end_ns:
                sent[socket] = now
                socket.send(payload)
    return records + [(at, at, at, 0, 0) for at in sent.values()]


if __name__ == "__main__":
    generate(json.loads(sys.argv[1]))
