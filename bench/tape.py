"""What a generator keeps while it runs: moments and outcomes as plain lists; and the files in which it hands them over.

An outcome is a small number while the load runs and gets its name at the end: naming costs time that a generator does
not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from farm.client.reply import Reply
from farm.errors import FarmError

LOST = 0
"""The outcome of a request that never ended."""
MODEL = 1

STAGES_EVERY = 8
"""One reply in so many has its stages added up."""


class Summary(Struct, kw_only=True):
    """A tape's small figures."""

    names: list[str]
    stages_ns: dict[str, int]
    stages_count: int
    cpu_s: float
    gc_pauses: int
    gc_pause_ms_max: float


class Tape:
    """One generator's record. Moments are CLOCK_MONOTONIC ns; `due`, `sent`, `done`, `code`, `stream` go together."""

    def __init__(self) -> None:
        self.due: list[int] = []
        self.sent: list[int] = []
        self.done: list[int] = []
        self.code: list[int] = []
        self.stream: list[int] = []
        self.names = ["lost", "model"]
        self._codes: dict[tuple[str, str | None], int] = {}
        self._stages: dict[str, int] = {}
        self._stages_count = 0
        self._countdown = STAGES_EVERY

    def add(self, due_ns: int, sent_ns: int, done_ns: int, code: int, stream: int) -> None:
        self.due.append(due_ns)
        self.sent.append(sent_ns)
        self.done.append(done_ns)
        self.code.append(code)
        self.stream.append(stream)

    def code_of(self, outcome: Reply | FarmError) -> int:
        if isinstance(outcome, Reply):
            self._countdown -= 1
            if outcome.source == "model":
                if self._countdown <= 0:
                    self._add_stages(outcome)
                return MODEL
            kind, reason = outcome.source, outcome.reason
        else:
            kind, reason = type(outcome).__name__, getattr(outcome, "reason", None) or ""
        code = self._codes.get((kind, reason))
        if code is None:
            code = self._codes[kind, reason] = len(self.names)
            self.names.append(f"{kind}/{reason}" if reason else kind)
        return code

    def _add_stages(self, reply: Reply) -> None:
        self._countdown = STAGES_EVERY
        self._stages_count += 1
        for stage, took_ns in reply.stages.items():
            self._stages[stage] = self._stages.get(stage, 0) + took_ns

    def save(self, path: str, *, cpu_s: float, gc_pauses_ms: list[float]) -> None:
        """Two files, the second of which says that the first is whole."""
        np.savez(
            path + ".npz",
            due=np.array(self.due, np.int64),
            sent=np.array(self.sent, np.int64),
            done=np.array(self.done, np.int64),
            code=np.array(self.code, np.int16),
            stream=np.array(self.stream, np.int8),
        )
        summary = Summary(
            names=self.names,
            stages_ns=self._stages,
            stages_count=self._stages_count,
            cpu_s=cpu_s,
            gc_pauses=len(gc_pauses_ms),
            gc_pause_ms_max=max(gc_pauses_ms, default=0.0),
        )
        Path(path + ".json").write_bytes(msgspec.json.encode(summary))


class Tapes:
    """Several generators' tapes put together; outcomes by name."""

    def __init__(self, paths: list[str]) -> None:
        parts: dict[str, list[npt.NDArray[Any]]] = {key: [] for key in ("due", "sent", "done", "code", "stream")}
        self.names = ["lost", "model"]
        self.summaries: list[Summary] = []
        for path in paths:
            summary = msgspec.json.decode(Path(path + ".json").read_bytes(), type=Summary)
            self.summaries.append(summary)
            self.names += [name for name in summary.names if name not in self.names]
            renamed = np.array([self.names.index(name) for name in summary.names], np.int16)
            with np.load(path + ".npz") as arrays:
                for key, kept in parts.items():
                    kept.append(renamed[arrays[key]] if key == "code" else arrays[key])
        joined = {key: np.concatenate(kept) if kept else np.zeros(0, np.int64) for key, kept in parts.items()}
        self.due, self.sent, self.done = joined["due"], joined["sent"], joined["done"]
        self.code, self.stream = joined["code"], joined["stream"]

    @property
    def stages_us(self) -> dict[str, float]:
        """Stage to its mean over the sampled replies."""
        count = sum(summary.stages_count for summary in self.summaries)
        stages: dict[str, float] = {}
        for summary in self.summaries:
            for stage, took_ns in summary.stages_ns.items():
                stages[stage] = stages.get(stage, 0.0) + took_ns / 1e3
        return {stage: round(total / count, 3) for stage, total in stages.items()}
