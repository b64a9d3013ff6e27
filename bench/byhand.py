"""Measurements of `bench.check` that no scenario says."""

from __future__ import annotations

import tempfile
import time

import numpy as np

from bench import models, targets
from bench.run import Unwatched
from bench.target import Case, Load, Stream, TargetFailed
from farm.client.reply import Reply
from farm.farm import Farm

IN_FLIGHT = 20


def audio_runs(seconds: float) -> tuple[float, float]:
    """p99 in ms of the audio model's runs in the farm's workers under 20 requests in flight, and of two processes of
    the session alone."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        model = models.make("audio", directory)
        alone = targets.get("ort-n", directory)
        alone.start(Case(models=(model,), max_batch=1))
        try:
            load = Load(label="alone", streams=(Stream(model="audio"),), seconds=seconds, in_flight=2)
            latency = alone.drive(load, Unwatched()).latency
        finally:
            alone.stop()
        took: list[int] = []
        row = model.one()
        with (
            Farm({"audio": {"path": model.path, "max_batch": 1}}, 2) as farm,
            farm.client(slot_bytes=model.row_bytes + 1024, slot_count=2 * IN_FLIGHT) as client,
        ):
            client.wait_ready(30)
            end, open_count = time.monotonic() + seconds, 0
            while time.monotonic() < end or open_count:
                while open_count < IN_FLIGHT and time.monotonic() < end:
                    client.submit("audio", row, deadline_ms=5000, flush=False)
                    open_count += 1
                for ticket in client.completions(1.0):
                    open_count -= 1
                    outcome = ticket.outcome()
                    if isinstance(outcome, Reply) and outcome.source == "model":
                        took.append(outcome.stages["run"])
    if latency is None or not took:
        raise TargetFailed("no run of the audio model was seen")
    return float(np.percentile(took, 99)) / 1e6, latency.p99
