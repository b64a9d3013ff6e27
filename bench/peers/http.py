"""Servers with HTTP in front as targets: an environment, a script in it, a request that it understands."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from msgspec import Struct

from bench.peers import environments, load
from bench.target import Array, Case, Load, Measured, Model, TargetFailed, Watcher

SERVERS = Path(__file__).resolve().parent / "servers"
START_S = 60.0
STOP_S = 10.0
RETRY_S = 0.005
"""Between two attempts at a first answer."""


class Kind(Struct, frozen=True):
    """One way of being asked. wire: path, headers and body of a request for one row; answer: the row's outputs from an
    answer's body and headers. batch: whether it puts requests together."""

    environment: str
    script: str
    wire: Callable[[Model, Array], tuple[str, dict[str, str], bytes]]
    answer: Callable[[bytes, Any], Array]
    batch: bool = False


class HttpPeer:
    """A server of one model of float32 rows."""

    def __init__(self, directory: str, name: str, kind: Kind) -> None:
        self.name = name
        self._kind = kind
        self._directory = directory
        self._client: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._children: list[psutil.Process] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._port = 0
        self._model: Model | None = None

    def refuses(self, case: Case, load: Load) -> str | None:
        if len(case.models) > 1:
            return "serves one model only"
        if case.models[0].dtype != "float32" or len(case.models[0].row) != 1:
            return "its server here takes rows of float32 only"
        if not case.models[0].batched and self._kind.batch:
            return "would put requests together that may not share a run"
        if load.caller not in ("submit", "infer", "clients", "asyncio-clients", "threads-own") or load.trace:
            return f"is not asked the way of {load.caller!r}"
        return None

    def prepare(self) -> None:
        environments.make(self._kind.environment)
        self._client = load.build(self._directory)

    def start(self, case: Case) -> None:
        python = environments.python_of(self._kind.environment)
        if not python.exists():
            raise TargetFailed(f"{self.name} has no environment yet: prepare() makes it")
        self._model = model = case.models[0]
        self._scratch = tempfile.TemporaryDirectory(prefix=f"{self.name}-")
        self._port = free_port()
        peer = {
            "path": model.path,
            "input": model.input,
            "columns": model.row[0],
            "workers": case.workers,
            "max_batch": case.max_batch,
            "batch": self._kind.batch,
            "port": self._port,
            "directory": self._scratch.name,
        }
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"PEER": msgspec.json.encode(peer).decode(), "ORT_DISABLE_TELEMETRY": "1"}
        if self._kind.environment == "pytriton":
            # Its stub must find the libpython whose standard library it loads, not another patch level.
            environment["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
        with open(Path(self._scratch.name) / "log", "wb") as log:
            self._process = subprocess.Popen(
                [str(python), str(SERVERS / self._kind.script)],
                env=environment,
                cwd=self._scratch.name,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        try:
            self._wait_first_answer(model.one())
        except TargetFailed:
            self.stop()
            raise
        self._children = psutil.Process(self._process.pid).children(recursive=True)

    def _wait_first_answer(self, row: Array) -> None:
        assert self._process is not None and self._scratch is not None
        end = time.monotonic() + START_S
        said = "nothing answered"
        while time.monotonic() < end:
            if self._process.poll() is not None:
                said = f"its process ended with {self._process.returncode}"
                break
            try:
                self.infer(row)
                return
            except TargetFailed as error:
                said = str(error)
            except (OSError, http.client.HTTPException) as error:
                said = repr(error)
            time.sleep(RETRY_S)
        log = (Path(self._scratch.name) / "log").read_text(errors="replace").strip()[-600:]
        raise TargetFailed(f"{self.name} did not come up: {said}; its log ends: {log}")

    def infer(self, row: Array) -> Array:
        """One request by Python's own client: the outputs."""
        assert self._model is not None
        path, headers, body = self._kind.wire(self._model, row)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_S)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            said = response.read()
            if response.status != load.ANSWERED:
                raise TargetFailed(f"{self.name} answered {response.status}: {said[:200]!r}")
            return self._kind.answer(said, response.headers)
        finally:
            connection.close()

    def drive(self, load_: Load, watcher: Watcher) -> Measured:
        assert self._model is not None
        if self._client is None:
            self._client = load.build(self._directory)
        request = load.http_request(*self._kind.wire(self._model, self._model.one()))
        return load.drive(self.name, str(self._port), request, load_, watcher, self._client)

    def pids(self) -> dict[int, str]:
        """All are the server: which of them does what differs from peer to peer."""
        if self._process is None:
            return {}
        try:
            root = psutil.Process(self._process.pid)
            return {each.pid: "server" for each in [root, *root.children(recursive=True)]}
        except psutil.NoSuchProcess:
            return {}

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            children = list(self._children)
            try:
                children += psutil.Process(process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                pass
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _end(children)
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def _end(children: list[psutil.Process]) -> None:
    """Those that outlived their parent. psutil knows a process by its start too, so a pid used again is not hit."""
    _, alive = psutil.wait_procs(children, timeout=2)
    for child in alive:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass
    psutil.wait_procs(alive, timeout=STOP_S)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _raw(path: str) -> Callable[[Model, Array], tuple[str, dict[str, str], bytes]]:
    return lambda model, row: (path, {"Content-Type": "application/octet-stream"}, row.tobytes())


def _json(path: str) -> Callable[[Model, Array], tuple[str, dict[str, str], bytes]]:
    return lambda model, row: (path, {"Content-Type": "application/json"}, load.json_body({"rows": row.tolist()}))


def _triton(model: Model, row: Array) -> tuple[str, dict[str, str], bytes]:
    """The KServe protocol with its extension for binary tensors, both ways."""
    size = {"binary_data_size": row.nbytes}
    head = load.json_body(
        {
            "inputs": [{"name": model.input, "shape": row.shape, "datatype": "FP32", "parameters": size}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    )
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return "/v2/models/peer/infer", headers, head + row.tobytes()


def _bytes_answer(body: bytes, headers: Any) -> Array:
    return np.frombuffer(body, np.float32)


def _json_answer(body: bytes, headers: Any) -> Array:
    return np.array(msgspec.json.decode(body)["outputs"], np.float32).reshape(-1)


def _triton_answer(body: bytes, headers: Any) -> Array:
    return np.frombuffer(body[int(headers["Inference-Header-Content-Length"]) :], np.float32)


KINDS = {
    "fastapi-raw": Kind("fastapi", "fastapi_server.py", _raw("/raw"), _bytes_answer),
    "fastapi-json": Kind("fastapi", "fastapi_server.py", _json("/json"), _json_answer),
    "fastapi-batch": Kind("fastapi", "fastapi_server.py", _raw("/batch"), _bytes_answer, batch=True),
    "fastapi-batch-json": Kind("fastapi", "fastapi_server.py", _json("/batch-json"), _json_answer, batch=True),
    "mosec": Kind("mosec", "mosec_server.py", _raw("/inference"), _bytes_answer),
    "mosec-batch": Kind("mosec", "mosec_server.py", _raw("/inference"), _bytes_answer, batch=True),
    "litserve": Kind("litserve", "litserve_server.py", _json("/predict"), _json_answer),
    "pytriton": Kind("pytriton", "pytriton_server.py", _triton, _triton_answer, batch=True),
}
