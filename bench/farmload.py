"""The farm asked by the C client that asks its HTTP peers: what the farm carries when the load costs as little as
theirs.

The public client is Python, and in one process with forty clients it takes as much CPU a request as router and workers
together; on a host that load and server share, a comparison of servers must not have that on one side only. What a
service gets that is written in Python, `farm` says.
"""

from __future__ import annotations

from bench.farmtarget import FarmTarget, slot_bytes_of
from bench.peers import load
from bench.target import Case, Load, Measured, Watcher
from shm import paths
from shm.endings import Ending, Reason

CLIENTS_MAX = 192
"""Connections of an open loop, each a session: below the farm's own limit on clients."""


class LoadedFarm(FarmTarget):
    """One model, requests of one row, on the direct lane."""

    def __init__(self, directory: str, name: str = "farm-c") -> None:
        super().__init__(directory, name, "direct")
        self._client: str | None = None

    def refuses(self, case: Case, load: Load) -> str | None:
        if len(case.models) > 1 or len(load.streams) > 1:
            return "its client asks for one model only"
        if (load.caller not in ("infer", "clients") and not load.open_loop) or load.trace:
            return f"is not asked the way of {load.caller!r}"
        return None

    def prepare(self) -> None:
        self._client = load.build(self._directory, "farm")

    def drive(self, load_: Load, watcher: Watcher) -> Measured:
        assert self._case is not None and self._farm is not None and self._client is not None
        model, stream = self._case.models[0], load_.streams[0]
        deadline_ns = int(stream.deadline_ms * 1e6)
        slot_bytes = slot_bytes_of(self._case.models)
        head = f"{model.name} {slot_bytes} {deadline_ns} 1 {model.output_bytes}\n"
        return load.drive(
            self.name,
            paths.attach_path(self._farm.endpoint),
            head.encode() + model.one().tobytes(),
            load_,
            watcher,
            self._client,
            name_of=name_of,
            connections_max=CLIENTS_MAX,
        )


def name_of(status: int) -> str:
    """Of 1000 * ending + reason, as `farm.c` writes it."""
    ending, reason = divmod(status, 1000)
    return f"{Ending(ending).name.lower()}/{Reason(reason).code}"
