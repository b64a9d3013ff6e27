"""What one worker is told at its start. `farm.config` fills it from TOML; nothing here reads a file."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from shm.limits import MEMBERS_MAX


class SessionConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How ONNX Runtime runs a model."""

    intra_op_threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    inter_op_threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    spinning: bool = False
    """Threads that spin for work cost a whole CPU each; with processes pinned side by side that is someone else's."""
    optimization: Literal["off", "basic", "extended", "all"] = "all"
    batching: Literal["auto", "on", "off"] = "auto"
    """`on` declares rows independent, `auto` finds out with a probe at load, `off` runs each request alone."""


class GuardConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What an answer of the model must be, else it is none (reason `guard`)."""

    finite: bool = True
    """No output of a float type holds NaN or infinity."""
    ranges: dict[str, tuple[float, float]] = {}
    """By output: the least and the greatest value that it may hold."""


class WorkerConfig(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    version: Annotated[int, Meta(ge=1, le=2**31)] = 1
    path: str
    max_batch: Annotated[int, Meta(ge=1, le=MEMBERS_MAX)] = 32
    session: SessionConfig = SessionConfig()
    guard: GuardConfig | None = None
    cpus: tuple[int, ...] = ()
    """CPUs to run on; empty: wherever the kernel likes."""
    arenas_max: Annotated[int, Meta(ge=1)] = 64
    """Clients' arenas kept mapped; each mapping holds a descriptor."""
    output_mib_max: Annotated[int, Meta(ge=1)] = 256
    """The most that one request's outputs may take outside its slots."""
    memory_mib: Annotated[int, Meta(ge=0)] = 0
    """The most private memory that it may take for its model and its runs; 0: as much as there is."""
