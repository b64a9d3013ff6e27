"""Drives a server with `load.c`, a client that costs little: builds it, runs it, reads its tape.

One C client serves closed and open loops, over HTTP (`http.c`) and over the farm's direct lane (`farm.c`), and keeps
the same moments as the farm's generators, so that all figures come from the same arithmetic. wrk was tried: it sends
as many, but from 4.0 on it alters the latencies of a closed loop that lie above its mean interval, which would make
the peers' tails look worse than they are.
"""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from bench import recorder, schedule
from bench.target import Load, Measured, TargetFailed, Watcher

SOURCES = Path(__file__).parent
Wire = Literal["http", "farm"]
READY_S = 20.0
END_S = 30.0
LEAD_S = 0.05
OPEN_CONNECTIONS = 64
"""From the start of an open loop; more are opened while they are all busy."""
OPEN_CONNECTIONS_MAX = 768
GRACE_S = 2.0
ANSWERED = 200
NAMES = ["lost", "model"]


def build(directory: str, wire: Wire = "http") -> str:
    """The path of the client that speaks so; compiled once a source and a directory.

    Raises:
        TargetFailed: there is no C compiler, or it refuses.
    """
    sources = [SOURCES / name for name in ("load.c", f"{wire}.c")]
    texts = b"".join(source.read_bytes() for source in (*sources, SOURCES / "load.h"))
    path = Path(directory) / f"load-{wire}-{hashlib.sha256(texts).hexdigest()[:12]}"
    if path.exists():
        return str(path)
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        run = subprocess.run(
            [os.environ.get("CC", "cc"), "-O2", "-o", str(partial), *map(str, sources)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except OSError as error:
        raise TargetFailed(f"no C compiler for the load client ({error}); install one, or name it in CC") from error
    if run.returncode:
        raise TargetFailed(f"the load client does not compile: {run.stderr.strip()[-400:]}")
    partial.replace(path)
    return str(path)


def due_of(load: Load) -> npt.NDArray[np.int64]:
    """Moments from the beginning of the measured part, as the farm's generators have them; warm-up below 0."""
    assert load.rate is not None
    measured = schedule.of(load, load.rate, load.seconds, load.seed)
    first_rate = load.rate * load.ramp_from if load.arrivals == "ramp" else load.rate
    warm = schedule.poisson(first_rate, load.warm_s, load.seed + 1) - int(load.warm_s * 1e9)
    return np.concatenate([warm, measured])


def http_status(status: int) -> str:
    return f"HTTP/{status}"


def drive(
    target: str,
    where: str,
    request: bytes,
    load: Load,
    watcher: Watcher,
    client: str,
    *,
    name_of: Callable[[int], str] = http_status,
    connections_max: int = OPEN_CONNECTIONS_MAX,
) -> Measured:
    """The load on a server of this host; `client` is what `build` gave, `where` what its wire calls a server.

    name_of: what a status is called that is no answer. connections_max: of an open loop.

    Raises:
        TargetFailed: the client broke off, or did not end.
    """
    with tempfile.TemporaryDirectory(prefix="load-") as directory:
        at = Path(directory)
        (at / "request").write_bytes(request)
        first, most = load.in_flight, load.in_flight
        grace_ns = int((load.deadline_ms / 1e3 + GRACE_S) * 1e9)
        words = [str(at / "request"), str(at / "tape"), str(int(load.seconds * 1e9)), str(grace_ns)]
        if load.open_loop:
            first, most = OPEN_CONNECTIONS, connections_max
            due_of(load).tofile(at / "due")
            words.append(str(at / "due"))
        process = subprocess.Popen(
            [client, where, str(first), str(most), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            begin_ns, cpu_s, connections = _run(process, load, watcher, grace_ns / 1e9)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        tape = np.fromfile(at / "tape", np.int64).reshape(-1, 5)
    result = measured(target, load, begin_ns, tape, cpu_s, name_of)
    result.notes["connections"] = connections
    return result


def _run(process: subprocess.Popen[str], load: Load, watcher: Watcher, grace_s: float) -> tuple[int, float, int]:
    """The moment at which the measured part began, the client's CPU seconds in it, its connections."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    ready, _, _ = select.select([process.stdout], [], [], READY_S)
    if not ready or process.stdout.readline() != "ready\n":
        raise TargetFailed(f"the load client did not connect: {_last_words(process)}")
    begin_ns = time.monotonic_ns() + int((LEAD_S + load.warm_s) * 1e9)
    process.stdin.write(f"{begin_ns}\n")
    process.stdin.flush()
    watcher.begin(begin_ns)
    time.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9 + load.seconds))
    watcher.end()
    try:
        process.wait(grace_s + END_S)
    except subprocess.TimeoutExpired:
        raise TargetFailed("the load client did not end") from None
    if process.returncode:
        raise TargetFailed(f"the load client ended with {process.returncode}: {_last_words(process)}")
    cpu, connections = process.stdout.readline().split()
    return begin_ns, float(cpu), int(connections)


def _last_words(process: subprocess.Popen[str]) -> str:
    process.kill()
    process.wait()
    assert process.stderr is not None
    return process.stderr.read().strip()[-300:] or f"exit status {process.returncode}"


def measured(
    target: str,
    load: Load,
    begin_ns: int,
    tape: npt.NDArray[np.int64],
    cpu_s: float | None,
    name_of: Callable[[int], str] = http_status,
) -> Measured:
    """Figures from a tape of {due, taken, sent, done, status}. A request that waited for a connection was late through
    the server, so only `taken` tells whether the client kept its schedule."""
    due, taken, sent, done, status = tape.T
    sent, done = np.where(sent == 0, taken, sent), np.where(done == 0, np.iinfo(np.int64).max, done)
    names = list(NAMES)
    code = np.zeros(len(due), np.int64)
    for value in np.unique(status):
        if value == ANSWERED:
            code[status == value] = 1
        elif value != 0:
            code[status == value] = len(names)
            names.append("connection broken" if value == -1 else name_of(int(value)))
    # A closed loop's last requests end after the measured part; those that never ended have no time.
    done = np.where(code == 0, sent, done) if load.open_loop else done
    result = recorder.measured(
        target=target,
        load=load,
        begin_ns=begin_ns,
        due=due,
        sent=sent,
        done=done,
        code=code,
        names=names,
        stream=np.zeros(len(due), np.int8),
        generator_cpu_s=None,
    )
    if load.open_loop:
        result.lateness = recorder.latency_of((taken - due)[due >= begin_ns])
        result.void = recorder.why_void(result.lateness, load.late_ms_max)
    requests = int((due >= begin_ns).sum())
    if cpu_s is not None and requests:
        result.generator_cpu_us_per_request = round(cpu_s / requests * 1e6, 3)
    return result


def http_request(path: str, headers: dict[str, str], body: bytes) -> bytes:
    """What goes over the wire, the same for every request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def json_body(value: Any) -> bytes:
    return msgspec.json.encode(value)
