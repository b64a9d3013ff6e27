"""Starts the farm and the demo's service, prints what the service saw, stops all of it and looks for what is left."""

from __future__ import annotations

import subprocess
import sys
import time

import msgspec

from farm import embedded
from farm.demo import table
from farm.demo.leftovers import Traces
from farm.demo.service import QUEUE_REQUESTS, Line
from farm.demo.table import DemoFailed
from farm.errors import FarmError
from farm.farm import Farm

SERVICE_S = 45.0
"""The service takes 1 s on two idle cores; the README promises a minute for all of it."""

WORKERS_S = 20.0

_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def show() -> int:
    """The exit code. What went wrong is one line on stderr."""
    started = time.monotonic()
    try:
        _show()
    except (DemoFailed, FarmError, OSError) as error:
        print(f"farm demo: {error}", file=sys.stderr)
        return 1
    print(f"Nothing left behind: no process, no socket file, no memory. {time.monotonic() - started:.1f} s in all.")
    return 0


def _show() -> None:
    records = embedded.load_records()
    started = time.monotonic()
    with Farm(config=str(embedded.CONFIG_PATH), queue_requests=QUEUE_REQUESTS) as running:
        print(f"A farm serves {embedded.MODEL_NAME}, ready in {time.monotonic() - started:.2f} s.", end=" ")
        _wait_for_all_workers(running)
        print(f"A service in its own process asks about {len(records.malignant)} held-out records.\n", flush=True)
        service = _start_service(running.endpoint)
        try:
            traces = Traces.of_children(running.endpoint)
            lines = _hear(service)
        finally:
            _end(service)
        _print(table.records_table(lines, records))
        _print(table.hurried_table(lines, records))
        _print(table.told(lines))
        _print(table.summary(lines, records))
    if left := traces.left():
        raise DemoFailed(f"the farm left behind: {', '.join(left)}")


def _wait_for_all_workers(running: Farm) -> None:
    """Ready means that one worker is; the second half of the demo wants to see all of them busy."""
    end = time.monotonic() + WORKERS_S
    while time.monotonic() < end:
        status = running.status()
        wanted = sum(status["wanted"].values())
        if sum(p["role"] == "worker" and p["state"] == "ready" for p in status["processes"]) == wanted:
            return
        time.sleep(0.02)
    raise DemoFailed(f"not all workers were ready after {WORKERS_S:.0f} s")


def _start_service(endpoint: str) -> subprocess.Popen[bytes]:
    # -P: a `farm` folder in the current directory is not the farm.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "farm.demo.service", endpoint],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _hear(service: subprocess.Popen[bytes]) -> list[Line]:
    """All that the service has to say.

    Raises:
        DemoFailed: it failed, in its own words, or took too long.
    """
    try:
        said, complaint = service.communicate(timeout=SERVICE_S)
    except subprocess.TimeoutExpired as error:
        raise DemoFailed(f"the service was not done after {SERVICE_S:.0f} s") from error
    if service.returncode:
        words = complaint.decode(errors="replace").strip().splitlines() or ["without a word"]
        raise DemoFailed(f"the service ended with exit code {service.returncode}: {words[-1]}")
    return [_decoder.decode(line) for line in said.splitlines()]


def _end(service: subprocess.Popen[bytes]) -> None:
    if service.poll() is None:
        service.kill()
    service.communicate()


def _print(lines: list[str]) -> None:
    print("\n".join(lines), end="\n\n", flush=True)
