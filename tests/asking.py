"""A service for tests, as a process of its own: it keeps asking a farm, judges every end, and tells when it is asked.

Started as `python -P asking.py ENDPOINT LANE WAY SCRIPT.json`; see `tests.crowd`, which writes the script. An empty
line on standard input is answered with one line of JSON: what has happened so far; a line with a moment of the
monotonic clock in nanoseconds is answered also with when the model's first answer came to a call made since then. End
of file ends the asking: what is open is waited for, the client is closed, and a last line comes. The way `nursery` is
a process that asks nothing and forks: each line `WAY` makes a child that asks in that way until it is killed, and
writes its pid once it has had an answer.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections import deque
from typing import Any

import numpy as np

import farm

PR_SET_PDEATHSIG = 1
THREADS = 3
TASKS = 6
SUBMITTED = 12
PAUSE_S = 0.004
LEASE_MS = 2000.0
"""What a lease waits for its slots; the deadline counts from its `infer`."""
WRONG_TOLD_MAX = 5
PULSE_S = 0.01
REMEMBERED = 16384
"""Answers of the model whose times are kept: some seconds of them."""


class Script:
    """What is asked. `rows`, `answers`: inputs, and what ONNX Runtime gives for each row alone in one process."""

    def __init__(self, path: str) -> None:
        with open(path) as file:
            told = json.load(file)
        with np.load(told["arrays"]) as arrays:
            self.rows, self.answers = arrays["rows"], arrays["answers"]
        self.model: str = told["model"]
        self.deadlines_ms: list[float] = told["deadlines_ms"]
        self.pause_s: float = told.get("pause_s", PAUSE_S)
        self.client: dict[str, Any] = told.get("client", {})
        self.fallback: dict[str, Any] | None = None
        if told["fallback"]:
            self.fallback = {"y": np.full_like(self.answers[0], -1.0)}


class Call:
    """One request from its entry to its end. `due_ns`: when it has to end."""

    def __init__(self, script: Script, number: int) -> None:
        self.index = number % len(script.rows)
        # In a row, not by turns with the index: each row is asked with each deadline.
        self.deadline_ms = script.deadlines_ms[(number // 3) % len(script.deadlines_ms)]
        self.inputs = {"x": script.rows[self.index]}
        self.options: dict[str, Any] = {"deadline_ms": self.deadline_ms, "key": f"{self.index}"}
        if script.fallback is not None:
            self.options["fallback"] = script.fallback
        self.due_ns = 0
        self.entered_ns = time.monotonic_ns()
        self.starts(self.deadline_ms)

    def starts(self, limit_ms: float) -> None:
        self.due_ns = time.monotonic_ns() + int(limit_ms * 1e6)


class Tally:
    """How calls ended. Safe from many threads."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._number = 0
        self.open = 0
        self.answered = threading.Event()
        self.ends: dict[str, int] = {}
        self.wrong: list[str] = []
        self.late_ms_max = -1e9
        self.stalled_ms_max = 0.0
        self.times_ns: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self.exact = 0

    def next(self) -> Call:
        with self._lock:
            self._number += 1
            self.open += 1
            return Call(self._script, self._number)

    def end(self, call: Call, outcome: farm.Reply | farm.FarmError, request_id: int | None = None) -> None:
        now_ns = time.monotonic_ns()
        late_ms = (now_ns - call.due_ns) / 1e6
        with self._lock:
            self.open -= 1
            self.late_ms_max = max(self.late_ms_max, late_ms)
            if isinstance(outcome, farm.FarmError):
                end = f"{type(outcome).__name__}/{outcome.reason}"
            else:
                end = f"{outcome.source}/{outcome.reason}"
                if outcome.source == "model":
                    self.times_ns.append((call.entered_ns, now_ns))
                fault = self._fault(call, outcome, request_id)
                if fault and len(self.wrong) < WRONG_TOLD_MAX:
                    self.wrong.append(fault)
            word = f"{call.deadline_ms:g} {end}"
            self.ends[word] = self.ends.get(word, 0) + 1
        if not isinstance(outcome, farm.FarmError) and outcome.source == "model":
            self.answered.set()

    def _fault(self, call: Call, reply: farm.Reply, request_id: int | None) -> str:
        expected = self._script.answers[call.index]
        if reply.key != f"{call.index}":
            return f"{reply!r} has the key {reply.key} of another request than {call.index}"
        if request_id is not None and reply.request_id != request_id:
            return f"{reply!r} has another id than its ticket, {request_id}"
        if reply.source != "model":
            return "" if self._script.fallback is not None and reply.source == "client" else f"{reply!r} by whom?"
        got = reply.outputs["y"]
        alone = reply.batch is not None and reply.batch.rows == len(expected)
        self.exact += alone
        if alone and not np.array_equal(got, expected):
            return f"{reply!r} differs from ONNX Runtime in one process by up to {np.abs(got - expected).max()}"
        if not alone and not np.allclose(got, expected, rtol=1e-4, atol=1e-5):
            return f"{reply!r}, batched as {reply.batch}, is off by up to {np.abs(got - expected).max()}"
        return ""

    def told(self, since_ns: int | None = None) -> dict[str, Any]:
        """`again_ns`: when the model first answered a call made since then. `slowest_ms`: of those answered since."""
        with self._lock:
            times = [] if since_ns is None else [pair for pair in self.times_ns if pair[1] >= since_ns]
            return {
                "again_ns": min((ended for entered, ended in times if entered >= (since_ns or 0)), default=None),
                "slowest_ms": max(((ended - entered) / 1e6 for entered, ended in times), default=0.0),
                "asked": self._number,
                "open": self.open,
                "ends": dict(self.ends),
                "exact": self.exact,
                "wrong": list(self.wrong),
                "late_ms_max": self.late_ms_max,
                "stalled_ms_max": self.stalled_ms_max,
                "open_fds": len(os.listdir("/proc/self/fd")) - 1,
                "mappings": _mappings(),
            }


def _mappings() -> int:
    with open("/proc/self/maps") as lines:
        return sum("/memfd:" in line for line in lines)


def ask_in_threads(endpoint: str, lane: str, script: Script, tally: Tally, stop: threading.Event) -> None:
    """Blocking calls, several at a time; every fourth in a lease."""

    def ask() -> None:
        count = 0
        while not stop.is_set():
            call = tally.next()
            count += 1
            try:
                outcome = _leased(client, script, call) if count % 4 == 0 else _infer(client, script, call)
            except farm.FarmError as error:
                tally.end(call, error)
            else:
                tally.end(call, outcome)
            time.sleep(script.pause_s)  # not a wait for anything: the load is to leave room for restarts

    with farm.Client(endpoint, lane=lane, title="threads", **script.client) as client:
        threads = [threading.Thread(target=ask) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _infer(client: farm.Client, script: Script, call: Call) -> farm.Reply:
    return client.infer(script.model, call.inputs, **call.options)


def _leased(client: farm.Client, script: Script, call: Call) -> farm.Reply:
    call.starts(LEASE_MS)
    with client.lease(script.model, {"x": (call.inputs["x"].shape, "float32")}) as lease:
        lease.inputs["x"][...] = call.inputs["x"]
        call.starts(call.deadline_ms)
        reply = lease.infer(**call.options)
        reply.outputs = {name: np.array(output) for name, output in reply.outputs.items()}
        return reply


def ask_in_a_loop(endpoint: str, lane: str, script: Script, tally: Tally, stop: threading.Event) -> None:
    """Coroutines, several at a time."""

    async def ask(client: farm.AsyncClient) -> None:
        while not stop.is_set():
            call = tally.next()
            try:
                tally.end(call, await client.infer(script.model, call.inputs, **call.options))
            except farm.FarmError as error:
                tally.end(call, error)
            await asyncio.sleep(script.pause_s)

    async def main() -> None:
        async with farm.AsyncClient(endpoint, lane=lane, title="asyncio", **script.client) as client:
            await asyncio.gather(*(ask(client) for _ in range(TASKS)))

    asyncio.run(main())


def ask_by_submit(endpoint: str, lane: str, script: Script, tally: Tally, stop: threading.Event) -> None:
    """Lists of requests, reaped in lists."""
    calls: dict[int, Call] = {}
    with farm.Client(endpoint, lane=lane, title="submit", **script.client) as client:
        while calls or not stop.is_set():
            while len(calls) < SUBMITTED and not stop.is_set():
                call = tally.next()
                try:
                    ticket = client.submit(script.model, call.inputs, flush=False, **call.options)
                except farm.FarmError as error:
                    tally.end(call, error)
                    break
                calls[ticket.request_id] = call
            for ticket in client.completions(timeout=1.0):
                # A ticket that came twice is not there any more, and so ends this process.
                call = calls.pop(ticket.request_id)
                try:
                    tally.end(call, ticket.result(), ticket.request_id)
                except farm.FarmError as error:
                    tally.end(call, error)
            time.sleep(script.pause_s)


WAYS = {"threads": ask_in_threads, "asyncio": ask_in_a_loop, "submit": ask_by_submit}


def survive(endpoint: str, lane: str, way: str, script: Script) -> None:
    tally = Tally(script)
    stop = threading.Event()
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            WAYS[way](endpoint, lane, script, tally, stop)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=ask)
    pulse = threading.Thread(target=_feel_pulse, args=(tally, stop))
    thread.start()
    pulse.start()
    for line in sys.stdin:
        since_ns = int(line) if line.strip() else None
        print(json.dumps({**tally.told(since_ns), "failed": [repr(error) for error in failed]}), flush=True)
    stop.set()
    pulse.join()
    thread.join()
    print(json.dumps({**tally.told(), "failed": [repr(error) for error in failed]}), flush=True)


def _feel_pulse(tally: Tally, stop: threading.Event) -> None:
    """How long this process is kept from a CPU at worst: what a thread that only sleeps oversleeps."""
    before = time.monotonic()
    while not stop.wait(PULSE_S):
        now = time.monotonic()
        tally.stalled_ms_max = max(tally.stalled_ms_max, (now - before - PULSE_S) * 1000)
        before = now


def nurse(endpoint: str, lane: str, script: Script) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    for line in sys.stdin:
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            tally = Tally(script)
            threading.Thread(target=_announce, args=(tally,)).start()
            WAYS[line.strip()](endpoint, lane, script, tally, threading.Event())
            os._exit(1)


def _announce(tally: Tally) -> None:
    tally.answered.wait()
    print(json.dumps({"pid": os.getpid()}), flush=True)


if __name__ == "__main__":
    where, by_lane, in_way, script_path = sys.argv[1:]
    if in_way == "nursery":
        nurse(where, by_lane, Script(script_path))
    else:
        survive(where, by_lane, in_way, Script(script_path))
