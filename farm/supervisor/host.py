"""What the kernel says: CPUs and quota of this process, and what each process of the farm costs."""

from __future__ import annotations

import os
import socket
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
CGROUP_ROOT: Final = "/sys/fs/cgroup"


def allowed_cpus() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def quota_cpus(root: str = CGROUP_ROOT, membership: str = "/proc/self/cgroup") -> float | None:
    """The least `cpu.max` from our cgroup (version 2) up to the root, in CPUs; None without a limit."""
    path = _cgroup_path(membership)
    least = None
    while path is not None:
        quota = _read_quota(os.path.join(root, path.lstrip("/"), "cpu.max"))
        if quota is not None:
            least = quota if least is None else min(least, quota)
        path = os.path.dirname(path) if path != "/" else None
    return least


def _cgroup_path(membership: str) -> str | None:
    try:
        with open(membership) as lines:
            for line in lines:
                if line.startswith("0::"):
                    return line[3:].strip() or "/"
    except OSError:
        pass
    return None


def _read_quota(path: str) -> float | None:
    """`max 100000` or `150000 100000`: microseconds of time in each period."""
    try:
        with open(path) as file:
            quota, period = file.read().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def process_costs(pid: int) -> dict[str, float | int | None]:
    """Memory, CPU time, threads and descriptors of one process; None where the kernel does not say."""
    memory = _smaps(pid)
    private = [memory.get(key) for key in ("Private_Clean", "Private_Dirty", "Private_Hugetlb")]
    cpu_s, threads = _stat(pid)
    return {
        "pss_kib": memory.get("Pss"),
        "uss_kib": sum(part for part in private if part is not None) if memory else None,
        "rss_kib": memory.get("Rss"),
        "threads": threads,
        "open_fds": _open_fds(pid),
        "cpu_s": cpu_s,
    }


def _smaps(pid: int) -> dict[str, int]:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as lines:
            next(lines)
            return {key.rstrip(":"): int(value) for key, value, *_ in (line.split() for line in lines)}
    except (OSError, ValueError, StopIteration):
        return {}


def _stat(pid: int) -> tuple[float | None, int | None]:
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The name is in brackets and may hold anything, brackets too.
            fields = file.read().rpartition(")")[2].split()
        return round((int(fields[11]) + int(fields[12])) / _TICKS, 2), int(fields[17])
    except (OSError, ValueError, IndexError):
        return None, None


def _open_fds(pid: int) -> int | None:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def notify_systemd(state: str) -> None:
    """Tell systemd `READY=1` and the like, when it asked for it (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            pass
