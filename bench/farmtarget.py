"""The farm as a target: real processes, driven by its public client from generator processes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec

from bench import recorder
from bench.crew import Crew
from bench.generator import Job
from bench.target import Case, Load, Measured, Model, TargetFailed, Watcher
from farm.errors import FarmError
from farm.farm import Farm

START_DEADLINE_MS = 20_000.0
ARENA_BYTES = 64 * 2**20
"""Of one client; its slots are as many as fit, within limits."""
SLOTS_MIN = 4
SLOTS_MAX = 4096
OUTPUT_BYTES_MIN = 256


class FarmTarget:
    """lane: `zeromq` or `direct` over what a load says; None leaves it to the load."""

    def __init__(self, directory: str, name: str = "farm", lane: str | None = None) -> None:
        self.name = name
        self._directory = directory
        self._lane = lane
        self._case: Case | None = None
        self._farm: Farm | None = None
        self._crew: Crew | None = None

    def refuses(self, case: Case, load: Load) -> str | None:
        return None

    def prepare(self) -> None:
        pass

    def start(self, case: Case) -> None:
        models: dict[str, Any] = {
            model.name: {
                "path": model.path,
                "max_batch": case.max_batch,
                "batching": "auto" if model.batched and case.max_batch > 1 else "off",
            }
            for model in case.models
        }
        try:
            self._farm = Farm(models, case.workers, **case.options)
            with self._farm.client(slot_count=SLOTS_MIN, slot_bytes=slot_bytes_of(case.models)) as client:
                client.infer(case.models[0].name, case.models[0].one(), deadline_ms=START_DEADLINE_MS)
        except FarmError as error:
            self.stop()
            raise TargetFailed(f"the farm did not start: {error}") from error
        self._case = case

    def drive(self, load: Load, watcher: Watcher) -> Measured:
        assert self._case is not None and self._farm is not None
        if self._lane is not None:
            load = msgspec.structs.replace(load, lane=self._lane)
        slot_bytes = slot_bytes_of(self._case.models)
        with tempfile.TemporaryDirectory(prefix="run-", dir=self._directory) as directory:
            jobs = [
                Job(
                    endpoint=self._farm.endpoint,
                    models=self._case.models,
                    load=load,
                    part=part,
                    parts=load.generators,
                    tape=str(Path(directory) / f"tape-{part}"),
                    slot_count=max(SLOTS_MIN, min(SLOTS_MAX, ARENA_BYTES // slot_bytes)),
                    slot_bytes=slot_bytes,
                )
                for part in range(load.generators)
            ]
            with Crew(jobs, directory) as self._crew:
                tapes, begin_ns, killed = self._crew.run(watcher)
        result = recorder.measured(
            target=self.name,
            load=load,
            begin_ns=begin_ns,
            due=tapes.due,
            sent=tapes.sent,
            done=tapes.done,
            code=tapes.code,
            names=tapes.names,
            stream=tapes.stream,
            generator_cpu_s=sum(summary.cpu_s for summary in tapes.summaries),
            stages_us=tapes.stages_us,
        )
        result.notes["generator_gc_pauses"] = sum(summary.gc_pauses for summary in tapes.summaries)
        result.notes["generator_gc_pause_ms_max"] = max(summary.gc_pause_ms_max for summary in tapes.summaries)
        if killed:
            result.notes["generators_killed"] = killed
        return result

    def pids(self) -> dict[int, str]:
        if self._farm is None:
            return {}
        try:
            processes = self._farm.status()["processes"]
        except FarmError:
            return {}
        return {process["pid"]: process["role"] for process in processes}

    def client_pids(self) -> list[int]:
        """Of the generators of the run that is under way."""
        return self._crew.pids if self._crew is not None else []

    def stop(self) -> None:
        farm, self._farm = self._farm, None
        if farm is not None:
            farm.stop()


def slot_bytes_of(models: tuple[Model, ...]) -> int:
    """One slot takes one request of any of the models, and its answer, with the alignment of both."""
    largest = max(OUTPUT_BYTES_MIN, *(max(model.row_bytes, model.output_bytes) for model in models))
    return -(-largest // 64) * 64 + 64
