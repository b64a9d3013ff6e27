"""The rows of `bench.check`: what is measured for each, and what must come out.

A measurement is a scenario as its file would say it; rows may share one. A verdict compares figures of the same repeat.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec import Struct

from bench import byhand
from bench.verdicts import Runs, Verdict, below, best, compare, held, told

BIDDING: dict[str, Any] = {"models": ["bidding"]}

PAYLOADS = {"256 B": 256, "4 KiB": 4096, "64 KiB": 65_536, "1 MiB": 1_048_576, "16 MiB": 16_777_216}
FLAT = 1.25
"""The longest of leased requests' p50 over the shortest: what is called flat on a host that others use too."""
MEMCPY_MARGIN = 1.25
LOADED = "farm-c"
"""The farm asked by the client in C that its HTTP peers are asked by: where those are compared with it, the load must
cost the host the same on both sides. What clients in Python get is told beside it."""
IN_PYTHON = "clients in Python"
CLIENTS_AND_ONE = (("40 clients", LOADED), ("1 client", "farm"))
"""Labels, and who is asked. One client with 40 in flight is always the public one."""


def closed(label: str, in_flight: int, caller: str, targets: list[str], **more: Any) -> dict[str, Any]:
    return {"label": label, "in_flight": in_flight, "caller": caller, "targets": targets, **more}


def opened(rate: int, targets: list[str], **more: Any) -> dict[str, Any]:
    return {"label": f"{rate}/s", "rate": rate, "targets": targets, **more}


MEASURES: dict[str, dict[str, Any]] = {
    "one": BIDDING | {"steps": [closed("1", 1, "infer", ["farm", "fastapi-raw", "mosec", "zeromq"])]},
    "forty": BIDDING
    | {
        "steps": [
            closed("40 clients", 40, "clients", ["farm-c", "farm", "mosec-batch"]),
            closed("1 client", 40, "submit", ["farm"]),
        ]
    },
    "open-16000": BIDDING | {"deadline_ms": 15.0, "steps": [opened(16_000, ["farm", "mosec-batch"])]},
    "open-50000": BIDDING | {"deadline_ms": 15.0, "steps": [opened(50_000, ["farm"])]},
    "open-low": BIDDING
    | {
        "steps": [opened(rate, ["farm-c", "farm", "fastapi-raw", "mosec"]) for rate in (1000, 4000)],
        "deadline_ms": 40.0,
    },
    "text": {
        "models": ["text"],
        "steps": [
            closed("40 clients", 40, "clients", ["farm-c", "farm", "mosec-batch", "ort-n-batch8"]),
            closed("1 client", 40, "submit", ["farm"]),
        ],
    },
    "audio": {
        "models": ["audio"],
        "max_batch": 1,
        "steps": [
            closed("20 clients", 20, "clients", ["farm-c", "farm", "ort-n", "mosec", "zeromq"]),
            closed("1 client", 20, "submit", ["farm"]),
        ],
    },
    "fastapi-batch": BIDDING
    | {"steps": [closed("40 clients", 40, "clients", ["farm-c", "fastapi-batch", "fastapi-batch-json"])]},
    "payload": {
        "models": ["payload-256"],
        "steps": [
            closed(f"{size}, {caller}", 1, caller, ["farm"], models=[f"payload-{count}"])
            for size, count in PAYLOADS.items()
            for caller in ("lease", "infer")
        ],
        "seconds": 1.0,
    },
    "checks": BIDDING
    | {
        "steps": [
            closed("40 clients", 40, "clients", ["farm", "farm-unchecked"]),
            closed("1 client", 40, "submit", ["farm", "farm-unchecked"]),
        ]
    },
}


def _one(runs: Runs) -> list[Verdict]:
    ours = runs.values("one", "1", "farm", "p50")
    verdicts = [compare("p50 ms against fastapi-raw", ours, runs.values("one", "1", "fastapi-raw", "p50"), at_most=0.9)]
    for peer in ("mosec", "zeromq"):
        verdicts.append(told(f"p50 ms against {peer}", ours, runs.values("one", "1", peer, "p50")))
    return verdicts


def _forty(runs: Runs) -> list[Verdict]:
    verdicts = []
    for label, ours in CLIENTS_AND_ONE:
        for figure, limit in (("per_second", {"least": 2.0}), ("p99", {"at_most": 1.0})):
            theirs = runs.values("forty", "40 clients", "mosec-batch", figure)
            claim = f"{label}: {figure} against mosec-batch"
            verdicts.append(compare(claim, runs.values("forty", label, ours, figure), theirs, **limit))
            if ours == LOADED:
                verdicts.append(told(f"{claim}, {IN_PYTHON}", runs.values("forty", label, "farm", figure), theirs))
    return verdicts


def _open_16000(runs: Runs) -> list[Verdict]:
    at = ("open-16000", "16000/s")
    ours = runs.values(*at, "farm", "p99")
    return [
        compare(
            "p99 ms against mosec-batch",
            ours,
            runs.values(*at, "mosec-batch", "p99"),
            at_most=0.6,
        ),
        below("p99.9 ms", runs.values(*at, "farm", "p999"), 5.0, "ms", runs.values(*at, "mosec-batch", "p999")),
        held("no request lost", runs.of(*at, "farm")),
    ]


def _cpu_16000(runs: Runs) -> list[Verdict]:
    figure = "cpu_us_per_request"
    ours, theirs = (runs.values("open-16000", "16000/s", name, figure) for name in ("farm", "mosec-batch"))
    alone = runs.values("open-50000", "50000/s", "farm", figure)
    return [
        compare("CPU us a request, 16000/s", ours, theirs, at_most=1.0),
        below("CPU us a request, 50000/s", alone, 25.0, "us"),
    ]


def _open_50000(runs: Runs) -> list[Verdict]:
    at = ("open-50000", "50000/s", "farm")
    return [held("50000/s held", runs.of(*at)), below("p99 ms", runs.values(*at, "p99"), 3.0, "ms")]


def _open_low(runs: Runs) -> list[Verdict]:
    verdicts = []
    for label in ("1000/s", "4000/s"):
        for figure, limit in (("p50", 1.0), ("p99", 0.5)):
            peers = [runs.values("open-low", label, name, figure) for name in ("fastapi-raw", "mosec")]
            claim = f"{label}: {figure} ms against the best peer"
            verdicts.append(compare(claim, runs.values("open-low", label, LOADED, figure), best(*peers), at_most=limit))
            in_python = runs.values("open-low", label, "farm", figure)
            verdicts.append(told(f"{claim}, {IN_PYTHON}", in_python, best(*peers)))
    return verdicts


def _text(runs: Runs) -> list[Verdict]:
    limit = runs.values("text", "40 clients", "ort-n-batch8", "per_second")
    theirs = runs.values("text", "40 clients", "mosec-batch", "p99")
    verdicts = []
    for label, target in CLIENTS_AND_ONE:
        rate, p99 = (runs.values("text", label, target, figure) for figure in ("per_second", "p99"))
        verdicts.append(compare(f"{label}: rows/s against the session alone", rate, limit, least=0.9))
        verdicts.append(compare(f"{label}: p99 ms against mosec-batch", p99, theirs, at_most=1))
    in_python = runs.values("text", "40 clients", "farm", "per_second")
    verdicts.append(told(f"40 clients: rows/s against the session alone, {IN_PYTHON}", in_python, limit))
    return verdicts


def _audio(runs: Runs) -> list[Verdict]:
    limit = runs.values("audio", "20 clients", "ort-n", "per_second")
    verdicts = []
    for label, target in (("1 client", "farm"), ("20 clients", LOADED)):
        rate, p99 = (runs.values("audio", label, target, figure) for figure in ("per_second", "p99"))
        verdicts.append(compare(f"{label}: answers/s against the session alone", rate, limit, least=0.97))
        ideal = {repeat: 20_000 / value for repeat, value in rate.items()}
        verdicts.append(compare(f"{label}: p99 ms against 20 / throughput", p99, ideal, at_most=1.15))
    for peer in ("mosec", "zeromq"):
        theirs = runs.values("audio", "20 clients", peer, "per_second")
        verdicts.append(told(f"answers/s against {peer}", rate, theirs))
    in_python = runs.values("audio", "20 clients", "farm", "per_second")
    verdicts.append(told(f"20 clients: answers/s against the session alone, {IN_PYTHON}", in_python, limit))
    return verdicts


def _audio_run(seconds: float) -> list[Verdict]:
    """Of a model run alone, which queueing does not touch; only where the limit's own is below it too."""
    ours, limit = byhand.audio_runs(seconds)
    return [
        Verdict(
            claim="p99 of a model run, ms (peer: the session alone)",
            holds=ours < 10.0 or limit >= 10.0,
            farm=ours,
            peer=limit,
            wanted="below 10 ms, as alone",
            miss=f"by {ours / 10 - 1:.0%}",
        )
    ]


def _fastapi_batch(runs: Runs) -> list[Verdict]:
    ours = runs.values("fastapi-batch", "40 clients", LOADED, "per_second")
    return [
        compare(
            f"answers/s against {name}",
            ours,
            runs.values("fastapi-batch", "40 clients", name, "per_second"),
            least=least,
        )
        for name, least in (("fastapi-batch-json", 20.0), ("fastapi-batch", 5.0))
    ]


def _memory(runs: Runs) -> list[Verdict]:
    ours, *theirs = (runs.values("one", "1", name, "pss_mib") for name in ("farm", "mosec", "zeromq"))
    limit_mib = 130e6 / 2**20
    return [
        below(f"PSS MiB of all processes (peer: {name})", ours, limit_mib, "MiB", peer)
        for name, peer in zip(("mosec", "zeromq"), theirs, strict=True)
    ]


def _start(runs: Runs) -> list[Verdict]:
    ours, theirs = (runs.values("one", "1", name, "start_s") for name in ("farm", "mosec"))
    return [below("s from start to first answer (peer: mosec)", ours, 0.75, "s", theirs)]


def _payload(runs: Runs) -> list[Verdict]:
    verdicts = []
    leased = [runs.values("payload", f"{size}, lease", "farm", "p50") for size in PAYLOADS]
    repeats = set[int]().union(*leased)
    most = {repeat: max(each[repeat] for each in leased if repeat in each) for repeat in repeats}
    least = {repeat: min(each[repeat] for each in leased if repeat in each) for repeat in repeats}
    verdicts.append(compare("leased: longest p50 ms against the shortest", most, least, at_most=FLAT))
    memcpy_ms = memcpy_ms_of(PAYLOADS["16 MiB"])
    small, large = (runs.values("payload", f"{size}, infer", "farm", "p50") for size in ("256 B", "16 MiB"))
    usual = statistics.median(small.values())
    growth = {repeat: value - small.get(repeat, usual) for repeat, value in large.items()}
    copies = dict.fromkeys(growth, memcpy_ms)
    verdicts.append(compare("copied: growth ms against one memcpy of 16 MiB", growth, copies, at_most=MEMCPY_MARGIN))
    return verdicts


def memcpy_ms_of(size: int) -> float:
    """The median of copies between arrays that take turns, as a client's inputs and slots do."""
    sources = [np.ones(size, np.uint8) for _ in range(2)]
    targets = [np.ones(size, np.uint8) for _ in range(2)]
    took = []
    for n in range(30):
        began = time.perf_counter()
        np.copyto(targets[n % 2], sources[n % 2])
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def _checks(runs: Runs) -> list[Verdict]:
    return [
        compare(
            f"{label}: answers/s against none",
            runs.values("checks", label, "farm", "per_second"),
            runs.values("checks", label, "farm-unchecked", "per_second"),
            least=0.85,
        )
        for label in ("40 clients", "1 client")
    ]


class Row(Struct, frozen=True):
    """by_hand: what is measured beside the scenarios; gets the seconds of a part."""

    name: str
    about: str
    measures: tuple[str, ...]
    judge: Callable[[Runs], list[Verdict]]
    by_hand: Callable[[float], list[Verdict]] | None = None


ROWS = (
    Row("one", "bidding, one request in flight", ("one",), _one),
    Row("forty", "bidding, 40 in flight", ("forty",), _forty),
    Row("open-16000", "bidding, open loop of 16,000 a second", ("open-16000",), _open_16000),
    Row("open-50000", "bidding, open loop of 50,000 a second", ("open-50000",), _open_50000),
    Row("open-low", "bidding, open loops of 1,000 and 4,000 a second", ("open-low",), _open_low),
    Row("cpu", "CPU of all server processes", ("open-16000", "open-50000"), _cpu_16000),
    Row("text", "a model that batching pays for", ("text",), _text),
    Row("audio", "a model of some milliseconds", ("audio",), _audio, _audio_run),
    Row("fastapi-batch", "FastAPI with batching of its own", ("fastapi-batch",), _fastapi_batch),
    Row("memory", "two workers of bidding", ("one",), _memory),
    Row("start", "from nothing to the first answer", ("one",), _start),
    Row("payload", "tensors from 256 B to 16 MiB", ("payload",), _payload),
    Row("checks", "deadlines, checks and counters on against none", ("checks",), _checks),
)
