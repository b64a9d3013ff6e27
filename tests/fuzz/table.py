"""What is fuzzed. A new part plugs in here: a module with `run(content: bytes)`, which raises what is a fault, and
`seeds()`, valid inputs to begin with; and the largest input that is worth trying."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

CORPUS: Final = Path(__file__).with_name("corpus")


class Target(NamedTuple):
    """`share`: of the executions asked for; a cheap target takes more of them. `packages`: watched for coverage."""

    name: str
    does: str
    bytes_max: int
    share: int
    packages: tuple[str, ...]

    def load(self) -> ModuleType:
        return importlib.import_module(f"tests.fuzz.{self.name}")

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name


TARGETS: Final = {
    target.name: target
    for target in (
        Target("frames", "decoding of every lane", 4096, 60, ("shm.frames",)),
        Target("attach", "the router's door: attach handshakes", 512, 4, ("router.door", "router.arena", "shm.frames")),
        Target("control", "the control socket's door: operators' commands", 512, 6, ("farm.supervisor.door",)),
        Target("config", "configuration files", 16_384, 4, ("farm.config", "farm.strict", "farm.capacity", "tomllib")),
        Target("capacity", "capacity files", 1024, 16, ("farm.capacity", "farm.strict")),
        Target("rules", "conditions of rules, in CEL", 512, 8, ("router.rules",)),
        Target("machine", "the router's machine: turns of hostile requests", 512, 2, ("router",)),
    )
}
