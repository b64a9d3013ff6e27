"""For tests of services that use the farm: `FakeFarm`, in the test's own process, with the clients' whole interface.

Nothing is imported here before it is asked for: pytest loads `farm.testing.plugin`, and with it this package, wherever
shmfarm is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from farm.testing.clients import FakeAsyncClient as FakeAsyncClient
    from farm.testing.clients import FakeClient as FakeClient
    from farm.testing.clock import Clock as Clock
    from farm.testing.clock import StillClock as StillClock
    from farm.testing.clock import WallClock as WallClock
    from farm.testing.endings import Scripted as Scripted
    from farm.testing.fake import Call as Call
    from farm.testing.fake import FakeFarm as FakeFarm
    from farm.testing.misuse import FakeMisused as FakeMisused

_HOMES = {
    "FakeFarm": "farm.testing.fake",
    "Call": "farm.testing.fake",
    "FakeClient": "farm.testing.clients",
    "FakeAsyncClient": "farm.testing.clients",
    "FakeMisused": "farm.testing.misuse",
    "Scripted": "farm.testing.endings",
    "Clock": "farm.testing.clock",
    "StillClock": "farm.testing.clock",
    "WallClock": "farm.testing.clock",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'farm.testing' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
