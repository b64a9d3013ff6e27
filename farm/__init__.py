"""The farm's public names, loaded when they are first asked for.

`import farm` itself pulls in neither numpy nor zmq: the supervisor and the command line live in this package too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farm.shadow import require_sibling

if TYPE_CHECKING:
    from farm.client import AsyncClient as AsyncClient
    from farm.client import Client as Client
    from farm.client.reply import Reply as Reply
    from farm.errors import AttachRefused as AttachRefused
    from farm.errors import Cancelled as Cancelled
    from farm.errors import ConfigError as ConfigError
    from farm.errors import DeadlineExceeded as DeadlineExceeded
    from farm.errors import FarmError as FarmError
    from farm.errors import InvalidRequest as InvalidRequest
    from farm.errors import ModelNotFound as ModelNotFound
    from farm.errors import NoFreeSlot as NoFreeSlot
    from farm.errors import Overloaded as Overloaded
    from farm.errors import ProtocolMismatch as ProtocolMismatch
    from farm.errors import RunFailed as RunFailed
    from farm.errors import Unavailable as Unavailable
    from farm.farm import Farm as Farm

    __version__: str

require_sibling("shm")

_HOMES = {
    "Client": "farm.client",
    "AsyncClient": "farm.client",
    "Reply": "farm.client.reply",
    "Farm": "farm.farm",
    "FarmError": "farm.errors",
    "InvalidRequest": "farm.errors",
    "ModelNotFound": "farm.errors",
    "Overloaded": "farm.errors",
    "DeadlineExceeded": "farm.errors",
    "RunFailed": "farm.errors",
    "NoFreeSlot": "farm.errors",
    "AttachRefused": "farm.errors",
    "Unavailable": "farm.errors",
    "ProtocolMismatch": "farm.errors",
    "ConfigError": "farm.errors",
    "Cancelled": "farm.errors",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("shmfarm")
    else:
        raise AttributeError(f"module 'farm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
