"""Configuration: a TOML text is a configuration or a ConfigError, and a configuration can be told to the children."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from farm import config
from farm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
_file: list[int] = []

RULES = b"""[models.m]
path = "m.onnx"
workers = "auto"
rows_per_second = 1e9
[models.m.rules]
features = {x = ["a", "b"]}
[[models.m.rules.rules]]
name = "big"
when = "a > 3"
answer = {y = [1, 2.5]}
[models.m.on]
shed = ["rules", "constant"]
[models.m.guard]
ranges = {y = [0, 1]}
"""


def seeds() -> list[bytes]:
    return [
        (ROOT / "configs" / "farm.toml").read_bytes()[:16_000],
        b'[models.m]\npath = "m.onnx"\n',
        b"[farm]\nisolation = 'group'\nservice_group = 'g'\n[models.'m x']\npath = 'm'\nconstant = {y = [[1]]}",
        RULES,
    ]


def run(content: bytes) -> None:
    if not _file:
        _file.append(os.memfd_create("config"))
    os.ftruncate(_file[0], 0)
    os.pwrite(_file[0], content, 0)
    try:
        read = config.load(f"/proc/self/fd/{_file[0]}")
    except ConfigError:
        return
    told = config.router_config(read)
    assert msgspec.json.decode(msgspec.json.encode(told), type=type(told)) == told
    for name in read.models:
        worker = config.worker_config(read, name, ())
        assert msgspec.json.decode(msgspec.json.encode(worker), type=type(worker)) == worker
