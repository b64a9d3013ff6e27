"""Between `farm.Farm` and the supervisor that it starts: frames of JSON on that supervisor's leash.

The caller sends one Start; the supervisor says Started or StartFailed, once. The leash's end of file, or the end of
the caller's process, stops the farm.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Start(msgspec.Struct, tag=True, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What to serve. `models`: name to path or table; None with `config` None: the embedded default.

    `temporary`: `runtime_dir` is the caller's own making and goes away with the farm.
    """

    models: dict[str, Any] | None
    config: str | None
    options: dict[str, Any]
    runtime_dir: str | None
    temporary: bool


class Started(msgspec.Struct, tag=True, frozen=True):
    runtime_dir: str


class StartFailed(msgspec.Struct, tag=True, frozen=True):
    """`kind` decides the error that the caller gets: `config` is a ConfigError, else Unavailable with it as reason."""

    kind: Literal["config", "load", "stopped"]
    message: str
    code: int


start_decoder = msgspec.json.Decoder(Start)
report_decoder: msgspec.json.Decoder[Started | StartFailed] = msgspec.json.Decoder(Started | StartFailed)
encode = msgspec.json.encode
