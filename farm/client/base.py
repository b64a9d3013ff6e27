"""What sync and async clients have in common at their surface: settings, argument checks, the look of a lease."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic_ns
from typing import Any, Final, Literal

from farm.client.catalog import Version
from farm.client.endpoint import Endpoint
from farm.client.engine import Engine
from farm.client.options import DEFAULTS, check_options, check_settings, deadline_ns_of
from farm.client.session import Session
from farm.client.tickets import Pending, Reap, Ticket, Watch
from shm.client import Model

READY_TIMEOUT_S: Final = 30.0
GATHERED_MAX: Final = 64
"""Requests that `submit(flush=False)` gathers before it sends them after all."""

Inputs = Mapping[str, Any] | Any
"""Input name to array, or one array for a model of one input."""


class BaseClient:
    """State and checks; no waiting. `_notify`, `_nudge` and `_unwatch` are called by the engine.

    A kind of client calls `fork.remember` as the last of its construction: what is half made cannot be made anew.
    """

    def __init__(
        self, endpoint: Endpoint | None, lane: str, slot_count: int, slot_bytes: int, title: str | None
    ) -> None:
        self._settings = check_settings(endpoint, lane, slot_count, slot_bytes, title or "")
        self._engine = Engine(self._settings, self._notify, self._nudge, self._unwatch)

    @property
    def lane(self) -> str:
        """Which way requests and replies go: `direct` or `zeromq`; what was asked for while nothing is attached."""
        session = self._engine.session
        return self._settings.lane if session is None else session.lane.name

    @property
    def transport(self) -> Literal["shm"]:
        """Which way tensors go."""
        return "shm"

    def _notify(self, pending: Pending) -> None:
        raise NotImplementedError

    def _nudge(self) -> None:
        raise NotImplementedError

    def _unwatch(self) -> None:
        """Before a descriptor is closed: stop watching them all."""

    def _after_fork(self) -> object:
        closed = self._engine.closed
        kept = self._engine.abandon()
        self._engine = Engine(self._settings, self._notify, self._nudge, self._unwatch)
        self._engine.closed = closed
        return kept

    def _ticket(
        self,
        model: str,
        inputs: object,
        deadline_ms: float | None,
        priority: int,
        version: Version,
        key: str | None,
        trace: str | None,
        fallback: Mapping[str, Any] | None,
        entered_ns: int | None = None,
    ) -> Ticket:
        """Raises:
        InvalidRequest: an argument is out of range.
        """
        if entered_ns is None:
            entered_ns = monotonic_ns()
        options = DEFAULTS
        if priority != 0 or key is not None or trace is not None or fallback is not None:
            options = check_options(priority, key, trace, fallback)
        ticket = Ticket(self._engine.next_id(), model, version, entered_ns, options)
        ticket.inputs = inputs
        if deadline_ms is not None:
            ticket.deadline_ns = entered_ns + deadline_ns_of(deadline_ms)
            ticket.explicit_deadline = True
        return ticket


def after(timeout_s: float) -> int:
    """CLOCK_MONOTONIC nanoseconds, so many seconds from now."""
    return monotonic_ns() + int(max(0.0, timeout_s) * 1e9)


def all_ready(timeout_s: float) -> Watch:
    """Every model of the farm can answer."""

    def holds(session: Session) -> bool:
        return all(model.ready for model in session.catalog.models())

    def lacking(session: Session) -> str:
        names = [f"{m.name} (version {m.version})" for m in session.catalog.models() if not m.ready]
        return f"not ready within {timeout_s:g} s: {', '.join(names)}; see `farm status`"

    return Watch(holds, after(timeout_s), lacking)


def attached(timeout_s: float) -> Watch:
    """There is a session."""
    return Watch(lambda session: True, after(timeout_s), lambda session: "")


def models_of(session: Session | None) -> list[Model]:
    return session.catalog.models() if session is not None else []


__all__ = ["BaseClient", "Inputs", "Reap", "after", "all_ready", "attached", "models_of"]
