"""What a result was measured on: without it, a figure compares with nothing."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from msgspec import Struct

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

LOOK_S = 0.4
"""Long enough for a share of CPUs from counters of 10 ms."""

PACKAGES = ("numpy", "onnxruntime", "pyzmq", "msgspec", "uvloop", "hdrhistogram")


class Ticks(Struct, frozen=True):
    """All CPUs so far, in clock ticks: given to others by the hypervisor, busy, and in all. What runs niced counts as
    busy too: on two CPUs it was seen to keep one of them from a farm whose processes had to share the other."""

    stolen: int
    busy: int
    all: int

    @classmethod
    def now(cls) -> Ticks:
        user, nice, system, idle, waiting, irq, softirq, stolen = (
            int(field) for field in _read("/proc/stat").splitlines()[0].split()[1:9]
        )
        busy = user + nice + system + irq + softirq
        return cls(stolen, busy, busy + idle + waiting + stolen)


def facts() -> dict[str, Any]:
    """CPU, cores, memory, kernel, governor, versions; what the kernel does not tell is None."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpus_of_host": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "kernel": platform.release(),
        "virtual": "hypervisor" in _read("/proc/cpuinfo"),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "transparent_huge_pages": _chosen(_read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "load_average": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def wait_quiet(limit_s: float, percent_max: float) -> bool:
    """Whether the host's CPUs came to rest in time, all but so many percent of them."""
    end_s = time.monotonic() + limit_s
    while True:
        before = Ticks.now()
        time.sleep(LOOK_S)
        now = Ticks.now()
        if 100 * (now.busy - before.busy) <= percent_max * max(1, now.all - before.all):
            return True
        if time.monotonic() >= end_s:
            return False


def same_host(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In what two results' hosts differ, of what moves figures."""
    return [
        f"{key}: {one.get(key)} and {other.get(key)}"
        for key in ("cpu", "cpus", "memory_mib", "kernel", "governor", "python", "versions")
        if one.get(key) != other.get(key)
    ]


def _cpu_model() -> str | None:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def _chosen(text: str) -> str | None:
    """Of a kernel's `always [madvise] never`."""
    return text.partition("[")[2].partition("]")[0] or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout, read from its files: git may not be there, or may mistrust the directory."""
    git = Path(__file__).resolve().parent.parent / ".git"
    head = _read(str(git / "HEAD")).strip()
    if head.startswith("ref: "):
        return (_read(str(git / head[5:])).strip() or None) and _read(str(git / head[5:])).strip()[:12]
    return head[:12] or None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
