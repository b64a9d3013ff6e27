"""Other servers of the same models, measured beside the farm: each at its best, in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.target import Target

HTTP = (
    "fastapi-raw",
    "fastapi-json",
    "fastapi-batch",
    "fastapi-batch-json",
    "mosec",
    "mosec-batch",
    "litserve",
    "pytriton",
)


def _http(directory: str, name: str) -> Target:
    from bench.peers.http import KINDS, HttpPeer

    return HttpPeer(directory, name, KINDS[name])


def _ort(directory: str, name: str, processes: int | None, batch: int = 1) -> Target:
    from bench.peers.ort import OrtPeer

    return OrtPeer(name, processes, batch)


def _zeromq(directory: str) -> Target:
    from bench.peers.zeromq import ZeromqPeer

    return ZeromqPeer("zeromq")


def _unchecked(directory: str) -> Target:
    from bench.peers import unchecked

    found: Target = unchecked.target(directory, "farm-unchecked")
    return found


PEERS: dict[str, Callable[[str], Target]] = {
    "ort-1": partial(_ort, name="ort-1", processes=1),
    "ort-n": partial(_ort, name="ort-n", processes=None),
    "ort-n-batch8": partial(_ort, name="ort-n-batch8", processes=None, batch=8),
    "zeromq": _zeromq,
    "farm-unchecked": _unchecked,
    **{name: partial(_http, name=name) for name in HTTP},
}
"""Name to what makes it, given a directory for its files. Making one is cheap: nothing starts, little is imported."""
