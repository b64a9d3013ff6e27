"""How much memory this process may take, and who goes first when the host has none left.

The limit is RLIMIT_DATA: since Linux 4.7 it counts private writable mappings, which is what ONNX Runtime's arena and
malloc take. Clients' arenas and outputs in memory files are shared mappings, and files mapped to be read are not
writable: none of them counts, so a limit does not depend on how many clients there are. Tried with ONNX Runtime 1.32, a
limit of 512 MiB and runs that ask for 1 GiB, 64 GiB, 4 TiB, or for twice as much at each turn of a Loop: each ends with
an allocation failure that names the operator, and the next run is right.

Rejected: RLIMIT_AS counts clients' arenas and everything mapped; a watch on the resident size comes too late (that Loop
had 600 MiB after 0.07 s); a cgroup needs rights that a farm seldom has.
"""

from __future__ import annotations

import resource
from typing import Final

from workers.log import log

MIB: Final = 1024 * 1024

OWN_MIB: Final = 32
"""For this process's own frames, buffers and its watcher's stack of 8 MiB, on top of what was there before the load."""

OOM_SCORE: Final = 500
"""Half of the host's memory: the kernel ends a worker, which the farm replaces, before the router or a service."""


def limit(memory_mib: int) -> None:
    """From here on this process may take so much more than it has, for model and runs; 0: as much as there is."""
    if not memory_mib:
        return
    most = _taken_bytes() + (OWN_MIB + memory_mib) * MIB
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def go_first() -> None:
    """Let the kernel choose this process before others when memory runs out. Always allowed: only to ask for less needs
    rights."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            score = min(1000, int(file.read()) + OOM_SCORE)
            file.seek(0)
            file.write(str(score))
    except (OSError, ValueError) as error:
        log("oom_score_refused", error=error)


def ran_out(error: BaseException) -> bool:
    """Whether this error says that memory could not be had. ONNX Runtime has no class for it, only these words."""
    text = str(error)
    return isinstance(error, MemoryError) or any(word in text for word in ("bad_alloc", "Failed to allocate memory"))


def explain(memory_mib: int) -> str:
    """What to tell of it."""
    if not memory_mib:
        return "the host has not the memory that this takes"
    return f"this takes more memory than the {memory_mib} MiB that memory_mib in the model's section lets a worker have"


def _taken_bytes() -> int:
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
