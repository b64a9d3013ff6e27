"""Requests that kill workers, from the second death on: their input is copied, known again, and written down."""

from __future__ import annotations

import time
from collections.abc import Callable

from router import events as ev
from router.arena import Arena
from router.config import RouterConfig
from router.counters import Counters
from router.door import Client
from router.models import ModelState
from router.poison import Poison, copy_input, input_bytes, tensors_of
from router.quarantine import Case, Quarantine


class Killers:
    """`known` is empty while there is nothing to look for among arriving requests.

    owner_of: who has a session and where its memory is. later: calls after this turn of the loop.
    """

    def __init__(
        self,
        config: RouterConfig,
        folder: str,
        models: list[ModelState],
        owner_of: Callable[[int], tuple[Client, Arena] | None],
        counters: Counters,
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self._poison = Poison(config.poison_ms)
        self._quarantine = Quarantine(folder, config.quarantine_mib)
        self._kept = config.quarantine_mib > 0
        self._models = models
        self._owner_of = owner_of
        self._counters = counters
        self._later = later
        self.known = self._poison.known

    def keep(self, action: ev.Quarantine) -> None:
        """Two workers died of this request. Its slots are its client's again after this turn: copy now, write later."""
        owner, model = self._owner_of(action.session), self._models[action.model]
        if owner is None or model.signature is None or model.input_plan is None:
            return
        client, arena = owner
        killer = copy_input(action.request, model.input_plan, arena)
        if killer is not None:
            self._poison.learn(action.model, killer, time.monotonic_ns(), client.uid)
        case = Case(
            model=model.config.name,
            version=model.config.version,
            path=model.config.path,
            signature=model.signature,
            rows=action.request.rows,
            payload_bytes=input_bytes(tensors_of(action.request, model.input_plan)),
            kept=killer,
            workers=action.workers,
            client_pid=client.pid,
            client_title=client.title,
        )
        if self._kept:
            self._later(lambda: self._write(case))

    def marked(self, event: ev.RequestsArrived, turn: int) -> ev.RequestsArrived:
        """With those of its requests named that are known to kill workers."""
        owner = self._owner_of(event.session)
        if owner is None:
            return event
        plans = {model.index: model.input_plan for model in self._models if model.input_plan is not None}
        client, arena = owner
        found = self._poison.find(event.requests, plans, arena, turn, time.monotonic_ns(), client.uid)
        return ev.RequestsArrived(event.session, event.requests, found) if found else event

    def count(self) -> int:
        """Inputs that are refused now."""
        self._poison.forget(time.monotonic_ns())
        return len(self.known)

    def _write(self, case: Case) -> None:
        if self._quarantine.keep(case):
            self._counters.quarantined += 1
        else:
            self._counters.quarantine_failed += 1
