"""Targets by name: the farm, ONNX Runtime sessions in process, and the peers where they are there."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from bench.farmload import LoadedFarm
from bench.farmtarget import FarmTarget
from bench.sessions import MODES, SessionTarget
from bench.target import Target, TargetFailed

FARMS: dict[str, str | None] = {"farm": None, "farm-direct": "direct", "farm-zeromq": "zeromq"}
"""Name to the lane that its clients take; None: what the scenario says."""

LOADED = "farm-c"


def names() -> list[str]:
    return [*FARMS, LOADED, *MODES, *_peers()]


def own_names() -> list[str]:
    """Of those that need no environment of their own."""
    return [*FARMS, LOADED, *MODES]


def get(name: str, directory: str) -> Target:
    """A target that keeps its files in the directory. Nothing is started yet.

    Raises:
        TargetFailed: there is none of that name.
    """
    if name in FARMS:
        return FarmTarget(directory, name, FARMS[name])
    if name == LOADED:
        return LoadedFarm(directory)
    if name in MODES:
        return SessionTarget(directory, name)
    peers = _peers()
    if name not in peers:
        raise TargetFailed(f"no target {name!r}; known are {', '.join(names())}")
    return peers[name](directory)


def _peers() -> dict[str, Callable[[str], Target]]:
    if importlib.util.find_spec("bench.peers") is None:
        return {}
    peers: dict[str, Callable[[str], Target]] = getattr(importlib.import_module("bench.peers"), "PEERS", {})
    return peers
