"""Capacity files: bytes are what a sweep has measured, from which a number of workers follows, or a ConfigError."""

from __future__ import annotations

import os

from farm import capacity
from farm.errors import ConfigError
from farm.strict import Place

GOOD = (
    b'{"format":1,"model":"m","workers":2,"rows_per_second":90000.5,"rows_per_second_per_worker":45000.25,'
    b'"host":{"cpu":["a",null,true,-1e3]}}'
)
_file: list[int] = []


def seeds() -> list[bytes]:
    return [GOOD, b"[]", b"{}", GOOD.replace(b"45000.25", b"1e-300")]


def run(content: bytes) -> None:
    if not _file:
        _file.append(os.memfd_create("capacity"))
    os.ftruncate(_file[0], 0)
    os.pwrite(_file[0], content, 0)
    try:
        read = capacity.read(f"/proc/self/fd/{_file[0]}", Place("farm.toml", "[models.m]"))
    except ConfigError:
        return
    for expected in (0.0, 1.0, 1e9):
        assert capacity.workers_for(expected, read, 1, 1) >= 1
