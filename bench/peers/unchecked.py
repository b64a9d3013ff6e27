"""The farm without what makes it a farm: no deadline, no check, no admission, no timer. To learn what these cost.

Only the bench can start it: no option leads here. Run by path in the place of `farm/launch.py`, this file starts the
same supervisor and workers, and a router whose machine and admission are the subclasses below. What stays on: decoding
of frames with its limits, the ledger of slots, and the counters, since each is one addition in the middle of other
lines; they take some 30 ns each.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

DEADLINE_MS_MIN = 1000.0
ROOT = Path(__file__).resolve().parents[2]


def target(directory: str, name: str) -> Any:
    """The farm as a target, started by way of this file."""
    from unittest.mock import patch

    from bench.farmtarget import FarmTarget
    from bench.target import Case, Load
    from farm import farm

    class UncheckedFarm(FarmTarget):
        def refuses(self, case: Case, load: Load) -> str | None:
            if load.open_loop or load.deadline_ms < DEADLINE_MS_MIN:
                return "keeps no deadline, and its ledger breaks where one passes: closed loops with long ones only"
            return super().refuses(case, load)

        def start(self, case: Case) -> None:
            with patch.object(farm, "launch", SimpleNamespace(__file__=os.path.abspath(__file__))):
                super().start(case)

    return UncheckedFarm(directory, name)


def _supervisor(leash: Any) -> int:
    from farm.supervisor import entry, spawning

    spawning.LAUNCH = os.path.abspath(__file__)
    return entry.main(leash)


def _router(leash: Any) -> int:
    from router import service

    vars(service)["RouterMachine"] = unchecked_machine()
    return service.main(leash)


def unchecked_machine() -> Any:
    """The class of a machine that queues what comes and dispatches it, whatever the time. Made on demand: when this
    file starts a process, `router` can be imported only after the launcher has seen to it."""
    from router import events as ev
    from router.admission import Admission
    from router.config import RouterConfig
    from router.ledger import Entry, Session
    from router.machine import RouterMachine
    from router.models import ModelState
    from router.roster import Worker
    from shm.client import Request

    class Unchecked(Admission):
        def take(self, session: Session, request: Request, now_ns: int, *, poison: bool = False) -> None:
            model = self._models[request.model]
            shape = None if request.tensors is None else model.shape_of(request)
            entry = Entry(session, request, now_ns, request.deadline_ns, 0, shape)
            self._ledger.open(entry)
            model.queue.push(entry, now_ns)

    class UncheckedMachine(RouterMachine):
        def __init__(self, config: RouterConfig) -> None:
            super().__init__(config, Unchecked)

        def handle(self, events: Any, now_ns: int) -> list[ev.Action]:
            for event in events:
                self._handlers[type(event)](event, now_ns)
            if self._admission.draining:
                self._finish_drain(now_ns)
            self._dispatch(now_ns)
            return self._outbox.collect()

        def _next_batch(self, model: ModelState, worker: Worker, now_ns: int) -> list[Entry] | None:
            return model.queue.take_batch(model.max_batch, model.members_max, now_ns)

    return UncheckedMachine


def _module(name: str, main: Any) -> str:
    module = ModuleType(name)
    module.main = main  # type: ignore[attr-defined]
    sys.modules[name] = module
    return name


def _launch() -> int:
    found = importlib.util.spec_from_file_location("farm_launch", ROOT / "farm" / "launch.py")
    assert found is not None and found.loader is not None
    launch = importlib.util.module_from_spec(found)
    found.loader.exec_module(launch)
    launch.SERVICES["supervisor"] = _module("unchecked_supervisor", _supervisor)
    launch.SERVICES["router"] = _module("unchecked_router", _router)
    code: int = launch.main()
    return code


if __name__ == "__main__":
    sys.exit(_launch())
