"""The demo's service process: `python -P -m farm.demo.service ENDPOINT`. It knows a farm only as any service would.

First it asks about every held-out record, one at a time. Then it keeps all workers busy with two large requests, and
while they run asks about a few records again with a deadline that is shorter than those runs. What came is written to
stdout, a JSON object a line, for `farm.demo.show`.
"""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np

import farm
from farm import embedded
from farm.client.reply import Reply

READY_S = 20.0
DEADLINE_MS = 100.0
HURRIED_MS = 15.0
HURRIED_COUNT = 4
BULK_ROWS = 131_072
"""One run takes 70 ms on a core of 2.5 GHz, five times the hurried deadline; 15 MiB of input."""
BULK_COUNT = 2
"""One for each worker of the embedded configuration."""
BULK_DEADLINE_MS = 20_000.0
SLOT_BYTES = 16 * 1024
SLOT_COUNT = 2048
"""32 MiB: both large requests, and as many small ones as anybody wants."""


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
    error: str


class Bulk(msgspec.Struct, tag=True, frozen=True):
    """The large requests that the hurried records met."""

    requests: int
    rows: int
    by_model: int
    run_ms: float


Line = Answered | Refused | Bulk


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
        return Refused(number, DEADLINE_MS, f"{type(error).__name__}: {error}")
    return _answered(number, reply, DEADLINE_MS, hurried=False)


def _hurry(client: farm.Client, records: embedded.Records) -> None:
    """Two large requests, not waited for; then a few records that cannot wait for them to end."""
    bulk = np.resize(records.features, (BULK_ROWS, records.features.shape[1]))
    for _ in range(BULK_COUNT):
        client.submit(embedded.MODEL_NAME, bulk, deadline_ms=BULK_DEADLINE_MS)
    numbers = _mixed(records)
    replies = client.infer_many(
        embedded.MODEL_NAME, [records.features[n - 1][np.newaxis] for n in numbers], deadline_ms=HURRIED_MS
    )
    for number, reply in zip(numbers, replies, strict=True):
        if isinstance(reply, Reply):
            _write(_answered(number, reply, HURRIED_MS, hurried=True))
        else:
            _write(Refused(number, HURRIED_MS, f"{type(reply).__name__}: {reply}"))
    _write(_await_bulk(client))


def _await_bulk(client: farm.Client) -> Bulk:
    by_model, run_ns, ended = 0, 0, 0
    give_up = time.monotonic() + BULK_DEADLINE_MS / 1e3
    while ended < BULK_COUNT and time.monotonic() < give_up:
        for ticket in client.completions(timeout=1.0):
            ended += 1
            outcome = ticket.outcome()
            if isinstance(outcome, Reply) and outcome.source == "model":
                by_model += 1
                run_ns = max(run_ns, outcome.stages["run"])
    return Bulk(BULK_COUNT, BULK_ROWS, by_model, run_ns / 1e6)


def _mixed(records: embedded.Records) -> list[int]:
    """Numbers of the first records, half of them malignant."""
    half = HURRIED_COUNT // 2
    malignant = np.flatnonzero(records.malignant)[:half]
    benign = np.flatnonzero(~records.malignant)[: HURRIED_COUNT - half]
    return sorted(int(i) + 1 for i in (*malignant, *benign))


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
