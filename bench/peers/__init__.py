"""Other servers of the same models, measured beside the farm: each at its best, in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.peers.http import KINDS, HttpPeer
from bench.target import Target

PEERS: dict[str, Callable[[str], Target]] = {
    **{name: partial(HttpPeer, name=name, kind=kind) for name, kind in KINDS.items()},
}
"""Name to what makes it, given a directory for its files. Making one is cheap and starts nothing."""
