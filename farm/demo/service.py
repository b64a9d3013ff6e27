"""The demo's service process: `python -P -m farm.demo.service ENDPOINT`. It knows a farm only as any service would.

First it asks about every held-out record, one at a time. Then it keeps all workers busy with two large requests, and
while they run asks about a few records again with a deadline of a third of such a run; and once about more records at a
time than the farm lets wait. What came is written to stdout, a JSON object a line, for `farm.demo.show`.
"""

from __future__ import annotations

import math
import sys
import time

import msgspec
import numpy as np

import farm
from farm import embedded
from farm.client.reply import Reply

READY_S = 20.0
DEADLINE_MS = 100.0
HURRIED_ROUNDS = 2
HURRIED_ROUNDS_MAX = 6
"""Until rules have answered in HURRIED_ROUNDS of them: on a machine that is busy with other things, who is faster and
who is late changes from round to round. All that were asked are shown."""
HURRIED_SHARE = 1 / 3
"""Of the shortest large run so far: no worker is free in that time, and the rule need not hurry either."""
BEGUN_SHARE = 1 / 8
"""Of a large run, to be sure that it has begun: of what comes in one moment the router serves the hurried first."""
BULK_ROWS = 65_536
"""One run takes 35 ms on a core of 2.5 GHz; 8 MiB of input."""
BULK_ROUNDS = 2
"""The first finds new memory, in every worker, and takes several times as long as those after it."""
BULK_COUNT = 2
"""One for each worker of the embedded configuration."""
BULK_DEADLINE_MS = 20_000.0
QUEUE_REQUESTS = 32
"""What the demo's farm lets wait."""
CROWD = 40
"""Asked at a time, while all workers are busy."""
SLOT_BYTES = 16 * 1024
SLOT_COUNT = 2048
"""32 MiB: both large requests, and more small ones than are asked."""


class Answered(msgspec.Struct, tag=True, frozen=True):
    """One record: what was answered, and what the farm and the clock say about it."""

    record: int
    deadline_ms: float
    hurried: bool
    latency_ms: float
    malignant: float
    source: str
    reason: str
    rule: str | None
    decision: str | None
    stages: dict[str, int]


class Refused(msgspec.Struct, tag=True, frozen=True):
    record: int
    deadline_ms: float
    hurried: bool
    error: str


class Bulk(msgspec.Struct, tag=True, frozen=True):
    """The large requests that the hurried records met."""

    requests: int
    rows: int
    run_ms_min: float
    run_ms_max: float


class Shed(msgspec.Struct, tag=True, frozen=True):
    """More records at a time than the farm lets wait: how many were asked and refused, and the first refusal."""

    asked: int
    refused: int
    answered: int
    record: int
    error: str
    reason: str
    retry_after_ms: int
    latency_ms: float


Line = Answered | Refused | Bulk | Shed


def main() -> int:
    records = embedded.load_records()
    with farm.Client(sys.argv[1], slot_count=SLOT_COUNT, slot_bytes=SLOT_BYTES, title="demo") as client:
        client.wait_ready(READY_S)
        for number, row in enumerate(records.features, start=1):
            _write(_ask(client, number, row))
        _hurry(client, records)
    return 0


def _ask(client: farm.Client, number: int, row: np.ndarray) -> Line:
    try:
        reply = client.infer(embedded.MODEL_NAME, row[np.newaxis], deadline_ms=DEADLINE_MS)
    except farm.FarmError as error:
        return _refused(number, error, DEADLINE_MS, hurried=False)
    return _answered(number, reply, DEADLINE_MS, hurried=False)


def _hurry(client: farm.Client, records: embedded.Records) -> None:
    """Two large requests, not waited for; then a few records that cannot wait for them to end; then too many."""
    bulk = np.resize(records.features, (BULK_ROWS, records.features.shape[1]))
    run_ms = math.inf
    for _ in range(BULK_ROUNDS):
        _submit_bulk(client, bulk)
        run_ms = min(run_ms, _await_bulk(client).run_ms_min)
    rounds_by_rule = 0
    for numbers in _pairs(records):
        deadline_ms = run_ms * HURRIED_SHARE
        _submit_bulk(client, bulk)
        time.sleep(run_ms * BEGUN_SHARE / 1e3)
        ended = client.infer_many(
            embedded.MODEL_NAME, [records.features[n - 1][np.newaxis] for n in numbers], deadline_ms=deadline_ms
        )
        for number, reply in zip(numbers, ended, strict=True):
            if isinstance(reply, Reply):
                _write(_answered(number, reply, deadline_ms, hurried=True))
            else:
                _write(_refused(number, reply, deadline_ms, hurried=True))
        told = _await_bulk(client)
        _write(told)
        run_ms = min(run_ms, told.run_ms_min)
        rounds_by_rule += any(isinstance(reply, Reply) and reply.source == "rules" for reply in ended)
        if rounds_by_rule == HURRIED_ROUNDS:
            break
    _submit_bulk(client, bulk)
    time.sleep(run_ms * BEGUN_SHARE / 1e3)
    _write(_crowd(client, records))


def _crowd(client: farm.Client, records: embedded.Records) -> Shed:
    """Ask about many records at a time, and wait for all of it. The large requests end in between."""
    began = time.monotonic()
    asked = {
        client.submit(
            embedded.MODEL_NAME, row[np.newaxis], deadline_ms=BULK_DEADLINE_MS, flush=False
        ).request_id: number
        for number, row in enumerate(records.features[:CROWD], start=1)
    }
    first: tuple[int, farm.Overloaded, float] | None = None
    open_count, refused = CROWD + BULK_COUNT, 0
    while open_count and time.monotonic() < began + BULK_DEADLINE_MS / 1e3:
        for ticket in client.completions(timeout=1.0):
            open_count -= 1
            try:
                ticket.result()
            except farm.Overloaded as error:
                refused += 1
                if first is None:
                    first = asked[ticket.request_id], error, (time.monotonic() - began) * 1e3
    if first is None:
        return Shed(CROWD, 0, CROWD, 0, "", "", 0, 0.0)
    record, said, latency_ms = first
    kind, again_ms = type(said).__name__, int(said.retry_after_ms or 0)
    return Shed(CROWD, refused, CROWD - refused, record, kind, said.reason, again_ms, latency_ms)


def _submit_bulk(client: farm.Client, bulk: np.ndarray) -> None:
    for _ in range(BULK_COUNT):
        client.submit(embedded.MODEL_NAME, bulk, deadline_ms=BULK_DEADLINE_MS)


def _await_bulk(client: farm.Client) -> Bulk:
    """Raises what a large request ended with, when not with an answer of the model."""
    runs_ns: list[int] = []
    give_up = time.monotonic() + BULK_DEADLINE_MS / 1e3
    while len(runs_ns) < BULK_COUNT and time.monotonic() < give_up:
        runs_ns += [ticket.result().stages["run"] for ticket in client.completions(timeout=1.0)]
    return Bulk(BULK_COUNT, BULK_ROWS, min(runs_ns) / 1e6, max(runs_ns) / 1e6)


def _pairs(records: embedded.Records) -> list[tuple[int, int]]:
    """Numbers of the first records, a malignant and a benign one for each round."""
    malignant, benign = np.flatnonzero(records.malignant), np.flatnonzero(~records.malignant)
    return [(int(m) + 1, int(b) + 1) for m, b in zip(malignant, benign, strict=False)][:HURRIED_ROUNDS_MAX]


def _refused(number: int, error: farm.FarmError, deadline_ms: float, *, hurried: bool) -> Refused:
    return Refused(number, deadline_ms, hurried, f"{type(error).__name__}: {error}")


def _answered(number: int, reply: Reply, deadline_ms: float, *, hurried: bool) -> Answered:
    return Answered(
        record=number,
        deadline_ms=deadline_ms,
        hurried=hurried,
        latency_ms=reply.stages["total"] / 1e6,
        malignant=float(reply.outputs["malignant"][0]),
        source=reply.source,
        reason=reply.reason,
        rule=reply.rule,
        decision=reply.decision,
        stages=reply.stages,
    )


def _write(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except farm.FarmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
