"""How many workers a model gets where the configuration says `workers = "auto"`: what a sweep has measured, for the
load that is expected, within the CPUs there are. `python -m bench sweep --capacity FILE` writes such a file."""

from __future__ import annotations

import math
import os
import stat
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from farm.cpus import ROUTER_THREADS
from farm.strict import Place, show

AUTO = "auto"

HEADROOM = 0.8
"""Of the measured capacity: at the knee itself queues are long already."""

FILE_BYTES_MAX = 2**20
"""Such a file has some hundred bytes."""

Positive = Annotated[float, Meta(gt=0)]


class Capacity(Struct, frozen=True, kw_only=True):
    """What so many workers of a model carried on a host. Other keys of the file are for people."""

    format: Annotated[int, Meta(ge=1, le=1)]
    model: str
    workers: Annotated[int, Meta(ge=1)]
    rows_per_second: Positive
    rows_per_second_per_worker: Positive


def read(path: str, place: Place) -> Capacity:
    """Raises:
    ConfigError: it cannot be read, or is no such file.
    """
    remedy = "it must be a file that `python -m bench sweep --capacity FILE` has written"
    try:
        # A FIFO would be waited for, and a device has no end.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise place.error(f"capacity = {show(path)}: it is no regular file; {remedy}")
            return msgspec.json.decode(file.read(FILE_BYTES_MAX), type=Capacity)
    except OSError as error:
        raise place.error(f"capacity = {show(path)}: {error.strerror}; {remedy}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        # ValueError: what is not UTF-8, and a NUL in the path.
        raise place.error(f"capacity = {show(path)}: {error}; {remedy}") from error


def workers_for(expected: float, capacity: Capacity | None, threads: int, models: int) -> int:
    """Workers of one of `models` models that are sized by themselves, each worker with so many threads; at least one.

    expected: rows a second, 0 where nobody knows: then as many as there are CPUs for, beside the router.
    """
    room = max(1, int(usable_cpus() - ROUTER_THREADS) // (threads * models))
    if capacity is None or not expected:
        return room
    needed = expected / (HEADROOM * capacity.rows_per_second_per_worker)
    return math.ceil(needed) if needed < room else room  # infinitely many, where one carries next to nothing


def usable_cpus() -> float:
    """CPUs that this process may use, a cgroup's quota counted."""
    from farm.supervisor import host

    quota = host.quota_cpus()
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else min(quota, allowed)


def is_auto(table: Any) -> bool:
    return isinstance(table, dict) and table.get("workers") == AUTO
